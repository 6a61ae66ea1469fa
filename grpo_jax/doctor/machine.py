"""Checks of the machine: packages, devices, memory, disk, and which keys are set."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from grpo_jax import mesh as mesh_lib
from grpo_jax import starts
from grpo_jax.building import cpu_devices
from grpo_jax.doctor.checkup import Case, Skip
from grpo_jax.sampling.plan import GIB

NO_SUCH_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)  # of file systems without nameless files
LEAST_HOST_GIB = 1.0  # what the tiny run takes beside its judging processes
PROBED_BYTES = 1 << 16  # written to see that a folder takes them
SIDE = 64  # of the matrices that devices multiply
KEYS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")
ACCELERATORS = {"/dev/nvidia0": "cuda13", "/dev/accel0": "tpu"}  # device file -> extra that speaks to it
PYTHON = (3, 11)


def packages(case: Case) -> str:
    """Python and every required package against setup.py's lower bounds."""
    if tuple(map(int, platform.python_version_tuple()[:2])) < PYTHON:
        raise ValueError(f"Python is {platform.python_version()}, needs {PYTHON[0]}.{PYTHON[1]} or newer")
    try:
        required = metadata.requires("grpo_jax") or []
    except metadata.PackageNotFoundError:
        raise Skip("grpo_jax is not installed, so its bounds are not known; pip install -e .") from None
    found = {name: version for name, version in map(bound, required) if name}
    wrong = [text for name, least in found.items() if (text := misfit(name, least))]
    if wrong:
        raise ValueError("; ".join(wrong))
    return (
        f"Python {platform.python_version()}, jax {metadata.version('jax')}, {len(found)} packages as setup.py asks, "
        f"grpo_jax {starts.source_digest()}"
    )


def bound(requirement: str) -> tuple[str, str]:
    """`name[extra]>=1.2` -> (name, "1.2"); ("", "") of an extra's."""
    match = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*(?:>=\s*([\w.]+))?", requirement)
    if not match or "extra ==" in requirement:
        return "", ""
    return match[1], match[2] or ""


def misfit(name: str, least: str) -> str:
    """What is wrong with an installed package; "" where nothing is."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return f"{name} is {version}, needs {least} or newer" if numbers(version) < numbers(least) else ""


def numbers(version: str) -> tuple[int, ...]:
    """Leading whole numbers of a version."""
    return tuple(int(part) for part in re.match(r"\d*(?:\.\d+)*", version)[0].split(".") if part)  # type: ignore[index]


def devices(case: Case) -> str:
    """Each device multiplies two matrices, and all of them add a number each."""
    if hasattr(case, "settings"):
        with contextlib.suppress(RuntimeError):  # devices that are there already stay as they are
            mesh_lib.use_cpu_devices(cpu_devices(case.settings))
    found = jax.devices()
    if found[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        for file, extra in ACCELERATORS.items():
            if Path(file).exists():
                raise ValueError(
                    f"{file} is there, but JAX sees CPUs only: pip install -e '.[{extra}]', or set JAX_PLATFORMS=cpu "
                    "to stay on the CPU"
                )
    left = (np.arange(SIDE * SIDE) % 7).reshape(SIDE, SIDE).astype(np.float32)  # exact in any precision
    multiply = jax.jit(lambda a: a @ a.T)
    wrong = [
        str(d) for d in found if not (np.asarray(multiply(jax.device_put(left, d))) == left @ left.T).all()
    ]
    if wrong:
        raise ValueError(f"a product of two matrices comes out wrong on {', '.join(wrong)}")
    total = added(found)
    if total != (expected := len(found) * (len(found) + 1) // 2):
        raise ValueError(f"a sum over {len(found)} devices is {total}, must be {expected}")
    return f"{len(found)} x {found[0].device_kind}: products and a sum over all are right"


def added(found: list[Any]) -> int:
    """1 + 2 + ... by a sum between the devices, each of which has one of the numbers."""
    mesh = jax.sharding.Mesh(np.array(found), ("all",))
    add = jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=P("all"), out_specs=P())
    return int(jax.jit(add)(np.arange(1, len(found) + 1, dtype=np.int32))[0])


def memory(case: Case) -> str:
    """What host and devices have left."""
    left = host_bytes()
    told = [f"host {left / GIB:.1f} GiB available"] if left else []
    if left and left < LEAST_HOST_GIB * GIB:
        raise ValueError(
            f"the host has {left / GIB:.2f} GiB of memory left, needs {LEAST_HOST_GIB:g} or more"
        )
    for device in jax.local_devices():
        stats = device.memory_stats() if device.platform != "cpu" else None
        if stats and stats.get("bytes_limit"):
            used, limit = stats.get("bytes_in_use", 0), stats["bytes_limit"]
            told.append(f"{device} {(limit - used) / GIB:.1f} of {limit / GIB:.1f} GiB")
    if not told:
        raise Skip("this system does not say")
    return ", ".join(told)


def host_bytes() -> int:
    """Memory that this process may still take; 0 where the system does not say."""
    found = []
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text()
        found += [int(kib) * 1024 for kib in re.findall(r"MemAvailable:\s+(\d+) kB", text)]
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max": none
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(int(limit) - int(used))
    return max(min(found), 0) if found else 0


def keys(case: Case) -> str:
    """Only whether they are set: no value is read further."""
    names = dict.fromkeys(KEYS)
    for spec in getattr(case, "specs", ()):
        names |= {str(value): None for option, value in spec.options if option == "api_key_env" and value}
    return ", ".join(f"{name} {'set' if os.environ.get(name) else 'not set'}" for name in names)


def disk(case: Case) -> str:
    """Whether the output folder, or where it will be made, takes bytes; leaves nothing."""
    folder = Path(case.settings.output_dir)
    place = existing(folder)
    if not place.is_dir():
        raise ValueError(f"{place} is a file, so {folder} cannot be made")
    try:
        probe(place)
    except OSError as error:
        raise ValueError(f"nothing can be written in {place}: {error.strerror}") from None
    return f"{place} takes files, {shutil.disk_usage(place).free / GIB:.1f} GiB free"


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def probe(place: Path) -> None:
    """Writes bytes into a file that never has a name, where the file system knows such files."""
    nameless = getattr(os, "O_TMPFILE", 0)
    if nameless:
        with contextlib.suppress(NotImplementedError):
            try:
                file = os.open(place, nameless | os.O_WRONLY, 0o600)
            except OSError as error:
                if error.errno not in NO_SUCH_FILES:
                    raise
            else:
                with os.fdopen(file, "wb") as opened:
                    opened.write(bytes(PROBED_BYTES))
                    opened.flush()
                    os.fsync(opened.fileno())
                return
    if (place / "config.json").exists():  # a run's folder: not even for a moment
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(place))
        return
    with tempfile.NamedTemporaryFile(dir=place, prefix=".grpo_jax_doctor_") as opened:
        opened.write(bytes(PROBED_BYTES))
        opened.flush()
        os.fsync(opened.fileno())
