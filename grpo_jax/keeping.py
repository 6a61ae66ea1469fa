"""What a run keeps, when, and how it goes on from that: the last whole step, checkpoints, the final model.

Shared by GRPO (`train.py`) and supervised learning (`sft.py`). A step is whole when its update is done, its
numbers are told and the reference has followed: whatever stops a run, it is a whole step that is kept.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax

from grpo_jax import checkpoints, distributed, policy, report, resuming
from grpo_jax.run import Run, Whole


def restore(run: Run) -> None:
    """Takes state, data position and a reference that has moved from the checkpoint the run goes on after."""
    start, step = run.start, run.start.step
    for remark in start.remarks:
        run.teller.tell_message(f"note: {remark}")
    if not step:
        return
    run.teller.tell_message(f"going on after step {step} of {run.settings.max_steps}")
    run.state, record = run.keeper.restore(step, checkpoints.like(run.state))
    num_done = int(run.state.num_updates)
    for remark in (
        resuming.place_remark(record.get("place", {}), place(run)),
        *resuming.schedule_remarks(start.changes, run.settings, num_done=num_done),
        restore_reference(run, record),
        restore_data(run, record),
    ):
        if remark:
            run.teller.tell_message(f"note: {remark}")
    run.whole = Whole(step, run.problem_batches.get_state(), looked=start.looked)


def restore_reference(run: Run, record: dict[str, Any]) -> str:
    """Takes a reference that has moved from the checkpoint. Returns what to tell where it has none."""
    if not run.mix_reference:
        return ""
    if not record.get("has_reference", True):
        return "the checkpoint has no reference that moved: it begins as the starting model"
    run.ref_params = run.keeper.restore_second(run.start.step, checkpoints.like(run.ref_params))
    return ""


def restore_data(run: Run, record: dict[str, Any]) -> str:
    """Goes to the checkpoint's position in the data. Returns what to tell where the data begins anew.

    Raises: ValueError where the data is not that of the checkpoint, and nobody said that it may differ.
    """
    at_begin = run.problem_batches.get_state()
    try:
        run.problem_batches.set_state(record["data"])
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
    mesh = run.learner.mesh
    return {
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "slots": run.collector.engine.plan.num_slots,  # on accelerators as many as memory was free
        "device": mesh.devices.flat[0].device_kind,
        "cores": os.cpu_count()
        if jax.default_backend() == "cpu"
        else 0,  # matrix products are cut among them
        "jax": jax.__version__,
    }


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
    moved = run.ref_params if run.mix_reference else None
    record = {
        **dataclasses.asdict(run.whole),
        "seed": run.settings.seed,
        "place": place(run),
        "has_reference": moved is not None,
    }
    run.keeper.save(run.whole.step, run.state, record, second=moved)


def finish(run: Run) -> None:
    """Waits for the last checkpoint, exports the model, writes the report."""
    run.keeper.close()
    final, adapters = (run.folder / name for name in resuming.MODELS)
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
