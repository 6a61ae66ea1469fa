"""The GRPO objective as pure functions of arrays: ratio, clipping, KL, and how tokens are weighted.

A loss is `sum(token_weights_BC * token_loss_BC)`. The weights hold the whole difference between the loss
types and are computed once for a minibatch, so the result does not depend on how it is cut into
microbatches. All arrays are float32 `[B, C]` over completion positions; masked positions weigh 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def clipped_policy_loss(
    logprobs_BC: jax.Array,
    old_logprobs_BC: jax.Array,
    advantages_B: jax.Array,
    *,
    epsilon: float,
    epsilon_high: float,
) -> tuple[jax.Array, jax.Array]:
    """`-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A)` with `ratio = exp(now - old)`.

    Returns: the loss `[B, C]`, and 1.0 where the clip took the gradient away, `[B, C]`.
    Source: Shao et al. 2024 (DeepSeekMath), equation 3; Yu et al. 2025 (DAPO) for two limits.
    """
    ratio_BC = jnp.exp(logprobs_BC - old_logprobs_BC)
    advantages_BC = jnp.broadcast_to(advantages_B[:, None], ratio_BC.shape)
    limited_BC = jnp.clip(ratio_BC, 1.0 - epsilon, 1.0 + epsilon_high)
    loss_BC = -jnp.minimum(ratio_BC * advantages_BC, limited_BC * advantages_BC)
    clipped_BC = ((ratio_BC < 1.0 - epsilon) & (advantages_BC < 0)) | (
        (ratio_BC > 1.0 + epsilon_high) & (advantages_BC > 0)
    )
    return loss_BC, clipped_BC.astype(jnp.float32)


def kl_k3(logprobs_BC: jax.Array, ref_logprobs_BC: jax.Array) -> jax.Array:
    """`exp(ref - now) - (ref - now) - 1`: never negative, unbiased for samples of the policy.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    difference_BC = ref_logprobs_BC - logprobs_BC
    return jnp.expm1(difference_BC) - difference_BC


class Totals(NamedTuple):
    """What a minibatch's loss is divided by: float32 scalars over all its microbatches and processes."""

    num_rows: Any  # completions, trained on or not
    minibatch_tokens: Any  # trained on
    rollout_tokens: Any  # trained tokens of the step over its number of minibatches


def sequence_mean(mask_BC: jax.Array, *, max_completion_length: int, totals: Totals) -> jax.Array:
    """`grpo`: the mean over a completion's tokens, then over completions."""
    lengths_B1 = jnp.maximum(mask_BC.sum(axis=1, keepdims=True), 1.0)
    return mask_BC / lengths_B1 / totals.num_rows


def constant_length(mask_BC: jax.Array, *, max_completion_length: int, totals: Totals) -> jax.Array:
    """`dr_grpo`: every token weighs 1 / (completions * max_completion_length).

    Source: Liu et al. 2025, "Understanding R1-Zero-like training".
    """
    return mask_BC / (totals.num_rows * max_completion_length)


def rollout_token_mean(mask_BC: jax.Array, *, max_completion_length: int, totals: Totals) -> jax.Array:
    """`dapo`: every token of the step weighs the same, in whichever minibatch it is.

    Source: Yu et al. 2025 (DAPO), equation 8.
    """
    return mask_BC / jnp.maximum(totals.rollout_tokens, 1.0)


def minibatch_token_mean(mask_BC: jax.Array, *, max_completion_length: int, totals: Totals) -> jax.Array:
    """`bnpo`: the mean over the tokens of the minibatch."""
    return mask_BC / jnp.maximum(totals.minibatch_tokens, 1.0)


TOKEN_WEIGHTS: dict[str, Callable[..., jax.Array]] = {
    "grpo": sequence_mean,
    "dr_grpo": constant_length,
    "dapo": rollout_token_mean,
    "bnpo": minibatch_token_mean,
}
"""Loss type (TRL's names) -> weights of a minibatch's tokens, from its mask `[rows, C]`."""
