"""Steps computed again: the same bits from a checkpoint, differences found and named, the run's folder untouched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from grpo_jax import checkpoint_folder, roll_backs, run_folder, starts
from grpo_jax.replaying import replay as replaying
from grpo_jax.replaying import source, step_file
from grpo_jax.replaying.replay import Replay, Row
from grpo_jax.run import Whole
from tests import micro_run

FIELDS = {
    "max_steps": 4,
    "evaluation__task": "",
    "rollout__num_prompts": 8,
    "rollout__num_generations": 2,  # both completions often fare alike: then others are sampled
    "grpo__dynamic_sampling_max_rounds": 1,
    "grpo__num_iterations": 2,
    "grpo__num_minibatches": 2,
    "grpo__beta": 0.05,
    "grpo__ref_model_sync_steps": 1,
}


REWARD = "def has_e(attempt):\n    return float('e' in attempt.completion)\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run of 4 steps, 4 updates each, with a reference that moves and checkpoints 2 and 4."""
    place = tmp_path_factory.mktemp("replay")
    model, cache = micro_run.make_model(place / "model"), str(place / "compiled")
    (place / "own.py").write_text(REWARD)
    fields = {"compilation_cache": cache, "reward__reward_funcs": f"{place / 'own.py'}:has_e", **FIELDS}
    micro_run.run(micro_run.command(model, place / "run", **fields))
    return place / "run"


def replay(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/replay.py", "--run", str(folder), *arguments]
    return micro_run.run(command, status=status)


def table(said: str) -> dict[tuple[int, str], str]:
    """(step, what) -> "yes", "no" or "not told"."""
    rows = [line.split(maxsplit=4) for line in said.splitlines() if line[:6].strip().isdigit()]
    return {(int(step), what): same for step, what, _, _, same in rows}


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Of every file and folder: when it was changed, and what is in it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted([folder, *folder.rglob("*")])
    }


def edited(folder: Path, place: Path, file: str, old: str, new: str) -> Path:
    """A copy of a run in which one text of one file is another."""
    shutil.copytree(folder, place)
    text = (place / file).read_text()
    assert old in text
    (place / file).write_text(text.replace(old, new))
    return place


def test_steps_after_a_checkpoint_are_the_same_and_nothing_in_the_folder_changes(folder, tmp_path):
    before = state_of(folder)
    done = replay(folder, "--step", "4", "--output", str(tmp_path / "step.jsonl"))
    assert table(done.stdout) == {(step, what): "yes" for step in (3, 4) for what in replaying.CAUSES}
    assert "after checkpoint 2: all 8 digests are the same" in done.stdout
    assert state_of(folder) == before
    rounds = [source.told_steps(folder)[step]["dynamic_sampling/rounds"] for step in (3, 4)]
    assert max(rounds) == 1

    lines = [json.loads(line) for line in (tmp_path / "step.jsonl").read_text().splitlines()]
    told = source.told_steps(folder)[4]
    assert len(lines) == 16
    alike = [lines[at]["reward"] == lines[at + 1]["reward"] for at in range(0, 16, 2)]
    assert np.mean(alike) == told["frac_reward_zero_std"]  # of the groups that were learned from
    gaps = [
        np.abs(np.subtract(line["sampler_logprobs"], line["trainer_logprobs"])).max()
        for line in lines
        if line["advantage"]
    ]
    # the largest over rows with signal, as the update saw it: another program's last bits
    assert max(gaps) == pytest.approx(told["sampling/sampling_logp_difference/max"], abs=2e-6)
    for at in range(0, 16, 2):  # completions of one problem stand together, their advantages around 0
        group = lines[at : at + 2]
        assert len({line["problem_index"] for line in group}) == 1
        assert sum(line["advantage"] for line in group) == pytest.approx(0, abs=1e-5)


def test_another_learning_rate_is_found_after_the_first_of_a_steps_updates_and_named(folder, tmp_path):
    rate = json.loads((folder / "config.json").read_text())["optimizer"]["learning_rate"]
    was, now = f'"learning_rate": {rate}', '"learning_rate": 0.001'
    copy = edited(folder, tmp_path / "copy", "config.json", was, now)
    done = replay(copy, "--step", "3", status=5)
    assert table(done.stdout) == {
        (3, "samples"): "yes",
        (3, "rewards"): "yes",
        (3, "gradient"): "no",  # of the second update, behind another first one
        (3, "params"): "no",
    }
    for words in ("in the gradient of step 3", f"learning_rate was {rate}, is 0.001", "config_digest was"):
        assert words in done.stdout


def test_eight_devices_give_the_samples_and_rewards_of_one(folder, tmp_path):
    copy = edited(folder, tmp_path / "copy", "environment.json", '"devices": 1', '"devices": 8')
    command = [sys.executable, "tools/replay.py", "--run", str(copy), "--step", "3"]
    done = subprocess.run(
        command, cwd=micro_run.ROOT, env=micro_run.ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode in (0, 5), done.stderr[-3000:]  # sums over devices have last bits of their own
    assert "devices: 8 x cpu" in done.stderr
    same = table(done.stdout)
    assert (same[3, "samples"], same[3, "rewards"]) == ("yes", "yes")


def begun(folder: Path) -> Path:
    """A folder that looks like a run's: checkpoints 2 and 4 are sealed, 5 is damaged, 6 was never finished."""
    place = folder / run_folder.CHECKPOINTS
    for step in (2, 4):
        (place / "new").mkdir(parents=True)
        checkpoint_folder.commit(place / "new", place / str(step), {"record": {}})
    (place / "5").mkdir()
    (place / "6.unfinished").mkdir()
    return folder


def test_the_newest_checkpoint_before_the_step_is_taken(tmp_path):
    run = begun(tmp_path)
    assert [source.find_start(run, step, after=-1, last=9) for step in (1, 2, 3, 4, 5, 9)] == [
        *(0, 0, 2, 2, 4, 4),
    ]
    assert source.find_start(run, 5, after=0, last=9) == 0
    with pytest.raises(ValueError, match=r"no checkpoint 4 before step 3; --after may be \[0, 2\]"):
        source.find_start(run, 3, after=4, last=9)
    with pytest.raises(ValueError, match=r"has steps 1 to 9; got --step 10"):
        source.find_start(run, 10, after=-1, last=9)


def test_mistakes_are_told_before_anything_is_computed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: give --run the folder of a run"):
        source.read_config(tmp_path, {})
    with pytest.raises(ValueError, match="which is only read"):
        step_file.check_output(tmp_path / "checkpoints" / "x.jsonl", tmp_path)
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError, match="name a new file"):
        step_file.check_output(tmp_path / "there", tmp_path / "run")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / run_folder.SUPERVISED_FILE).write_text("{}")
    with pytest.raises(ValueError, match="holds a supervised run"):
        source.read_config(tmp_path, {})
    with pytest.raises(ValueError, match="written by another version of grpo_jax"):
        source.read_settings(tmp_path, {"model": {"path": "x", "gone": 1}})


def test_the_last_line_of_a_step_counts_and_torn_ones_do_not(tmp_path):
    lines = ['{"step": 1, "loss": 1}', '{"step": 1, "loss": 2}', '{"step": 1, "eval/accuracy": 0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 2, "lo']))
    assert source.told_steps(tmp_path) == {1: {"step": 1, "loss": 2}}


def test_the_config_of_the_start_that_computed_the_step_is_taken(tmp_path):
    first, second = {"seed": 1, "max_steps": 4}, {"seed": 1, "max_steps": 9}
    (tmp_path / "config.json").write_text(json.dumps(second))
    (tmp_path / "config_until_step_4.json").write_text(json.dumps(first))
    for config in (first, second):
        began = {"config_digest": starts.config_digest(config)}
        assert source.read_config(tmp_path, began) == config
    assert source.read_config(tmp_path, {}) == second


def test_where_the_run_went_back_its_replay_does_too(tmp_path):
    taken: list[dict] = []
    backs = [
        roll_backs.RollBack("kl", at, to, {"position": at}, done=True) for at, to in ((5, 4), (6, 2), (7, 2))
    ]
    roll_backs.write(tmp_path, backs)
    run = types.SimpleNamespace(
        folder=tmp_path,
        problem_batches=types.SimpleNamespace(set_state=taken.append),
        whole=Whole(0, {}, looked=True),
    )
    found = []
    for step in (1, 2, 3, 4, 5):
        replaying.go_back(cast(Any, run), step)
        found.append(run.whole.roll_backs)
    assert found == [0, 3, 3, 3, 3]  # the one to step 4 was left behind by those to step 2
    assert taken == [{"position": 7}]


def test_a_step_that_was_not_told_is_no_difference():
    rows = [Row(step=1, what="samples", run=None, replayed="00")]
    result = Replay(Path("run"), 0, rows, {1: ({}, {})}, {}, {})
    assert result.first_difference is None
    assert replaying.describe(result)[-1] == (
        "run, from the beginning: the run told no digests: nothing was compared"
    )


def test_where_nothing_else_differs_the_files_behind_the_run_are_named():
    rows = [Row(step=1, what="rewards", run="11", replayed="00")]
    numbers = {1: ({"reward": 0.25}, {"reward": 0.5})}
    said = replaying.describe(Replay(Path("run"), 0, rows, numbers, {"jax": "1"}, {"jax": "1"}))
    assert said[-3] == "  reward was 0.25, is 0.5"
    assert "a reward function or its options were others" in said[-2]
    assert "look at its data, reward files and model folder" in said[-1]
    unknown = replaying.describe(Replay(Path("run"), 0, rows, numbers, {}, {"jax": "1"}))
    assert "no environment.json" in unknown[-1]
