"""Keys and values of what was already read, and attention over them.

A cache is one pair of arrays a layer (a stacked one would be copied on every layer of every step): keys
`[B, K, H, S]`, which is the layout the score matmul wants, and values `[B, K, S, H]`. During a window of
decode steps it is only read; the window's own keys and values gather in a small buffer of the same layout,
written at one column for all rows, and are appended to each row at the window's end.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models import layers


class Cache(NamedTuple):
    """Keys and values of all layers."""

    k: tuple[jax.Array, ...]  # L times [B, K, H, S]
    v: tuple[jax.Array, ...]  # L times [B, K, S, H]

    @property
    def num_positions(self) -> int:
        return self.k[0].shape[-1]


def from_rows(kept: list[tuple[jax.Array, jax.Array]], *, num_positions: int) -> Cache:
    """Turns each layer's `[B, T, K, H]` keys and values into a cache of `num_positions` >= T columns."""
    grow = num_positions - kept[0][0].shape[1]
    k = tuple(jnp.pad(k.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), (0, grow))) for k, _ in kept)
    v = tuple(jnp.pad(v.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, grow), (0, 0))) for _, v in kept)
    return Cache(k, v)


def window_like(cache: Cache, num_steps: int) -> Cache:
    """An empty buffer of `num_steps` columns for the same rows."""
    k = tuple(jnp.zeros((*x.shape[:3], num_steps), x.dtype) for x in cache.k)
    v = tuple(jnp.zeros((*x.shape[:2], num_steps, x.shape[3]), x.dtype) for x in cache.v)
    return Cache(k, v)


def write_column(cache: Cache, layer: int, k_BKH: jax.Array, v_BKH: jax.Array, column: jax.Array) -> Cache:
    """Writes one token a row into the same column of all rows."""
    k = jax.lax.dynamic_update_slice_in_dim(cache.k[layer], k_BKH[..., None], column, axis=3)
    v = jax.lax.dynamic_update_slice_in_dim(cache.v[layer], v_BKH[:, :, None], column, axis=2)
    return Cache(_replaced(cache.k, layer, k), _replaced(cache.v, layer, v))


def append_window(cache: Cache, window: Cache, length_B: jax.Array) -> Cache:
    """Writes each row's window behind its first `length_B` columns; S must hold length + window."""
    write_k = jax.vmap(lambda whole, new, start: jax.lax.dynamic_update_slice(whole, new, (0, 0, start)))
    write_v = jax.vmap(lambda whole, new, start: jax.lax.dynamic_update_slice(whole, new, (0, start, 0)))
    k = tuple(write_k(whole, new, length_B) for whole, new in zip(cache.k, window.k, strict=True))
    v = tuple(write_v(whole, new, length_B) for whole, new in zip(cache.v, window.v, strict=True))
    return Cache(k, v)


def grow(cache: Cache, num_positions: int) -> Cache:
    """The same cache with empty columns added up to `num_positions`."""
    more = num_positions - cache.num_positions
    k = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))) for x in cache.k)
    v = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in cache.v)
    return Cache(k, v)


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Row p becomes rows p * times ... p * times + times - 1: a prompt's cache for its whole group."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), cache)


def attend(
    q_BKMH: jax.Array,
    cache: Cache,
    window: Cache,
    layer: int,
    *,
    length_B: jax.Array,
    column: jax.Array,
) -> jax.Array:
    """One query a row over its cached columns and the window's columns up to `column`.

    The M queries of a key/value head share one read of its keys and values. Scores and softmax are
    float32. Returns `[B, K, M, H]`.
    """
    in_cache_BS = jnp.arange(cache.num_positions)[None] < length_B[:, None]
    in_window_W = jnp.arange(window.num_positions) <= column
    scores = [
        _scores(q_BKMH, cache.k[layer], in_cache_BS[:, None, None]),
        _scores(q_BKMH, window.k[layer], in_window_W[None, None, None]),
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q_BKMH.dtype)
    of_cache, of_window = jnp.split(weights, [cache.num_positions], axis=-1)
    mixed = _mix(of_cache, cache.v[layer]) + _mix(of_window, window.v[layer])
    return mixed.astype(q_BKMH.dtype)


def _scores(q_BKMH: jax.Array, k_BKHS: jax.Array, readable: jax.Array) -> jax.Array:
    scores = jnp.einsum("BKMH,BKHS->BKMS", q_BKMH, k_BKHS, preferred_element_type=jnp.float32)
    return jnp.where(readable, scores * (q_BKMH.shape[-1] ** -0.5), layers.MASKED)


def _mix(weights_BKMS: jax.Array, v_BKSH: jax.Array) -> jax.Array:
    return jnp.einsum("BKMS,BKSH->BKMH", weights_BKMS, v_BKSH, preferred_element_type=jnp.float32)


def _replaced(items: tuple[jax.Array, ...], index: int, item: jax.Array) -> tuple[jax.Array, ...]:
    return (*items[:index], item, *items[index + 1 :])
