"""Every rule of a config that crosses fields, before anything heavy starts.

Rules that a single value can break are checked by the room that owns it, or in `settings_ranges.py`; here the error
says which numbers would do together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from grpo_jax import policy, settings_ranges
from grpo_jax.learning import advantages, objective_checks
from grpo_jax.models.lora import BASE_FORMS, LoraParams
from grpo_jax.models.spec import ModelSpec
from grpo_jax.rewards.registry import RewardSpec
from grpo_jax.settings import Settings


def check(settings: Settings, *, num_processes: int) -> None:
    """Raises ValueError for the first rule that is broken, with the numbers that would do."""
    settings_ranges.check(settings)
    _check_completion_lengths(settings)
    objective_checks.check(settings.loss)
    _check_reference(settings)
    _check_rewards(settings)
    _check_lora(settings.lora)
    settings_ranges.check_finite(settings)  # behind those that can say more
    _check_rows(settings, num_processes=num_processes)
    _check_alarms(settings)


def check_model(settings: Settings, spec: ModelSpec, *, tensor: int) -> None:
    """Raises ValueError where lengths or the mesh do not fit the model.

    Args:
        tensor: size of the mesh's tensor axis.
    """
    _check_length(settings, "rollout.max_completion_length", settings.rollout.max_completion_length, spec)
    for what, size in (("key/value heads", spec.num_kv_heads), ("MLP columns", spec.intermediate_size)):
        if size % tensor:
            raise ValueError(
                f"config.mesh.tensor is {tensor}, which does not divide the model's {size} {what}; "
                f"{_divisors(math.gcd(spec.num_kv_heads, spec.intermediate_size))} would do."
            )


def check_sampling(settings: Settings, opened: policy.Policy, *, platform: str) -> None:
    """Raises ValueError for what the sampler would refuse when weights are read: attention, bans, stop strings.

    Args:
        platform: of the devices, as JAX names it.
    """
    rollout = settings.rollout
    policy.check_sampling(
        opened,
        platform=platform,
        filters=rollout.filters,
        attention=rollout.attention,
        stop_strings=rollout.stop_strings,
        form=rollout.sampling_weights,
    )
    if settings.lora.r > opened.model.spec.hidden_size:
        raise ValueError(
            f"config.lora.r is {settings.lora.r}, above the model's width {opened.model.spec.hidden_size}, where "
            "adapters are larger than what they adapt; set one such as 16, or 0 to train every weight."
        )


def check_weights(specs: Sequence[RewardSpec]) -> None:
    """Raises ValueError where all rewards weigh nothing."""
    if not any(spec.weight for spec in specs):
        raise ValueError(
            f"config.reward.reward_weights are all 0 for {[spec.name for spec in specs]}: nothing would be learned; "
            "set one of them above 0, or none for 1.0 each."
        )


def check_supervised(settings: Settings, spec: ModelSpec, *, num_processes: int) -> None:
    """Raises ValueError where the supervised run's lengths do not fit the model, or its rows the processes."""
    _check_length(settings, "sft.max_response_length", settings.sft.max_response_length, spec)
    if settings.sft.num_rows % num_processes:
        raise ValueError(
            f"config.sft.num_rows is {settings.sft.num_rows}, which {num_processes} processes cannot share; "
            f"set a multiple of {num_processes}."
        )
    check_best(settings, saving="sft", evaluating="sft")


def _check_length(settings: Settings, field: str, answer: int, spec: ModelSpec) -> None:
    """A prompt and an answer behind it must have room in the model."""
    prompt, room = settings.data.max_prompt_length, spec.max_position_embeddings
    if prompt + answer > room:
        raise ValueError(
            f"config.data.max_prompt_length {prompt} + config.{field} {answer} = {prompt + answer} tokens; "
            f"the model has {room} positions. Set {_shorter(prompt, answer, room, field.rpartition('.')[2])}."
        )


def check_best(settings: Settings, *, saving: str, evaluating: str) -> None:
    """Raises ValueError where a checkpoint may lack the number that the best one is chosen by.

    Args:
        saving: the section that has `save_steps`; `evaluating`: that which has `eval_steps`.
    """
    name, save_steps = settings.checkpoint.metric_for_best_model, getattr(settings, saving).save_steps
    eval_steps = getattr(settings, evaluating).eval_steps
    if name and (not save_steps or not eval_steps or save_steps % eval_steps):
        raise ValueError(
            f"config.checkpoint.metric_for_best_model is {name!r}, so every checkpoint needs an evaluation of its step; "
            f"got config.{saving}.save_steps {save_steps} and config.{evaluating}.eval_steps {eval_steps}. Set the first "
            'to a multiple of the second, both above 0, or config.checkpoint.metric_for_best_model="".'
        )


def notes(settings: Settings) -> list[str]:
    """What a reader of the config may not expect: fields that something else undoes."""
    params, found = settings.advantages, []
    centred = params.advantage_estimator != "none"
    if params.shaping.bias and centred and not params.shaping.clip:
        found.append(
            "config.reward.reward_bias has no effect: rewards are compared with a mean, which has it too"
        )
    scaled = params.scale_rewards != "none" and not params.std_floor
    if params.shaping.scale != 1 and scaled and not params.shaping.clip:
        found.append(
            "config.reward.reward_scale has next to no effect: rewards are divided by their deviation "
            f"(config.grpo.scale_rewards {params.scale_rewards!r})"
        )
    if settings.optimizer.warmup_steps >= settings.num_updates:
        found.append(
            f"config.optimizer.warmup_steps is {settings.optimizer.warmup_steps}, and the run has "
            f"{settings.num_updates} updates: the learning rate never reaches config.optimizer.learning_rate"
        )
    return found


def _check_completion_lengths(settings: Settings) -> None:
    if settings.rollout.min_completion_length > settings.rollout.max_completion_length:
        raise ValueError(
            f"config.rollout.min_completion_length is {settings.rollout.min_completion_length}, above "
            f"config.rollout.max_completion_length {settings.rollout.max_completion_length}; set it lower."
        )


def _check_reference(settings: Settings) -> None:
    if settings.grpo.ref_model_sync_steps and not settings.grpo.beta:
        raise ValueError(
            f"config.grpo.ref_model_sync_steps is {settings.grpo.ref_model_sync_steps}, but with config.grpo.beta 0 "
            "there is no reference to move; set 0."
        )
    if settings.grpo.ref_model_sync_steps and settings.lora.r:
        raise ValueError(
            "config.grpo.ref_model_sync_steps moves a reference that has weights of its own; with config.lora.r above "
            "0 it is the frozen base. Set config.grpo.ref_model_sync_steps=0."
        )
    if not 0 < settings.grpo.ref_model_mixup_alpha <= 1:
        raise ValueError(
            "config.grpo.ref_model_mixup_alpha must lie in (0, 1], where 1 takes the policy as it is; "
            f"got {settings.grpo.ref_model_mixup_alpha}."
        )


def _check_rewards(settings: Settings) -> None:
    """What is compared must not undo a field that shapes it."""
    params = settings.advantages
    if params.scale_rewards == "none" and params.std_floor:
        raise ValueError(
            f"config.grpo.std_floor is {params.std_floor}, which does nothing where rewards are not scaled "
            "(config.grpo.scale_rewards 'none'); set 0."
        )
    if settings.grpo.dynamic_sampling_max_rounds and params.advantage_estimator in ("batch_mean", "none"):
        raise ValueError(
            "config.grpo.dynamic_sampling_max_rounds replaces groups of equal rewards, which do teach something "
            f"with config.grpo.advantage_estimator {params.advantage_estimator!r}; set 0."
        )
    shaping = params.shaping
    if not shaping.scale > 0 or shaping.clip < 0:
        raise ValueError(
            "config.reward.reward_scale must be above 0 and config.reward.reward_clip 0 or more; "
            f"got {shaping.scale} and {shaping.clip}."
        )
    if params.multi_objective_aggregation != "normalize_then_sum":
        return
    if shaping != advantages.PLAIN:
        raise ValueError(
            "config.grpo.multi_objective_aggregation 'normalize_then_sum' compares each reward by itself, so there is "
            "no sum to shape; set config.reward.reward_scale=1, reward_bias=0 and reward_clip=0."
        )
    if (params.advantage_estimator, params.scale_rewards) != ("group_mean", "group"):
        raise ValueError(
            "config.grpo.multi_objective_aggregation 'normalize_then_sum' compares each reward in its group; "
            f"got config.grpo.advantage_estimator {params.advantage_estimator!r} and scale_rewards "
            f"{params.scale_rewards!r}. Set 'group_mean' and 'group'."
        )
    if settings.loss.penalises_reward:
        raise ValueError(
            "config.grpo.multi_objective_aggregation 'normalize_then_sum' would scale config.grpo.beta away "
            "from a KL in the reward; set config.grpo.kl_in 'loss'."
        )


def _check_lora(lora: LoraParams) -> None:
    lora.targets  # noqa: B018 - reading it checks the names
    if not lora.lora_alpha > 0:
        raise ValueError(f"config.lora.lora_alpha must be above 0; got {lora.lora_alpha}.")
    if not lora.lora_dropout < 1:
        raise ValueError(f"config.lora.lora_dropout must lie in [0, 1); got {lora.lora_dropout}.")
    if lora.base_dtype not in ("auto", *BASE_FORMS):
        raise ValueError(f"config.lora.base_dtype is {lora.base_dtype!r}; known are {['auto', *BASE_FORMS]}.")
    if lora.base_dtype != "auto" and not lora.r:
        raise ValueError(
            f"config.lora.base_dtype is {lora.base_dtype!r}, but with config.lora.r=0 nothing is frozen: "
            'every weight is trained, in float32. Set config.lora.r=16, or config.lora.base_dtype="auto".'
        )


def _check_rows(settings: Settings, *, num_processes: int) -> None:
    rollout, grpo = settings.rollout, settings.grpo
    if rollout.num_prompts % num_processes:
        raise ValueError(
            f"config.rollout.num_prompts is {rollout.num_prompts}, which {num_processes} processes cannot share; "
            f"set a multiple of {num_processes}."
        )
    if settings.rows // num_processes % grpo.num_minibatches:
        divisor = grpo.num_minibatches * num_processes
        raise ValueError(
            f"{rollout.num_prompts} prompts x {rollout.num_generations} generations = {settings.rows} rows do not "
            f"divide into config.grpo.num_minibatches {grpo.num_minibatches} of {num_processes} processes; "
            f"set config.rollout.num_prompts to a multiple of "
            f"{_smallest_prompts(rollout.num_generations, divisor, num_processes)}."
        )


def _check_alarms(settings: Settings) -> None:
    """Of the checkpoints that are kept, one must be from before the steps that raise an alarm."""
    limits, keeping = settings.alarms, settings.checkpoint
    streaks = {
        "zero_reward": (limits.zero_reward, limits.zero_reward_steps),
        "no_signal": (limits.no_signal, limits.no_signal_steps),
        "clipped": (limits.clipped, limits.clipped_steps),
    }
    for name, (action, steps) in streaks.items():
        meanwhile = -(-(steps - 1) // keeping.save_steps) if steps and keeping.save_steps else 0
        if action != "warn" and keeping.save_total_limit <= meanwhile and not keeping.keep_every_steps:
            raise ValueError(
                f"config.alarms.{name} is {action!r} after {steps} steps in a row, in which {meanwhile} checkpoints "
                f"may be saved; config.checkpoint.save_total_limit {keeping.save_total_limit} would keep none from "
                f"before them. Set it to {meanwhile + 1}, or config.checkpoint.save_steps higher."
            )


def _shorter(prompt: int, answer: int, room: int, name: str) -> str:
    if prompt < room:
        return f"{name} to at most {room - prompt}"
    if answer < room:
        return f"max_prompt_length to at most {room - answer}"
    return f"both to lengths that add up to at most {room}"


def _smallest_prompts(num_generations: int, divisor: int, num_processes: int) -> int:
    return next(
        prompts
        for prompts in range(num_processes, divisor * num_processes + 1, num_processes)
        if prompts * num_generations % divisor == 0
    )


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]
