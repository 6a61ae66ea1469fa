"""Where a run begins: anew, or after one of its checkpoints; and what may have changed in between.

Enters: the run's folder, its config and what `config.checkpoint` says of going on. Leaves: a `Start`, alike in
every process, with the sentences that the run begins with. Newer checkpoints, an older final model, the config
and the numbers that the run leaves behind are moved aside and never deleted.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from grpo_jax import checkpoint_folder, distributed, run_folder, told_files
from grpo_jax.checkpoints import Checkpoints
from grpo_jax.run_folder import DATA, Changes
from grpo_jax.settings import Settings

NEWEST = -1
DECIDE_DATA = {"seed", "model.path", "rollout.num_prompts", "sft.num_rows", "sft.validation_problems"}
DECIDE_UPDATES = ("grpo.num_iterations", "grpo.num_minibatches", "max_steps", "sft.num_rows", "sft.max_steps")
DECIDE_BATCH = ("rollout.num_prompts", "rollout.num_generations", "sft.num_rows")
MODELS = ("final", "final_adapter")  # folders that the run ends with


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins."""

    step: int  # to go on after; 0: a new run
    record: dict[str, Any]  # of that step's checkpoint; {} for a new run
    changes: Changes
    may_deal_anew: bool  # whether other problems than those of the checkpoint are meant
    remarks: tuple[str, ...]  # to be told

    @property
    def looked(self) -> bool:
        """Whether the evaluation after the step is told, or none is owed."""
        return self.record.get("looked", True)


def accepted(s: Settings) -> tuple[str, ...]:
    """The names in `config.checkpoint.accept_changes`."""
    return tuple(name.strip() for name in s.checkpoint.accept_changes.split(",") if name.strip())


def check(
    folder: Path,
    config: dict[str, Any],
    s: Settings,
    *,
    free: Collection[str] | None = None,
    supervised: bool = False,
) -> Changes:
    """What may be found out before anything is loaded; changes no file.

    Args: as `run_folder.check_folder` has them.

    Raises: ValueError, in one line, where the run may neither begin nor go on.
    """
    changes = run_folder.check_folder(folder, config, free=free, supervised=supervised, accept=accepted(s))
    if s.checkpoint.resume == "never" and folder.exists() and run_folder.has_begun(folder):
        output = "config.sft.output_dir" if supervised else "config.output_dir"
        raise ValueError(
            f"{folder} holds a run that has begun, and config.checkpoint.resume is 'never': nothing is "
            f"overwritten. Set {output} to a new folder, or config.checkpoint.resume=auto to go on."
        )
    steps = checkpoint_folder.steps(folder / run_folder.CHECKPOINTS)
    choose(steps, folder, s)
    agree([steps, changes.rounding, changes.accepted])  # before any process changes what the others read
    return changes


def choose(steps: Sequence[int], folder: Path, s: Settings) -> int:
    """The step to go on after, of those that there are; 0 for a new run.

    Raises: ValueError where config.checkpoint asks for one that is not there.
    """
    wanted = s.checkpoint.resume_step
    if wanted != NEWEST and wanted not in steps:
        there = f"there are {', '.join(map(str, sorted(steps)))}" if steps else "there is none"
        raise ValueError(
            f"config.checkpoint.resume_step is {wanted}, but {folder} has no checkpoint of that step; {there}. "
            "Set one of these, or -1 for the newest."
        )
    if s.checkpoint.resume == "must" and not steps:
        raise ValueError(
            f"config.checkpoint.resume is 'must', but {folder} has no checkpoint to go on from. Is that the "
            "folder of the run? config.checkpoint.resume=auto begins where there is nothing."
        )
    return max(steps, default=0) if wanted == NEWEST else wanted


def agree(decided: Any) -> None:
    """Returns when every process has decided the same. Raises ValueError where they see different files."""
    told = distributed.gather_texts([json.dumps(decided)])
    if len(set(told)) > 1:
        raise ValueError(
            f"the processes see different files of the run: {' and '.join(sorted(set(told)))} (checkpoints, changed "
            "fields). Its folder must be on a disk that all of them share."
        )


def begin(keeper: Checkpoints, folder: Path, s: Settings, changes: Changes, *, last: int) -> Start:
    """Chooses the step, moves aside what is newer, and reads what the checkpoint says of itself.

    Args:
        last: the run's last step.

    Raises: ValueError as `choose` does, and for a checkpoint that cannot be trusted.
    """
    steps = checkpoint_folder.steps(keeper.folder)  # whole or not: a damaged newest one is not passed over
    step = choose(steps, folder, s)
    agree([steps, step])
    record = keeper.read_record(step) if step else {}
    newer = [other for other in steps if other > step]
    if newer:
        keeper.check_files(step)  # before anything is moved
    if distributed.is_first() and step < last:
        set_models_aside(folder, max(steps, default=0))
    remarks = [*change_remarks(changes)]
    if newer:
        if distributed.is_first():
            copy_told(folder, until=max(newer))
        keeper.set_aside(newer)
        remarks.append(
            f"config.checkpoint.resume_step is {step}: checkpoints of steps {', '.join(map(str, newer))} are moved "
            f"to {keeper.folder / 'set_aside'}, and a copy of what was told until then is kept"
        )
    return Start(step, record, changes, decide_data(accepted(s)), tuple(remarks))


def decide_data(names: Collection[str]) -> bool:
    """Whether one of these fields, or `DATA`, decides which problems a run deals, and in which order."""
    return any(name in DECIDE_DATA or name.partition(".")[0] in (DATA, "evaluation") for name in names)


def set_models_aside(folder: Path, step: int) -> None:
    """Renames the models that the run ended with, at its step so far: it goes on, and nothing is lost."""
    for name in MODELS:
        if (folder / name).exists():
            (folder / name).rename(run_folder.free_name(folder / f"{name}_of_step_{step}"))


def copy_told(folder: Path, *, until: int) -> None:
    """Keeps the numbers and samples of steps that the run leaves behind."""
    for name in told_files.FILES:
        if (path := folder / name).exists():
            shutil.copyfile(path, run_folder.free_name(path.with_stem(f"{path.stem}_until_step_{until}")))


def change_remarks(changes: Changes) -> list[str]:
    """What the run is told to take, and what that does to its numbers."""
    remarks = []
    if changes.accepted:
        remarks.append(
            f"going on with a change: {changes.describe(changes.accepted)}; the config so far is kept beside "
            "config.json"
        )
    if changes.rounding:
        why = "; ".join(dict.fromkeys(run_folder.why_rounded(name) for name in changes.rounding))
        remarks.append(
            f"{changes.describe(changes.rounding)}: {why}. From here on numbers agree with those of an unchanged "
            "run within rounding, not bit for bit (and with lora_dropout, other inputs are left out)"
        )
    return remarks


def kept_config(changes: Changes, step: int) -> str:
    """The name under which the config so far stays; "" where nothing that counts has changed."""
    return f"config_until_step_{step}.json" if changes.rounding or changes.accepted else ""


def place_remark(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """What to tell where a checkpoint was made on other devices; "" where it was not.

    Args:
        saved: what `keeping.place` said when it was saved; {} where that is not known.
    """
    changed = [f"{name} {saved[name]!r} now {x!r}" for name, x in now.items() if saved.get(name, x) != x]
    if not changed:
        return ""
    return (
        f"the checkpoint was made elsewhere ({'; '.join(changed)}): numbers agree with those of an unbroken run "
        "within rounding, not bit for bit"
    )


def schedule_remarks(changes: Changes, s: Settings, *, num_done: int) -> list[str]:
    """What changed batches or numbers of updates do to the learning rate.

    Args:
        s: with the optimizer and number of updates that the run has now.
        num_done: updates that the checkpoint has made.
    """
    remarks, optimizer = [], s.optimizer
    changed = set(changes.accepted)
    follows = optimizer.lr_scheduler_type != "constant" or num_done < optimizer.warmup_steps
    if follows and (names := sorted(changed.intersection(DECIDE_UPDATES))):
        remarks.append(
            f"{changes.describe(names)}: the learning rate follows updates ({optimizer.lr_scheduler_type}, warm-up "
            f"{optimizer.warmup_steps}); {num_done} are done, and it is laid out for {s.num_updates} in all"
        )
    if names := sorted(changed.intersection(DECIDE_BATCH)):
        remarks.append(
            f"{changes.describe(names)}: an update sees another number of rows; the learning rate stays "
            f"{optimizer.learning_rate:g}, which config.optimizer.learning_rate may want to follow"
        )
    return remarks
