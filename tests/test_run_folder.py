"""A run's folder: what may go on in it, what is refused, and how the difference is told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from configs import base
from grpo_jax import run_folder


@pytest.fixture
def config() -> dict[str, Any]:
    return base.get_config().to_dict()


def begun(folder: Path, config: dict[str, Any], *, step: int | None = 5) -> Path:
    """The folder of a run with this config that kept a step, or none."""
    run_folder.write_config(folder, config)
    if step is not None:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    return folder


def test_a_new_and_an_empty_folder_are_taken(tmp_path, config):
    run_folder.check_folder(tmp_path, config)
    run_folder.check_folder(tmp_path / "new" / "one", config)


def test_a_folder_with_other_files_is_no_place_for_a_run(tmp_path, config):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"no config\.json.*config\.output_dir"):
        run_folder.check_folder(tmp_path, config)


def test_the_same_config_goes_on(tmp_path, config):
    run_folder.check_folder(begun(tmp_path, config), config)


def test_what_decides_no_number_of_the_run_may_change(tmp_path, config):
    begun(tmp_path, copy.deepcopy(config))
    config["max_steps"] += 10
    config["output_dir"] = "elsewhere"
    config["compilation_cache"] = "cache"
    config["telling"]["tensorboard"] = False
    config["checkpoint"]["save_steps"] = 1
    config["distributed"]["mode"] = "auto"
    config["sft"]["num_rows"] = 3
    run_folder.check_folder(tmp_path, config)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "path", "another"),
        ("grpo", "epsilon", 0.25),
        ("data", "max_problems", 7),
        ("rollout", "num_prompts", 4),
        ("optimizer", "learning_rate", 2e-6),
        ("reward", "shuffle_rewards", True),
        ("model", "compute_dtype", "bfloat16"),
        ("evaluation", "eval_steps", 3),
    ],
)
def test_another_value_of_what_decides_numbers_is_refused_with_both_values(
    tmp_path, config, section, field, value
):
    begun(tmp_path, copy.deepcopy(config))
    was, config[section][field] = config[section][field], value
    with pytest.raises(ValueError) as error:
        run_folder.check_folder(tmp_path, config)
    assert f"({section}.{field} was {was!r}, is {value!r})" in str(error.value)
    assert "config.output_dir" in str(error.value)
    assert f"--config.checkpoint.accept_changes={section}.{field}" in str(error.value)
    assert run_folder.REASONS[section] in str(error.value)
    changes = run_folder.check_folder(tmp_path, config, accept=[f"{section}.{field}"])
    assert changes.accepted == (f"{section}.{field}",)
    assert changes.describe(changes.accepted) == f"{section}.{field} was {was!r}, is {value!r}"


def test_what_decides_the_last_digits_only_may_change_and_is_told(tmp_path, config):
    begun(tmp_path, copy.deepcopy(config))
    config["mesh"] |= {"data": 2, "fsdp": 4}
    config["rollout"]["num_slots"] = 4
    changes = run_folder.check_folder(tmp_path, config)
    assert changes.rounding == ("mesh.data", "mesh.fsdp", "rollout.num_slots")
    assert not changes.accepted
    assert all(run_folder.why_rounded(name) for name in changes.rounding)


def test_a_change_beside_an_accepted_one_is_refused_with_both_in_the_switch(tmp_path, config):
    begun(tmp_path, copy.deepcopy(config))
    config["grpo"]["beta"], config["seed"] = 0.1, 3
    with pytest.raises(ValueError, match="seed was 0, is 3") as error:
        run_folder.check_folder(tmp_path, config, accept=["grpo.beta"])
    assert "accept_changes=grpo.beta,seed" in str(error.value)
    assert "grpo.beta was" not in str(error.value)


def test_data_accepts_its_whole_section(tmp_path, config):
    begun(tmp_path, copy.deepcopy(config))
    config["data"] |= {"max_problems": 7, "task": "gsm8k"}
    changes = run_folder.check_folder(tmp_path, config, accept=["data"])
    assert changes.accepted == ("data.max_problems", "data.task")


def test_other_sizes_of_the_saved_arrays_cannot_be_accepted(tmp_path, config):
    begun(tmp_path, copy.deepcopy(config))
    config["lora"]["r"] = 8
    with pytest.raises(ValueError, match=r"lora\.r was 0, is 8") as error:
        run_folder.check_folder(tmp_path, config, accept=["lora.r"])
    assert "accept_changes" not in str(error.value)


def test_a_misspelt_field_in_accept_changes_is_told_with_what_is_near(tmp_path, config):
    with pytest.raises(ValueError, match=r"'optimizer\.learnin_rate'.*near it are optimizer\.learning_rate"):
        run_folder.check_folder(tmp_path, config, accept=["optimizer.learnin_rate"])


def test_the_config_so_far_stays_under_its_steps_name(tmp_path, config):
    for seed in (0, 1, 2):
        run_folder.write_config(
            tmp_path, config | {"seed": seed}, keep_as="config_until_step_4.json" * (seed > 0)
        )
    kept = {path.name: json.loads(path.read_text())["seed"] for path in tmp_path.iterdir()}
    assert kept == {"config.json": 2, "config_until_step_4.json": 0, "config_until_step_4_2.json": 1}


def test_a_supervised_run_and_grpo_do_not_go_on_in_each_others_folders(tmp_path, config):
    begun(tmp_path / "grpo", config)
    (begun(tmp_path / "sft", config) / run_folder.SUPERVISED_FILE).touch()
    run_folder.check_folder(tmp_path / "sft", config, supervised=True)
    with pytest.raises(ValueError, match=r"holds a GRPO run.*config\.sft\.output_dir"):
        run_folder.check_folder(tmp_path / "grpo", config, supervised=True)
    with pytest.raises(ValueError, match=r"holds a supervised run.*config\.output_dir"):
        run_folder.check_folder(tmp_path / "sft", config)


def test_a_supervised_run_stopped_before_its_first_number_leaves_no_mark(tmp_path, config):
    (begun(tmp_path, config, step=None) / run_folder.SUPERVISED_FILE).touch()
    run_folder.check_folder(tmp_path, config)
    run_folder.write_config(tmp_path, config)
    (tmp_path / "final").mkdir()
    run_folder.check_folder(tmp_path, config)


def test_another_seed_is_refused(tmp_path, config):
    begun(tmp_path, config)
    with pytest.raises(ValueError, match=r"\(seed was 0, is 1\)"):
        run_folder.check_folder(tmp_path, config | {"seed": 1})


def test_a_run_that_was_refused_before_its_first_number_gives_way(tmp_path, config):
    (begun(tmp_path, config, step=None) / "metrics.jsonl").touch()
    (tmp_path / "checkpoints").mkdir()
    run_folder.check_folder(tmp_path, config | {"seed": 1})


def test_a_run_that_told_a_number_keeps_its_folder(tmp_path, config):
    (begun(tmp_path, config, step=None) / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        run_folder.check_folder(tmp_path, config | {"seed": 1})


def test_a_finished_run_without_checkpoints_keeps_its_folder(tmp_path, config):
    (begun(tmp_path, config, step=None) / "final").mkdir()
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        run_folder.check_folder(tmp_path, config | {"seed": 1})


def test_a_kill_while_the_config_was_written_is_no_run(tmp_path, config):
    (tmp_path / run_folder.UNFINISHED_CONFIG).write_text('{"seed": ')
    run_folder.check_folder(tmp_path, config)


def test_the_written_config_is_the_resolved_one(tmp_path, config):
    run_folder.write_config(tmp_path / "new", config)
    as_json = json.loads(json.dumps(config))  # which has lists for tuples
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == as_json
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


def test_changes_are_told_by_field_and_the_many_are_counted():
    before = run_folder.fields({"seed": 0, "grpo": {"a": 1, "b": 2, "c": 3, "gone": 4}})
    now = run_folder.fields({"seed": 1, "grpo": {"a": 1, "b": 0, "c": 0, "new": 5}})
    assert run_folder.describe_changes(before, now, ["seed"]) == "seed was 0, is 1"
    names = ["grpo.b", "grpo.c", "grpo.gone", "grpo.new", "seed"]
    assert run_folder.describe_changes(before, now, names) == (
        "grpo.b was 2, is 0; grpo.c was 3, is 0; grpo.gone was 4, is None; grpo.new was None, is 5 and 1 more"
    )


def test_a_field_that_an_older_version_did_not_have_is_told():
    now = run_folder.fields({"lora": {"rank": 8}})
    assert run_folder.describe_changes({}, now, ["lora.rank"]) == "lora.rank was None, is 8"
