"""Keys and values of what was already read, and attention over them.

A cache is one pair of arrays a layer (a stacked one would be copied on every layer of every step): keys
`[B, K, H, S]`, which is the layout the score matmul wants, and values `[B, K, S, H]`. A row fills columns from
the left, as many as it is long. The last W columns are the window: during W decode steps the keys and values
of each step go to one column there, the same for all rows whatever their length, and at the window's end
they are copied behind each row's own columns. A write to a column that differs by row would be a scatter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models import decode_attention


class Cache(NamedTuple):
    """Keys and values of all layers."""

    k: tuple[jax.Array, ...]  # L times [B, K, H, S]
    v: tuple[jax.Array, ...]  # L times [B, K, S, H]

    @property
    def num_positions(self) -> int:
        return self.k[0].shape[-1]


def empty(
    num_layers: int, rows_heads_width: tuple[int, int, int], *, num_positions: int, dtype: Any
) -> Cache:
    """A cache of zeros for B rows, K heads of width H."""
    rows, heads, width = rows_heads_width
    k = tuple(jnp.zeros((rows, heads, width, num_positions), dtype) for _ in range(num_layers))
    v = tuple(jnp.zeros((rows, heads, num_positions, width), dtype) for _ in range(num_layers))
    return Cache(k, v)


def from_rows(kept: list[tuple[jax.Array, jax.Array]]) -> Cache:
    """Turns each layer's `[B, T, K, H]` keys and values into a cache of T columns."""
    k = tuple(k.transpose(0, 2, 3, 1) for k, _ in kept)
    v = tuple(v.transpose(0, 2, 1, 3) for _, v in kept)
    return Cache(k, v)


def write_column(cache: Cache, layer: int, k_BKH: jax.Array, v_BKH: jax.Array, column: jax.Array) -> Cache:
    """Writes one token a row into the same column of all rows."""
    k = jax.lax.dynamic_update_slice_in_dim(cache.k[layer], k_BKH[..., None], column, axis=3)
    v = jax.lax.dynamic_update_slice_in_dim(cache.v[layer], v_BKH[:, :, None], column, axis=2)
    return Cache(_replaced(cache.k, layer, k), _replaced(cache.v, layer, v))


def append_window(cache: Cache, length_B: jax.Array, *, num_steps: int) -> Cache:
    """Copies the window, the last `num_steps` columns, behind each row's first `length_B` columns.

    A row for which there is no room is spoilt: its window lands further left.
    """
    write_k = jax.vmap(lambda whole, new, start: jax.lax.dynamic_update_slice(whole, new, (0, 0, start)))
    write_v = jax.vmap(lambda whole, new, start: jax.lax.dynamic_update_slice(whole, new, (0, start, 0)))
    k = tuple(write_k(x, x[..., -num_steps:], length_B) for x in cache.k)
    v = tuple(write_v(x, x[:, :, -num_steps:], length_B) for x in cache.v)
    return Cache(k, v)


def grow(x: jax.Array, *, num_positions: int, axis: int) -> jax.Array:
    """One array of a cache with empty columns added up to `num_positions`."""
    more = [(0, 0)] * x.ndim
    more[axis] = (0, num_positions - x.shape[axis])
    return jnp.pad(x, more)


def attend(
    q_BKMH: jax.Array,
    cache: Cache,
    layer: int,
    *,
    length_B: jax.Array,
    step: jax.Array,
    num_steps: int,
    attention: str = "xla",
    mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
    """One query a row over its filled columns and over the window's up to the present step.

    The M queries of a key/value head share one read of its keys and values. Scores and softmax are
    float32. Returns `[B, K, M, H]`.

    Args:
        step: which of the window's `num_steps` columns was written last.
        attention: how the filled columns are read, a key of `decode_attention.ATTENTIONS`.
        mesh: what rows and heads are cut over; needed by kernels where it has more than one device.
    """
    k_BKHS, v_BKSH = cache.k[layer], cache.v[layer]
    if attention == "xla":
        column_S = jnp.arange(cache.num_positions)
        since_S = column_S - (cache.num_positions - num_steps)  # the window's columns count from 0
        readable_BS = (column_S[None] < length_B[:, None]) | ((since_S >= 0) & (since_S <= step))[None]
        mixed_BKMH, _ = decode_attention.over_columns(q_BKMH, k_BKHS, v_BKSH, readable_BS)
        return mixed_BKMH.astype(q_BKMH.dtype)
    of_cache = decode_attention.over_cache(attention, q_BKMH, k_BKHS, v_BKSH, length_B, mesh=mesh)
    window = k_BKHS[..., -num_steps:], v_BKSH[:, :, -num_steps:]
    of_window = decode_attention.over_columns(q_BKMH, *window, (jnp.arange(num_steps) <= step)[None])
    mixed_BKMH, _ = decode_attention.join([of_cache, of_window])
    return mixed_BKMH.astype(q_BKMH.dtype)


def _replaced(items: tuple[jax.Array, ...], index: int, item: jax.Array) -> tuple[jax.Array, ...]:
    return (*items[:index], item, *items[index + 1 :])
