"""What a run keeps, when, and how it goes on from that: the last whole step, checkpoints, the final model.

Shared by GRPO (`train.py`) and supervised learning (`sft.py`). A step is whole when its update is done, its
numbers are told and the reference has followed: whatever stops a run, it is a whole step that is kept.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from grpo_jax import checkpoints, distributed, policy, report
from grpo_jax.run import Run, Whole


def restore(run: Run) -> None:
    """Takes state, data position and a reference that has moved from the checkpoint the run goes on after.

    From here on a run that is stopped saves its last whole step.
    """
    if run.began_after:
        _restore(run, run.began_after)
    run.stopper.keeps(owes=lambda: run.whole.step > run.began_after, save=partial(keep_last, run))


def _restore(run: Run, step: int) -> None:
    run.teller.tell_message(f"going on after step {step} of {run.settings.max_steps}")
    run.state, record = run.keeper.restore(step, checkpoints.like(run.state))
    if run.mix_reference:
        run.ref_params = run.keeper.restore_second(step, checkpoints.like(run.ref_params))
    run.problem_batches.set_state(record["data"])
    run.whole = Whole(step, record["data"], looked=record["looked"])


def mark_whole(run: Run, step: int) -> None:
    """Says that nothing of this step is missing but its evaluation, if it is time for one."""
    run.whole = Whole(step, run.problem_batches.get_state(), looked=False)


def mark_looked(run: Run) -> None:
    """Says that the evaluation after the last whole step is told, or that there is none."""
    run.whole = dataclasses.replace(run.whole, looked=True)


def owes_evaluation(run: Run, *, every: int) -> bool:
    """Whether the run begins, or was stopped before it told the evaluation of its last whole step."""
    due = run.whole.step == 0 or is_time(run.whole.step, every=every, last=run.settings.max_steps)
    return due and not run.whole.looked


def keep(run: Run) -> None:
    """Saves all that is needed to go on after the last whole step; training does not wait for the disk."""
    with run.stopper.undivided():
        _save(run)


def keep_last(run: Run) -> None:
    """What a run that is stopped does: saves the last whole step where it is not saved, and waits for the disk."""
    if run.whole.step > run.began_after:
        if run.keeper.latest_step() != run.whole.step:
            _save(run)
        run.keeper.close()


def _save(run: Run) -> None:
    record = {**dataclasses.asdict(run.whole), "seed": run.settings.seed}
    moved = run.ref_params if run.mix_reference else None
    run.keeper.save(run.whole.step, run.state, record, second=moved)


def finish(run: Run) -> None:
    """Waits for the last checkpoint, exports the model, writes the report."""
    with run.stopper.undivided():
        run.keeper.close()
        run.stopper.all_kept()
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
