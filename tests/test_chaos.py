"""Twenty SIGKILLs in all phases of a small run; and that the tool would see a difference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import micro_run
from tools import chaos, killing
from tools.killing import Aim

KILLS = 20
REWARD = f"{micro_run.ROOT / 'tests' / 'micro_reward.py'}:letters"


@pytest.fixture(scope="module")
def output(tmp_path_factory, micro_model) -> Path:
    """What the tool leaves after its kills."""
    made = tmp_path_factory.mktemp("chaos")
    done = subprocess.run(
        [
            *(sys.executable, "tools/chaos.py", "--kills", str(KILLS), "--output", str(made / "out")),
            *(f"--config.model.path={micro_model}", f"--config.reward.reward_funcs={REWARD}"),
        ],
        cwd=micro_run.ROOT,
        env={**micro_run.ENVIRONMENT, "PYTHONPATH": str(micro_run.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return made / "out"


@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_left_alone(output):
    record = json.loads((output / "chaos.json").read_text())
    assert record["failures"] == []
    assert len(record["kills"]) == KILLS
    assert {kill["phase"] for kill in record["kills"]} == set(killing.PHASES)
    assert any(kill["kept"] for kill in record["kills"])


@pytest.mark.parametrize("what", ["metrics.jsonl", "samples.jsonl", "final/", "the last checkpoint"])
def test_a_difference_is_found(output, what, tmp_path):
    checking = chaos.Chaos(tmp_path, [], [])
    checking.unbroken = output / "unbroken"
    run = shutil.copytree(checking.unbroken, tmp_path / "run")
    if what == "the last checkpoint":
        shutil.rmtree(run / "checkpoints" / str(chaos.STEPS))
        shutil.copytree(run / "checkpoints" / "6", run / "checkpoints" / str(chaos.STEPS))
    elif what == "final/":
        (run / "final" / "config.json").write_text("{}")
    else:
        text = (run / what).read_text()
        assert '"step": 4' in text
        (run / what).write_text(text.replace('"step": 4', '"step": 5', 1))
    checking.check_ended(run)
    assert [f"{what} is not that of" in failure for failure in checking.failures] == [True]


def test_a_checkpoint_of_other_bits_and_one_that_is_gone_are_found(output, tmp_path):
    checking = chaos.Chaos(tmp_path, [], [])
    run = shutil.copytree(output / "unbroken", tmp_path / "run")
    checking.kept = {step: chaos.state_of(run, step) for step in chaos.checkpoint_steps(run)}
    assert checking.check_killed(run, 0, []) == chaos.STEPS
    assert checking.failures == []
    shutil.rmtree(run / "checkpoints" / "4")
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / "4")
    checking.check_killed(run, chaos.STEPS, [])
    (found,) = checking.failures
    assert "the checkpoint of step 4 is another one" in found
    shutil.rmtree(run / "checkpoints")
    checking.check_killed(run, chaos.STEPS, [])
    assert "no checkpoint is left, there was one of step 7" in checking.failures[-1]


def test_a_moment_inside_a_step_lies_behind_what_comes_first():
    seconds = {"sampling": 1.0, "judging": 2.0, "update": 4.0, "saving": 8.0}
    assert killing.delay(Aim("sampling", 1, 0.5), seconds) == 0.5
    assert killing.delay(Aim("update", 1, 0.5), seconds) == 5.0
    assert killing.delay(Aim("saving", 1, 0.25), seconds) == 2.0


PROGRAM = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("sampling plan", flush=True)
time.sleep(60)
"""


def test_a_kill_finds_what_outlives_it(tmp_path):
    (tmp_path / "run").mkdir()
    run = killing.Watched([sys.executable, "-c", PROGRAM], tmp_path / "run", tmp_path / "log")
    assert killing.now_in(run) == ["building"]
    aim = Aim("compile", 1, 0.0)
    assert killing.kill_at(run, aim, {"compile": 0.0}, plain=chaos.is_plain)
    (left,) = run.kill()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # until init has taken it away
            os.kill(left, 0)
            time.sleep(0.05)
