"""Where a run begins: the step, what is refused, what is moved aside, and what it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from configs import base
from grpo_jax import resuming, run_folder, settings, told_files
from grpo_jax.checkpoints import Checkpoints, Retention
from grpo_jax.run_folder import Changes


def config_with(**checkpoint: Any) -> dict[str, Any]:
    config = base.get_config().to_dict()
    config["checkpoint"] |= checkpoint
    return config


def check(folder: Path, **checkpoint: Any) -> Changes:
    config = config_with(**checkpoint)
    return resuming.check(folder, config, settings.read(config))


def begin(folder: Path, *, last: int = 6, **checkpoint: Any) -> resuming.Start:
    keeper = Checkpoints(folder / run_folder.CHECKPOINTS, retention=Retention(9))
    changes = check(folder, **checkpoint)
    start = resuming.begin(keeper, folder, settings.read(config_with(**checkpoint)), changes, last=last)
    keeper.close()
    return start


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of a finished run of six steps that kept three of them; step 6 was not yet evaluated."""
    folder = tmp_path / "run"
    run_folder.write_config(folder, config_with())
    keeper = Checkpoints(folder / run_folder.CHECKPOINTS, retention=Retention(9))
    for step in (2, 4, 6):
        record = {"step": step, "data": {"positions": [step]}, "looked": step < 6}
        keeper.save(step, {"a": jnp.full(3, float(step))}, record)
    keeper.close()
    lines = "".join(json.dumps({"step": step, "reward": 0.5}) + "\n" for step in range(1, 7))
    (folder / told_files.METRICS_FILE).write_text(lines)
    (folder / "final").mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_auto_begins_where_there_is_nothing_and_goes_on_after_the_newest(tmp_path, folder):
    run_folder.write_config(tmp_path / "new", config_with())
    start = begin(tmp_path / "new")
    assert (start.step, start.record, start.looked, start.remarks) == (0, {}, True, ())
    start = begin(folder)
    assert (start.step, start.looked, start.record["data"]) == (6, False, {"positions": [6]})


def test_a_finished_run_keeps_its_model_and_one_that_goes_on_sets_it_aside_by_its_step(folder):
    begin(folder, last=6)
    assert "final" in names(folder)
    begin(folder, last=8)
    assert "final_of_step_6" in names(folder) and "final" not in names(folder)
    (folder / "final").mkdir()
    begin(folder, last=8)
    assert {"final_of_step_6", "final_of_step_6_2"} <= names(folder)


def test_an_older_step_sets_newer_ones_aside_and_says_so(folder):
    start = begin(folder, resume_step=2)
    assert (start.step, start.looked) == (2, True)
    (remark,) = start.remarks
    assert "config.checkpoint.resume_step is 2: checkpoints of steps 4, 6 are moved to" in remark
    keeper = Checkpoints(folder / run_folder.CHECKPOINTS, retention=Retention(9))
    assert keeper.steps() == [2]
    assert names(keeper.folder / "set_aside") == {"4", "6"}
    assert "final_of_step_6" in names(folder)
    assert len((folder / "metrics_until_step_6.jsonl").read_text().splitlines()) == 6
    keeper.save(4, {"a": jnp.zeros(3)}, {"step": 4})  # told and saved again, then gone back from again
    keeper.close()
    begin(folder, resume_step=2)
    assert names(keeper.folder / "set_aside") == {"4", "4.1", "6"}


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path, folder):
    before = names(folder)
    with pytest.raises(
        ValueError, match=r"resume_step is 3, but .*run has no checkpoint of that step; there are 2, 4, 6"
    ):
        check(folder, resume_step=3)
    with pytest.raises(ValueError, match="there is none"):
        check(tmp_path / "new", resume_step=3)
    assert names(folder) == before


def test_never_refuses_a_run_that_has_begun_and_must_one_that_has_not(tmp_path, folder):
    with pytest.raises(
        ValueError, match=r"'never': nothing is overwritten. Set config\.output_dir to a new folder"
    ):
        check(folder, resume="never")
    check(tmp_path / "new", resume="never")
    check(folder, resume="must")
    with pytest.raises(ValueError, match=r"'must', but .*new has no checkpoint to go on from"):
        check(tmp_path / "new", resume="must")
    assert not (tmp_path / "new").exists()


def test_never_refuses_a_run_that_only_told_numbers(tmp_path):
    run_folder.write_config(tmp_path, config_with())
    check(tmp_path, resume="never")  # refused before its first number
    (tmp_path / told_files.METRICS_FILE).write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match="has begun"):
        check(tmp_path, resume="never")


def test_other_devices_are_told_and_the_same_ones_are_not():
    saved = {"mesh": {"data": 2, "fsdp": 4}, "processes": 1}
    assert resuming.place_remark(saved, saved) == ""
    assert resuming.place_remark({}, saved) == ""  # saved by an earlier version
    remark = resuming.place_remark(saved, {"mesh": {"data": 8, "fsdp": 1}, "processes": 1})
    assert "mesh {'data': 2, 'fsdp': 4} now {'data': 8, 'fsdp': 1}" in remark
    assert "processes" not in remark and "within rounding" in remark


def changed(config: dict[str, Any], **fields: Any) -> tuple[Changes, settings.Settings]:
    before = run_folder.fields(json.loads(json.dumps(config)))
    for name, value in fields.items():
        section, field = name.split("__")
        config[section][field] = value
    now = run_folder.fields(config)
    accepted = tuple(name for name in now if before[name] != now[name])
    return Changes(before, now, accepted=accepted), settings.read(config)


def test_changed_batches_say_what_they_do_to_the_learning_rate():
    config = config_with()
    config["optimizer"]["lr_scheduler_type"] = "linear"
    changes, s = changed(config, grpo__num_minibatches=2, rollout__num_prompts=4)
    schedule, batch = resuming.schedule_remarks(changes, s, num_done=40)
    assert schedule.startswith("grpo.num_minibatches was 1, is 2: the learning rate follows updates (linear")
    assert "40 are done, and it is laid out for 200 in all" in schedule  # 100 steps of two
    assert batch.startswith("rollout.num_prompts was 8, is 4: an update sees another number of rows")


def test_a_constant_rate_says_nothing_of_updates():
    changes, s = changed(config_with(), grpo__num_minibatches=2)
    assert resuming.schedule_remarks(changes, s, num_done=40) == []
    warm = dataclasses.replace(s, optimizer=dataclasses.replace(s.optimizer, warmup_steps=50))
    assert len(resuming.schedule_remarks(changes, warm, num_done=40)) == 1


@pytest.mark.parametrize(
    ("accept", "decides"),
    [
        ("data", True),
        ("optimizer.learning_rate, seed", True),
        ("evaluation.max_problems", True),  # training problems that it has are left out
        ("rollout.num_prompts", True),
        ("rollout.top_k,database", False),
        ("", False),
    ],
)
def test_what_decides_the_order_of_problems(accept, decides):
    s = settings.read(config_with(accept_changes=accept))
    assert resuming.decide_data(resuming.accepted(s)) is decides
