"""What all benchmarks ask of the machine, and how they end. No JAX here: the step's peer reads it too."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NOISY = 0.05  # of the processors' time taken by other programs: from there on figures are doubtful


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_seconds() -> tuple[float, float]:
    """Processor seconds since the machine's start, and those that other programs used; 0 but on Linux.

    Children are other programs until they have ended and were waited for.
    """
    if not Path("/proc/stat").is_file():
        return 0.0, 0.0
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    whole, idle = (sum(part) / os.sysconf("SC_CLK_TCK") for part in (ticks, ticks[3:5]))
    return whole, whole - idle - sum(os.times()[:4])


def others_share(before: tuple[float, float]) -> float | None:
    """Share of all processors' time that other programs took since `before`; None where it is not known."""
    whole, others = (after - start for after, start in zip(processor_seconds(), before, strict=True))
    return max(others / whole, 0.0) if whole > 0 else None


def warn_if_noisy(share: float | None) -> None:
    if (share or 0) > NOISY:
        print(f"other programs took {share:.0%} of the processors meanwhile: measure again when it is quiet")


def peak_rss_gb() -> float:
    """The most memory that this process has had until now, gigabytes.

    On Linux as `VmHWM` has it: `ru_maxrss` of a child begins with what its parent had when it started it.
    """
    if own := _status("self").get("VmHWM"):
        return own * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def children_peak_rss_gb() -> float:
    """The sum of what each running child has had at most, gigabytes; pages they share count for each. 0 but on Linux."""
    folders = Path("/proc").glob("[0-9]*") if Path("/proc/self/status").is_file() else []
    found = [_status(folder.name) for folder in folders]
    return sum(one.get("VmHWM", 0) for one in found if one.get("PPid") == os.getpid()) * 1024 / 1e9


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    return {name: importlib.metadata.version(name) for name in libraries if importlib.util.find_spec(name)}


def print_json(found: Mapping[str, Any]) -> None:
    """The last line: five digits of every number."""
    five_digits = json.loads(json.dumps(found), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    print(json.dumps(five_digits))


def _status(process: str) -> dict[str, int]:
    """The whole numbers of a process's status; memory is in KiB. Empty where it has ended, and but on Linux."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return {}
    return {name: int(value) for name, value in re.findall(r"^(VmHWM|PPid):\s+(\d+)", text, re.MULTILINE)}
