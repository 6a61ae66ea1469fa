"""Which objectives make sense: refusals before anything is loaded, each with what would do."""

from __future__ import annotations

from grpo_jax.learning import losses
from grpo_jax.learning.corrections import SAMPLER_CORRECTIONS
from grpo_jax.learning.kl import KL_ESTIMATORS
from grpo_jax.learning.losses import AGGREGATIONS, LEVELS
from grpo_jax.learning.objective import KL_PLACES, LOSS_TYPES, LossParams


def check(params: LossParams) -> None:
    """Raises ValueError for a name that is unknown, a number out of range, or a field that would do nothing."""
    names = {
        "loss_type": (params.loss_type, LOSS_TYPES),
        "aggregation": (params.aggregation, ("auto", *AGGREGATIONS)),
        "importance_sampling_level": (params.importance_sampling_level, ("auto", *LEVELS)),
        "kl_estimator": (params.kl_estimator, KL_ESTIMATORS),
        "kl_in": (params.kl_in, ("auto", *KL_PLACES)),
        "sampler_correction": (params.sampler_correction, SAMPLER_CORRECTIONS),
    }
    for name, (value, known) in names.items():
        if value not in known:
            raise ValueError(f"config.grpo.{name} is {value!r}; known are {sorted(known)}.")
    for name in ("epsilon", "epsilon_high", "beta", "delta", "log_ratio_clamp", "entropy_coef"):
        if not getattr(params, name) >= 0:
            raise ValueError(f"config.grpo.{name} must be at least 0; got {getattr(params, name)}.")
    for name in ("sapo_temperature_pos", "sapo_temperature_neg", "sampler_correction_cap"):
        if not getattr(params, name) > 0:
            raise ValueError(f"config.grpo.{name} must be above 0; got {getattr(params, name)}.")
    if not 0 < params.top_entropy_quantile <= 1:
        raise ValueError(
            f"config.grpo.top_entropy_quantile must lie in (0, 1], where 1 trains all tokens; "
            f"got {params.top_entropy_quantile}."
        )
    if params.log_ratio_clamp > 80:
        raise ValueError(
            f"config.grpo.log_ratio_clamp is {params.log_ratio_clamp}, where exp is no float32; set 80 at most."
        )
    _check_meetings(params)


def _check_meetings(params: LossParams) -> None:
    """Fields that would do nothing beside others."""
    if params.delta and params.kind.policy is not losses.clipped:
        clipping = [name for name, kind in LOSS_TYPES.items() if kind.policy is losses.clipped]
        raise ValueError(
            f"config.grpo.delta is {params.delta}, which does nothing with config.grpo.loss_type "
            f"{params.loss_type!r}; set 0, or one of the loss types {clipping}."
        )
    if params.delta and not params.delta > 1 + params.epsilon_high:
        raise ValueError(
            f"config.grpo.delta is {params.delta}, below the clip at 1 + config.grpo.epsilon_high = "
            f"{1 + params.epsilon_high}, where it does nothing; set a larger one, or 0."
        )
    level = params.importance_sampling_level
    if params.kind.policy is losses.reinforce and level not in ("auto", "token"):
        raise ValueError(
            f"config.grpo.importance_sampling_level is {level!r}, but config.grpo.loss_type "
            f"{params.loss_type!r} takes no ratio; set 'auto'."
        )
    if params.penalises_loss and params.kl_estimator == "k1":
        raise ValueError(
            "config.grpo.kl_estimator 'k1' has a gradient of 0 on average in the loss; set 'k2', 'k3' or "
            "'k3_unbiased', or config.grpo.kl_in 'reward'."
        )
    if params.penalises_reward and params.kl_estimator == "k3_unbiased":
        raise ValueError(
            "config.grpo.kl_estimator 'k3_unbiased' mends a gradient, and a reward has none; set 'k3' or 'k1'."
        )
