"""What a compiled program sends between devices, and how long the compiler thinks it takes, from its text.

XLA's own cost analysis counts a loop's body once. Here the text is walked from its entry, and what stands in a
loop counts as often as the loop runs: where the condition compares with a constant, that constant; elsewhere
(the update's loop over microbatches ends where an argument says) what the caller gives. Enters: the text that
`compiled.as_text()` prints. Leaves: `Traffic`, and seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
BYTES_ELSE = 4  # f32, s32, u32


class Traffic(NamedTuple):
    """What one device sends."""

    num_bytes: float
    by_kind: dict[str, float]  # bytes by name of the collective
    largest: list[tuple[float, str]]  # bytes and where in the source, the largest first


class Program:
    """A program's computations and how often each runs.

    Args:
        text: of a compiled program.
        unknown_trips: how often a loop runs whose condition has no constant.
    """

    def __init__(self, text: str, *, unknown_trips: int = 1):
        self._lines = _computations(text)
        self._unknown_trips = unknown_trips
        self.runs: dict[str, float] = {}  # how often each computation is called, all calls together
        entry = next(name for name in self._lines if name.startswith("ENTRY "))
        self._visit(entry, 1.0)

    def traffic(self) -> Traffic:
        """Bytes that a device sends, in the way a ring would.

        An asynchronous collective is printed in each fusion that carries a part of it, some of them in inner
        loops, all with one channel: it counts once, as often as the least of them runs.
        """
        found: dict[str, tuple[float, str, str]] = {}
        for name, times in self.runs.items():
            for i, line in enumerate(self._lines[name]):
                sent = _sent_bytes(line)
                if sent is None:
                    continue
                if name.startswith("all-reduce-scatter"):  # a TPU's name for a reduce-scatter
                    sent = ("reduce-scatter", sent[1] / 2)
                channel = re.search(r"channel_id=(\d+)", line)
                key = channel[1] if channel else f"{name} {i}"
                this = (sent[1] * times, sent[0], _source(line))
                found[key] = min(found.get(key, this), this)
        by_kind: dict[str, float] = {}
        for num_bytes, kind, _ in found.values():
            by_kind[kind] = by_kind.get(kind, 0.0) + num_bytes
        largest = sorted(
            ((size, f"{kind} of {source}") for size, kind, source in found.values()), reverse=True
        )
        return Traffic(sum(by_kind.values()), by_kind, largest[:5])

    def cycles(self) -> float:
        """The compiler's estimate, one operation after another; 0 where it printed none.

        It knows nothing of what a Pallas kernel takes, nor of waiting for other devices.
        """
        total = 0.0
        for name, times in self.runs.items():
            if not self._is_fused(name):
                text = "\n".join(self._lines[name])
                total += times * sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
        return total

    def _visit(self, name: str, times: float) -> None:
        self.runs[name] = self.runs.get(name, 0.0) + times
        for line in self._lines[name]:
            for callee, is_loop in _callees(line):
                if callee in self._lines:
                    self._visit(callee, times * (self._trips(line) if is_loop else 1))

    def _trips(self, line: str) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        if known:
            return int(known[1])
        condition = "\n".join(self._lines[re.search(r"condition=%?([\w.\-]+)", line)[1]])  # type: ignore[index]
        root = re.search(r"ROOT .*compare\(.*direction=LT", condition)
        constants = re.findall(r"[su]32\[\](?:\{[^}]*\})? constant\((\d+)\)", condition)
        return int(constants[0]) if root and len(constants) == 1 else self._unknown_trips

    def _is_fused(self, name: str) -> bool:
        return name.startswith(("fused_computation", "async_collective_fusion", "async_collective_start"))


def _computations(text: str) -> dict[str, list[str]]:
    """Lines by name of their computation; the entry's name starts with ENTRY."""
    lines: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = f"{head[1] or ''}{head[2]}"
            lines[name] = []
        elif name and line.startswith(" "):
            lines[name].append(line)
    return lines


def _callees(line: str) -> Iterator[tuple[str, bool]]:
    for word, callee in re.findall(r"\b(calls|body|true_computation|false_computation)=%?([\w.\-]+)", line):
        yield callee, word == "body"
    for several in re.findall(r"branch_computations=\{([^}]*)\}", line):
        yield from ((callee.strip().lstrip("%"), False) for callee in several.split(","))
    if " call(" in line:
        yield from ((callee, False) for callee in re.findall(r"to_apply=%?([\w.\-]+)", line))


def _sent_bytes(line: str) -> tuple[str, float] | None:
    """Kind and bytes that a device sends for one line; None if it is no collective."""
    found = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z\-]+?)(-start)?\(", line)
    if not found or found[2] not in COLLECTIVES:
        return None
    kind, sizes = found[2], [_size(*shape) for shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", found[1])]
    is_pair = found[3] and kind in ("all-gather", "collective-permute")  # (operand, result, ...)
    result = max(sizes) if is_pair else sum(sizes)
    group = _group_size(line)
    sent = {
        "all-gather": result * (group - 1) / group,
        "all-reduce": 2 * result * (group - 1) / group,
        "reduce-scatter": result * (group - 1),
        "all-to-all": result * (group - 1) / group,
        "collective-permute": result,
    }
    return kind, sent[kind]


def _size(dtype: str, dimensions: str) -> float:
    return BYTES.get(dtype, BYTES_ELSE) * math.prod(map(int, filter(None, dimensions.split(","))))


def _group_size(line: str) -> int:
    """Devices that take part in one group of a collective, in any of the ways that XLA writes groups."""
    if written := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return written[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'?(\w+)'?", mesh[2]) if axis in sizes)
    return 1


def _source(line: str) -> str:
    name = re.search(r'op_name="([^"]*)"', line)
    return name[1].split("/closed_call/")[-1].removeprefix("jit(update_state)/") if name else "?"
