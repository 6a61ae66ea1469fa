"""What a replay reads of a run: its config, checkpoint and numbers, and a folder of its own that borrows them.

Enters: a run's folder, which may be running and is only read. Leaves: a config for one process, and a folder with the
roll-backs and a link to the checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_jax import json_files, roll_backs, run_folder, settings, starts, told_files
from grpo_jax.building import cpu_devices
from grpo_jax.checkpoints import Reader
from grpo_jax.settings import Settings

OVERRIDES: dict[str, Any] = {  # of the run's config; what decides no number of a step
    "distributed.mode": "none",
    "distributed.num_processes": 1,
    "distributed.process_id": 0,
    "checkpoint.resume": "auto",
    "checkpoint.resume_step": -1,
}


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
        with_tuples(json_files.read(name))
        for name in (path, *sorted(folder.glob("config_until_step_*.json")))
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
    lines = told_files.read(folder / told_files.METRICS_FILE)
    return {line["step"]: line for line in lines if "loss" in line and isinstance(line.get("step"), int)}


def devices_of(began: Mapping[str, Any], s: Settings) -> int:
    """Into how many devices a CPU is cut: as many as the run had, where that is known."""
    if began.get("platform") == "cpu" and isinstance(began.get("devices"), int):
        return began["devices"]
    return cpu_devices(s)


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
