"""Every rule of a config that one field can break: ranges and names, and which would do.

What a room's own parameters check when they are built is not repeated here; rules that cross fields are in
`settings_checks.py`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from grpo_jax.learning import advantages
from grpo_jax.learning.train_state import MU_DTYPES, SCHEDULES
from grpo_jax.models.hf_weights import EXPORT_DTYPES
from grpo_jax.sampling import token_choice
from grpo_jax.settings import Settings

MOST_SEED = 2**31 - 1
MOST_LEARNING_RATE = 1.0  # AdamW moves every weight by about so much: a lost minus, as in 1e6, is above it
RESUMES = ("auto", "must", "never")  # where there is a checkpoint go on, else begin; or an error instead
AT_LEAST = {
    "seed": 0,
    "max_steps": 1,
    "lora.r": 0,
    "lora.lora_dropout": 0,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
    "data.shuffle_seed": -1,
    "data.streaming_rows": 0,
    "rollout.num_prompts": 1,
    "rollout.num_generations": 2,
    "rollout.max_completion_length": 1,
    "rollout.num_slots": 0,
    "rollout.window": 0,
    "grpo.std_floor": 0,
    "grpo.ref_model_sync_steps": 0,
    "grpo.dynamic_sampling_max_rounds": 0,
    "grpo.num_iterations": 1,
    "grpo.num_minibatches": 1,
    "grpo.per_device_train_batch_size": 1,
    "grpo.max_tokens_per_microbatch": 0,
    "grpo.packing": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.max_grad_norm": 0,
    "sft.max_steps": 0,
    "sft.num_rows": 1,
    "sft.warmup_steps": 0,
    "sft.packing": 0,
    "sft.per_device_train_batch_size": 1,
    "sft.max_response_length": 1,
    "sft.validation_problems": 0,
    "sft.eval_steps": 0,
    "sft.save_steps": 0,
    "checkpoint.save_steps": 0,
    "checkpoint.save_seconds": 0,
    "checkpoint.save_total_limit": 1,
    "checkpoint.resume_step": -1,
    "checkpoint.keep_every_steps": 0,
    "evaluation.eval_steps": 0,
    "evaluation.num_generations": 1,
    "evaluation.temperature": 0,
}
ONE_OF = {
    "grpo.advantage_estimator": ("auto", *advantages.ESTIMATORS),
    "grpo.scale_rewards": ("auto", *advantages.SCALES),
    "grpo.multi_objective_aggregation": advantages.AGGREGATIONS,
    "optimizer.lr_scheduler_type": SCHEDULES,
    "sft.lr_scheduler_type": SCHEDULES,
    "optimizer.mu_dtype": MU_DTYPES,
    "checkpoint.resume": RESUMES,
    "checkpoint.export_dtype": ("auto", *EXPORT_DTYPES),
}
ABOVE_0 = {  # and what else to say
    "optimizer.learning_rate": ", or nothing is learned",
    "sft.learning_rate": ", or nothing is learned",
    "lora.learning_rate_ratio": ", or nothing is learned",
    "optimizer.adam_epsilon": "",
    "checkpoint.export_shard_gb": "",
    "sft.num_train_epochs": "; for a number of updates set config.sft.max_steps",
}


def check(settings: Settings) -> None:
    """Raises ValueError for the first field that is out of its range, with what would do."""
    _check_tuples(settings)
    for name, least in AT_LEAST.items():
        if not _value(settings, name) >= least:
            raise ValueError(f"config.{name} must be at least {least}; got {_value(settings, name)}.")
    for name, more in ABOVE_0.items():
        if not _value(settings, name) > 0:
            raise ValueError(f"config.{name} must be above 0{more}; got {_value(settings, name)}.")
    for name, known in ONE_OF.items():
        if _value(settings, name) not in known:
            raise ValueError(f"config.{name} is {_value(settings, name)!r}; known are {sorted(known)}.")
    _check_limits(settings)
    _check_sampling(settings)


def _value(settings: Settings, name: str) -> Any:
    section, _, field = name.rpartition(".")
    return getattr(getattr(settings, section) if section else settings, field)


def _check_limits(settings: Settings) -> None:
    if settings.seed > MOST_SEED:
        raise ValueError(f"config.seed must be at most {MOST_SEED}; got {settings.seed}.")
    for name in ("optimizer.learning_rate", "sft.learning_rate"):
        if _value(settings, name) > MOST_LEARNING_RATE:
            raise ValueError(
                f"config.{name} is {_value(settings, name)}: every update would move each weight by about as much. "
                "Set one such as 1e-6."
            )
    for name in ("optimizer.adam_beta1", "optimizer.adam_beta2"):
        if not 0 <= _value(settings, name) < 1:
            raise ValueError(f"config.{name} must lie in [0, 1); got {_value(settings, name)}.")


def _check_sampling(settings: Settings) -> None:
    try:
        token_choice.check_temperature(settings.rollout.temperature)
        settings.rollout.filters  # noqa: B018 - building it checks what it consists of
    except ValueError as error:
        raise ValueError(f"config.rollout.{error}") from None
    if settings.rollout.temperature == 0:
        raise ValueError(
            "config.rollout.temperature is 0: all completions of a group would be equal and teach nothing. Set 1.0."
        )


def _check_tuples(settings: Settings) -> None:
    """What the command line cannot check: the kinds of a tuple's items."""
    for name, kind, example in (("banned_ids", int, "(3, 7)"), ("stop_strings", str, "('</answer>',)")):
        value = getattr(settings.rollout, name)
        if not isinstance(value, tuple) or not all(type(item) is kind for item in value):
            raise ValueError(
                f"config.rollout.{name} must be a tuple of {'whole numbers' if kind is int else 'texts'}, such as "
                f"{example}; got {value!r}."
            )


def check_finite(settings: Settings) -> None:
    """Raises ValueError for a number without end, or none: ranges alone let infinities pass, and some of them NaN."""
    for section in (field.name for field in dataclasses.fields(settings)):
        params = getattr(settings, section)
        if not dataclasses.is_dataclass(params):
            continue
        for field in dataclasses.fields(params):
            value = getattr(params, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"config.{section}.{field.name} must be a finite number; got {value}.")
