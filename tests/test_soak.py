"""Three hundred steps leave memory, open files and compiled programs as they are; and what grows is found."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import micro_run
from tools import soak
from tools.soak import Look

REWARD = f"{micro_run.ROOT / 'tests' / 'micro_reward.py'}:letters"
MIB = 2**20


@pytest.mark.timeout(900)
def test_three_hundred_steps_leave_everything_as_it_is(tmp_path, micro_model):
    done = subprocess.run(
        [
            *(sys.executable, "tools/soak.py", "--steps", "300", "--without-times"),
            *("--output", str(tmp_path / "out"), f"--config.model.path={micro_model}"),
            f"--config.reward.reward_funcs={REWARD}",
        ],
        cwd=micro_run.ROOT,
        env={**micro_run.ENVIRONMENT, "PYTHONPATH": str(micro_run.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    found = json.loads((tmp_path / "out" / "soak.json").read_text())["found"]
    assert set(found) == {"memory", "open files", "compilations"}


def looks(*, memory: float = 0.0, files: float = 0.0) -> list[Look]:
    """Of 400 steps: 1000 MiB and 8 files, and so much more of both a step."""
    return [Look(step, int((1000 + memory * step) * MIB), int(8 + files * step)) for step in range(1, 401, 2)]


def steps(*, slower: float = 0.0, compiles_at: int = 0) -> list[dict]:
    return [
        {"step": i, "time/step": 0.1 * (1 + slower * i), "compilations": float(i == compiles_at)}
        for i in range(1, 401)
    ]


def test_what_does_not_grow_is_as_it_should_be():
    found = soak.judged(looks(), steps(compiles_at=3), with_times=True)
    assert [is_good for _, is_good in found.values()] == [True] * 4


@pytest.mark.parametrize(
    ("name", "seen", "told"),
    [
        ("memory", looks(memory=0.3), steps()),  # 300 steps x 0.3 of 1030 MiB: 8.7%
        ("open files", looks(files=0.01), steps()),
        ("compilations", looks(), steps(compiles_at=350)),
        ("step time", looks(), steps(slower=0.001)),  # medians of 1.15 and 1.35
    ],
)
def test_what_grows_is_found(name, seen, told):
    found = soak.judged(seen, told, with_times=True)
    assert [other for other, (_, is_good) in found.items() if not is_good] == [name]
