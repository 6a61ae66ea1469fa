"""Log-probabilities and entropies of completion tokens without an array of [B, T, V].

The head runs over tiles of places; each tile's logits live only while its log-sum-exp, its targets' logits
and its entropy are taken, in float32. The backward pass makes a tile's logits again and keeps nothing but
the log-sum-exp and the entropy; where one tile holds all places, its logits stay for it, since it would make
the same array again. Rows stay whole in every tile, so a tile is cut over the mesh as its rows are.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

TILE_BYTES = {
    "cpu": 128 << 20,
    "default": 640 << 20,
}  # of one device's logits: 1,102 tokens of Qwen's on a GPU
LEAST_TILE = 128  # tokens: fewer would read the head for too little work
_NEVER = -1e30  # finite: its probability is 0 and 0 * logit stays 0 in the entropy


def token_logprobs(
    hidden_BCD: jax.Array,
    head_VD: jax.Array,
    targets_BC: jax.Array,
    *,
    temperature: float,
    num_valid_ids: int,
    tile_columns: int,
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy of each distribution, in nats.

    Args:
        hidden_BCD: normed hidden states that predict the targets; their dtype is that of the matmuls.
        head_VD: output matrix, any float dtype.
        targets_BC: int32.
        temperature: divides the logits; 0 counts as 1, as in `sampling/token_choice.py`.
        num_valid_ids: ids from here on have probability 0, as for the sampler.
        tile_columns: columns of a row whose logits exist at once; `default_tile` where a device has one row.
        entropy_gradient: the entropy is differentiated too; without it, it is a constant to the gradient.

    Returns: two float32 `[B, C]`.
    """
    return _token_logprobs(
        hidden_BCD, head_VD, targets_BC, temperature, num_valid_ids, tile_columns, entropy_gradient
    )


def default_tile(vocab_size: int, platform: str) -> int:
    """Tokens whose float32 logits fill `TILE_BYTES` on a platform."""
    limit = TILE_BYTES.get(platform, TILE_BYTES["default"])
    return max(limit // (4 * vocab_size) // 8 * 8, LEAST_TILE)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _token_logprobs(hidden_BCD, head_VD, targets_BC, temperature, num_valid, tile_columns, entropy_gradient):
    return _forward(hidden_BCD, head_VD, targets_BC, temperature, num_valid, tile_columns, entropy_gradient)[
        0
    ]


def _forward(hidden_BCD, head_VD, targets_BC, temperature, num_valid, tile_columns, entropy_gradient):
    tiles = _cut((hidden_BCD, targets_BC), tile_columns)
    head = head_VD.astype(hidden_BCD.dtype)
    read = partial(_read_tile, head, temperature=temperature, num_valid=num_valid)
    logits = None
    if len(tiles[0]) == 1:
        scored, logits = read(*(x[0] for x in tiles))
        scored = tuple(x[None] for x in scored)
    else:
        _, scored = jax.lax.scan(lambda _, tile: (None, read(*tile)[0]), None, tiles)
    logprobs_BC, entropy_BC, log_sum_BC = (_join(x, targets_BC.shape[1]) for x in scored)
    return (logprobs_BC, entropy_BC), (hidden_BCD, head_VD, targets_BC, log_sum_BC, entropy_BC, logits)


def _backward(temperature, num_valid, tile_columns, entropy_gradient, saved, gradients):
    hidden_BCD, head_VD, targets_BC, log_sum_BC, entropy_BC, logits = saved
    head = head_VD.astype(hidden_BCD.dtype)
    scale = 1.0 / (temperature or 1.0)

    def of_tile(inputs, logits_BcV=None):
        hidden_BcD, targets_Bc, log_sum_Bc, entropy_Bc, of_logprob_Bc, of_entropy_Bc = inputs
        if logits_BcV is None:
            logits_BcV = _tile_logits(head, hidden_BcD, temperature, num_valid)
        logprob_BcV = logits_BcV - log_sum_Bc[..., None]
        through_p = of_logprob_Bc[..., None]
        if entropy_gradient:  # d logprob = onehot - p;  d entropy = -p * (log p + entropy)
            through_p = through_p + of_entropy_Bc[..., None] * (logprob_BcV + entropy_Bc[..., None])
        is_target_BcV = jax.lax.broadcasted_iota(jnp.int32, logits_BcV.shape, 2) == targets_Bc[..., None]
        gradient_BcV = (
            jnp.where(is_target_BcV, of_logprob_Bc[..., None], 0.0) - jnp.exp(logprob_BcV) * through_p
        )
        gradient_BcV = (gradient_BcV * scale).astype(hidden_BcD.dtype)
        hidden_gradient_BcD = jnp.einsum("BcV,VD->BcD", gradient_BcV, head)
        head_gradient_VD = jnp.einsum(
            "BcV,BcD->VD", gradient_BcV, hidden_BcD, preferred_element_type=jnp.float32
        )
        return head_gradient_VD, hidden_gradient_BcD

    def add_tile(head_gradient_VD, tile):
        of_head_VD, of_hidden_BcD = of_tile(tile)
        return head_gradient_VD + of_head_VD, of_hidden_BcD

    tiles = _cut((hidden_BCD, targets_BC, log_sum_BC, entropy_BC, *gradients), tile_columns)
    if logits is not None:
        head_gradient_VD, of_hidden_BcD = of_tile(tuple(x[0] for x in tiles), logits)
        of_hidden = of_hidden_BcD[None]
    else:
        head_gradient_VD, of_hidden = jax.lax.scan(add_tile, jnp.zeros(head_VD.shape, jnp.float32), tiles)
    return _join(of_hidden, targets_BC.shape[1]), head_gradient_VD.astype(head_VD.dtype), None


_token_logprobs.defvjp(_forward, _backward)


def _read_tile(
    head_VD: jax.Array, hidden_BcD: jax.Array, targets_Bc: jax.Array, *, temperature: float, num_valid: int
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    """(log-probability, entropy, log-sum-exp) `[B, c]` and the logits that they come from."""
    logits_BcV = _tile_logits(head_VD, hidden_BcD, temperature, num_valid)
    largest_Bc = logits_BcV.max(axis=-1)
    below_BcV = logits_BcV - largest_Bc[..., None]
    total_Bc = jnp.exp(below_BcV).sum(axis=-1)
    log_total_Bc = jnp.log(total_Bc)
    # Both terms count from the largest logit: no difference of large numbers. The second is the mean of -below,
    # inside the exponential: a sum of products takes XLA on a CPU ten times as long.
    entropy_Bc = (
        log_total_Bc + jnp.exp(below_BcV + jnp.log(jnp.maximum(-below_BcV, 0.0))).sum(axis=-1) / total_Bc
    )
    chosen_Bc = jnp.take_along_axis(below_BcV, targets_Bc[..., None], axis=-1)[..., 0]
    logprob_Bc = jnp.minimum(chosen_Bc - log_total_Bc, 0.0)
    return (logprob_Bc, entropy_Bc, largest_Bc + log_total_Bc), logits_BcV


def _tile_logits(head_VD: jax.Array, hidden_BcD: jax.Array, temperature: float, num_valid: int) -> jax.Array:
    logits_BcV = jnp.einsum("BcD,VD->BcV", hidden_BcD, head_VD, preferred_element_type=jnp.float32)
    logits_BcV = logits_BcV / (temperature or 1.0)
    if num_valid >= head_VD.shape[0]:
        return logits_BcV
    ids_BcV = jax.lax.broadcasted_iota(jnp.int32, logits_BcV.shape, 2)
    return jnp.where(ids_BcV < num_valid, logits_BcV, _NEVER)


def _cut(arrays: tuple[jax.Array, ...], tile_columns: int) -> tuple[jax.Array, ...]:
    """Each `[B, C, ...]` -> `[tiles, B, c, ...]`, padded with zeros behind."""
    num_rows, length = arrays[0].shape[:2]
    num_tiles = max(1, -(-length // tile_columns))
    width = -(-length // num_tiles)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, num_tiles * width - length), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(num_rows, num_tiles, width, *x.shape[2:]), 1, 0)

    return tuple(cut(x) for x in arrays)


def _join(tiles: jax.Array, length: int) -> jax.Array:
    """The inverse of `_cut`."""
    joined = jnp.moveaxis(tiles, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :length]
