"""What a run was computed with: at each start, versions, devices and mesh, one entry in RUN/environment.json.

For whoever asks later why two runs, or a run and its replay, differ in their last bits. No variable of the
environment is read, so nothing secret can get in.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from grpo_jax import whole_files

ENVIRONMENT_FILE = "environment.json"
PACKAGES = ("jaxlib", "numpy", "optax", "flax")  # that numbers pass through
NO_CAUSE = ("after", "time")  # of an entry: when it was, not how


def place(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Where this process computes; a checkpoint's record has it too."""
    return {
        "jax": jax.__version__,
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "processes": jax.process_count(),
        "device_kind": mesh.devices.flat[0].device_kind,
    }


def present(mesh: jax.sharding.Mesh, config: Mapping[str, Any]) -> dict[str, Any]:
    """How this process computes: names and versions, in plain types; of the resolved config a digest."""
    return {
        "grpo_jax": source_digest(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: _version(name) for name in PACKAGES},
        "platform": mesh.devices.flat[0].platform,
        "devices": mesh.devices.size,
        **place(mesh),
        "config_digest": config_digest(config),
    }


def record(folder: Path, facts: Mapping[str, Any], *, after: int) -> None:
    """Adds a start to the folder's list; in one move, so a kill in here loses nothing.

    Args:
        after: the step that the run goes on after; 0: it begins.
    """
    told = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entries = [*recorded(folder), {"after": after, "time": told, **facts}]
    whole_files.write_text(folder / ENVIRONMENT_FILE, json.dumps(entries, indent=2) + "\n")


def recorded(folder: Path) -> list[dict[str, Any]]:
    """All starts that the folder tells of, oldest first; none where the file is missing or damaged."""
    try:
        entries = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def of_step(entries: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any]:
    """The start that computed what is told of a step: the last one that began before it; {} where none did."""
    return next((entry for entry in reversed(entries) if entry.get("after", step) < step), {})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name was x, is y` for all that may change a number's last bits."""
    names = [name for name in before if name not in NO_CAUSE]
    return [
        f"{name} was {before[name]}, is {now.get(name)}" for name in names if before[name] != now.get(name)
    ]


def config_digest(config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of a resolved config."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def source_digest() -> str:
    """12 hexadecimal digits of this package's source files: a version number says nothing of a checkout."""
    root = Path(__file__).resolve().parent
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hashed.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
