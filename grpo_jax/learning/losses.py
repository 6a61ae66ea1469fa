"""Policy losses as pure functions of arrays, how ratios are taken, and how tokens are weighted.

A policy loss says what one token costs; a level says over what the importance ratio is taken; an
aggregation says what each token weighs in the sum. `objective.LOSS_TYPES` puts the three together under the
names that papers gave the combinations. All arrays are float32 `[B, C]` over completion positions, of which
masked ones hold a log-ratio of 0, an advantage of 0 and a weight of 0: `objective.py` sees to that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a policy loss lets the ratio go. Names as in TRL."""

    epsilon: float  # below 1 - epsilon
    epsilon_high: float  # above 1 + epsilon_high
    delta: float = 0.0  # where the advantage is negative; above 1 + epsilon_high, 0: nowhere
    sapo_temperature_pos: float = 1.0  # of the gate where the advantage is positive
    sapo_temperature_neg: float = 1.05  # and where it is not


class Policy(NamedTuple):
    """What each token costs, and where its ratio was held back."""

    loss_BC: jax.Array
    low_BC: jax.Array  # 1.0 where the lower limit took the gradient (in cispo: part of it) away
    high_BC: jax.Array  # the same of an upper limit


class Totals(NamedTuple):
    """What a minibatch is normalised by: known before it is cut into microbatches. float32 scalars."""

    num_rows: Any  # all its completions, also masked ones and those without signal
    minibatch_tokens: Any  # its trained tokens
    rollout_tokens: Any  # trained tokens of the whole step over the number of minibatches


# ---- what a token costs -------------------------------------------------------------------------------


def clipped(ratio_BC: jax.Array, logprobs_BC: jax.Array, advantages_BC: jax.Array, limits: Limits) -> Policy:
    """`-min(min(ratio, delta) * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A)`.

    `delta` bites only where A < 0: there it bounds the loss by `delta * |A|`, so that it is the `c` of dual
    clip too, `max(min(ratio * A, clip(ratio) * A), c * A)`.
    Source: Shao et al. 2024 (DeepSeekMath), equation 3; Yu et al. 2025 (DAPO), equation 10, for two limits;
    Prime Intellect 2025 (INTELLECT-2) for delta; Ye et al. 2020, "Mastering complex control in MOBA games",
    for dual clip.
    """
    capped_BC = jnp.minimum(ratio_BC, limits.delta) if limits.delta else ratio_BC
    limited_BC = jnp.clip(ratio_BC, 1.0 - limits.epsilon, 1.0 + limits.epsilon_high)
    loss_BC = -jnp.minimum(capped_BC * advantages_BC, limited_BC * advantages_BC)
    low_BC = (ratio_BC < 1.0 - limits.epsilon) & (advantages_BC < 0)
    high_BC = (ratio_BC > 1.0 + limits.epsilon_high) & (advantages_BC > 0)
    if limits.delta:
        high_BC |= (ratio_BC > limits.delta) & (advantages_BC < 0)
    return Policy(loss_BC, low_BC.astype(jnp.float32), high_BC.astype(jnp.float32))


def clipped_weight(
    ratio_BC: jax.Array, logprobs_BC: jax.Array, advantages_BC: jax.Array, limits: Limits
) -> Policy:
    """`-stop_gradient(min(ratio, 1 + epsilon_high)) * A * logprob`: every token keeps a gradient.

    There is no lower limit, as in the paper's runs. TRL caps the ratio at its epsilon_high itself: its 5.0 is
    4.0 here.
    Source: MiniMax 2025 (MiniMax-M1), CISPO.
    """
    weight_BC = jax.lax.stop_gradient(jnp.minimum(ratio_BC, 1.0 + limits.epsilon_high))
    high_BC = (ratio_BC > 1.0 + limits.epsilon_high) & (advantages_BC != 0)
    loss_BC = -weight_BC * advantages_BC * logprobs_BC
    return Policy(loss_BC, jnp.zeros_like(loss_BC), high_BC.astype(jnp.float32))


def soft_gate(
    ratio_BC: jax.Array, logprobs_BC: jax.Array, advantages_BC: jax.Array, limits: Limits
) -> Policy:
    """`-4 / tau * sigmoid(tau * (ratio - 1)) * A`: the gradient fades as the ratio leaves 1, and never jumps.

    `tau` is `sapo_temperature_pos` where A > 0, else `sapo_temperature_neg`. At ratio 1 the gradient is that
    of `ratio * A`.
    Source: Gao et al. 2025, "Soft Adaptive Policy Optimization".
    """
    tau_BC = jnp.where(advantages_BC > 0, limits.sapo_temperature_pos, limits.sapo_temperature_neg)
    loss_BC = -4.0 / tau_BC * jax.nn.sigmoid(tau_BC * (ratio_BC - 1.0)) * advantages_BC
    return Policy(loss_BC, jnp.zeros_like(loss_BC), jnp.zeros_like(loss_BC))


def reinforce(
    ratio_BC: jax.Array, logprobs_BC: jax.Array, advantages_BC: jax.Array, limits: Limits
) -> Policy:
    """`-A * logprob`: no ratio and no limit, right for the policy that sampled.

    Source: Williams 1992, REINFORCE.
    """
    loss_BC = -advantages_BC * logprobs_BC
    return Policy(loss_BC, jnp.zeros_like(loss_BC), jnp.zeros_like(loss_BC))


# ---- over what the ratio is taken ---------------------------------------------------------------------


def limited_exp(log_ratio: jax.Array, clamp: float) -> jax.Array:
    """`exp(min(log_ratio, clamp))`, with no gradient beyond; `clamp` 0 leaves it alone, to overflow at 88.

    Only the upper side needs it: far below, `exp` and its gradient are 0 as they should be.
    """
    return jnp.exp(jnp.minimum(log_ratio, clamp) if clamp else log_ratio)


def token_ratio(log_ratio_BC: jax.Array, mask_BC: jax.Array, clamp: float) -> jax.Array:
    """`exp(now - old)` of each token."""
    return limited_exp(log_ratio_BC, clamp)


def sequence_ratio(log_ratio_BC: jax.Array, mask_BC: jax.Array, clamp: float) -> jax.Array:
    """`exp(mean over the completion's tokens of now - old)`, the same at each of them.

    Source: Zheng et al. 2025, "Group Sequence Policy Optimization", equation 7.
    """
    ratio_B1 = limited_exp(sequence_mean_of(log_ratio_BC, mask_BC), clamp)
    return jnp.broadcast_to(ratio_B1, log_ratio_BC.shape)


def sequence_token_ratio(log_ratio_BC: jax.Array, mask_BC: jax.Array, clamp: float) -> jax.Array:
    """The value of `sequence_ratio`, but each token passes its own log-probability's gradient.

    `stop_gradient(sequence_ratio) * now / stop_gradient(now)`, in probabilities.
    Source: the same paper, section 4.3, GSPO-token.
    """
    own_BC = jax.lax.stop_gradient(log_ratio_BC)
    return jax.lax.stop_gradient(sequence_ratio(own_BC, mask_BC, clamp)) * jnp.exp(log_ratio_BC - own_BC)


def sequence_mean_of(values_BC: jax.Array, mask_BC: jax.Array) -> jax.Array:
    """`[B, 1]`: the mean over each row's tokens, 0 for a row without any."""
    lengths_B1 = jnp.maximum(mask_BC.sum(axis=1, keepdims=True), 1.0)
    return (values_BC * mask_BC).sum(axis=1, keepdims=True) / lengths_B1


LEVELS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
    "sequence_token": sequence_token_ratio,
}
"""`importance_sampling_level` (TRL's name) -> ratios `[B, C]` from log-ratios, mask and clamp."""


# ---- what a token weighs ------------------------------------------------------------------------------


def sequence_mean(mask_BC: jax.Array, totals: Totals, max_completion_length: int) -> jax.Array:
    """The mean over a completion's tokens, then over completions.

    Source: Shao et al. 2024 (DeepSeekMath), equation 3.
    """
    lengths_B1 = jnp.maximum(mask_BC.sum(axis=1, keepdims=True), 1.0)
    return mask_BC / lengths_B1 / jnp.maximum(totals.num_rows, 1.0)


def constant_length(mask_BC: jax.Array, totals: Totals, max_completion_length: int) -> jax.Array:
    """Every token weighs `1 / (completions * max_completion_length)`, however long its completion is.

    Source: Liu et al. 2025, "Understanding R1-Zero-like training", Dr. GRPO.
    """
    return mask_BC / (jnp.maximum(totals.num_rows, 1.0) * max_completion_length)


def token_mean(mask_BC: jax.Array, totals: Totals, max_completion_length: int) -> jax.Array:
    """Every token of the step weighs the same, in whichever minibatch it is.

    Source: Yu et al. 2025 (DAPO), equation 8.
    """
    return mask_BC / jnp.maximum(totals.rollout_tokens, 1.0)


def minibatch_token_mean(mask_BC: jax.Array, totals: Totals, max_completion_length: int) -> jax.Array:
    """The mean over the tokens of the minibatch; TRL's `bnpo`."""
    return mask_BC / jnp.maximum(totals.minibatch_tokens, 1.0)


AGGREGATIONS: dict[str, Callable[[jax.Array, Totals, int], jax.Array]] = {
    "sequence_mean": sequence_mean,
    "constant_length": constant_length,
    "token_mean": token_mean,
    "minibatch_token_mean": minibatch_token_mean,
}
"""`aggregation` -> weights `[B, C]` from mask, totals and the longest completion's tokens."""
