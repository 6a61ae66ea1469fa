"""Going back to an earlier checkpoint inside a run, so that a kill at any moment leaves a folder that goes on.

RUN/roll_backs.json lists the roll-backs of a run, oldest first. The order of one:

1. The good checkpoint is read. Nothing on the disk has changed: a run that is killed here goes on from its
   newest checkpoint and, since alarms are kept in checkpoints too, raises the alarm again at the same step.
2. The list gets the roll-back, not yet done, in one move. From here on it has happened.
3. Newer checkpoints are set aside.
4. What was told of the abandoned steps moves to metrics_rolled_back.jsonl and samples_rolled_back.jsonl.
5. The list says done. A run that is killed between 2 and 5 does 3 to 5 at its next start, before anything
   else; each may be done twice. Nothing is saved or told between 2 and 5.

The checkpoint itself stays as it is; what the roll-back changes of its record is in the list (`applied`).
Enters: a run's folder and its checkpoints. Leaves: the same, earlier. This room knows no trainer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_jax import distributed, told_files, whole_files
from grpo_jax.checkpoints import Checkpoints

FILE = "roll_backs.json"


@dataclasses.dataclass(frozen=True)
class RollBack:
    """One of them."""

    alarm: str  # its name
    at: int  # the step whose numbers raised it
    to: int  # the step of the checkpoint that the run went back to
    data: dict[str, Any]  # where the problems go on: behind those of the abandoned steps
    done: bool = False


def read(folder: Path) -> list[RollBack]:
    """Those of a run, oldest first.

    Raises: ValueError for a file that is none of ours.
    """
    path = folder / FILE
    try:
        return [RollBack(**entry) for entry in json.loads(path.read_text())] if path.exists() else []
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): with it goes where the problems go on after a roll-back. "
            "Restore the file, or set config.output_dir to a new folder."
        ) from None


def write(folder: Path, found: Sequence[RollBack]) -> None:
    """Replaces the list in one move; the first process does."""
    if distributed.is_first():
        entries = [dataclasses.asdict(entry) for entry in found]
        whole_files.write_text(folder / FILE, json.dumps(entries, indent=2) + "\n")


def finish(folder: Path, keeper: Checkpoints) -> None:
    """Steps 3 to 5 of a roll-back that is in the list and not yet done. No save is under way, no file is open.

    Every process must call it.
    """
    found = read(folder)
    pending = found[-1].to + 1 if found and not found[-1].done else 0
    (first_step,) = distributed.largest([pending])  # another process may see an older list
    if not first_step:
        return
    keeper.set_aside([step for step in (*keeper.steps(), *keeper.damage()) if step >= first_step])
    if distributed.is_first():
        told_files.abandon(folder, first_step, roll_back=len(found))
        write(folder, [*found[:-1], dataclasses.replace(found[-1], done=True)])
    distributed.wait_for_all("rolled back")


def target(steps: Sequence[int], found: Sequence[RollBack], *, before: int) -> int | None:
    """The checkpoint to go back to: the newest from before a step; None without one.

    The one of the last roll-back, if nothing newer has come since, was tried: an older one goes first, since
    what ails the run may have begun before it.
    """
    good = sorted(step for step in steps if step < before)
    if len(good) > 1 and found and good[-1] == found[-1].to:
        good.pop()
    return good[-1] if good else None


def applied(found: Sequence[RollBack], *, step: int, saved_with: int) -> list[RollBack]:
    """The roll-backs that lie behind a run which goes on after this checkpoint.

    Those that lay behind it when it was saved, and those that have led back to it since. After a step back by
    hand (`checkpoint.resume_step`) others may be in the list; they count no more.

    Args:
        saved_with: how many there were when the checkpoint was saved.
    """
    since = [number for number in range(saved_with, len(found)) if found[number].to == step]
    return list(found[: since[-1] + 1 if since else saved_with])
