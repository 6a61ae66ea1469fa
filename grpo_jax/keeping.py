"""What a run keeps, when, and how it goes on from that: the last whole step, checkpoints, the final model.

And what it does about alarms: it tells them, ends, or goes on from an earlier checkpoint (`roll_backs.py`).

Shared by GRPO (`train.py`) and supervised learning (`sft.py`). A step is whole when its update is done, its
numbers are told and the reference has followed: whatever stops a run, it is a whole step that is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from grpo_jax import alarms, checkpoints, distributed, endings, policy, report, roll_backs
from grpo_jax.alarms import Raised
from grpo_jax.endings import Ended
from grpo_jax.roll_backs import RollBack
from grpo_jax.run import Run, Whole


def restore(run: Run) -> None:
    """Takes state, data position and a reference that has moved from the checkpoint the run goes on after."""
    if lacking := run.keeper.lacks_room(run.state, run.ref_params if run.mix_reference else None):
        run.teller.tell_message(f"note: {lacking}")
    step = run.began_after
    if not step:
        return
    run.teller.tell_message(f"going on after step {step} of {run.settings.max_steps}")
    go_on(run, step, read(run, step), roll_backs.read(run.folder))


def read(run: Run, step: int) -> dict[str, Any]:
    """Replaces state and moved reference by those of a checkpoint; returns its record."""
    run.state, record = run.keeper.restore(step, emptied(run.state))
    if run.mix_reference:
        run.ref_params = run.keeper.restore_second(step, emptied(run.ref_params))
    return record


def emptied(tree: Any) -> Any:
    """The shapes of a tree whose arrays are given up: devices may have no room for two."""
    shapes = checkpoints.like(tree)
    jax.tree.map(lambda x: x.delete(), tree)
    return shapes


def go_on(run: Run, step: int, record: dict[str, Any], listed: list[RollBack]) -> None:
    """Takes from a record, and from the roll-backs that have led to it since, what is no array."""
    saved_with = record.get("roll_backs", 0)
    behind = roll_backs.applied(listed, step=step, saved_with=saved_with)
    if behind != listed:
        roll_backs.write(run.folder, behind)
    data = behind[-1].data if len(behind) > saved_with else record["data"]
    run.problem_batches.set_state(data)
    run.evaluated = {}
    run.alarms.set_state(record.get("alarms", {}))
    run.whole = Whole(
        step,
        data,
        looked=record["looked"],
        alarms=run.alarms.state(),
        roll_backs=max(len(behind), saved_with),
    )


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

    Raises: ValueError if config.checkpoint.metric_for_best_model is none of the numbers.
    """
    run.evaluated |= {name: float(x) for name, x in numbers.items() if name.startswith("eval/")}
    name = run.settings.checkpoint.best_metric
    if name and name not in run.evaluated:
        known = ", ".join(sorted(run.evaluated)) or "none, since nothing is evaluated here"
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
    record = {**dataclasses.asdict(run.whole), "seed": run.settings.seed}
    moved = run.ref_params if run.mix_reference else None
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
    record = read(run, back.to)
    roll_backs.write(run.folder, [*listed, back])
    with run.teller.rewound(back.to + 1):
        roll_backs.finish(run.folder, run.keeper)
    go_on(run, back.to, record, [*listed, dataclasses.replace(back, done=True)])
    mark_looked(run)  # later steps were told, so this evaluation was too


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
    run.keeper.close()
    final, adapters = run.folder / "final", run.folder / "final_adapter"
    if run.began_after < run.settings.max_steps and distributed.is_first():
        for folder in (final, adapters):
            if folder.exists():  # the run went on: nothing is lost
                folder.rename(folder.with_name(f"{folder.name}_of_step_{run.began_after}"))
    distributed.wait_for_all("looked for an older final folder")
    if not final.exists():
        keeping = run.settings.checkpoint
        params = run.parts.assemble(run.state.params, run.frozen, None)
        policy.export(run.policy, params, final, dtype=keeping.export_dtype, shard_gb=keeping.export_shard_gb)
    if run.frozen is not None and not adapters.exists():
        policy.export_adapters(run.policy, run.state.params, run.settings.lora, adapters)
    distributed.wait_for_all("exported")
    if distributed.is_first():
        run.teller.tell_message(f"the model is in {final}, the report is {report.write_report(run.folder)}")


def is_time(step: int, *, every: int, last: int) -> bool:
    """At every so many steps and at the last one; `every` 0 leaves only the last."""
    return step == last or (every > 0 and step % every == 0)
