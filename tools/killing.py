"""A run watched from outside, and killed in a phase of one's choice. Standard library only.

What can be seen of a program that knows nothing of this: the text it prints, the lines of its metrics.jsonl, and
which folders there are. Phases inside a step leave no trace; their moments follow from an unbroken run's times.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from grpo_jax import told_files

LOOK_S = 0.0005  # between two looks
PLAN, EVALUATING, EVALUATED = "sampling plan", "evaluating on", "evaluation after step"
COMMITTED_S = 0.005  # so long a checkpoint counts as just committed
ORPHANS_END_WITHIN_S = 10.0


class Watched:
    """One start of the program, and what it has shown so far."""

    def __init__(self, command: list[str], folder: Path, log: Path):
        """Starts it."""
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self.known, self.committed_at = self.kept(), 0.0  # steps, and when the last one got its name
        self.log, self.text = log, ""
        self.exported_before = (folder / "final").exists()
        self.told_before: int | None = None  # bytes of metrics.jsonl when it was ready to tell more
        self._read_to = 0
        self.steps: list[int] = []  # told by this start
        with log.open("w") as file:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        self._reading = log.open(encoding="utf-8", errors="replace")

    def look(self) -> None:
        """Reads what is new."""
        if kept := self.kept() - self.known:
            self.known, self.committed_at = self.known | kept, time.monotonic()
        self.text += self._reading.read()
        told = self.folder / told_files.METRICS_FILE
        if self.told_before is None and PLAN in self.text:
            self.told_before = told.stat().st_size if told.exists() else 0
            self._read_to = self.told_before
        if self.told_before is not None and told.exists():
            with told.open("rb") as file:
                file.seek(self._read_to)
                lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
            self._read_to += sum(map(len, lines))
            self.steps += [json.loads(line)["step"] for line in lines if b'"reward"' in line]

    def kept(self) -> set[int]:
        """Steps whose checkpoint has its name."""
        return {int(name) for name in self._names() if name.isdigit()}

    def is_saving(self) -> bool:
        return any(name.endswith(".unfinished") for name in self._names())

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.checkpoints)
        except FileNotFoundError:
            return []

    def kill(self) -> list[int]:
        """SIGKILL for the program alone. Returns the processes it left behind that do not end by themselves."""
        children = _children(self.process.pid)
        self.process.kill()
        self.end()
        deadline = time.monotonic() + ORPHANS_END_WITHIN_S
        while (left := [pid for pid in children if _lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return left

    def end(self) -> int:
        """Waits for its end. Returns its exit status."""
        status = self.process.wait()
        self.look()
        self._reading.close()
        return status


SIGNS: dict[str, Callable[[Watched], bool]] = {  # phases that can be seen, and by what
    "building": lambda run: run.told_before is None,
    "compile": lambda run: run.told_before is not None and not run.steps,
    "evaluation": lambda run: run.text.count(EVALUATING) > run.text.count(EVALUATED),
    "saving": lambda run: run.is_saving(),
    "committed": lambda run: time.monotonic() - run.committed_at < COMMITTED_S,  # older ones are now deleted
    "export": lambda run: (run.folder / "final.unfinished").exists(),
    "report": lambda run: (run.folder / "final").exists() and not run.exported_before,
}
INSIDE = {"sampling": "time/sample", "judging": "time/judge", "update": "time/update"}  # in this order
PHASES = (*SIGNS, *INSIDE)
REPEATED = {"evaluation", "saving", "committed", *INSIDE}  # a start goes through them several times


@dataclasses.dataclass(frozen=True)
class Aim:
    """When to kill: in the n-th of a phase that a start goes through, after a part of its time."""

    phase: str
    number: int  # from 1
    part: float  # [0, 1)


def watch(run: Watched) -> dict[str, float]:
    """Lets a run go to its end. Returns the mean seconds of each phase that can be seen.

    Raises: RuntimeError where it ends otherwise than well.
    """
    seconds, times, active = dict.fromkeys(SIGNS, 0.0), dict.fromkeys(SIGNS, 0), set()
    before = time.monotonic()
    while run.process.poll() is None:
        run.look()
        now, seen = time.monotonic(), {name for name, sign in SIGNS.items() if sign(run)}
        for name in seen:
            seconds[name] += (now - before) * (name in active)
            times[name] += name not in active
        before, active = now, seen
        time.sleep(LOOK_S)
    if run.end():
        raise RuntimeError(
            f"the unbroken run failed: {' '.join(run.text.split()[-60:])} (all of it: {run.log})"
        )
    return {name: seconds[name] / max(times[name], 1) for name in SIGNS}


def inside_times(metrics_file: Path, *, plain: Callable[[int], bool]) -> dict[str, float]:
    """Median seconds of what a step does, of the steps behind which nothing else is done but the first."""
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    steps = [line for line in lines if "reward" in line and line["step"] > 1 and plain(line["step"])]
    return {name: statistics.median(line[metric] for line in steps) for name, metric in INSIDE.items()}


def kill_at(run: Watched, aim: Aim, seconds: dict[str, float], *, plain: Callable[[int], bool]) -> bool:
    """Waits for the aim, then a part of its time. Returns whether it came; else the run has ended.

    Args:
        seconds: of each phase, in an unbroken run.
        plain: whether the program takes its next step right after it told this one.
    """
    count, was = 0, False
    while run.process.poll() is None:
        run.look()
        if aim.phase in SIGNS:
            now = SIGNS[aim.phase](run)
            count, was = count + (now and not was), now
        else:
            count = sum(map(plain, run.steps))
        if count >= aim.number:
            time.sleep(delay(aim, seconds))
            return run.process.poll() is None
        time.sleep(LOOK_S)
    return False


def delay(aim: Aim, seconds: dict[str, float]) -> float:
    """Seconds from the sign that is seen to the moment that is meant."""
    names = list(INSIDE)
    before = names[: names.index(aim.phase)] if aim.phase in names else []
    return sum(seconds[name] for name in before) + aim.part * seconds[aim.phase]


def now_in(run: Watched) -> list[str]:
    """The phases that can be seen at this moment; none inside a step."""
    run.look()
    return [name for name, sign in SIGNS.items() if sign(run)]


def _children(pid: int) -> list[int]:
    """Of this process and of its children; [] but on Linux."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children") if sys.platform == "linux" else ():
        try:
            own = [int(word) for word in path.read_text().split()]
        except OSError:  # that thread has ended
            continue
        found += [*own, *(child for one in own for child in _children(one))]
    return found


def _lives(pid: int) -> bool:
    """Whether a process is there and no mere entry of one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
