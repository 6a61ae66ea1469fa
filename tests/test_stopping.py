"""A run is stopped in every phase, keeps its last whole step, and ends as if it had never been stopped.

The first tests are of `stopping.py` alone, around a main thread that does nothing; then one run of the whole program
is stopped nine times over, each time in another phase.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import micro_run

ENDS_WITHIN_S = 30  # the promise
ALONE = """
import sys, time
from pathlib import Path
from grpo_jax.stopping import Stopper
from grpo_jax.structs import Stopped
kept = Path(sys.argv[1])
whole = [0]
def save():
    print("saves", whole[0], flush=True)
    (kept / str(whole[0])).mkdir(parents=True)
with Stopper(grace_seconds=float(sys.argv[2])) as stopper:
    stopper.checkpoints = kept
    stopper.endings.append(lambda: print("ended", flush=True))
    stopper.keeps(owes=lambda: whole[0] > 0, save=save)
    {body}
print("went on", flush=True)
"""
INSIDE_A_STEP = """with stopper.undivided():
        print("ready", flush=True)
        time.sleep({seconds})
        whole[0] = 7
    time.sleep(60)"""


class Program:
    """A running program; its output goes to files. `stop` ends it by a signal, the end of the test kills it."""

    def __init__(self, arguments: list[str], folder: Path, **environment: str):
        self.out, self.err = folder / "out.log", folder / "err.log"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                arguments,
                cwd=micro_run.ROOT,
                env=micro_run.ENVIRONMENT | environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
                # whoever runs the tests in the background may have it ignored
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait_for(self, happened: Callable[[], bool], *, within_s: float = 240) -> None:
        deadline = time.monotonic() + within_s
        while not happened():
            assert self.process.poll() is None and time.monotonic() < deadline, self.told()
            time.sleep(0.002)

    def stop(self, *numbers: int, pause_s: float = 1.0) -> tuple[int, str, float]:
        """Sends signals with pauses. Returns: exit status, last line of stderr, seconds since the last signal."""
        for i, number in enumerate(numbers):
            time.sleep(pause_s if i else 0)
            self.process.send_signal(number)
        started = time.monotonic()
        status = self.process.wait(timeout=120)
        return status, (self.err.read_text().splitlines() or [""])[-1], time.monotonic() - started

    def told(self) -> str:
        return self.out.read_text()[-3000:] + self.err.read_text()[-3000:]


@pytest.fixture
def program(tmp_path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(arguments: list[str], **environment: str) -> Program:
        started.append(Program(arguments, tmp_path, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def alone(kept: Path, body: str, *, grace: float = 20) -> list[str]:
    return [sys.executable, "-c", ALONE.replace("{body}", body), str(kept), str(grace)]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)]
)
def test_a_step_that_has_begun_is_ended_and_saved(program, tmp_path, number, status):
    ran = program(alone(tmp_path / "kept", INSIDE_A_STEP.replace("{seconds}", "1.5")))
    ran.wait_for(lambda: "ready" in ran.out.read_text())
    ended = ran.stop(number)
    assert ended[0] == status
    assert ended[1] == (
        f"stopped by {signal.Signals(number).name}: step 7 is kept in {tmp_path / 'kept'}; the same command goes on "
        "after it"
    )
    assert ran.out.read_text().splitlines() == ["ready", "saves 7", "ended"]


def test_a_press_that_a_launcher_doubles_is_one(program, tmp_path):
    ran = program(alone(tmp_path / "kept", INSIDE_A_STEP.replace("{seconds}", "1.5")))
    ran.wait_for(lambda: "ready" in ran.out.read_text())
    status, line, _ = ran.stop(signal.SIGINT, signal.SIGINT, pause_s=0.05)
    assert status == 130 and "step 7 is kept" in line


def test_a_second_sigint_waits_for_nothing(program, tmp_path):
    ran = program(alone(tmp_path / "kept", INSIDE_A_STEP.replace("{seconds}", "60")))
    ran.wait_for(lambda: "ready" in ran.out.read_text())
    status, line, seconds = ran.stop(signal.SIGINT, signal.SIGINT)
    assert status == 130 and seconds < 2
    assert line.startswith("stopped by SIGINT: no step was whole") and "a second SIGINT waits" in line


def test_what_takes_longer_than_the_grace_is_not_waited_for(program, tmp_path):
    (tmp_path / "kept" / "3").mkdir(parents=True)
    ran = program(alone(tmp_path / "kept", INSIDE_A_STEP.replace("{seconds}", "60"), grace=1.5))
    ran.wait_for(lambda: "ready" in ran.out.read_text())
    status, line, seconds = ran.stop(signal.SIGTERM)
    assert status == 143 and 1 < seconds < 5
    assert "step 3 is kept" in line
    assert line.endswith("nothing newer could be saved within 1.5 s (config.checkpoint.grace_seconds)")
    assert ran.out.read_text().splitlines() == ["ready", "ended"]


def test_half_a_step_that_an_error_left_is_never_saved(program, tmp_path):
    body = """with stopper.undivided():
        whole[0] = 7
        print("ready", flush=True)
        time.sleep(1.5)
        raise ValueError("the loss is nan")"""
    ran = program(alone(tmp_path / "kept", body))
    ran.wait_for(lambda: "ready" in ran.out.read_text())
    status, line, _ = ran.stop(signal.SIGTERM)
    assert (status, line) == (1, "ValueError: the loss is nan")  # the error is what ends it
    assert "saves" not in ran.out.read_text()


def test_a_save_that_fails_is_told(program, tmp_path):
    (tmp_path / "kept" / "7").mkdir(parents=True)  # and so it cannot be made
    body = 'whole[0] = 7; print("ready", flush=True); time.sleep(60)'
    ran = program(alone(tmp_path / "kept", body))
    ran.wait_for(lambda: "ready" in ran.out.read_text())
    status, line, _ = ran.stop(signal.SIGTERM)
    assert status == 143 and "nothing newer could be saved: [Errno 17] File exists" in line


MARKING = """
import os, time

def letters(attempt):
    if "MARKS" in os.environ:
        with open(os.environ["MARKS"], "a") as file:
            file.write("x")  # one more is judged
    time.sleep(float(os.environ.get("JUDGE_S", "0")))
    return attempt.completion.count("e") / max(len(attempt.completion), 1)
"""
ROWS, LOOKED_AT = 16, 4  # judged in a step, and in an evaluation


class Micro:
    """The micro run, with phases long enough to be met."""

    def __init__(self, folder: Path):
        self.folder, self.model = folder, micro_run.make_model(folder / "model")
        self.cache, self.marks = folder / "compiled", folder / "marks"
        (folder / "marking.py").write_text(MARKING)

    def command(self, name: str, **fields: object) -> list[str]:
        fields = {
            "compilation_cache": self.cache,
            "reward__reward_funcs": f"accuracy,{self.folder / 'marking.py'}:letters",
            "rollout__max_completion_length": 64,  # 16 rows through 4 slots, 2 tokens at a time: sampling takes long
            "rollout__window": 2,
            "rollout__num_slots": 4,
            "grpo__num_iterations": 60,  # so does the update
            "checkpoint__save_steps": 0,  # nothing is saved but by a stop, and at the end
            **fields,
        }
        return micro_run.command(self.model, self.folder / name, **fields)

    def num_judged(self) -> int:
        return self.marks.stat().st_size if self.marks.exists() else 0

    @contextlib.contextmanager
    def without(self, program: str) -> Iterator[None]:
        """Inside, a program is not in the compilation cache."""
        found = {path: path.read_bytes() for path in self.cache.glob(f"jit_{program}-*")}
        assert found, sorted(path.name for path in self.cache.iterdir())
        for path in found:
            path.unlink()
        yield
        for path, data in found.items():
            path.write_bytes(data)


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> Micro:
    micro = Micro(tmp_path_factory.mktemp("micro"))
    micro_run.run(micro.command("unbroken"))
    return micro


def descendants(pid: int) -> list[int]:
    """The judging processes too, which lead groups of their own."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    own = [int(child) for path in children for child in path.read_text().split()]
    return own + [pid for child in own for pid in descendants(child)]


class Stopped:
    """The run that is stopped again and again: one folder, one command, but for what may change."""

    def __init__(self, micro: Micro, program: Callable[..., Program], name: str):
        self.micro, self.program, self.name, self.folder = micro, program, name, micro.folder / name

    def start(self, *, judge_s: float = 0.0, log_compiles: bool = False, **fields: object) -> Program:
        self.micro.marks.unlink(missing_ok=True)
        return self.program(
            self.micro.command(self.name, **fields),
            MARKS=str(self.micro.marks),
            JUDGE_S=str(judge_s),
            JAX_LOG_COMPILES=str(int(log_compiles)),
        )

    def when_judged(self, count: int, **how: object) -> Program:
        """The program, when it has judged so many completions."""
        ran = self.start(**how)  # type: ignore[arg-type]
        ran.wait_for(lambda: self.micro.num_judged() >= count)
        return ran

    def check(self, phase: str, ran: Program, *steps: int, number: int = signal.SIGTERM) -> int:
        """Stops it: after one of these steps, in time, with nothing left behind. Returns: the step."""
        status, line, seconds = ran.stop(number)
        shown = (phase, status, line, ran.told())
        assert status == (130 if number == signal.SIGINT else 143), shown
        for step in steps:
            kept = f"step {step} is kept in {self.folder / 'checkpoints'}; the same command goes on after it"
            none = "no step was whole that could be kept; the same command begins again"
            if line == f"stopped by {signal.Signals(number).name}: {kept if step else none}":
                break
        else:
            raise AssertionError(shown)
        assert seconds < ENDS_WITHIN_S, shown
        assert not (self.folder / "lock").exists(), shown
        return step


def test_a_run_that_is_stopped_in_every_phase_ends_as_the_unbroken_one(micro, program):
    run = Stopped(micro, program, "stopped")
    ran = run.start()
    time.sleep(0.5)
    status, line, _ = ran.stop(signal.SIGTERM)
    assert status == 143 and line.startswith("stopped by SIGTERM: nothing was under way"), "imports"
    assert not run.folder.exists()

    ran = run.start()
    ran.wait_for(lambda: "devices:" in ran.out.read_text())
    run.check("building", ran, 0)

    ran = run.start(compilation_cache="")
    ran.wait_for(lambda: "evaluating" in ran.out.read_text())
    run.check("first compile", ran, 0)

    ran = run.when_judged(LOOKED_AT + ROWS + 1, judge_s=0.1)
    run.check("judging of step 2", ran, 1, number=signal.SIGUSR1)

    with micro.without("update_state"):
        ran = run.start(log_compiles=True)
        ran.wait_for(lambda: "Compiling jit(update_state)" in ran.err.read_text())
        run.check("first compile of the update", ran, 1)

    ran = run.when_judged(ROWS + LOOKED_AT + ROWS)
    time.sleep(0.3)  # into the update, which takes longer; but nobody can see it from outside
    step = run.check("update of step 3", ran, 2, 3)

    ran = run.when_judged(ROWS * (3 - step) + 1)
    run.check("sampling of step 4", ran, 3, number=signal.SIGINT)

    ran = run.when_judged(ROWS + 1, judge_s=0.1)
    for pid in descendants(ran.process.pid):
        os.kill(pid, signal.SIGTERM)  # as a scheduler does, and to the workers first
    run.check("evaluation after step 4", ran, 4)

    ran = run.start(checkpoint__save_steps=1)
    ran.wait_for((run.folder / "checkpoints" / "5.unfinished").exists)
    run.check("saving of step 5", ran, 5, 6)  # of which the next may have been quicker

    ran = run.start()
    ran.wait_for((run.folder / "final.unfinished").exists)
    run.check("export", ran, 6)

    micro_run.run(micro.command("stopped"))
    assert micro_run.told(run.folder) == micro_run.told(micro.folder / "unbroken")
    for file in ("samples.jsonl", "final/model.safetensors"):
        assert (run.folder / file).read_bytes() == (micro.folder / "unbroken" / file).read_bytes()


def test_a_supervised_run_that_is_stopped_ends_as_the_unbroken_one(micro, program):
    def command(name: str) -> list[str]:
        """`python tools/sft.py` with the micro run's fields, so long that it can be met on its way."""
        sft = {"max_steps": 300, "num_rows": 8, "validation_problems": 8, "eval_steps": 10, "save_steps": 0}
        fields = {f"sft__{name}": value for name, value in sft.items()}
        made = micro.command("grpo", data__max_problems=64, sft__output_dir=micro.folder / name, **fields)
        return [made[0], "tools/sft.py", *made[3:]]

    folder, unbroken = micro.folder / "sft_stopped", micro.folder / "sft_unbroken"
    micro_run.run(command("sft_unbroken"))
    ran = program(command("sft_stopped"))
    told = folder / "metrics.jsonl"
    ran.wait_for(lambda: told.exists() and told.read_text().count("\n") > 30)
    status, line, seconds = ran.stop(signal.SIGTERM)
    assert status == 143 and seconds < ENDS_WITHIN_S, (line, ran.told())
    step = int(re.match(r"stopped by SIGTERM: step (\d+) is kept", line)[1])  # type: ignore[index]
    assert 20 < step < 300
    micro_run.run(command("sft_stopped"))
    assert micro_run.told(folder) == micro_run.told(unbroken)
    last = "final/model.safetensors"
    assert (folder / last).read_bytes() == (unbroken / last).read_bytes()
