"""Every rule that crosses fields is refused before anything is loaded, with numbers that then pass."""

from __future__ import annotations

import re
from typing import Any

import pytest

from configs import base
from grpo_jax import settings
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


def changed(**changes: Any) -> settings.Settings:
    """The settings of `configs/base.py` with some fields changed, such as `rollout__num_prompts=3`."""
    config = base.get_config().to_dict()
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return settings.read(config)


def check(*, num_processes: int = 1, num_row_shards: int = 1, **changes: Any) -> None:
    settings.check(changed(**changes), num_processes=num_processes, num_row_shards=num_row_shards)


def message(num_processes: int = 1, num_row_shards: int = 1, **changes: Any) -> str:
    with pytest.raises(ValueError) as error:
        check(num_processes=num_processes, num_row_shards=num_row_shards, **changes)
    return str(error.value)


def test_the_base_passes_on_one_two_and_eight_devices():
    for num_row_shards in (1, 2, 8):
        check(num_row_shards=num_row_shards)


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("seed", -1, 0),
        ("max_steps", 0, 1),
        ("mesh.fsdp", 0, 1),
        ("mesh.tensor", -1, 1),
        ("mesh.cpu_devices", -1, 0),
        ("rollout.num_prompts", 0, 1),
        ("rollout.num_generations", 1, 2),
        ("rollout.max_completion_length", 0, 1),
        ("rollout.num_slots", -1, 0),
        ("rollout.window", -1, 0),
        ("grpo.epsilon", -0.1, 0),
        ("grpo.epsilon_high", -0.1, 0),
        ("grpo.beta", -0.1, 0),
        ("grpo.num_iterations", 0, 1),
        ("grpo.num_minibatches", 0, 1),
        ("grpo.per_device_train_batch_size", 0, 1),
        ("optimizer.learning_rate", float("nan"), 0),
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
        ("grpo.loss_type", ["bnpo", "dapo", "dr_grpo", "grpo"]),
        ("grpo.scale_rewards", ["batch", "group", "none"]),
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


def test_prompts_that_processes_cannot_share_are_refused_with_the_multiple_that_works():
    shape = {"rollout__num_generations": 4, "grpo__per_device_train_batch_size": 1}
    assert "set a multiple of 3" in message(
        num_processes=3, num_row_shards=3, rollout__num_prompts=8, **shape
    )
    check(num_processes=3, num_row_shards=3, rollout__num_prompts=9, **shape)


@pytest.mark.parametrize(
    ("num_generations", "num_minibatches", "num_row_shards", "num_processes", "multiple"),
    [
        (8, 1, 16, 1, 2),  # 2 x 8 rows are the first to divide by 16
        (6, 2, 8, 1, 8),  # 16 divides 6 P from P = 8 on
        (6, 2, 8, 2, 8),
        (2, 1, 12, 4, 12),  # 6 would do for the devices, 12 is the first that 4 processes share
        (5, 3, 7, 1, 21),
    ],
)
def test_rows_that_do_not_divide_are_refused_with_prompts_that_do(
    num_generations, num_minibatches, num_row_shards, num_processes, multiple
):
    machine = {"num_processes": num_processes, "num_row_shards": num_row_shards}
    shape = {
        "rollout__num_generations": num_generations,
        "grpo__num_minibatches": num_minibatches,
        "grpo__per_device_train_batch_size": 1,
    }
    told = message(**machine, **shape, rollout__num_prompts=num_processes)
    assert f"{num_processes} prompts x {num_generations} generations" in told
    assert told.endswith(f"set config.rollout.num_prompts to a multiple of {multiple}.")
    for factor in (1, 2, 3):
        check(**machine, **shape, rollout__num_prompts=factor * multiple)
    for fewer in range(num_processes, multiple, num_processes):
        message(**machine, **shape, rollout__num_prompts=fewer)


def test_a_microbatch_that_does_not_divide_is_refused_with_those_that_do():
    shape = {"rollout__num_prompts": 6, "rollout__num_generations": 4, "grpo__num_minibatches": 2}
    told = message(num_row_shards=2, **shape, grpo__per_device_train_batch_size=4)  # 24 / 2 / 2 = 6 rows
    assert "has 6 rows an update" in told
    assert proposals(told) == [1, 2, 3, 6]
    for size in proposals(told):
        check(num_row_shards=2, **shape, grpo__per_device_train_batch_size=size)


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
        settings.check_model(changed(**lengths), SPEC, tensor=1)

    with pytest.raises(ValueError) as error:
        check_lengths(prompt, completion)
    assert f"= {prompt + completion} tokens; the model has 100 positions. Set {advice}." in str(error.value)
    check_lengths(*mended)


@pytest.mark.parametrize("tensor", [3, 8])  # 3 cuts no 8 heads; 8 cuts the heads and no 180 columns
def test_a_tensor_axis_that_cuts_no_head_or_column_is_refused_with_sizes_that_do(tensor):
    lengths = {"data__max_prompt_length": 10, "rollout__max_completion_length": 10}
    with pytest.raises(ValueError, match=f"config.mesh.tensor is {tensor}") as error:
        settings.check_model(changed(**lengths), SPEC, tensor=tensor)
    assert proposals(str(error.value)) == [1, 2, 4]
    for size in proposals(str(error.value)):
        settings.check_model(changed(**lengths), SPEC, tensor=size)


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


@pytest.mark.parametrize("change", [{"nonsense": 1}, {"rollout": {"num_prompts": 1}}])
def test_a_config_with_other_fields_than_the_settings_is_refused(change):
    with pytest.raises(TypeError):
        settings.read(base.get_config().to_dict() | change)


def proposals(told: str) -> list[int]:
    (found,) = re.findall(r"\[([\d, ]+)\] would do", told)
    return [int(number) for number in found.split(",")]
