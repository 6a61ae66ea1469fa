"""How much a sampled token counts beyond its advantage: the sampler's gap, and the entropy it was drawn at.

The sampler computes its log-probabilities by another program, maybe from rounded weights, so its policy is
not quite the trainer's. `exp(old - sampler)` mends that in expectation; capping or dropping large weights
keeps the variance small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.learning.losses import limited_exp


class Correction(NamedTuple):
    """Over what the weight is taken, and what becomes of one above the cap."""

    log_weight: Callable[[jax.Array, jax.Array], jax.Array]  # (gap_BC, mask_BC) -> [B, C]
    limit: Callable[[jax.Array, float], jax.Array]  # (weight_BC, cap) -> [B, C]


def of_token(gap_BC: jax.Array, mask_BC: jax.Array) -> jax.Array:
    """`old - sampler` of each token."""
    return gap_BC


def of_sequence(gap_BC: jax.Array, mask_BC: jax.Array) -> jax.Array:
    """`old - sampler` summed over the completion: the ratio of its whole probability, at each token."""
    return jnp.broadcast_to((gap_BC * mask_BC).sum(axis=1, keepdims=True), gap_BC.shape)


def truncate(weight_BC: jax.Array, cap: float) -> jax.Array:
    """Weights above the cap count as the cap. Source: Ionides 2008; Yao et al. 2025, TIS."""
    return jnp.minimum(weight_BC, cap)


def drop(weight_BC: jax.Array, cap: float) -> jax.Array:
    """Weights above the cap count 0. Source: Team Ling 2025 (IcePop)."""
    return jnp.where(weight_BC > cap, 0.0, weight_BC)


SAMPLER_CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "token_truncate": Correction(of_token, truncate),
    "token_mask": Correction(of_token, drop),
    "sequence_truncate": Correction(of_sequence, truncate),
    "sequence_mask": Correction(of_sequence, drop),
}
"""`sampler_correction`; TRL calls it `vllm_importance_sampling_mode`."""


def sampler_weights(
    gap_BC: jax.Array, mask_BC: jax.Array, *, correction: str, cap: float, clamp: float
) -> tuple[jax.Array, jax.Array]:
    """`exp(old - sampler)`, limited by `cap` as the correction says; no gradient passes.

    Args:
        gap_BC: old less sampler log-probability, 0 where masked.
        correction: key of `SAMPLER_CORRECTIONS`; "none" weighs all 1.
        clamp: as `log_ratio_clamp`.

    Returns: the weights, and 1.0 where one was above the cap; both `[B, C]`.
    """
    chosen = SAMPLER_CORRECTIONS[correction]
    if chosen is None:
        return jnp.ones_like(gap_BC), jnp.zeros_like(gap_BC)
    weight_BC = limited_exp(jax.lax.stop_gradient(chosen.log_weight(gap_BC, mask_BC)), clamp)
    return chosen.limit(weight_BC, cap), (weight_BC > cap).astype(jnp.float32)


def entropy_threshold(entropies: np.ndarray, mask: np.ndarray, quantile: float) -> float:
    """The entropy from which on a token is trained, so that the share `quantile` of them is.

    A token is kept where its entropy is at least this. On the host, over a whole minibatch.

    Args:
        entropies: float, any shape, nats; masked ones may be anything.
        mask: the same shape; above 0 where a token is trained.
        quantile: `top_entropy_quantile`, TRL's name, in (0, 1]; 1 keeps all.

    Returns: nats; infinity where there is no token.
    Source: Wang et al. 2025, "Beyond the 80/20 rule".
    """
    kept = np.asarray(entropies, np.float64)[np.asarray(mask) > 0]
    return float(np.quantile(kept, 1.0 - quantile)) if kept.size else float("inf")
