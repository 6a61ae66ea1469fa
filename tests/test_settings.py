"""Every rule that crosses fields is refused before anything is loaded, with numbers that then pass."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from configs import base
from grpo_jax import settings, settings_checks
from grpo_jax.learning.objective import LOSS_TYPES, LossParams
from grpo_jax.models.spec import ModelSpec

SPEC = ModelSpec(
    family="qwen2",
    vocab_size=96,
    hidden_size=96,
    intermediate_size=180,
    num_layers=2,
    num_heads=16,
    num_kv_heads=8,
    head_dim=6,
    max_position_embeddings=100,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
)

FIELDS_OF_GRPO = {field.name for field in dataclasses.fields(settings.GRPOParams)}


def changed(**changes: Any) -> settings.Settings:
    """The settings of `configs/base.py` with some fields changed, such as `rollout__num_prompts=3`."""
    config = base.get_config().to_dict()
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return settings.read(config)


def check(*, num_processes: int = 1, **changes: Any) -> None:
    settings_checks.check(changed(**changes), num_processes=num_processes)


def message(num_processes: int = 1, **changes: Any) -> str:
    with pytest.raises(ValueError) as error:
        check(num_processes=num_processes, **changes)
    return str(error.value)


def test_the_base_passes_in_one_two_and_eight_processes():
    for num_processes in (1, 2, 8):
        check(num_processes=num_processes)


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("seed", -1, 0),
        ("max_steps", 0, 1),
        ("mesh.fsdp", 0, 1),
        ("mesh.tensor", -1, 1),
        ("rollout.num_prompts", 0, 1),
        ("rollout.num_generations", 1, 2),
        ("rollout.max_completion_length", 0, 1),
        ("rollout.num_slots", -1, 0),
        ("rollout.window", -1, 0),
        ("checkpoint.save_seconds", -1.0, 0),
        ("checkpoint.keep_every_steps", -1, 0),
        ("grpo.epsilon", -0.1, 0),
        ("grpo.epsilon_high", -0.1, 0),
        ("grpo.beta", -0.1, 0),
        ("grpo.delta", -1.0, 0),
        ("grpo.log_ratio_clamp", float("nan"), 0),
        ("grpo.entropy_coef", -0.1, 0),
        ("grpo.std_floor", -0.1, 0),
        ("grpo.ref_model_sync_steps", -1, 0),
        ("grpo.dynamic_sampling_max_rounds", -1, 0),
        ("grpo.num_iterations", 0, 1),
        ("grpo.num_minibatches", 0, 1),
        ("grpo.per_device_train_batch_size", 0, 1),
        ("optimizer.warmup_steps", -1, 0),
        ("optimizer.weight_decay", -1.0, 0),
        ("optimizer.max_grad_norm", -1.0, 0),
        ("checkpoint.save_steps", -1, 0),
        ("checkpoint.save_total_limit", 0, 1),
        ("evaluation.eval_steps", -1, 0),
        ("evaluation.num_generations", 0, 1),
        ("evaluation.temperature", -1.0, 0),
    ],
)
def test_a_number_below_its_least_is_refused(field, value, least):
    told = message(**{field.replace(".", "__"): value})
    assert told == f"config.{field} must be at least {least}; got {value}."


@pytest.mark.parametrize("beta", ["adam_beta1", "adam_beta2"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_the_decay_of_a_moment_lies_below_one(beta, value):
    assert f"config.optimizer.{beta}" in message(**{f"optimizer__{beta}": value})


def test_greedy_training_is_refused_because_it_teaches_nothing():
    assert "config.rollout.temperature" in message(rollout__temperature=0.0)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("min_p", 2.0)]
)
def test_a_way_of_sampling_that_cannot_be_is_refused_before_anything_is_loaded(field, value):
    assert field in message(**{f"rollout__{field}": value})


@pytest.mark.parametrize("gigabytes", [0.0, -1.0, float("nan")])
def test_an_export_that_would_fail_at_the_end_is_refused_at_the_start(gigabytes):
    assert "config.checkpoint.export_shard_gb must be above 0" in message(
        checkpoint__export_shard_gb=gigabytes
    )


@pytest.mark.parametrize(
    ("field", "known"),
    [
        (
            "grpo.loss_type",
            [
                *("bnpo", "cispo", "dapo", "dr_grpo", "grpo", "gspo", "no_baseline", "reinforce++"),
                *("reinforce_with_baseline", "rloo", "sapo"),
            ],
        ),
        ("grpo.scale_rewards", ["auto", "batch", "group", "none"]),
        ("grpo.advantage_estimator", ["auto", "batch_mean", "group_mean", "leave_one_out", "none"]),
        ("grpo.multi_objective_aggregation", ["normalize_then_sum", "sum_then_normalize"]),
        (
            "grpo.aggregation",
            ["auto", "constant_length", "minibatch_token_mean", "sequence_mean", "token_mean"],
        ),
        ("grpo.importance_sampling_level", ["auto", "sequence", "sequence_token", "token"]),
        ("grpo.kl_estimator", ["k1", "k2", "k3", "k3_unbiased"]),
        ("grpo.kl_in", ["auto", "loss", "reward"]),
        (
            "grpo.sampler_correction",
            ["none", "sequence_mask", "sequence_truncate", "token_mask", "token_truncate"],
        ),
        ("optimizer.lr_scheduler_type", ["constant", "cosine", "linear"]),
        ("checkpoint.export_dtype", ["auto", "bfloat16", "float16", "float32"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(field, known):
    told = message(**{field.replace(".", "__"): "ppo"})
    assert f"config.{field} is 'ppo'" in told
    assert str(known) in told
    for name in known:
        check(**{field.replace(".", "__"): name})


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("sapo_temperature_pos", 0.0, "must be above 0"),
        ("sapo_temperature_neg", -1.0, "must be above 0"),
        ("sampler_correction_cap", 0.0, "must be above 0"),
        ("top_entropy_quantile", 0.0, "must lie in (0, 1]"),
        ("top_entropy_quantile", 1.1, "must lie in (0, 1]"),
        ("log_ratio_clamp", 100.0, "set 80 at most"),
        ("ref_model_mixup_alpha", 0.0, "must lie in (0, 1]"),
        ("ref_model_mixup_alpha", 1.1, "must lie in (0, 1]"),
        ("delta", 1.1, "set a larger one, or 0"),  # below 1 + epsilon_high
    ],
)
def test_a_number_of_the_objective_out_of_its_range_is_refused(field, value, told):
    assert f"config.grpo.{field}" in message(**{f"grpo__{field}": value})
    assert told in message(**{f"grpo__{field}": value})


@pytest.mark.parametrize(
    ("changes", "named", "mended"),
    [
        ({"loss_type": "cispo", "delta": 2.0}, "config.grpo.delta", {"delta": 0.0}),
        ({"loss_type": "no_baseline", "delta": 2.0}, "config.grpo.delta", {"loss_type": "grpo"}),
        (
            {"loss_type": "no_baseline", "importance_sampling_level": "sequence"},
            "takes no ratio",
            {"importance_sampling_level": "auto"},
        ),
        ({"beta": 0.1, "kl_estimator": "k1"}, "gradient of 0 on average", {"kl_in": "reward"}),
        (
            {"loss_type": "rloo", "beta": 0.1, "kl_estimator": "k3_unbiased"},
            "mends a gradient",
            {"kl_in": "loss"},
        ),
        (
            {"loss_type": "dr_grpo", "multi_objective_aggregation": "normalize_then_sum"},
            "compares each reward in its group",
            {"scale_rewards": "group"},
        ),
        (
            {"beta": 0.1, "kl_in": "reward", "multi_objective_aggregation": "normalize_then_sum"},
            "scale config.grpo.beta away",
            {"kl_in": "loss"},
        ),
        (
            {"loss_type": "reinforce++", "dynamic_sampling_max_rounds": 2},
            "which do teach something",
            {"advantage_estimator": "group_mean"},
        ),
        ({"ref_model_sync_steps": 64}, "there is no reference to move", {"beta": 0.01}),
        ({"loss_type": "rloo", "std_floor": 0.1}, "config.grpo.std_floor", {"scale_rewards": "group"}),
    ],
)
def test_fields_that_undo_each_other_are_refused_with_what_would_do(changes, named, mended):
    fields = lambda values: {f"grpo__{name}": value for name, value in values.items()}  # noqa: E731
    assert named in message(**fields(changes))
    check(**fields(changes | mended))


@pytest.mark.parametrize("loss_type", sorted(LOSS_TYPES))
def test_every_loss_type_passes_with_a_kl_and_brings_its_own_advantages(loss_type):
    check(grpo__loss_type=loss_type, grpo__beta=0.01)
    kind = LOSS_TYPES[loss_type]
    read = changed(grpo__loss_type=loss_type).advantages
    assert (read.advantage_estimator, read.scale_rewards) == (kind.advantage_estimator, kind.scale_rewards)
    chosen = changed(
        grpo__loss_type=loss_type, grpo__scale_rewards="batch", grpo__advantage_estimator="batch_mean"
    )
    assert (chosen.advantages.advantage_estimator, chosen.advantages.scale_rewards) == ("batch_mean", "batch")


def test_every_field_of_the_objective_comes_from_the_config():
    values = {
        field.name: object() for field in dataclasses.fields(LossParams) if field.name in FIELDS_OF_GRPO
    }
    loss = changed(**{f"grpo__{name}": value for name, value in values.items()}).loss
    assert {name: getattr(loss, name) for name in values} == values
    others = {field.name for field in dataclasses.fields(LossParams)} - set(values)
    assert others == {"temperature", "max_completion_length"}  # of the rollout


def test_prompts_that_processes_cannot_share_are_refused_with_the_multiple_that_works():
    shape = {"rollout__num_generations": 4, "grpo__per_device_train_batch_size": 1}
    assert "set a multiple of 3" in message(num_processes=3, rollout__num_prompts=8, **shape)
    check(num_processes=3, rollout__num_prompts=9, **shape)


@pytest.mark.parametrize(
    ("num_generations", "num_minibatches", "num_processes", "multiple"),
    [
        (6, 4, 1, 2),  # 2 x 6 rows are the first to divide by 4
        (6, 4, 2, 4),  # of each process
        (5, 3, 1, 3),
        (2, 3, 4, 12),
    ],
)
def test_rows_that_do_not_divide_are_refused_with_prompts_that_do(
    num_generations, num_minibatches, num_processes, multiple
):
    shape = {"rollout__num_generations": num_generations, "grpo__num_minibatches": num_minibatches}
    told = message(num_processes=num_processes, **shape, rollout__num_prompts=num_processes)
    assert f"{num_processes} prompts x {num_generations} generations" in told
    assert told.endswith(f"set config.rollout.num_prompts to a multiple of {multiple}.")
    for factor in (1, 2, 3):
        check(num_processes=num_processes, **shape, rollout__num_prompts=factor * multiple)
    for fewer in range(num_processes, multiple, num_processes):
        message(num_processes=num_processes, **shape, rollout__num_prompts=fewer)


@pytest.mark.parametrize(
    ("prompt", "completion", "advice", "mended"),
    [
        (60, 41, "max_completion_length to at most 40", (60, 40)),
        (100, 41, "max_prompt_length to at most 59", (59, 41)),
        (120, 130, "both to lengths that add up to at most 100", (50, 50)),
    ],
)
def test_lengths_beyond_the_positions_of_the_model_are_refused_with_those_that_fit(
    prompt, completion, advice, mended
):
    def check_lengths(prompt: int, completion: int) -> None:
        lengths = {"data__max_prompt_length": prompt, "rollout__max_completion_length": completion}
        settings_checks.check_model(changed(**lengths), SPEC, tensor=1)

    with pytest.raises(ValueError) as error:
        check_lengths(prompt, completion)
    assert f"= {prompt + completion} tokens; the model has 100 positions. Set {advice}." in str(error.value)
    check_lengths(*mended)


@pytest.mark.parametrize("tensor", [3, 8])  # 3 cuts no 8 heads; 8 cuts the heads and no 180 columns
def test_a_tensor_axis_that_cuts_no_head_or_column_is_refused_with_sizes_that_do(tensor):
    lengths = {"data__max_prompt_length": 10, "rollout__max_completion_length": 10}
    with pytest.raises(ValueError, match=f"config.mesh.tensor is {tensor}") as error:
        settings_checks.check_model(changed(**lengths), SPEC, tensor=tensor)
    assert proposals(str(error.value)) == [1, 2, 4]
    for size in proposals(str(error.value)):
        settings_checks.check_model(changed(**lengths), SPEC, tensor=size)


def test_updates_and_rows_of_a_run_are_counted_by_hand():
    s = changed(
        max_steps=5,
        grpo__num_iterations=2,
        grpo__num_minibatches=3,
        rollout__num_prompts=4,
        rollout__num_generations=6,
    )
    assert (s.rows, s.num_updates) == (24, 30)


def test_evaluation_renders_its_own_problems_as_training_does():
    s = changed(
        data__system_prompt="Think.",
        data__answer_pattern="#(.*)",
        data__dataset="a.jsonl",
        evaluation__dataset="b.jsonl",
        evaluation__split="held_out",
        evaluation__max_problems=7,
    )
    looked = s.evaluation_data
    assert (looked.dataset, looked.split, looked.max_problems) == ("b.jsonl", "held_out", 7)
    assert (looked.system_prompt, looked.answer_pattern) == ("Think.", "#(.*)")


def test_another_task_is_evaluated_with_its_own_fields_but_asked_as_in_training():
    s = changed(
        data__task="gsm8k",
        data__template="think_answer",
        data__answer_pattern="#(.*)",
        data__streaming_rows=1000,
        evaluation__task="math500",
    )
    looked = s.evaluation_data
    assert (looked.task, looked.template) == ("math500", "think_answer")
    assert (looked.answer_pattern, looked.streaming_rows) == ("", 0)
    assert changed(data__task="gsm8k", evaluation__task="math500").evaluation_data.template == "boxed"
    own = changed(data__task="gsm8k", data__answer_pattern="#(.*)", evaluation__task="gsm8k")
    assert own.evaluation_data.answer_pattern == "#(.*)"


def test_rewards_are_the_tasks_where_the_config_names_none():
    assert changed(data__task="word_problems").rewards == ("accuracy,format", "1.0,0.2")
    weighed = changed(data__task="word_problems", reward__reward_weights="1,2")
    assert weighed.rewards == ("accuracy,format", "1,2")
    named = changed(data__task="word_problems", reward__reward_funcs="accuracy")
    assert named.rewards == ("accuracy", "")


@pytest.mark.parametrize("change", [{"nonsense": 1}, {"rollout": {"num_prompts": 1}}])
def test_a_config_with_other_fields_than_the_settings_is_refused(change):
    with pytest.raises(ValueError, match=r"has no field 'nonsense'|config\.rollout lacks the field"):
        settings.read(base.get_config().to_dict() | change)


def proposals(told: str) -> list[int]:
    (found,) = re.findall(r"\[([\d, ]+)\] would do", told)
    return [int(number) for number in found.split(",")]


def test_adapters_learn_at_ten_times_the_rate_and_all_else_stays():
    full = changed(optimizer__learning_rate=2e-6)
    assert full.scaled_optimizer == full.optimizer
    adapted = changed(optimizer__learning_rate=2e-6, lora__r=8)
    assert adapted.scaled_optimizer.learning_rate == pytest.approx(2e-5)
    twice = changed(optimizer__learning_rate=2e-6, lora__r=8, lora__learning_rate_ratio=2.0)
    assert twice.scaled_optimizer.learning_rate == pytest.approx(4e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora__r": -1}, r"config\.lora\.r must be at least 0; got -1"),
        ({"lora__lora_alpha": 0.0}, r"config\.lora\.lora_alpha must be above 0; got 0\.0"),
        ({"lora__lora_dropout": 1.0}, r"config\.lora\.lora_dropout must lie in \[0, 1\); got 1\.0"),
        ({"lora__lora_dropout": -0.1}, r"config\.lora\.lora_dropout must be at least 0"),
        ({"lora__target_modules": "all"}, r"config\.lora\.target_modules is 'all'; known are 'all-linear'"),
        ({"lora__base_dtype": "fp4", "lora__r": 8}, r"base_dtype is 'fp4'; known are \['auto', 'float32'"),
        ({"lora__base_dtype": "nf4"}, r"is 'nf4', but with config\.lora\.r=0 nothing is frozen.*r=16"),
        ({"lora__base_dtype": "int8"}, r"is 'int8', but with config\.lora\.r=0 nothing is frozen"),
    ],
)
def test_adapters_that_cannot_be_are_refused(changes, told):
    with pytest.raises(ValueError, match=told) as error:
        check(**changes)
    assert "\n" not in str(error.value)


def test_shaping_of_the_sum_is_checked():
    assert "config.reward.reward_scale must be above 0" in message(reward__reward_scale=0.0)
    apart = {"grpo__multi_objective_aggregation": "normalize_then_sum", "grpo__scale_rewards": "group"}
    check(**apart)
    assert "no sum to shape" in message(reward__reward_clip=1.0, **apart)


def test_fields_that_centring_undoes_are_told():
    shaping = {"reward__reward_scale": 10.0, "reward__reward_bias": -0.5}
    assert settings_checks.notes(changed()) == []
    assert len(settings_checks.notes(changed(grpo__scale_rewards="group", **shaping))) == 2
    assert len(settings_checks.notes(changed(grpo__scale_rewards="none", **shaping))) == 1
    assert settings_checks.notes(changed(reward__reward_clip=20.0, **shaping)) == []


def test_the_best_checkpoint_needs_an_evaluation_of_each():
    def check_best(**changes: Any) -> None:
        settings_checks.check_best(changed(**changes), saving="checkpoint", evaluating="evaluation")

    best = {"checkpoint__metric_for_best_model": "accuracy"}
    check_best()
    check_best(**best, checkpoint__save_steps=20, evaluation__eval_steps=10)
    for save_steps, eval_steps in ((0, 10), (20, 0), (15, 10), (10, 20)):
        numbers = {"checkpoint__save_steps": save_steps, "evaluation__eval_steps": eval_steps}
        told = (
            rf"is 'accuracy', .*save_steps {save_steps} and config\.evaluation\.eval_steps {eval_steps}\. Set"
        )
        with pytest.raises(ValueError, match=told):
            check_best(**best, **numbers)
    with pytest.raises(ValueError, match=r"got config\.sft\.save_steps 0 and config\.sft\.eval_steps 0"):
        settings_checks.check_supervised(
            changed(**best, data__max_prompt_length=10, sft__max_response_length=10), SPEC, num_processes=1
        )


@pytest.mark.parametrize(
    ("given", "name"), [("", ""), ("accuracy", "eval/accuracy"), ("eval/math/accuracy", "eval/math/accuracy")]
)
def test_the_best_checkpoints_number_may_leave_its_prefix_out(given, name):
    assert changed(checkpoint__metric_for_best_model=given).checkpoint.best_metric == name
