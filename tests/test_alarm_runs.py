"""Alarms in the whole program: runs that really go wrong are stopped, or go back and end well; also when killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from grpo_jax import roll_backs
from tests import micro_run
from tests.test_train import arrays

DIVERGES = "--config.optimizer.weight_decay=1e34"  # the first update multiplies each matrix by -3e29
GOES_BACK = (  # a random model's completions differ little in length, and yet by more than this
    *(
        "--config.alarms.length=roll_back",
        "--config.alarms.length_factor=1.02",
        "--config.alarms.first_steps=2",
    ),
    "--config.alarms.max_roll_backs=40",
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, micro_model, cache) -> Path:
    """A run that goes back, and is not killed."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    said = micro_run.run(command(micro_model, folder, cache, *GOES_BACK)).stdout
    assert "going back to the checkpoint of step" in said
    return folder


def test_a_run_that_diverges_is_stopped_before_the_bad_state_is_saved(micro_model, tmp_path, cache):
    folder = tmp_path / "run"
    typed = command(micro_model, folder, cache, DIVERGES, checkpoint__save_steps=1)
    done = micro_run.run(typed, status=4)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("stopped by alarm non_finite at step 2: the loss is ")
    where = f"The last good checkpoint is of step 1, in {folder}/checkpoints. "
    assert f"the gradient's norm nan: not finite. {where}" in line
    assert "lower config.optimizer.learning_rate" in line
    assert os.listdir(folder / "checkpoints") == ["1"]
    assert all(np.isfinite(array).all() for array in arrays(folder, 1))
    norms = [entry["grad_norm"] for entry in micro_run.told(folder) if "reward" in entry]
    assert norms[0] > 0 and norms[1] is None  # the bad step is told all the same


def test_a_run_whose_roll_backs_do_not_help_is_stopped(micro_model, tmp_path, cache):
    folder = tmp_path / "run"
    back = ("--config.alarms.non_finite=roll_back", "--config.alarms.max_roll_backs=2")
    done = micro_run.run(
        command(micro_model, folder, cache, DIVERGES, *back, checkpoint__save_steps=1), status=4
    )
    (line,) = done.stderr.strip().splitlines()
    assert (
        "after 2 roll-backs (config.alarms.max_roll_backs 2). The last good checkpoint is of step 1" in line
    )
    assert [(entry.at, entry.to) for entry in roll_backs.read(folder)] == [(2, 1), (2, 1)]


def test_a_run_without_any_reward_is_stopped_and_told_that_no_checkpoint_is_good(
    micro_model, tmp_path, cache
):
    folder = tmp_path / "run"
    stop = ("--config.alarms.zero_reward=stop", "--config.alarms.zero_reward_steps=3")
    typed = command(micro_model, folder, cache, *stop, reward__reward_funcs="accuracy")
    (line,) = micro_run.run(typed, status=4).stderr.strip().splitlines()
    assert line.startswith(
        "stopped by alarm zero_reward at step 3: no completion was right, and the mean reward is 0, for 3 steps in "
        "a row, since step 1. No checkpoint is from before step 1: "
    )
    assert os.listdir(folder / "checkpoints") == ["2"]  # from within the streak: kept, and not called good


def test_a_streak_names_the_checkpoint_from_before_it(micro_model, tmp_path, cache):
    folder = tmp_path / "run"
    stop = (
        "--config.alarms.clipped=stop",
        "--config.alarms.clipped_steps=2",
        "--config.alarms.clipped_limit=0.95",
    )
    typed = command(micro_model, folder, cache, *stop, checkpoint__save_steps=1, max_steps=40)
    (line,) = micro_run.run(typed, status=4).stderr.strip().splitlines()
    told = [entry for entry in micro_run.told(folder) if "reward" in entry]
    cut = [entry["step"] for entry in told if entry["completions/clipped_ratio"] > 0.95]
    since, step = next((step, step + 1) for step in cut if step + 1 in cut)
    assert since > 1, "the first two steps are cut already: this test needs another seed"
    assert told[-1]["step"] == step
    assert f"stopped by alarm clipped at step {step}: " in line
    assert (
        f", for 2 steps in a row, since step {since}. The last good checkpoint is of step {since - 1}, in"
        in line
    )
    assert line.endswith(f"; else the same command, with --config.checkpoint.resume_step={since - 1}.")
    assert sorted(map(int, os.listdir(folder / "checkpoints"))) == [since - 1, since]
    assert len(arrays(folder, since - 1)) > 1  # whole: it can be read


def test_a_run_goes_back_and_ends_with_other_samples(straight):
    back = roll_backs.read(straight)
    assert back and all(entry.done for entry in back)
    steps = [entry["step"] for entry in micro_run.told(straight) if "reward" in entry]
    assert steps == [1, 2, 3, 4, 5, 6]
    lengths = [entry["completions/mean_length"] for entry in micro_run.told(straight) if "reward" in entry]
    assert max(lengths[2:]) <= 1.02 * sum(lengths[:2]) / 2
    assert (straight / "final" / "model.safetensors").is_file()
    # the first roll-back's steps were done again with other problems, which never come twice
    abandoned = [
        json.loads(line) for line in (straight / "samples_rolled_back.jsonl").read_text().splitlines()
    ]
    kept = [json.loads(line) for line in (straight / "samples.jsonl").read_text().splitlines()]
    before, after = (
        {e["problem_index"] for e in part if e["split"] == "train"} for part in (abandoned, kept)
    )
    assert before and after and not before & after


def test_a_run_that_is_killed_as_it_goes_back_ends_as_one_that_was_not(
    straight, micro_model, tmp_path, cache
):
    folder = tmp_path / "killed"
    typed = command(micro_model, folder, cache, *GOES_BACK)
    process = subprocess.Popen(
        typed,
        cwd=micro_run.ROOT,
        env=micro_run.ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (folder / roll_backs.FILE).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert roll_backs.read(folder), "it never went back"
    micro_run.run(typed)
    same_ends(folder, straight)


def test_a_run_that_is_killed_after_it_went_back_ends_as_one_that_was_not(
    straight, micro_model, tmp_path, cache
):
    folder = tmp_path / "stopped"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints" / "6")  # as if it had not come so far
    shutil.rmtree(folder / "final")
    said = micro_run.run(command(micro_model, folder, cache, *GOES_BACK)).stdout
    assert "going on after step 4" in said
    same_ends(folder, straight)


def test_a_supervised_run_that_diverges_is_stopped_too(micro_model, tmp_path, cache):
    overrides = (f"--config.sft.output_dir={tmp_path / 's'}", DIVERGES)
    more = ("--config.sft.save_steps=1", "--config.sft.num_rows=4", "--config.sft.validation_problems=4")
    _, _, _, *rest = command(micro_model, tmp_path / "unused", cache, *overrides, *more)
    done = micro_run.run([sys.executable, "-m", "grpo_jax.sft", *rest], status=4)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("stopped by alarm non_finite at step 2: ")
    assert "The last good checkpoint is of step 1" in line and "lower config.sft.learning_rate" in line


def command(model: Path, folder: Path, *overrides: str, **fields: object) -> list[str]:
    """All with the same sizes, so that only the first compiles."""
    fields = {
        "rollout__num_prompts": 8,
        "data__max_problems": 2000,  # none comes twice
        "telling__completions_every_steps": 1,
    } | fields
    return micro_run.command(model, folder, *overrides, **fields)


def same_ends(folder: Path, other: Path) -> None:
    """The same numbers, weights, moments and roll-backs, bit for bit."""
    assert micro_run.told(folder) == micro_run.told(other)
    for left, right in zip(arrays(folder, 6), arrays(other, 6), strict=True):
        np.testing.assert_array_equal(left, right)
    assert roll_backs.read(folder) == roll_backs.read(other)
    for name in ("samples.jsonl", "samples_rolled_back.jsonl", "final/model.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
