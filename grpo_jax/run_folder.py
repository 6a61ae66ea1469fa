"""A run's folder: which files it has, whether this run may begin or go on in it, and what differs where not.

Enters: a folder and a resolved config. Leaves: nothing, or one line that names the fields that changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from grpo_jax import distributed, json_files, metrics, report

CONFIG_FILE = "config.json"
UNFINISHED_CONFIG = "config.json.part"
CHECKPOINTS = "checkpoints"
SUPERVISED_FILE = report.SUPERVISED_FILE  # which worked answers it learns
MAY_CHANGE = {  # when a run goes on: what decides no number of it
    "max_steps",  # only where the learning rate does not depend on it
    "output_dir",
    "compilation_cache",
    "checkpoint",
    "telling",
    "distributed",
    "sft",
}


def check_folder(
    folder: Path, config: dict[str, Any], *, free: Collection[str] | None = None, supervised: bool = False
) -> None:
    """Raises ValueError if the folder holds another run, or something that is no run.

    One that was refused before its first number is no run yet: the mended command takes its place.

    Args:
        free: sections and fields (`section.field`) that may have changed; None: those of a GRPO run.
        supervised: whether the run is a supervised one; the two do not go on in each other's folders.
    """
    if not folder.exists() or {path.name for path in folder.iterdir()} <= {UNFINISHED_CONFIG}:
        return
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} has files but no {CONFIG_FILE}: it is no run's folder. Set config.output_dir to a new one."
        )
    if not has_begun(folder):
        return
    if supervised != (folder / SUPERVISED_FILE).is_file():
        kinds = {True: "supervised run (tools/sft.py)", False: "GRPO run (grpo_jax.train)"}
        field = "config.sft.output_dir" if supervised else "config.output_dir"
        raise ValueError(f"{folder} holds a {kinds[not supervised]}. Set {field} to a new folder.")
    if free is None:
        is_constant = config["optimizer"]["lr_scheduler_type"] == "constant"
        free = MAY_CHANGE if is_constant else MAY_CHANGE - {"max_steps"}
    before = without(json_files.read(folder / CONFIG_FILE), free)
    now = without(json.loads(json.dumps(config)), free)
    changed = [name for name in sorted(set(before) | set(now)) if before.get(name) != now.get(name)]
    if changed:
        raise ValueError(
            f"{folder} holds a run with another config ({describe_changes(before, now, changed)}). "
            "Set config.output_dir to a new folder, or restore these values to go on with that run."
        )


def write_config(folder: Path, config: dict[str, Any]) -> None:
    if distributed.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        if not has_begun(folder):  # a supervised run may have been stopped here before its first number
            (folder / SUPERVISED_FILE).unlink(missing_ok=True)
        (folder / UNFINISHED_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        os.replace(folder / UNFINISHED_CONFIG, folder / CONFIG_FILE)  # in one move: never half a file


def has_begun(folder: Path) -> bool:
    """Whether a run has told or kept anything here."""
    told = folder / metrics.METRICS_FILE
    kept = (*(folder / CHECKPOINTS).glob("[0-9]*"), *folder.glob("final"))
    return bool(kept) or (told.is_file() and told.stat().st_size > 0)


def without(config: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A config without some of its sections (`section`) and fields (`section.field`)."""
    return {
        section: {field: x for field, x in value.items() if f"{section}.{field}" not in names}
        if isinstance(value, dict)
        else value
        for section, value in config.items()
        if section not in names
    }


def describe_changes(before: dict[str, Any], now: dict[str, Any], names: list[str]) -> str:
    """`section.field was x, is y` for the first few fields that differ."""
    changes = []
    for name in names:
        old, new = before.get(name), now.get(name)
        if not isinstance(old, dict) or not isinstance(new, dict):
            old, new = {"": old}, {"": new}
        for field in sorted(set(old) | set(new)):
            if old.get(field) != new.get(field):
                dotted = f"{name}.{field}".rstrip(".")
                changes.append(f"{dotted} was {old.get(field)!r}, is {new.get(field)!r}")
    return "; ".join(changes[:4]) + (f" and {len(changes) - 4} more" if len(changes) > 4 else "")
