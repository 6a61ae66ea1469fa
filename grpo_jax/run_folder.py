"""A run's folder: which files it has, whether this run may begin or go on in it, and what differs where not.

Enters: a folder and a resolved config. Leaves: what changed since the run was there last, or one line that names
the fields that may not have, why, and what to type where that is meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from grpo_jax import distributed, json_files, report, run_lock, told_files, whole_files

CONFIG_FILE = "config.json"
UNFINISHED_CONFIG = "config.json.part"
CHECKPOINTS = "checkpoints"
SUPERVISED_FILE = report.SUPERVISED_FILE  # which worked answers it learns
DATA = "data"  # in accept_changes: other problems or another order, whatever made them so
SEEN_WITHIN_S = 30.0  # until a file that another machine made can be seen
MAY_CHANGE = {  # when a run goes on: what decides no number of it
    "max_steps",  # only where the learning rate does not depend on it
    "output_dir",
    "compilation_cache",
    "checkpoint",
    "alarms",
    "telling",
    "distributed",
    "sft",
    "reward.num_workers",
}
ROUNDING = {  # what may change too: the same sums, taken in another order
    "mesh": "each device has another part of the rows and weights",
    "model.attention": "the kernels of training add up in blocks of their own",
    "model.remat": "what is computed twice is fused otherwise",
    "rollout.num_slots": "so many rows go through the model at once",
    "rollout.window": "so many columns of the cache are read at once",
    "rollout.attention": "the kernels of sampling add up in blocks of their own",
    "grpo.per_device_train_batch_size": "so many rows are added up at once",
    "grpo.max_tokens_per_microbatch": "so many rows are added up at once",
    "grpo.packing": "completions stand in lines of another length",
    "grpo.share_prompts": "a prompt is read once, or with each completion",
    "sft.per_device_train_batch_size": "so many rows are added up at once",
    "sft.packing": "responses stand in lines of another length",
}
REASONS = {  # why the other fields may not change unnoticed, by section or field
    "seed": "other problems would be drawn and other tokens sampled",
    "max_steps": "the learning rate depends on how many steps there are",
    "model": "the weights learned so far are of the other model",
    "lora": "the adapters learned so far are of the other kind",
    "data": "the position in the data would be one of other problems or another order",
    "rollout": "the policy would be asked otherwise than so far",
    "reward": "rewards could not be compared with those so far",
    "grpo": "another objective would be learned than so far",
    "optimizer": "updates would not be those that the moments so far belong to",
    "sft": "other rows, or another rate, would be learned than so far",
    "evaluation": "evaluations could not be compared with those so far",
}
FIXED = {"lora.r", "lora.target_modules", "optimizer.mu_dtype"}  # the saved arrays have other sizes or types


@dataclasses.dataclass(frozen=True)
class Changes:
    """What differs from the config that the folder's run had so far."""

    before: dict[str, Any]  # by `section.field`; {} where no run has begun
    now: dict[str, Any]
    rounding: tuple[str, ...] = ()  # fields of `ROUNDING` that differ
    accepted: tuple[str, ...] = ()  # others that differ and may

    def describe(self, names: Iterable[str]) -> str:
        """`section.field was x, is y` for some of the fields."""
        return describe_changes(self.before, self.now, [*names])


def check_place(folder: str, field: str) -> None:
    """Raises ValueError where no folder can be made or written: before anything is loaded, and making nothing."""
    if not folder.strip():
        raise ValueError(f"{field} is empty; name a folder, which is made if it is missing.")
    place = Path(folder)
    above = next((path for path in (place, *place.absolute().parents) if os.path.lexists(path)), Path("/"))
    if not above.is_dir():
        raise ValueError(f"{field} is {folder!r}, but {above} is no folder; set another.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{field} is {folder!r}, but this user cannot write in {above}; set another.")
    if (place / CONFIG_FILE).is_file() and not _is_of_a_run(place / CONFIG_FILE):
        raise ValueError(
            f"{field} is {folder!r}, whose {CONFIG_FILE} is no run's: it would be replaced. A model's folder? Set another."
        )


def _is_of_a_run(path: Path) -> bool:
    """A damaged one is taken for a run's: what is wrong with it is told where it is read."""
    try:
        there = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return True
    return not isinstance(there, dict) or {"output_dir", "rollout", "grpo"} <= set(there)


def check_folder(
    folder: Path,
    config: dict[str, Any],
    *,
    free: Collection[str] | None = None,
    supervised: bool = False,
    accept: Collection[str] = (),
) -> Changes:
    """Raises ValueError if the folder holds another run, or something that is no run.

    One that was refused before its first number is no run yet: the mended command takes its place.

    Args:
        free: sections and fields (`section.field`) that may have changed; None: those of a GRPO run.
        supervised: whether the run is a supervised one; the two do not go on in each other's folders.
        accept: fields that may differ because the user says so, and `DATA` for the section of that name.
    """
    now = fields(json.loads(json.dumps(config)))
    check_names(accept, now)
    nothing = Changes({}, now)
    output = "config.sft.output_dir" if supervised else "config.output_dir"
    check_kinds(folder, output)
    if not folder.exists() or {path.name for path in folder.iterdir()} <= {
        UNFINISHED_CONFIG,
        run_lock.LOCK_FILE,
    }:
        return nothing
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} has files but no {CONFIG_FILE}: it is no run's folder. Set {output} to a new one."
        )
    if not has_begun(folder):
        return nothing
    if supervised != (folder / SUPERVISED_FILE).is_file():
        kinds = {True: "supervised run (tools/sft.py)", False: "GRPO run (grpo_jax.train)"}
        raise ValueError(f"{folder} holds a {kinds[not supervised]}. Set {output} to a new folder.")
    if free is None:
        is_constant = config["optimizer"]["lr_scheduler_type"] == "constant"
        free = MAY_CHANGE if is_constant else MAY_CHANGE - {"max_steps"}
    try:
        before = fields(json_files.read(folder / CONFIG_FILE))
    except ValueError as error:
        raise ValueError(f"{error} Or set {output} to a new folder: this run cannot be known.") from None
    changed = [
        name
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and not covers(free, name)
    ]
    rounding = tuple(name for name in changed if covers(ROUNDING, name))
    others = tuple(name for name in changed if name not in rounding)
    refused = [name for name in others if name in FIXED or not covers(accept, name)]
    if refused:
        raise ValueError(refusal(folder, describe_changes(before, now, refused), refused, accept, output))
    return Changes(before, now, rounding, others)


def check_kinds(folder: Path, output: str) -> None:
    """Raises ValueError for a file where a folder must be, and the other way round, before a run stumbles on it."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} is no folder; set {output} to a new one.")
    if os.path.lexists(folder / CHECKPOINTS) and not (folder / CHECKPOINTS).is_dir():
        raise ValueError(
            f"{folder / CHECKPOINTS} is no folder; set {output} to a new one, or move that away."
        )
    for name in told_files.FILES:
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name} is a folder; set {output} to a new one, or move that away.")


def refusal(folder: Path, described: str, names: list[str], accept: Collection[str], output: str) -> str:
    """What changed, why that matters, and each way out."""
    why = "; ".join(dict.fromkeys(reason(name) for name in names))
    ways = f"Set {output} to a new folder, or restore these values to go on with that run"
    if not FIXED & {*names}:
        switch = ",".join(sorted({*accept, *names}))
        ways += f", or go on all the same with --config.checkpoint.accept_changes={switch}"
    return f"{folder} holds a run with another config ({described}): {why}. {ways}."


def reason(name: str) -> str:
    """Why a field may not change unnoticed."""
    section = name.partition(".")[0]
    return REASONS.get(name, REASONS.get(section, "this version does not know what it decides"))


def why_rounded(name: str) -> str:
    """Why a field of `ROUNDING` changes the last digits."""
    return ROUNDING.get(name) or ROUNDING[name.partition(".")[0]]


def check_names(accept: Collection[str], known: Collection[str]) -> None:
    """Raises ValueError for a name in accept_changes that is neither a field nor `DATA`."""
    for name in accept:
        if name not in known and name != DATA:
            near = difflib.get_close_matches(name, [*known, DATA], n=3)
            raise ValueError(
                f"config.checkpoint.accept_changes names {name!r}, which is no field; "
                + (f"near it are {', '.join(near)}." if near else "fields are named section.field.")
            )


def write_config(folder: Path, config: dict[str, Any], *, keep_as: str = "") -> None:
    """Writes config.json in one move.

    Args:
        keep_as: the name under which the config so far stays, where it differs; "": it does not stay.
    """
    if not distributed.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not has_begun(folder):  # a supervised run may have been stopped here before its first number
        (folder / SUPERVISED_FILE).unlink(missing_ok=True)
    if keep_as:
        whole_files.write_text(free_name(folder / keep_as), (folder / CONFIG_FILE).read_text())
    whole_files.write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def claim(folder: Path) -> run_lock.RunLock | None:
    """Makes this run the folder's one owner: process 0 holds the lock, and the others see that it does.

    Raises: ValueError if another run has it, or if the processes do not share the folder.
    """
    lock = None
    if distributed.is_first():
        lock = run_lock.RunLock(folder, say=partial(print, file=sys.stderr, flush=True))
    nonce = distributed.gather_texts([lock.nonce if lock else ""])[0]
    if not lock and not run_lock.is_seen(folder, nonce, within_s=SEEN_WITHIN_S):
        raise ValueError(
            f"{folder} is not the folder that process 0 sees: its {run_lock.LOCK_FILE} did not appear here within "
            f"{SEEN_WITHIN_S:.0f} s. Set config.output_dir to a folder that all processes share."
        )
    return lock


def has_begun(folder: Path) -> bool:
    """Whether a run has told or kept anything here."""
    told = folder / told_files.METRICS_FILE
    kept = (*(folder / CHECKPOINTS).glob("[0-9]*"), *folder.glob("final"))
    return bool(kept) or (told.is_file() and told.stat().st_size > 0)


def free_name(path: Path) -> Path:
    """The path, or the first of NAME_2, NAME_3, ... that does not exist."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}_{number}")
    return found


def fields(config: dict[str, Any]) -> dict[str, Any]:
    """A config's values by `section.field`; what is no section by its own name."""
    found: dict[str, Any] = {}
    for section, value in config.items():
        if isinstance(value, dict):
            found |= {f"{section}.{field}": x for field, x in value.items()}
        else:
            found[section] = value
    return found


def covers(names: Collection[str], name: str) -> bool:
    """Whether a field, or its whole section, is among the names."""
    return name in names or name.partition(".")[0] in names


def describe_changes(before: dict[str, Any], now: dict[str, Any], names: list[str]) -> str:
    """`section.field was x, is y` for the first few of these fields."""
    changes = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names]
    return "; ".join(changes[:4]) + (f" and {len(changes) - 4} more" if len(changes) > 4 else "")
