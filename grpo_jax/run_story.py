"""What befell a run, in sentences: when it began, where it went on, what differed then, and after which alarm it went back.

Enters: environment.json and roll_backs.json of a run folder. Leaves: lines for its report.
"""

from __future__ import annotations

from pathlib import Path

from grpo_jax import roll_backs, starts


def tell(folder: Path) -> list[str]:
    """One line a start, oldest first, then one a roll-back. Raises: ValueError as `roll_backs.read`."""
    entries = starts.recorded(folder)
    lines = []
    for before, entry in zip([{}, *entries], entries, strict=False):
        changed = [f"; {difference}" for difference in starts.differences(before, entry)]
        after = entry.get("after")
        began = f"went on after step {after}" if after else f"began on {place(entry)}"
        lines.append(f"{entry.get('time', 'unknown time')}: {began}{''.join(changed)}")
    return lines + [
        f"alarm {back.alarm} at step {back.at}: back to the checkpoint of step {back.to}"
        for back in roll_backs.read(folder)
    ]


def place(entry: dict) -> str:
    """Devices, mesh and version of one start."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in dict(entry.get("mesh") or {}).items())
    kind = f"{entry.get('devices', '?')} x {entry.get('device_kind', 'unknown device')}"
    return f"{kind} (mesh: {mesh or 'unknown'}), jax {entry.get('jax', 'unknown')}"
