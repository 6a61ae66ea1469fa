"""A roll-back that is cut anywhere is finished by the next start, and leaves the same folder."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import checkpoints, metrics, roll_backs, told_files
from grpo_jax.checkpoints import Checkpoints, Reader, Retention
from grpo_jax.roll_backs import RollBack

BACK = RollBack("kl", at=7, to=2, data={"position": 7})
SAMPLE = metrics.Sample(
    problem_index=1, question="1 + 1?", completion="2", gold="2", parsed="2", rewards={}, outcome="correct"
)


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """A run that has told 7 steps and saved after 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("before") / "run"
    with open_teller(folder) as teller:
        for step in range(1, 8):
            teller.tell_step(step, {"reward": step / 10})
            teller.tell_samples(step, [SAMPLE])
            if step == 2:
                teller.tell_evaluation(2, {"accuracy": 0.5})
    keeper = keeper_of(folder / "checkpoints")
    for step in (2, 4, 6):
        keeper.save(step, {"a": jnp.full(3, float(step))}, {"step": step})
    keeper.close()
    return folder


def keeper_of(folder: Path) -> Checkpoints:
    return Checkpoints(folder, retention=Retention(9))


def open_teller(folder: Path, *, first_step: int = 0, tensorboard: bool = False) -> metrics.Teller:
    return metrics.open_teller(
        folder,
        params=metrics.TellingParams(tensorboard=tensorboard),
        num_steps=9,
        config={},
        started_at=time.time(),
        first_step=first_step,
        stream=io.StringIO(),
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def nothing(folder: Path) -> None:
    """Killed when the list was written."""


def one_set_aside(folder: Path) -> None:
    keeper_of(folder / "checkpoints").set_aside([6])


def all_set_aside(folder: Path) -> None:
    keeper_of(folder / "checkpoints").set_aside([4, 6])


def copied_but_not_cut(folder: Path) -> None:
    """Killed between the two moves of `told_files.abandon`."""
    all_set_aside(folder)
    old = {path: path.read_bytes() for path in folder.glob("*.jsonl")}
    told_files.abandon(folder, 3, roll_back=1)
    for path, content in old.items():
        path.write_bytes(content)


def metrics_cut_but_not_samples(folder: Path) -> None:
    all_set_aside(folder)
    samples = (folder / "samples.jsonl").read_bytes()
    told_files.abandon(folder, 3, roll_back=1)
    (folder / "samples.jsonl").write_bytes(samples)
    (folder / "samples_rolled_back.jsonl").unlink()


def all_but_done(folder: Path) -> None:
    all_set_aside(folder)
    told_files.abandon(folder, 3, roll_back=1)


@pytest.mark.parametrize(
    "cut",
    [
        nothing,
        one_set_aside,
        all_set_aside,
        copied_but_not_cut,
        metrics_cut_but_not_samples,
        all_but_done,
    ],
)
def test_a_roll_back_that_was_cut_is_finished(before, tmp_path, cut):
    folder = tmp_path / "run"
    shutil.copytree(before, folder)
    told = {name: lines(folder / f"{name}.jsonl") for name in ("metrics", "samples")}
    roll_backs.write(folder, [BACK])
    cut(folder)
    keeper = keeper_of(folder / "checkpoints")
    roll_backs.finish(folder, keeper)
    assert keeper.steps() == [2] and keeper.latest_step() == 2
    aside = Reader(folder / "checkpoints" / "set_aside")
    assert aside.steps() == [4, 6]  # whole, and as they were
    kept, _ = aside.restore(6, checkpoints.like({"a": jnp.zeros(3)}))
    np.testing.assert_array_equal(kept["a"], [6.0, 6.0, 6.0])
    for name, all_lines in told.items():
        assert lines(folder / f"{name}.jsonl") == [line for line in all_lines if line["step"] <= 2]
        abandoned = [{"roll_back": 1, **line} for line in all_lines if line["step"] > 2]
        assert lines(folder / f"{name}_rolled_back.jsonl") == abandoned
    (done,) = roll_backs.read(folder)
    assert done.done and (done.alarm, done.at, done.to, done.data) == ("kl", 7, 2, {"position": 7})


def test_one_that_is_done_touches_nothing(before, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(before, folder)
    keeper = keeper_of(folder / "checkpoints")
    roll_backs.finish(folder, keeper)  # no list at all
    roll_backs.write(folder, [RollBack("kl", at=7, to=2, data={}, done=True)])
    told = (folder / "metrics.jsonl").read_bytes()
    roll_backs.finish(folder, keeper)
    assert keeper.steps() == [2, 4, 6] and (folder / "metrics.jsonl").read_bytes() == told


def test_a_second_roll_back_keeps_what_the_first_abandoned(before, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(before, folder)
    keeper = keeper_of(folder / "checkpoints")
    for number in (1, 2):
        done = roll_backs.read(folder)
        roll_backs.write(folder, [*done, BACK])
        roll_backs.finish(folder, keeper)
        with open_teller(folder, first_step=3) as teller:
            teller.tell_step(3, {"reward": float(number)})
        keeper.save(4, {"a": jnp.full(3, float(number))}, {})
        keeper.wait()
    marks = [(line["roll_back"], line["step"]) for line in lines(folder / "metrics_rolled_back.jsonl")]
    assert marks == [(1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (2, 3)]
    assert keeper.steps() == [2, 4]
    aside = sorted(path.name for path in (folder / "checkpoints" / "set_aside").iterdir())
    assert aside == ["4", "4.1", "6"]
    keeper.close()


def test_the_running_program_tells_on_in_the_files_that_were_rewound(tmp_path):
    teller = open_teller(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        teller.tell_step(step, {"reward": 0.1})
    with teller.rewound(2):
        told_files.abandon(tmp_path, 2, roll_back=1)
    teller.tell_step(2, {"reward": 0.9})
    teller.finish()
    assert [(line["step"], line["reward"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (1, 0.1),
        (2, 0.9),
    ]
    assert [line["step"] for line in lines(tmp_path / "metrics_rolled_back.jsonl")] == [2, 3]
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2  # opened in the same second, and yet not the same file


@pytest.mark.parametrize(
    ("steps", "before", "tried", "expected"),
    [
        ([2, 4, 6], 6, [], 4),
        ([2, 4, 6], 7, [], 6),
        ([2, 4], 2, [], None),
        ([], 5, [], None),
        ([2, 4], 5, [4], 2),  # it was tried, and nothing newer has come since
        ([4], 5, [4], 4),  # there is no other
        ([2, 4, 6], 7, [4], 6),  # it helped: a newer one has come
        ([2], 3, [4, 2], 2),
    ],
)
def test_the_newest_checkpoint_from_before_the_streak_that_was_not_tried(steps, before, tried, expected):
    found = [RollBack("kl", at=9, to=step, data={}, done=True) for step in tried]
    assert roll_backs.target(steps, found, before=before) == expected


@pytest.mark.parametrize(
    ("targets", "step", "saved_with", "expected"),
    [
        ([], 4, 0, []),
        ([4], 4, 0, [4]),  # went back to it
        ([4], 6, 1, [4]),  # saved after that
        ([4, 2], 2, 0, [4, 2]),  # went back to 4, then further
        ([4, 4], 4, 0, [4, 4]),
        ([2, 6], 2, 0, [2]),  # by hand to 2, before the second
        ([4], 2, 0, []),  # by hand, before all
        ([2, 6], 4, 1, [2]),
    ],
)
def test_the_roll_backs_that_lie_behind_a_checkpoint(targets, step, saved_with, expected):
    found = [RollBack("kl", at=9, to=to, data={}) for to in targets]
    behind = roll_backs.applied(found, step=step, saved_with=saved_with)
    assert [entry.to for entry in behind] == expected


@pytest.mark.parametrize("content", ["{", "[{}]", "[1]", '{"a": 1}'])
def test_a_list_that_cannot_be_read_is_told_in_one_line(tmp_path, content):
    (tmp_path / roll_backs.FILE).write_text(content)
    with pytest.raises(ValueError, match=r"roll_backs\.json cannot be read.*output_dir to a new folder"):
        roll_backs.read(tmp_path)
