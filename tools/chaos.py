"""Kills a run again and again, and compares it with one that was left alone.

    python tools/chaos.py --kills 100 --seed 0 --output runs/chaos

An unbroken run of seconds first (configs/tiny.py cut down, or another --config; overrides go behind). Then the same
run, killed by SIGKILL in phases and at moments drawn from the seed, and started again by the same command, until the
kills are used up. After every kill each checkpoint must be that of the unbroken run, bit for bit, and what is
half-written must not be taken for one; each run that ends must have the same checkpoint, numbers, samples, evaluation
and model. Writes DIR/chaos.json and prints how often each phase was met. Exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is there

from grpo_jax import command_line, digests, restored, told_files
from grpo_jax import mesh as mesh_lib
from tools import killing
from tools.killing import PHASES, Aim, Watched

STEPS, EVERY, LIMIT = 7, 2, 2  # of the run; between evaluations and checkpoints; checkpoints kept
MOST_KILLS = 7  # of one run
MOST_MISSED = 5  # whole runs without a phase that is waited for
CUT_DOWN = {
    "max_steps": STEPS,
    "mesh.cpu_devices": 1,
    "data.max_problems": 64,
    "rollout.num_prompts": 4,
    "rollout.num_generations": 4,
    "rollout.max_completion_length": 32,
    "rollout.window": 32,
    "grpo.per_device_train_batch_size": 16,
    "reward.num_workers": 1,
    "evaluation.max_problems": 4,
    "evaluation.eval_steps": EVERY,
    "checkpoint.save_steps": EVERY,
    "checkpoint.save_total_limit": LIMIT,
    "telling.completions_every_steps": 2,
    "telling.tensorboard": False,
}


def main(arguments: Sequence[str]) -> None:
    """Runs unbroken, kills, compares, tells."""
    options, overrides = parse(arguments)
    output = Path(options.output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty. Set --output to a new folder.")
    mesh_lib.use_cpu_devices(1)
    test = Chaos(output, [f"--config={options.config}"], overrides)
    test.run_unbroken()
    rng = random.Random(options.seed)
    phases = [PHASES[i % len(PHASES)] for i in range(options.kills)]
    rng.shuffle(phases)
    aims = [Aim(name, rng.randint(1, 2) if name in killing.REPEATED else 1, rng.random()) for name in phases]
    while aims and not test.has_given_up():
        test.run_killed(aims, most=rng.randint(3, MOST_KILLS))
    test.tell()
    if test.failures:
        sys.exit(1)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of phases and moments")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument("--config", default="configs/tiny.py", help="it is cut down to seven small steps")
    return parser.parse_known_args(arguments)


class Chaos:
    """The unbroken run, and what was found of the others."""

    def __init__(self, output: Path, config: list[str], overrides: list[str]):
        output.mkdir(parents=True, exist_ok=True)
        self.output, self.unbroken = output, output / "unbroken"
        self.command = [sys.executable, "-m", "grpo_jax.train", *config]
        self.command += [f"--config.{name}={value}" for name, value in CUT_DOWN.items()]
        self.command += [f"--config.compilation_cache={output / 'compiled'}", *overrides]
        self.seconds: dict[str, float] = {}  # of each phase
        self.kept: dict[int, dict[str, str]] = {}  # digests of the unbroken run's checkpoints
        self.kills: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.missed: collections.Counter[str] = collections.Counter()  # runs that never came to the phase
        self.num_runs = self.num_starts = 0

    def has_given_up(self) -> bool:
        """Whether a phase cannot be met, which is a failure."""
        never = [name for name, count in self.missed.items() if count > MOST_MISSED]
        self.failures += [f"{MOST_MISSED} runs never showed the phase {name}" for name in never]
        return bool(never)

    def start(self, folder: Path, *overrides: str) -> Watched:
        log = folder.with_name(f"{folder.name}_start_{self.num_starts}.log")
        self.num_starts += 1
        return Watched([*self.command, f"--config.output_dir={folder}", *overrides], folder, log)

    def run_unbroken(self) -> None:
        """Twice, since the first one compiles; the second keeps every checkpoint to compare with."""
        killing.watch(self.start(self.output / "compiles"))
        self.seconds = killing.watch(self.start(self.unbroken, "--config.checkpoint.save_total_limit=99"))
        self.seconds |= killing.inside_times(self.unbroken / told_files.METRICS_FILE, plain=is_plain)
        self.seconds["committed"] = killing.COMMITTED_S
        self.kept = {step: state_of(self.unbroken, step) for step in checkpoint_steps(self.unbroken)}
        told = ", ".join(f"{name} {1000 * took:.0f} ms" for name, took in self.seconds.items())
        print(f"unbroken: {told}", flush=True)

    def run_killed(self, aims: list[Aim], *, most: int) -> None:
        """One run, killed at most so often, to its end. Takes the aims that it met off the list."""
        folder, num_killed, newest = self.output / f"run_{self.num_runs}", 0, 0
        self.num_runs += 1
        while True:
            run = self.start(folder)
            aim = aims[-1] if aims and num_killed < most else None
            if aim and num_killed:
                aim = dataclasses.replace(aim, number=1)  # little may be left
            if aim and killing.kill_at(run, aim, self.seconds, plain=is_plain):
                aims.pop()
                num_killed += 1
                seen = killing.now_in(run)
                left = run.kill()
                self.kills.append({"run": folder.name, **vars(aim), "seen": seen, "kept": [*run.kept()]})
                self.check_start(run, newest)
                newest = self.check_killed(folder, newest, left)
                continue
            if aim and not num_killed:
                self.missed[aim.phase] += 1
                # perhaps there is no second one, or it takes less long than when it was measured
                aims.insert(0, Aim(aims.pop().phase, 1, aim.part / 2))
            if status := run.end():
                self.failures.append(f"{run.log} ended with status {status}: {run.text[-500:]}")
                return
            self.check_start(run, newest)
            self.check_ended(folder)
            print(f"{folder.name}: killed {num_killed} times; {len(aims)} to go", flush=True)
            return

    def check_start(self, run: Watched, newest: int) -> None:
        """It must have gone on after the newest whole checkpoint, or not have come so far."""
        said = re.search(r"going on after step (\d+)", run.text)
        if (said and int(said[1]) != newest) or (newest and run.steps and not said):
            self.failures.append(
                f"{run.log}: went on after {said and said[1]}, the newest is {newest or None}"
            )

    def check_killed(self, folder: Path, newest: int, left: list[int]) -> int:
        """What a kill leaves must be whole. Returns the newest checkpoint's step, 0 for none."""
        steps = checkpoint_steps(folder)
        if newest and not steps:
            self.failures.append(f"{folder}: no checkpoint is left, there was one of step {newest}")
        self.failures += [f"{folder}: process {pid} outlived the kill" for pid in left]
        for step in steps:
            if state_of(folder, step) != self.kept[step]:
                self.failures.append(f"{folder}: the checkpoint of step {step} is another one")
        return max(steps, default=0)

    def check_ended(self, folder: Path) -> None:
        """All that a run leaves must be that of the unbroken one."""
        ours, theirs = (everything(place) for place in (folder, self.unbroken))
        for name in theirs:
            if ours[name] != theirs[name]:
                self.failures.append(f"{folder}: {name} is not that of {self.unbroken}")
        if not self.failures:
            shutil.rmtree(folder)

    def tell(self) -> None:
        """Writes the record, prints the table."""
        met = collections.Counter(kill["phase"] for kill in self.kills)
        seen = collections.Counter(name for kill in self.kills for name in kill["seen"])
        record = {"kills": self.kills, "seconds": self.seconds, "failures": self.failures}
        (self.output / "chaos.json").write_text(json.dumps(record, indent=2) + "\n")
        print(f"{'phase':<12}{'killed in':>10}{'seen then':>10}")
        for name in PHASES:
            print(f"{name:<12}{met[name]:>10}{seen[name] if name in killing.SIGNS else '-':>10}")
        print(
            f"{len(self.kills)} kills in {self.num_runs} runs: "
            + (f"{len(self.failures)} failures: {self.failures[0]}" if self.failures else "all ended alike")
        )


def is_plain(step: int) -> bool:
    """Whether nothing is done between this step and the next."""
    return step % EVERY != 0 and step < STEPS


def checkpoint_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def state_of(folder: Path, step: int) -> dict[str, str]:
    """A checkpoint's digests, read and checked as any program of ours would."""
    opened = restored.open_model(str(folder / "checkpoints" / str(step)))
    assert opened.checkpoint is not None
    mesh = mesh_lib.create(data=-1, fsdp=1, tensor=1)  # digests are the same on any
    return digests.of_tree(restored.restore_state(opened.parts, opened.checkpoint, mesh=mesh))


def everything(folder: Path) -> dict[str, Any]:
    """What must be equal: the last checkpoint, numbers, samples, evaluation, model; and that there is a report."""
    lines = (folder / told_files.METRICS_FILE).read_text(encoding="utf-8").splitlines()  # none may be torn
    return {
        "the last checkpoint": state_of(folder, STEPS),
        "metrics.jsonl": [told_files.untimed(json.loads(line)) for line in lines],
        "samples.jsonl": (folder / told_files.SAMPLES_FILE).read_bytes(),
        "evaluation/": {path.name: path.read_bytes() for path in sorted((folder / "evaluation").iterdir())},
        "final/": {path.name: path.read_bytes() for path in sorted((folder / "final").iterdir())},
        "report.html's presence": (folder / "report.html").is_file(),
    }


if __name__ == "__main__":
    command_line.run_program(main)
