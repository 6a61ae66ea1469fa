"""A step of a run computed again, from the newest checkpoint before it, and compared with what the run told.

Enters: a run's folder and a step. Leaves: digests of samples, rewards, gradient and parameters beside those of
`metrics.jsonl`, the first difference with what may have caused it and, where asked for, all that the step was
made of. Nothing is written into the run's folder and no lock is taken: what needs a folder gets one of its own,
in which the checkpoint is a link. Several processes are replayed by one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax import keeping, metrics, report, roll_backs, run_folder, settings, starts, stopping, train
from grpo_jax import mesh as mesh_lib
from grpo_jax.checkpoints import Damaged, Reader
from grpo_jax.rollout import digests_of
from grpo_jax.run import Run, cpu_devices, prepare
from grpo_jax.settings import Settings
from grpo_jax.structs import Rollout

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
OVERRIDES: dict[str, Any] = {  # of the run's config; what decides no number of a step
    "distributed.mode": "none",
    "distributed.num_processes": 1,
    "distributed.process_id": 0,
    "checkpoint.resume": "auto",
    "checkpoint.resume_step": -1,
}


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
    config = read_config(folder, began)
    s = read_settings(folder, config)
    after = find_start(folder, step, after=after, last=s.max_steps)
    check_output(output, folder)
    mesh_lib.use_cpu_devices(devices_of(began, s))
    with tempfile.TemporaryDirectory(prefix="grpo_jax_replay_") as place:
        own = own_config(config, folder, Path(place) / "run")
        borrow(folder, after, Path(place) / "run", own)
        with begun(own) as run:
            restore(run, folder, after)
            rows, numbers = steps_again(run, told_steps(folder), last=step, output=output)
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
        scored = trainer_logprobs(run, rollout) if output and step == last else {}
        learned = train.learn(run, rollout, advantages_PG)
        train.follow(run, step)
        go_back(run, step)
        replayed = rollout.metrics | learned | digests_of(rollout)
        numbers[step] = (told.get(step, {}), replayed)
        for what in CAUSES:
            name = f"digest/{what}"
            rows.append(Row(step=step, what=what, run=numbers[step][0].get(name), replayed=replayed[name]))
        if output and step == last:
            write_samples(output, run, step, rollout, advantages_PG, scored)
    return rows, numbers


def go_back(run: Run, step: int) -> None:
    """Takes the roll-backs of the run that led back to this step: other problems and samples follow it."""
    before = run.whole.roll_backs
    behind = roll_backs.applied(roll_backs.read(run.folder), step=step, saved_with=before)
    if len(behind) > before:
        run.problem_batches.set_state(behind[-1].data)
        run.whole = dataclasses.replace(run.whole, roll_backs=len(behind))


# What is read of the run --------------------------------------------------------------------------


def read_config(folder: Path, began: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the start that `began` tells of, where the folder has it; else config.json.

    Raises: FileNotFoundError, ValueError where the folder is no GRPO run's.
    """
    path = folder / run_folder.CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {path.name}: give --run the folder of a run.")
    if (folder / run_folder.SUPERVISED_FILE).is_file():
        raise ValueError(f"{folder} holds a supervised run; only steps of grpo_jax.train can be replayed.")
    found = [
        with_tuples(read_json(name)) for name in (path, *sorted(folder.glob("config_until_step_*.json")))
    ]
    wanted = began.get("config_digest")
    return next((config for config in found if starts.config_digest(config) == wanted), found[0])


def with_tuples(config: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, configs have no lists."""
    return {
        name: with_tuples(value)
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in config.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON: {error}. Put the run's config back, or name another run."
        ) from None


def read_settings(folder: Path, config: dict[str, Any]) -> Settings:
    """Raises: ValueError for a config that another version wrote."""
    try:
        return settings.read(config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / run_folder.CONFIG_FILE} was written by another version of grpo_jax ({error}); replay "
            "with the version that trained it."
        ) from None


def find_start(folder: Path, step: int, *, after: int, last: int) -> int:
    """The checkpoint to begin with; 0: the beginning."""
    if not 1 <= step <= last:
        raise ValueError(f"{folder} has steps 1 to {last}; got --step {step}.")
    whole = Reader(folder / run_folder.CHECKPOINTS).steps()
    before = [0, *(number for number in whole if number < step)]
    if after == -1:
        return before[-1]
    if after not in before:
        raise ValueError(f"{folder} has no checkpoint {after} before step {step}; --after may be {before}.")
    return after


def told_steps(folder: Path) -> dict[int, dict[str, Any]]:
    """What the run told of each step, without its evaluations; the last line where there are several."""
    lines = report.read_json_lines(folder / metrics.METRICS_FILE)
    return {line["step"]: line for line in lines if "loss" in line and isinstance(line.get("step"), int)}


def devices_of(began: Mapping[str, Any], s: Settings) -> int:
    """Into how many devices a CPU is cut: as many as the run had, where that is known."""
    if began.get("platform") == "cpu" and isinstance(began.get("devices"), int):
        return began["devices"]
    return cpu_devices(s)


# What it is computed in ---------------------------------------------------------------------------


def own_config(config: dict[str, Any], folder: Path, place: Path) -> dict[str, Any]:
    """The run's config for one process and another folder; what is written goes there."""
    own: dict[str, Any] = with_tuples(config) | {"output_dir": str(place)}  # sections of its own
    for name, value in OVERRIDES.items():
        section, _, field = name.partition(".")
        if field in own[section]:
            own[section][field] = value
    cache = own["compilation_cache"]
    if cache and Path(cache).resolve().is_relative_to(folder.resolve()):
        own["compilation_cache"] = ""
    return own


def borrow(folder: Path, step: int, place: Path, config: dict[str, Any]) -> None:
    """A folder of a run that was stopped after `step`: its config and roll-backs, and a link to the checkpoint."""
    (place / run_folder.CHECKPOINTS).mkdir(parents=True)
    (place / run_folder.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (folder / roll_backs.FILE).is_file():
        shutil.copyfile(folder / roll_backs.FILE, place / roll_backs.FILE)
    if step:
        kept = (folder / run_folder.CHECKPOINTS / str(step)).resolve()
        (place / run_folder.CHECKPOINTS / str(step)).symlink_to(kept, target_is_directory=True)


class Told(metrics.SilentTeller):
    """Says on stderr what takes long; the rest is for nobody."""

    def tell_message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


# What a step was made of --------------------------------------------------------------------------


def check_output(output: Path | None, folder: Path) -> None:
    """Raises: ValueError, FileExistsError before anything is computed."""
    if output is None:
        return
    if output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"--output {output} lies in the run's folder, which is only read; name another place."
        )
    if output.exists():
        raise FileExistsError(f"--output {output} exists; name a new file.")
    if not output.resolve().parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.resolve().parent}; make it.")


def trainer_logprobs(run: Run, rollout: Rollout) -> dict[tuple[int, int], np.ndarray]:
    """Each completion's log-probabilities under the training graph, before the step's update."""
    ones_PG = np.ones(rollout.rewards_PG.shape, np.float32)  # all are scored, whatever they are worth
    packed = train.pack(run, rollout, ones_PG)
    return run.learner.rollout_logprobs(run.state.params, packed, frozen=run.frozen)


def write_samples(
    output: Path,
    run: Run,
    step: int,
    rollout: Rollout,
    advantages_PG: np.ndarray,
    scored: Mapping[tuple[int, int], np.ndarray],
) -> None:
    """One line a completion, in the order of the step."""
    names = [spec.name for spec in run.judge.specs]
    with output.open("x", encoding="utf-8") as lines:
        for (p, g), trainer_C in sorted(scored.items()):
            problem, completion = rollout.problems[p], rollout.completions[p][g]
            judgement = rollout.judgements[p][g]
            record = {
                "step": step,
                "problem_index": problem.index,
                "generation": g,
                "prompt": problem.prompt,
                "completion": rollout.texts[p][g],
                "gold": problem.answer,
                "ids": completion.ids.tolist(),
                "ended": bool(completion.ended),
                "rewards": dict(zip(names, map(plain, rollout.rewards_PGF[p, g]), strict=True)),
                "reward": plain(rollout.rewards_PG[p, g]),
                "advantage": plain(advantages_PG[p, g]),
                "outcome": judgement.outcome,
                "parsed": judgement.parsed,
                "sampler_logprobs": completion.sampler_logprobs.tolist(),
                "trainer_logprobs": trainer_C[: completion.num_tokens].tolist(),
            }
            lines.write(json.dumps(record) + "\n")


def plain(value: Any) -> float | None:
    """What JSON can hold."""
    return float(value) if np.isfinite(value) else None


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
