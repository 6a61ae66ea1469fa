"""Log-probabilities and entropies of completion tokens without an array of [B, T, V].

The head runs over tiles of positions; each tile's logits live only while its log-sum-exp, its targets'
logits and its entropy are taken, in float32. The backward pass makes the tile's logits again and keeps
nothing but the log-sum-exp and the entropy. Rows stay whole in every tile, so a tile is cut over the mesh
as its rows are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

TILE_TOKENS = 1024  # logits of one tile: TILE_TOKENS * V * 4 bytes over all devices (622 MB for Qwen)
_NEVER = -1e30  # finite: its probability is 0 and 0 * logit stays 0 in the entropy


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def token_logprobs(
    hidden_BCD: jax.Array,
    head_VD: jax.Array,
    targets_BC: jax.Array,
    temperature: float,
    num_valid_ids: int,
    tile_tokens: int = TILE_TOKENS,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy of each distribution, in nats.

    Args:
        hidden_BCD: normed hidden states that predict the targets; their dtype is that of the matmuls.
        head_VD: output matrix, any float dtype.
        targets_BC: int32.
        temperature: divides the logits; 0 counts as 1, as in `sampling/token_choice.py`.
        num_valid_ids: ids from here on have probability 0, as for the sampler.
        tile_tokens: about how many tokens' logits exist at once.

    Returns: two float32 `[B, C]`. Both can be differentiated.
    """
    return _forward(hidden_BCD, head_VD, targets_BC, temperature, num_valid_ids, tile_tokens)[0]


def _forward(hidden_BCD, head_VD, targets_BC, temperature, num_valid_ids, tile_tokens):
    head = head_VD.astype(hidden_BCD.dtype)

    def tile(_, inputs):
        hidden_BcD, targets_Bc = inputs
        logits_BcV = _tile_logits(hidden_BcD, head, temperature, num_valid_ids)
        log_sum_Bc = jax.nn.logsumexp(logits_BcV, axis=-1)
        chosen_Bc = jnp.take_along_axis(logits_BcV, targets_Bc[..., None], axis=-1)[..., 0]
        logprob_BcV = logits_BcV - log_sum_Bc[..., None]
        entropy_Bc = -(jnp.exp(logprob_BcV) * logprob_BcV).sum(axis=-1)  # no difference of large numbers
        return None, (jnp.minimum(chosen_Bc - log_sum_Bc, 0.0), entropy_Bc, log_sum_Bc)

    tiles = _cut((hidden_BCD, targets_BC), tile_tokens)
    _, outputs = jax.lax.scan(tile, None, tiles)
    logprobs_BC, entropy_BC, log_sum_BC = (_join(x, targets_BC.shape[1]) for x in outputs)
    return (logprobs_BC, entropy_BC), (hidden_BCD, head_VD, targets_BC, log_sum_BC, entropy_BC)


def _backward(temperature, num_valid_ids, tile_tokens, saved, gradients):
    hidden_BCD, head_VD, targets_BC, log_sum_BC, entropy_BC = saved
    head = head_VD.astype(hidden_BCD.dtype)
    scale = 1.0 / (temperature or 1.0)

    def tile(head_gradient_VD, inputs):
        hidden_BcD, targets_Bc, log_sum_Bc, entropy_Bc, of_logprob_Bc, of_entropy_Bc = inputs
        logits_BcV = _tile_logits(hidden_BcD, head, temperature, num_valid_ids)
        logprob_BcV = logits_BcV - log_sum_Bc[..., None]
        probability_BcV = jnp.exp(logprob_BcV)
        # d logprob = onehot - p;  d entropy = -p * (log p + entropy)
        through_p_BcV = of_logprob_Bc[..., None] + of_entropy_Bc[..., None] * (
            logprob_BcV + entropy_Bc[..., None]
        )
        is_target_BcV = jax.lax.broadcasted_iota(jnp.int32, logits_BcV.shape, 2) == targets_Bc[..., None]
        gradient_BcV = (
            jnp.where(is_target_BcV, of_logprob_Bc[..., None], 0.0) - probability_BcV * through_p_BcV
        )
        gradient_BcV = (gradient_BcV * scale).astype(hidden_BcD.dtype)
        hidden_gradient_BcD = jnp.einsum("BcV,VD->BcD", gradient_BcV, head)
        head_gradient_VD = head_gradient_VD + jnp.einsum(
            "BcV,BcD->VD", gradient_BcV, hidden_BcD, preferred_element_type=jnp.float32
        )
        return head_gradient_VD, hidden_gradient_BcD

    tiles = _cut((hidden_BCD, targets_BC, log_sum_BC, entropy_BC, *gradients), tile_tokens)
    head_gradient_VD, hidden_gradient = jax.lax.scan(tile, jnp.zeros(head_VD.shape, jnp.float32), tiles)
    hidden_gradient_BCD = _join(hidden_gradient, targets_BC.shape[1])
    return hidden_gradient_BCD, head_gradient_VD.astype(head_VD.dtype), None


token_logprobs.defvjp(_forward, _backward)


def _tile_logits(
    hidden_BcD: jax.Array, head_VD: jax.Array, temperature: float, num_valid_ids: int
) -> jax.Array:
    logits_BcV = jnp.einsum("BcD,VD->BcV", hidden_BcD, head_VD, preferred_element_type=jnp.float32)
    ids_BcV = jax.lax.broadcasted_iota(jnp.int32, logits_BcV.shape, 2)
    return jnp.where(ids_BcV < num_valid_ids, logits_BcV / (temperature or 1.0), _NEVER)


def _cut(arrays: tuple[jax.Array, ...], tile_tokens: int) -> Any:
    """Each `[B, C, ...]` -> `[tiles, B, c, ...]`, padded with zeros behind."""
    num_rows, length = arrays[0].shape[:2]
    num_tiles = min(length, max(1, -(-num_rows * length // tile_tokens)))
    width = -(-length // num_tiles)
    num_tiles = -(-length // width)  # rounding the width up may have left whole tiles of padding

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, num_tiles * width - length), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(num_rows, num_tiles, width, *x.shape[2:]), 1, 0)

    return tuple(cut(x) for x in arrays)


def _join(tiles: jax.Array, length: int) -> jax.Array:
    """The inverse of `_cut`."""
    joined = jnp.moveaxis(tiles, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :length]
