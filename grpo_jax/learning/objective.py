"""The objective: one microbatch's loss from log-probabilities, and its parts under the names of papers.

`loss = sum(weight * (policy * sampler_weight * entropy_mask + beta * kl)) - entropy_coef * mean(entropy)`.
Whatever is normalised over more than a row comes from `Totals`, which are known before a minibatch is cut,
so the loss does not depend on the cut. Masked positions may hold anything: they are replaced before the
first formula, and neither they nor what is not finite in them reaches the loss or its gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.learning import losses
from grpo_jax.learning.corrections import sampler_weights
from grpo_jax.learning.kl import KL_ESTIMATORS
from grpo_jax.learning.losses import AGGREGATIONS, LEVELS, Limits, Policy, Totals

KL_PLACES = ("loss", "reward")
SUMS: tuple[str, ...] = ("tokens", "kl", "entropy", "low", "high", "gap", "weight", "limited")
LARGEST: tuple[str, ...] = ("gap", "ratio", "weight")


class LossType(NamedTuple):
    """What a paper's name stands for; all but the policy loss can be overridden field by field."""

    policy: Callable[[jax.Array, jax.Array, jax.Array, Limits], Policy]
    aggregation: str  # key of `losses.AGGREGATIONS`
    importance_sampling_level: str  # key of `losses.LEVELS`
    advantage_estimator: str  # key of `advantages.ESTIMATORS`
    scale_rewards: str  # key of `advantages.SCALES`
    kl_in: str  # one of KL_PLACES


LOSS_TYPES: dict[str, LossType] = {
    "grpo": LossType(losses.clipped, "sequence_mean", "token", "group_mean", "group", "loss"),
    "dr_grpo": LossType(losses.clipped, "constant_length", "token", "group_mean", "none", "loss"),
    "dapo": LossType(losses.clipped, "token_mean", "token", "group_mean", "group", "loss"),
    "bnpo": LossType(losses.clipped, "minibatch_token_mean", "token", "group_mean", "group", "loss"),
    "gspo": LossType(losses.clipped, "sequence_mean", "sequence", "group_mean", "group", "loss"),
    "cispo": LossType(losses.clipped_weight, "token_mean", "token", "group_mean", "group", "loss"),
    "sapo": LossType(losses.soft_gate, "sequence_mean", "token", "group_mean", "group", "loss"),
    # Ahmadian et al. 2024, "Back to basics": a completion is one action, so its tokens' terms are summed
    "rloo": LossType(losses.clipped, "constant_length", "token", "leave_one_out", "none", "reward"),
    # Hu et al. 2025, "REINFORCE++"
    "reinforce++": LossType(losses.clipped, "token_mean", "token", "batch_mean", "batch", "reward"),
    "reinforce_with_baseline": LossType(
        losses.reinforce, "sequence_mean", "token", "group_mean", "group", "loss"
    ),
    "no_baseline": LossType(losses.reinforce, "sequence_mean", "token", "none", "none", "loss"),
}


@dataclasses.dataclass(frozen=True)
class LossParams:
    """The objective. Names and meanings as in TRL where it has them; "auto": as the loss type has it."""

    loss_type: str  # key of `LOSS_TYPES`
    epsilon: float  # the ratio is limited below 1 - epsilon
    epsilon_high: float  # and above 1 + epsilon_high
    beta: float  # weight of the KL to the reference; 0: there is no reference
    temperature: float  # of the log-probabilities; that of sampling
    max_completion_length: int  # tokens; the constant of `constant_length`
    aggregation: str = "auto"
    importance_sampling_level: str = "auto"
    delta: float = 0.0  # limit of the ratio where the advantage is negative, 0: none
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    log_ratio_clamp: float = 20.0  # log-ratios above count as this before exp; 0: none do
    kl_estimator: str = "k3"  # key of `kl.KL_ESTIMATORS`
    kl_in: str = "auto"  # one of KL_PLACES
    sampler_correction: str = "none"  # key of `corrections.SAMPLER_CORRECTIONS`
    sampler_correction_cap: float = 3.0
    entropy_coef: float = 0.0  # weight of the mean entropy, which is subtracted
    top_entropy_quantile: float = 1.0  # share of the tokens, those of highest entropy, that is trained

    @property
    def kind(self) -> LossType:
        return LOSS_TYPES[self.loss_type]

    @property
    def limits(self) -> Limits:
        return Limits(
            self.epsilon, self.epsilon_high, self.delta, self.sapo_temperature_pos, self.sapo_temperature_neg
        )

    @property
    def penalises_loss(self) -> bool:
        """The KL is a term of the loss: `Rows.ref_logprobs_BC` is needed."""
        return self.beta > 0 and or_default(self.kl_in, self.kind.kl_in) == "loss"

    @property
    def penalises_reward(self) -> bool:
        """The KL is taken off the reward: rows are scored before they are centred."""
        return self.beta > 0 and or_default(self.kl_in, self.kind.kl_in) == "reward"

    @property
    def learns_without_advantage(self) -> bool:
        """Rows whose advantage is 0 have a gradient all the same."""
        return self.penalises_loss or self.entropy_coef != 0


class Rows(NamedTuple):
    """One microbatch, float32; positions where the mask is 0, and whole empty rows, may hold anything."""

    mask_BC: jax.Array  # 1 where a token is trained, else 0
    advantages_B: jax.Array
    sampler_logprobs_BC: jax.Array
    old_logprobs_BC: jax.Array | None = None  # None: the policy has not moved, they are its own
    ref_logprobs_BC: jax.Array | None = None  # needed where `penalises_loss`
    entropy_mask_BC: jax.Array | None = None  # 1 where the top-entropy mask keeps a token; None: all


def or_default(value: str, default: str) -> str:
    return default if value == "auto" else value


def microbatch_loss(
    logprobs_BC: jax.Array, entropy_BC: jax.Array, rows: Rows, totals: Totals, params: LossParams
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """This microbatch's part of its minibatch's loss.

    Args:
        logprobs_BC: float32, of the policy as it is; differentiated.
        entropy_BC: float32, nats; differentiated where `entropy_coef` is not 0.

    Returns: the loss, a float32 scalar, and for `metrics_of` the sums named by SUMS, to be added up over
        microbatches, and the maxima named by LARGEST.
    """
    mask_BC = rows.mask_BC
    clean = partial(_clean, mask_BC)
    now_BC, entropy_BC = clean(logprobs_BC), clean(entropy_BC)
    old_BC = jax.lax.stop_gradient(now_BC) if rows.old_logprobs_BC is None else clean(rows.old_logprobs_BC)
    advantages_BC = clean(jnp.broadcast_to(rows.advantages_B[:, None], mask_BC.shape))
    kept_BC = mask_BC if rows.entropy_mask_BC is None else clean(rows.entropy_mask_BC)
    clamp, log_ratio_BC = params.log_ratio_clamp, now_BC - old_BC
    gap_BC = old_BC - clean(rows.sampler_logprobs_BC)

    level = or_default(params.importance_sampling_level, params.kind.importance_sampling_level)
    ratio_BC = LEVELS[level](log_ratio_BC, mask_BC, clamp)
    policy = params.kind.policy(ratio_BC, now_BC, advantages_BC, params.limits)
    weight_BC, limited_BC = sampler_weights(
        gap_BC, mask_BC, correction=params.sampler_correction, cap=params.sampler_correction_cap, clamp=clamp
    )
    token_loss_BC, kl_BC = policy.loss_BC * weight_BC * kept_BC, jnp.zeros_like(now_BC)
    if params.penalises_loss:
        assert rows.ref_logprobs_BC is not None, "the KL in the loss needs the reference's log-probabilities"
        difference_BC = clean(rows.ref_logprobs_BC) - now_BC
        token_ratio_BC = losses.token_ratio(log_ratio_BC, mask_BC, clamp)
        kl_BC = KL_ESTIMATORS[params.kl_estimator](difference_BC, token_ratio_BC, clamp)
        token_loss_BC = token_loss_BC + params.beta * kl_BC
    aggregation = or_default(params.aggregation, params.kind.aggregation)
    share_BC = AGGREGATIONS[aggregation](mask_BC, totals, params.max_completion_length)
    loss = (token_loss_BC * share_BC).sum()
    if params.entropy_coef:  # as TRL: a mean over tokens, whatever the aggregation
        mean_entropy = (entropy_BC * kept_BC).sum() / jnp.maximum(totals.minibatch_tokens, 1.0)
        loss = loss - params.entropy_coef * mean_entropy

    columns = (kl_BC, entropy_BC, *policy[1:], jnp.abs(gap_BC), weight_BC, limited_BC)
    sums = dict(zip(SUMS, (mask_BC.sum(), *((x * mask_BC).sum() for x in columns)), strict=True))
    tops = (jnp.abs(gap_BC), ratio_BC, weight_BC)
    largest = dict(zip(LARGEST, ((x * mask_BC).max() for x in tops), strict=True))
    return loss, jax.lax.stop_gradient((sums, largest))


def _clean(mask_BC: jax.Array, x_BC: jax.Array) -> jax.Array:
    """0 where masked, before any arithmetic: 0 times what is not finite is not 0, nor is its gradient."""
    return jnp.where(mask_BC > 0, x_BC, 0.0)


def no_sums() -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Sums and maxima over no microbatch, to begin with; all maxima are of numbers not below 0."""
    zero = jnp.zeros((), jnp.float32)
    return dict.fromkeys(SUMS, zero), dict.fromkeys(LARGEST, zero)


def metrics_of(
    sums: dict[str, jax.Array], largest: dict[str, jax.Array], params: LossParams
) -> dict[str, jax.Array]:
    """Sums and maxima of a whole minibatch under TRL's names of metrics; means are over trained tokens.

    `kl` is there where it is a term of the loss, `sampling/importance_sampling_ratio/*` where the sampler is
    corrected; of the latter `limited` is the share of tokens whose weight was above the cap.
    """
    mean = lambda name: sums[name] / jnp.maximum(sums["tokens"], 1.0)  # noqa: E731
    metrics = {
        "entropy": mean("entropy"),
        "clip_ratio/low_mean": mean("low"),
        "clip_ratio/high_mean": mean("high"),
        "clip_ratio/region_mean": mean("low") + mean("high"),  # no token is held back on both sides
        "sampling/sampling_logp_difference/mean": mean("gap"),
        "sampling/sampling_logp_difference/max": largest["gap"],
        "ratio/max": largest["ratio"],
    }
    if params.penalises_loss:
        metrics["kl"] = mean("kl")
    if params.sampler_correction != "none":
        metrics["sampling/importance_sampling_ratio/mean"] = mean("weight")
        metrics["sampling/importance_sampling_ratio/max"] = largest["weight"]
        metrics["sampling/importance_sampling_ratio/limited"] = mean("limited")
    return metrics
