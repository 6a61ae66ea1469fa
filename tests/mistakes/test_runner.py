"""The runner of the rows tells the truth: what it says of a command, a process of its own does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mistakes import harness
from tests.mistakes.harness import ENVIRONMENT, IN_TIME_S, ROOT, TRAIN, Ended, Mistake, ours

ROWS = (
    (TRAIN, ()),
    (TRAIN, ours("grpo.loss_type=ppo")),
    (TRAIN, ours("mesh.data=3", "mesh.cpu_devices=2")),
    ("tools/evaluate.py", ("--model", "nowhere")),
    ("tools/evaluate.py", ("--nonsense",)),
)


@pytest.mark.parametrize(("program", "arguments"), ROWS)
def test_the_runner_says_what_a_process_of_its_own_does(program, arguments, run, tmp_path):
    arguments = [text.replace("{folder}", str(tmp_path)) for text in arguments]
    told = run(program, arguments, folder=tmp_path, limit_s=IN_TIME_S)
    done = harness.alone(program, arguments, folder=tmp_path, limit_s=IN_TIME_S)
    assert (told.status, told.stdout, told.stderr) == (done.status, done.stdout, done.stderr)
    assert done.seconds < IN_TIME_S


def test_the_runner_counts_the_imports(run):
    """A fork need not import what the runner has; its time must be counted all the same."""
    imports = "import time; began = time.monotonic(); import grpo_jax.train; print(time.monotonic() - began)"
    done = subprocess.run(
        [sys.executable, "-c", imports], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert (
        run.import_s > float(done.stdout) / 2
    )  # twice: the machine may be busier at one time than at another


GOOD = Ended(2, 1.0, "", "error: this and that\n")
ROW = Mistake("a row", (), ("this", "that"))


@pytest.mark.parametrize(
    "bad",
    [
        GOOD._replace(status=1),
        GOOD._replace(seconds=15.1),
        GOOD._replace(stderr="error: this alone\n"),
        GOOD._replace(stderr="warning\nerror: this and that\n"),
        GOOD._replace(stderr="this and that\n"),
        GOOD._replace(stdout="Traceback (most recent call last)"),
    ],
)
def test_a_row_fails_for_each_thing_that_is_not_as_it_must_be(bad):
    harness.assert_told(ROW, GOOD)
    with pytest.raises(AssertionError):
        harness.assert_told(ROW, bad)


def made(own: Path) -> None:
    (own / "run").mkdir()


def changed(own: Path) -> None:
    (own / "data.jsonl").write_text("other")


def removed(own: Path) -> None:
    (own / "data.jsonl").unlink()


@pytest.mark.parametrize("act", [made, changed, removed])
def test_a_row_fails_when_the_command_leaves_or_changes_something(act, tmp_path):
    def prepare(own: Path) -> list[str]:
        (own / "data.jsonl").write_text("some")
        return []

    def run(*_, **__) -> Ended:
        act(tmp_path / "own")
        return GOOD

    with pytest.raises(AssertionError, match=r"run|data"):
        harness.check(Mistake("a row", prepare, ("this",)), run, tmp_path)
