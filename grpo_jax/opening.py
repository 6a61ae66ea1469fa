"""A run's folder is opened: it is taken, its config written, and it is found out where the run begins.

Enters: a folder that `resuming.check` has let through. Leaves: checkpoints, the start, and who tells. From here on
the folder is this run's, until `stopping.Stopper` gives it back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_jax import (
    checkpoint_folder,
    checkpoints,
    distributed,
    metrics,
    resuming,
    roll_backs,
    run_folder,
    step_lines,
    stopping,
)
from grpo_jax.settings import Settings

Teller = metrics.Teller | metrics.SilentTeller  # of the first process | of the others, and early ones


def open_folder(
    folder: Path,
    s: Settings,
    config: dict[str, Any],
    changes: run_folder.Changes,
    *,
    stopper: stopping.Stopper,
) -> tuple[checkpoints.Checkpoints, resuming.Start]:
    """Takes the folder, writes the config, and finishes what a kill has left half done.

    Raises: ValueError as `run_folder.claim` and `resuming.begin`.
    """
    own(folder, stopper)
    write_config(folder, config, changes, s)
    keeper = make_keeper(s, folder)
    roll_backs.finish(folder, keeper)
    return keeper, resuming.begin(keeper, folder, s, changes, last=s.max_steps)


def own(folder: Path, stopper: stopping.Stopper) -> None:
    """Takes the run's folder until the run ends. Raises: ValueError as `run_folder.claim`."""
    if lock := run_folder.claim(folder):
        stopper.endings.append(lock.release)
    stopper.checkpoints = folder / run_folder.CHECKPOINTS


def stoppable(stopper: stopping.Stopper, teller: Teller) -> None:
    """A run that is stopped gives the terminal back before its last line, and the folder at the very end."""
    stopper.endings.insert(0, teller.finish)
    stopper.say_by(teller.tell_message)


def make_keeper(s: Settings, folder: Path) -> checkpoints.Checkpoints:
    """The run's checkpoints; removes what killed saves have left."""
    keeping = s.checkpoint
    retention = checkpoints.Retention(
        save_total_limit=keeping.save_total_limit,
        keep_every_steps=keeping.keep_every_steps,
        metric_for_best_model=keeping.best_metric,
        greater_is_better=keeping.greater_is_better,
    )
    return checkpoints.Checkpoints(folder / run_folder.CHECKPOINTS, retention=retention)


def write_config(folder: Path, config: dict[str, Any], changes: run_folder.Changes, s: Settings) -> None:
    """Writes config.json; where what counts has changed, the one so far stays beside it."""
    step = resuming.choose(checkpoint_folder.steps(folder / run_folder.CHECKPOINTS), folder, s)
    run_folder.write_config(folder, config, keep_as=resuming.kept_config(changes, step))


def open_teller(
    folder: Path,
    s: Settings,
    config: dict[str, Any],
    start: resuming.Start,
    *,
    started_at: float,
    table: step_lines.Table = step_lines.GRPO_TABLE,
) -> Teller:
    if not distributed.is_first():
        return metrics.SilentTeller()
    return metrics.open_teller(
        folder,
        params=s.telling,
        num_steps=s.max_steps,
        config=config,
        started_at=started_at,
        first_step=start.step + 1 if start.step else 0,
        looked=start.looked,
        table=table,
    )
