"""A long run of tiny steps, watched: memory, open files, step time and compilations must not grow.

    python tools/soak.py --steps 2000 --output runs/soak

configs/tiny.py cut down as in tools/chaos.py (or another --config; overrides go behind), with an evaluation and a
checkpoint every 50 steps, so that the first ones, which load libraries and start threads, lie before step 100. From
there on, each compared with the hundred steps that follow: resident memory (/proc/PID/statm), at its highest, may grow
by 5%; the usual number of open files (/proc/PID/fd) must stay what it was; the median step may take 10% longer at
the end. And nothing may compile. Writes DIR/soak.json. Exit status 1 where one of these fails. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is there

from grpo_jax import command_line, told_files
from tools.chaos import CUT_DOWN
from tools.killing import Watched

WARM_STEPS = 100
EVERY = 50  # between evaluations and checkpoints
MOST_GROWTH, MOST_SLOWER = 0.05, 0.10
LOOK_S = 0.25
PAGE = os.sysconf("SC_PAGE_SIZE")


class Look(NamedTuple):
    """What a process had at one moment."""

    step: int  # told so far
    resident: int  # bytes
    open_files: int


def main(arguments: Sequence[str]) -> None:
    """Runs, looks, judges."""
    options, overrides = parse(arguments)
    output = Path(options.output)
    if (output / "run").exists():
        raise ValueError(f"{output / 'run'} exists. Set --output to a new folder.")
    if not Path("/proc/self/statm").is_file():
        raise ValueError("tools/soak.py reads /proc, which only Linux has.")
    looks = run(output, options, overrides)
    steps = [*told_files.read(output / "run" / told_files.METRICS_FILE)]
    found = judged(looks, [line for line in steps if "reward" in line], with_times=not options.without_times)
    (output / "soak.json").write_text(json.dumps({"found": found, "looks": looks}, indent=1) + "\n")
    for name, (sentence, is_good) in found.items():
        print(f"{name:<13} {'as it should be' if is_good else 'NOT as it should be'}: {sentence}")
    if not all(is_good for _, is_good in found.values()):
        sys.exit(1)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument("--config", default="configs/tiny.py", help="it is cut down to small steps")
    parser.add_argument("--without-times", action="store_true", help="where other programs run beside it")
    options, overrides = parser.parse_known_args(arguments)
    if options.steps < 2 * WARM_STEPS + 100:
        raise ValueError(f"--steps must be at least {2 * WARM_STEPS + 100}; got {options.steps}.")
    return options, overrides


def run(output: Path, options: argparse.Namespace, overrides: list[str]) -> list[Look]:
    """Runs the program to its end and looks at it meanwhile. Raises RuntimeError where it fails."""
    output.mkdir(parents=True, exist_ok=True)
    fields = CUT_DOWN | {
        "max_steps": options.steps,
        "checkpoint.save_steps": EVERY,
        "evaluation.eval_steps": EVERY,
        "output_dir": output / "run",
    }
    command = [sys.executable, "-m", "grpo_jax.train", f"--config={options.config}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    watched, looks = Watched([*command, *overrides], output / "run", output / "run.log"), []
    while watched.process.poll() is None:
        watched.look()
        if watched.steps:
            looks += look(watched.process.pid, watched.steps[-1])
        time.sleep(LOOK_S)
    if watched.end():
        raise RuntimeError(
            f"the run failed: {' '.join(watched.text.split()[-60:])} (all of it: {watched.log})"
        )
    return looks


def look(pid: int, step: int) -> list[Look]:
    """One look; none where the process has just ended."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        return [Look(step, resident, len(os.listdir(f"/proc/{pid}/fd")))]
    except (OSError, IndexError):
        return []


def judged(looks: list[Look], steps: list[dict], *, with_times: bool) -> dict[str, tuple[str, bool]]:
    """A sentence on each promise, and whether it was kept."""
    last = steps[-1]["step"]
    warm = [one for one in looks if WARM_STEPS < one.step < last]  # the export comes after the last
    first = max(one.resident for one in warm if one.step <= 2 * WARM_STEPS)
    most = max(one.resident for one in warm)
    growth = most / first - 1
    early = statistics.mode(one.open_files for one in warm if one.step <= 2 * WARM_STEPS)
    late = statistics.mode(one.open_files for one in warm if one.step > last - WARM_STEPS)
    compiled = {line["step"]: line["compilations"] for line in steps[WARM_STEPS:] if line["compilations"]}
    found = {
        "memory": (
            f"at most {first / 2**20:.0f} MiB before step {2 * WARM_STEPS}, at most {most / 2**20:.0f} since "
            f"({growth:+.1%})",
            growth <= MOST_GROWTH,
        ),
        "open files": (f"usually {early} before step {2 * WARM_STEPS}, {late} at the end", early == late),
        "compilations": (f"after step {WARM_STEPS}, by step: {compiled or 'none'}", not compiled),
    }
    if with_times:
        times = [line["time/step"] for line in steps]
        before = statistics.median(times[WARM_STEPS : 2 * WARM_STEPS])
        after = statistics.median(times[-100:])
        sentence = (
            f"{1000 * before:.1f} ms first, {1000 * after:.1f} ms at the end ({after / before - 1:+.1%})"
        )
        found["step time"] = (sentence, after <= (1 + MOST_SLOWER) * before)
    return found


if __name__ == "__main__":
    command_line.run_program(main)
