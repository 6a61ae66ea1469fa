"""A step of a run computed again, from the newest checkpoint before it, and compared with what the run told.

Enters: a run's folder and a step. Leaves: digests of samples, rewards, gradient and parameters beside those of
`metrics.jsonl`, the first difference with what may have caused it and, where asked for, all that the step was
made of. Nothing is written into the run's folder and no lock is taken: what needs a folder gets one of its own,
in which the checkpoint is a link. Several processes are replayed by one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax import keeping, metrics, roll_backs, settings, starts, stopping, train
from grpo_jax import mesh as mesh_lib
from grpo_jax.checkpoints import Damaged
from grpo_jax.replaying import source, step_file
from grpo_jax.rollout import digests_of
from grpo_jax.run import Run, prepare

CAUSES = {  # what is compared, in the order of a step -> what may be behind its being the first that differs
    "samples": "the weights before this step, its problems or the sampler's settings were others, or last bits "
    "of them were (another mesh, device or version)",
    "rewards": "the completions are the same: a reward function or its options were others, or it does not say "
    "the same twice (a deadline, a clock, another model)",
    "gradient": "samples and rewards are the same: config.grpo or config.reward was another, with several updates a "
    "step config.optimizer too, or sums were taken in another order (another mesh, device or version)",
    "params": "the gradients are the same: config.optimizer was another",
}
SHOWN = ("reward", "loss", "grad_norm", "learning_rate")  # numbers that say how much differs


class Row(dict[str, Any]):
    """One comparison: `step`, `what`, `run` (None: not told), `replayed`."""

    @property
    def differs(self) -> bool:
        return self["run"] is not None and self["run"] != self["replayed"]


@dataclasses.dataclass(frozen=True)
class Replay:
    """What came out."""

    folder: Path
    after: int  # the checkpoint's step, 0: none
    rows: list[Row]
    numbers: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]  # by step: as told, as replayed
    began: Mapping[str, Any]  # how the run computed the last step; {}: not recorded
    now: Mapping[str, Any]

    @property
    def first_difference(self) -> Row | None:
        return next((row for row in self.rows if row.differs), None)


def replay(folder: Path, step: int, *, after: int = -1, output: Path | None = None) -> Replay:
    """Computes the steps behind a checkpoint again, up to `step`. Call before anything touches a device.

    Args:
        after: the checkpoint to begin with, 0: none; -1: the newest before `step`.
        output: file for what the step was made of, one completion a line.

    Raises: ValueError, FileNotFoundError for what the user can mend.
    """
    began = starts.of_step(starts.recorded(folder), step)
    config = source.read_config(folder, began)
    s = source.read_settings(folder, config)
    after = source.find_start(folder, step, after=after, last=s.max_steps)
    step_file.check_output(output, folder)
    mesh_lib.use_cpu_devices(source.devices_of(began, s))
    with tempfile.TemporaryDirectory(prefix="grpo_jax_replay_") as place:
        own = source.own_config(config, folder, Path(place) / "run")
        source.borrow(folder, after, Path(place) / "run", own)
        with begun(own) as run:
            restore(run, folder, after)
            rows, numbers = steps_again(run, source.told_steps(folder), last=step, output=output)
        now = starts.present(run.learner.mesh, config)
    return Replay(folder, after, rows, numbers, began, now)


@contextlib.contextmanager
def begun(config: dict[str, Any]) -> Iterator[Run]:
    """A run in its own folder; at the end its processes end and its folder is given back."""
    with contextlib.ExitStack() as at_end:
        # never entered: signals end a replay as they end any tool, there is nothing to keep
        stopper = stopping.Stopper(grace_seconds=1.0)
        at_end.callback(lambda: [end() for end in stopper.endings])
        run = prepare(settings.read(config), config, started_at=time.time(), stopper=stopper, teller=Told())
        at_end.enter_context(run.judge)
        yield run


def restore(run: Run, folder: Path, after: int) -> None:
    """Raises: ValueError where the checkpoint is damaged, or has gone meanwhile."""
    try:
        keeping.restore(run)
    except (Damaged, FileNotFoundError) as error:
        raise ValueError(
            f"checkpoint {after} of {folder} cannot be restored: {error} Here an older one is named with --after."
        ) from error


def steps_again(
    run: Run, told: Mapping[int, Mapping[str, Any]], *, last: int, output: Path | None
) -> tuple[list[Row], dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    """Act, learn and follow, without evaluations, until `last` is done."""
    rows, numbers = [], {}
    for step in range(run.began_after + 1, last + 1):
        run.teller.tell_message(f"step {step}: sampling, judging and learning again")
        rollout, advantages_PG = train.act(run, step)
        scored = step_file.trainer_logprobs(run, rollout) if output and step == last else {}
        learned = train.learn(run, rollout, advantages_PG)
        train.follow(run, step)
        go_back(run, step)
        replayed = rollout.metrics | learned | digests_of(rollout)
        numbers[step] = (told.get(step, {}), replayed)
        for what in CAUSES:
            name = f"digest/{what}"
            rows.append(Row(step=step, what=what, run=numbers[step][0].get(name), replayed=replayed[name]))
        if output and step == last:
            step_file.write_samples(output, run, step, rollout, advantages_PG, scored)
    return rows, numbers


def go_back(run: Run, step: int) -> None:
    """Takes the roll-backs of the run that led back to this step: other problems and samples follow it."""
    before = run.whole.roll_backs
    behind = roll_backs.applied(roll_backs.read(run.folder), step=step, saved_with=before)
    if len(behind) > before:
        run.problem_batches.set_state(behind[-1].data)
        run.whole = dataclasses.replace(run.whole, roll_backs=len(behind))


class Told(metrics.SilentTeller):
    """Says on stderr what takes long; the rest is for nobody."""

    def tell_message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


# What is said of it -------------------------------------------------------------------------------


def describe(result: Replay) -> list[str]:
    """The table, and what it means."""
    lines = [f"{'step':>6}  {'what':<9} {'run':<17} {'replayed':<17} same"]
    for row in result.rows:
        same = "not told" if row["run"] is None else "no" if row.differs else "yes"
        lines.append(
            f"{row['step']:>6}  {row['what']:<9} {row['run'] or '-':<17} {row['replayed']:<17} {same}"
        )
    since = f"after checkpoint {result.after}" if result.after else "from the beginning"
    first, told = result.first_difference, sum(row["run"] is not None for row in result.rows)
    if first is None:
        found = (
            f"all {told} digests are the same" if told else "the run told no digests: nothing was compared"
        )
        return [*lines, f"{result.folder}, {since}: {found}"]
    lines.append(
        f"{result.folder}, {since}: the first difference is in the {first['what']} of step {first['step']}"
    )
    return [*lines, *causes(result, first)]


def causes(result: Replay, first: Row) -> list[str]:
    """How much differs, and why that may be."""
    was, now = result.numbers[first["step"]]
    shown: Sequence[str] = [
        name for name in SHOWN if was.get(name) is not None and was[name] != now.get(name)
    ]
    lines = [f"  {name} was {was[name]:.9g}, is {now[name]:.9g}" for name in shown]
    lines.append(f"  may be: {CAUSES[first['what']]}")
    others = starts.differences(result.began, result.now)
    if others:
        return [*lines, f"  recorded at its start and now: {'; '.join(others)}"]
    if not result.began:
        return [*lines, f"  the run has no {starts.ENVIRONMENT_FILE}: what it was computed with is not known"]
    return [
        *lines,
        "  versions, devices, mesh and config are those that the run recorded: look at its data, reward files and "
        "model folder, which may have been edited since",
    ]
