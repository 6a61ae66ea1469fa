"""Attention of training: lines of segments that read a shared prompt and themselves.

Every form takes q `[U, T, K, M, H]` and k, v `[U, T, K, H]` of whole pieces (prompts, then lines; see
`structs.PackedTokens`) and gives `[U, T, K, M, H]`. None is causal alone: a segment never reads the one before
it in its line.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax.models import layers
from grpo_jax.structs import PackedTokens

QUERY_COLUMNS = (
    128  # queries that read one stretch of keys: longer ones read more masked keys, shorter ones more often
)

PackedAttend = Callable[[PackedTokens, jax.Array, jax.Array, jax.Array], jax.Array]


def positions(packed: PackedTokens) -> jax.Array:
    """int32 `[U, T]`: what each token's rotary angle is for."""
    num_pieces, num_prompts, columns = packed.prompts_UYZ.shape
    prompt_UX = jnp.broadcast_to(
        jnp.tile(jnp.arange(columns, dtype=jnp.int32), num_prompts)[None], (num_pieces, num_prompts * columns)
    )
    return jnp.concatenate([prompt_UX, packed.positions_UEW.reshape(num_pieces, -1)], axis=1)


def tokens(packed: PackedTokens) -> jax.Array:
    """int32 `[U, T]`: prompts, then lines."""
    num_pieces = len(packed.lines_UEW)
    return jnp.concatenate(
        [packed.prompts_UYZ.reshape(num_pieces, -1), packed.lines_UEW.reshape(num_pieces, -1)], axis=1
    )


def attend_xla(packed: PackedTokens, q_UTKMH: jax.Array, k_UTKH: jax.Array, v_UTKH: jax.Array) -> jax.Array:
    """Plain softmax attention, keys behind a stretch of queries left out; for any platform."""
    num_pieces, num_prompts, columns = packed.prompts_UYZ.shape
    of_prompts = num_prompts * columns
    shape = (num_pieces * packed.lines_UEW.shape[1], packed.lines_UEW.shape[2])
    q_BWKMH, k_BWKH, v_BWKH = (
        x[:, of_prompts:].reshape(*shape, *x.shape[2:]) for x in (q_UTKMH, k_UTKH, v_UTKH)
    )
    segments_BW = packed.segments_UEW.reshape(shape)
    if not num_prompts:
        return _attend_lines(segments_BW, None, q_BWKMH, k_BWKH, v_BWKH).reshape(q_UTKMH.shape)
    q_PZKMH, k_PZKH, v_PZKH = (
        x[:, :of_prompts].reshape(num_pieces * num_prompts, columns, *x.shape[2:])
        for x in (q_UTKMH, k_UTKH, v_UTKH)
    )
    valid_PZ = jnp.arange(columns)[None] < packed.prompt_length_UY.reshape(-1, 1)
    mixed_PZKMH = layers.attend_row(layers.causal_mask(valid_PZ), q_PZKMH, k_PZKH, v_PZKH)

    def of_lines(x_PZ: jax.Array) -> jax.Array:
        x_UYZ = x_PZ.reshape(num_pieces, num_prompts, *x_PZ.shape[1:])
        index = packed.prompt_of_line_UE.reshape(*packed.prompt_of_line_UE.shape, *(1,) * (x_UYZ.ndim - 2))
        return jnp.take_along_axis(x_UYZ, index, axis=1).reshape(shape[0], *x_PZ.shape[1:])

    prompt = (of_lines(valid_PZ), of_lines(k_PZKH), of_lines(v_PZKH))
    mixed_BWKMH = _attend_lines(segments_BW, prompt, q_BWKMH, k_BWKH, v_BWKH)
    flat = [x.reshape(num_pieces, -1, *x.shape[2:]) for x in (mixed_PZKMH, mixed_BWKMH)]
    return jnp.concatenate(flat, axis=1)


def _attend_lines(
    segments_BW: jax.Array,
    prompt: tuple[jax.Array, jax.Array, jax.Array] | None,
    q_BWKMH: jax.Array,
    k_BWKH: jax.Array,
    v_BWKH: jax.Array,
) -> jax.Array:
    """Each stretch of queries reads its prompt and the line up to its own end."""
    width = segments_BW.shape[1]
    mixed = []
    for start in range(0, width, QUERY_COLUMNS):
        end = min(start + QUERY_COLUMNS, width)
        own_BXW = segments_BW[:, start:end, None] == segments_BW[:, None, :end]
        mask_BXS = own_BXW & (jnp.arange(end)[None, None] <= jnp.arange(start, end)[None, :, None])
        k_BSKH, v_BSKH = k_BWKH[:, :end], v_BWKH[:, :end]
        if prompt is not None:
            valid_BZ, k_BZKH, v_BZKH = prompt
            valid_BXZ = jnp.broadcast_to(valid_BZ[:, None], (*mask_BXS.shape[:2], valid_BZ.shape[1]))
            mask_BXS = jnp.concatenate([valid_BXZ, mask_BXS], axis=2)
            k_BSKH = jnp.concatenate([k_BZKH, k_BSKH], axis=1)
            v_BSKH = jnp.concatenate([v_BZKH, v_BSKH], axis=1)
        mixed.append(layers.attend_row(mask_BXS, q_BWKMH[:, start:end], k_BSKH, v_BSKH))
    return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


PACKED_ATTENTIONS: dict[str, PackedAttend] = {"xla": attend_xla}
