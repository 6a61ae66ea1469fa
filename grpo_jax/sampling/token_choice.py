"""From logits to a token and its log-probability.

The log-probability returned is that of the whole distribution at the sampling temperature, over the ids
that may be sampled at all: the number that the loss differentiates. Top-k, top-p and min-p decide which
tokens may be chosen and leave it as it is, so it equals the trainer's whatever filters are on.

A token is found by one uniform number a row: the first id at which the running sum of probabilities
exceeds it. The sum runs over blocks first and inside one block then, so no pass beyond the softmax's own
touches the whole vocabulary.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

BLOCK = 512  # ids a block; two sums of about sqrt(V) would do, this one suits vector units
NEVER = -jnp.inf


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Names and meanings as in TRL and transformers."""

    temperature: float = 1.0  # > 0 divides the logits; 0 takes the likeliest token
    top_k: int = 0  # keep the k likeliest; 0 keeps all
    top_p: float = 1.0  # keep the likeliest that together reach this probability; (0, 1]
    min_p: float = 0.0  # keep what is at least this fraction of the likeliest; [0, 1]

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be 0 or more; got {self.temperature}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more; got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1]; got {self.top_p}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1]; got {self.min_p}.")


def choose(
    logits_BV: jax.Array, uniform_B: jax.Array, params: SamplingParams, *, num_valid_ids: int
) -> tuple[jax.Array, jax.Array]:
    """Chooses one token a row.

    Args:
        logits_BV: float32, as the head gives them.
        uniform_B: float32 in [0, 1).
        num_valid_ids: ids from here on are padding of the embedding and are never chosen.

    Returns: tokens int32 `[B]`; their log-probabilities float32 `[B]`, at most 0.
    """
    scaled_BV = scale_logits(logits_BV, temperature=params.temperature, num_valid_ids=num_valid_ids)
    if params.temperature == 0:
        token_B = jnp.argmax(scaled_BV, axis=-1)
    else:
        token_B = _inverse_cdf(_filtered(scaled_BV, params), uniform_B)
    chosen_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=-1)[:, 0]
    logprob_B = chosen_B - jax.nn.logsumexp(scaled_BV, axis=-1)
    return token_B.astype(jnp.int32), jnp.minimum(logprob_B, 0.0)


def scale_logits(logits: jax.Array, *, temperature: float, num_valid_ids: int) -> jax.Array:
    """float32 logits at a temperature (0 counts as 1), with minus infinity on ids never sampled.

    The learner scales its logits in the same way (`learning/token_logprobs.py`).
    """
    ids_V = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    scaled = logits.astype(jnp.float32) / (temperature or 1.0)
    return jnp.where(ids_V < num_valid_ids, scaled, NEVER)


def _filtered(scaled_BV: jax.Array, params: SamplingParams) -> jax.Array:
    """Minus infinity on what top-k, then top-p, then min-p leave out; nothing is sorted if all are off."""
    if params.top_k:
        kept = min(params.top_k, scaled_BV.shape[-1])
        threshold_B1 = jax.lax.top_k(scaled_BV, kept)[0][:, -1:]
        scaled_BV = jnp.where(scaled_BV >= threshold_B1, scaled_BV, NEVER)
    if params.top_p < 1:
        descending_BV = -jnp.sort(-scaled_BV, axis=-1)
        probability_BV = jax.nn.softmax(descending_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        kept_BV = jnp.where(before_BV < params.top_p, descending_BV, jnp.inf)
        scaled_BV = jnp.where(scaled_BV >= kept_BV.min(axis=-1, keepdims=True), scaled_BV, NEVER)
    if params.min_p > 0:
        threshold_B1 = scaled_BV.max(axis=-1, keepdims=True) + math.log(params.min_p)
        scaled_BV = jnp.where(scaled_BV >= threshold_B1, scaled_BV, NEVER)
    return scaled_BV


def _inverse_cdf(scaled_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The first id whose running probability exceeds the uniform number."""
    num_rows, vocab = scaled_BV.shape
    weights_BV = jnp.exp(scaled_BV - scaled_BV.max(axis=-1, keepdims=True))
    num_blocks = -(-vocab // BLOCK)
    padded = jnp.pad(weights_BV, ((0, 0), (0, num_blocks * BLOCK - vocab)))
    blocks_BnW = padded.reshape(num_rows, num_blocks, BLOCK)
    block_sums_Bn = blocks_BnW.sum(axis=-1)
    target_B = uniform_B * block_sums_Bn.sum(axis=-1)
    block_B, before_B = _first_exceeding(block_sums_Bn, target_B)
    inside_BW = jnp.take_along_axis(blocks_BnW, block_B[:, None, None], axis=1)[:, 0]
    offset_B, _ = _first_exceeding(inside_BW, target_B - before_B)
    return block_B * BLOCK + offset_B


def _first_exceeding(weights_BX: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index of the first running sum above the target, and the sum before it.

    Rounding may leave the target at or above the whole sum; the last index with weight is taken then,
    so that a token of probability 0 is never chosen.
    """
    running_BX = jnp.cumsum(weights_BX, axis=-1)
    index_B = (running_BX <= target_B[:, None]).sum(axis=-1)
    positions_X = jax.lax.broadcasted_iota(jnp.int32, weights_BX.shape, 1)
    last_B = jnp.where(weights_BX > 0, positions_X, 0).max(axis=-1)
    index_B = jnp.minimum(index_B, last_B)
    upto_B = jnp.take_along_axis(running_BX, index_B[:, None], axis=-1)[:, 0]
    own_B = jnp.take_along_axis(weights_BX, index_B[:, None], axis=-1)[:, 0]
    return index_B, upto_B - own_B
