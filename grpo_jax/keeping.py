"""What a run keeps, when, and how it goes on from that: the last whole step, checkpoints, the final model.

And what it does about alarms: it tells them, ends, or goes on from an earlier checkpoint (`roll_backs.py`).

Shared by GRPO (`train.py`) and supervised learning (`sft.py`). A step is whole when its update is done, its
numbers are told and the reference has followed: whatever stops a run, it is a whole step that is kept.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from grpo_jax import (
    alarms,
    checkpoints,
    distributed,
    endings,
    policy,
    report,
    resuming,
    roll_backs,
    run_story,
    starts,
)
from grpo_jax.alarms import Raised
from grpo_jax.endings import Ended
from grpo_jax.roll_backs import RollBack
from grpo_jax.run import Run, Whole


def restore(run: Run) -> None:
    """Takes state, data position and a reference that has moved from the checkpoint the run goes on after.

    From here on a run that is stopped saves its last whole step.
    """
    if lacking := run.keeper.lacks_room(run.state, run.ref_params if run.mix_reference else None):
        run.teller.tell_message(f"note: {lacking}")
    for remark in run.start.remarks:
        run.teller.tell_message(f"note: {remark}")
    if run.start.step:
        _restore(run, run.start)
    keep_when_stopped(run)


def _restore(run: Run, start: resuming.Start) -> None:
    step = start.step
    run.teller.tell_message(f"going on after step {step} of {run.settings.max_steps}")
    record, of_reference = read(run, step)
    of_data = go_on(run, step, record, roll_backs.read(run.folder))
    for remark in (
        resuming.place_remark(record.get("place", {}), place(run)),
        *resuming.schedule_remarks(start.changes, run.settings, num_done=int(run.state.num_updates)),
        of_reference,
        of_data,
    ):
        if remark:
            run.teller.tell_message(f"note: {remark}")


def read(run: Run, step: int) -> tuple[dict[str, Any], str]:
    """Replaces state and moved reference by those of a checkpoint.

    Returns: its record, and what to tell where it has no such reference.
    """
    run.state, record = run.keeper.restore(step, emptied(run.state))
    if not run.mix_reference:
        return record, ""
    if not record.get("has_reference", True):
        return record, "the checkpoint has no reference that moved: it begins as the starting model"
    run.ref_params = run.keeper.restore_second(step, emptied(run.ref_params))
    return record, ""


def emptied(tree: Any) -> Any:
    """The shapes of a tree whose arrays are given up: devices may have no room for two."""
    shapes = checkpoints.like(tree)
    jax.tree.map(lambda x: x.delete(), tree)
    return shapes


def go_on(run: Run, step: int, record: dict[str, Any], listed: list[RollBack]) -> str:
    """Takes from a record, and from the roll-backs that have led to it since, what is no array.

    Returns: what to tell where the data begins anew.
    """
    saved_with = record.get("roll_backs", 0)
    behind = roll_backs.applied(listed, step=step, saved_with=saved_with)
    if behind != listed:
        roll_backs.write(run.folder, behind)
    remark = restore_data(run, behind[-1].data if len(behind) > saved_with else record["data"])
    run.evaluated = {}
    run.alarms.set_state(record.get("alarms", {}))
    run.whole = Whole(
        step,
        run.problem_batches.get_state(),
        looked=record.get("looked", True),
        alarms=run.alarms.state(),
        roll_backs=max(len(behind), saved_with),
    )
    return remark


def restore_data(run: Run, position: dict[str, Any]) -> str:
    """Goes to a checkpoint's position in the data. Returns what to tell where the data begins anew.

    Raises: ValueError where the data is not that of the checkpoint, and nobody said that it may differ.
    """
    at_begin = run.problem_batches.get_state()
    try:
        run.problem_batches.set_state(position)
    except ValueError as error:
        if not run.start.may_deal_anew:
            raise ValueError(
                f"{error}, or let the data begin anew with --config.checkpoint.accept_changes=data"
            ) from error
        run.problem_batches.set_state(at_begin)
        return f"the data begins anew ({error})"
    return ""


def place(run: Run) -> dict[str, Any]:
    """Where the run's numbers are made: with all of this the same, a resumed run has the same bits."""
    on_cpus = jax.default_backend() == "cpu"
    return {
        **starts.place(run.learner.mesh),
        "slots": run.collector.engine.plan.num_slots,  # on accelerators as many as memory was free
        "cores": os.cpu_count() if on_cpus else 0,  # matrix products are cut among them
    }


def mark_whole(run: Run, step: int) -> None:
    """Says that nothing of this step is missing but its evaluation, if it is time for one."""
    data, watched = run.problem_batches.get_state(), run.alarms.state()
    run.whole = Whole(step, data, looked=False, alarms=watched, roll_backs=run.whole.roll_backs)
    run.evaluated = {}


def mark_looked(run: Run) -> None:
    """Says that the evaluation after the last whole step is told, or that there is none."""
    run.whole = dataclasses.replace(run.whole, looked=True)


def mark_evaluated(run: Run, numbers: Mapping[str, float]) -> None:
    """Notes what was found of the last whole step's model, and that the best can be told by it.

    Raises: ValueError if config.checkpoint.metric_for_best_model has not been among the numbers yet.
    """
    run.evaluated |= {name: float(x) for name, x in numbers.items() if name.startswith("eval/")}
    run.evaluated_names.update(run.evaluated)  # some are there only where an answer is right, or wrong
    name = run.settings.checkpoint.best_metric
    if name and name not in run.evaluated_names:
        known = ", ".join(sorted(run.evaluated_names)) or "none, since nothing is evaluated here"
        raise ValueError(
            f"config.checkpoint.metric_for_best_model is {run.settings.checkpoint.metric_for_best_model!r}, which "
            f'no evaluation of this run tells; known are: {known}. Set one of these, or "".'
        )


def owes_evaluation(run: Run, *, every: int) -> bool:
    """Whether the run begins, or was stopped before it told the evaluation of its last whole step."""
    due = run.whole.step == 0 or is_time(run.whole.step, every=every, last=run.settings.max_steps)
    return due and not run.whole.looked


def owes_checkpoint(run: Run, *, every: int) -> bool:
    """Whether it is time to save the last whole step. Raises: RuntimeError if an earlier save has failed."""
    run.keeper.check()
    if is_time(run.whole.step, every=every, last=run.settings.max_steps):
        return True
    seconds = run.settings.checkpoint.save_seconds
    # clocks differ between processes: one says so for all
    return seconds > 0 and bool(distributed.largest([run.keeper.seconds_since_save >= seconds])[0])


def keep(run: Run) -> None:
    """Saves all that is needed to go on after the last whole step; training does not wait for the disk."""
    with run.stopper.undivided():
        _save(run)


def keep_when_stopped(run: Run) -> None:
    """A run that is stopped from now on saves its last whole step, if there has been one since."""
    begun = run.whole.step

    def save() -> None:
        if run.whole.step != begun:
            _save(run)  # which leaves alone what is saved
            run.keeper.close()

    run.stopper.keeps(owes=lambda: run.whole.step != begun, save=save)


def _save(run: Run) -> None:
    moved = run.ref_params if run.mix_reference else None
    record = {
        **dataclasses.asdict(run.whole),
        "seed": run.settings.seed,
        "place": place(run),
        "has_reference": moved is not None,
    }
    run.keeper.save(run.whole.step, run.state, record, second=moved, evaluated=run.evaluated)


def heed(run: Run, step: int, numbers: Mapping[str, float]) -> bool:
    """Looks for alarms in the numbers of a step that is not whole yet, and does what they say.

    Returns: whether the run has gone back to a checkpoint, after which it goes on.

    Raises: Ended if an alarm stops the run; nothing of the step is saved.
    """
    raised, limits = run.alarms.watch(step, numbers), run.settings.alarms
    for warning in raised:
        if warning.action == "warn":
            run.teller.tell_message(f"  {warning.line}; {warning.alarm.cure}")
    worst = alarms.worst(raised)
    if worst is None:
        return False
    run.keeper.wait()
    distributed.wait_for_all("saved")  # only then do all see the same checkpoints
    listed = roll_backs.read(run.folder)[: run.whole.roll_backs]
    to, most = roll_backs.target(run.keeper.steps(), listed, before=worst.since), limits.max_roll_backs
    if worst.action == "stop" or to is None or run.whole.roll_backs >= most:
        raise Ended(farewell(run, worst), status=endings.ALARM)
    run.teller.tell_message(
        f"  {worst.line}; going back to the checkpoint of step {to}, and on with other problems and samples: "
        f"roll-back {run.whole.roll_backs + 1} of at most {most}"
    )
    roll_back(run, listed, RollBack(worst.alarm.name, step, to, run.problem_batches.get_state()))
    return True


def roll_back(run: Run, listed: list[RollBack], back: RollBack) -> None:
    """Goes on after an earlier checkpoint; the order, and why, is at the head of `roll_backs.py`."""
    record, _ = read(run, back.to)
    roll_backs.write(run.folder, [*listed, back])
    with run.teller.rewound(back.to + 1):
        roll_backs.finish(run.folder, run.keeper)
    told = {**record, "looked": True}  # the evaluation after that step was told before the next one was done
    go_on(run, back.to, told, [*listed, dataclasses.replace(back, done=True)])
    keep_when_stopped(run)


def farewell(run: Run, worst: Raised) -> str:
    """One line: what stopped the run, what is left, and how to go on."""
    steps, most = run.keeper.steps(), run.settings.alarms.max_roll_backs
    good = roll_backs.target(steps, [], before=worst.since)
    line = f"stopped by {worst.line}"
    if worst.action == "roll_back" and good is not None:
        line += f", after {run.whole.roll_backs} roll-backs (config.alarms.max_roll_backs {most})"
    if good is None:
        return (
            f"{line}. No checkpoint is from before step {worst.since}: {worst.alarm.cure}, and start in another "
            "config.output_dir."
        )
    ways = f"{worst.alarm.cure} (config.checkpoint.accept_changes names fields that may change)"
    if worst.alarm.name != "non_finite":
        ways += f" or set config.alarms.{worst.alarm.name}=warn"
    newer = f", with --config.checkpoint.resume_step={good}" if good < steps[-1] else ""
    return (
        f"{line}. The last good checkpoint is of step {good}, in {run.keeper.folder}. To go on from it, {ways}; "
        f"else the same command{newer}."
    )


def finish(run: Run) -> None:
    """Waits for the last checkpoint, exports the model, writes the report."""
    with run.stopper.undivided():
        run.keeper.close()
        run.stopper.all_kept()
    final, adapters = (run.folder / name for name in resuming.MODELS)
    if not final.exists():
        keeping = run.settings.checkpoint
        params = run.parts.assemble(run.state.params, run.frozen, None)
        policy.export(run.policy, params, final, dtype=keeping.export_dtype, shard_gb=keeping.export_shard_gb)
    if run.frozen is not None and not adapters.exists():
        policy.export_adapters(run.policy, run.state.params, run.settings.lora, adapters)
    distributed.wait_for_all("exported")
    if distributed.is_first():
        page = report.write_report(run.folder, happened=run_story.tell(run.folder))
        run.teller.tell_message(f"the model is in {final}, the report is {page}")


def is_time(step: int, *, every: int, last: int) -> bool:
    """At every so many steps and at the last one; `every` 0 leaves only the last."""
    return step == last or (every > 0 and step % every == 0)
