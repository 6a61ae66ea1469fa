"""The files that tell of a run, one JSON object a line: metrics.jsonl and samples.jsonl.

Enters: what `metrics.py` tells. Leaves: files that a resumed run goes on with as if it had not been interrupted,
and what they say to those who draw, compare or replay it. A kill may tear the last line; no reader stumbles on it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_jax import whole_files

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
FILES = (METRICS_FILE, SAMPLES_FILE)
TIMED = {  # and what begins with time/: everything else is the same in equal runs
    "seconds",
    "tokens_per_second",
    "sampling/tokens_per_second_per_device",
    "sampling/roofline_share",
    "judge/hidden",
    "compilations",
}


class JsonLines:
    """A file to which objects are appended, one a line, each handed to the system at once."""

    def __init__(self, path: Path):
        self._path = path
        self.open()

    def open(self) -> None:
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, without a line that a kill has torn; nothing where there is no file."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(record, dict):
                    yield record


def numbers_of(metrics_file: Path, step: int) -> Iterator[dict[str, float]]:
    """What each line tells of one step, as numbers by name."""
    for line in read(metrics_file):
        if line.get("step") == step:
            told = {name: x for name, x in line.items() if name not in ("step", "seconds")}
            yield {name: x for name, x in told.items() if isinstance(x, int | float)}


def rewind(run_dir: str | Path, step: int, *, looked: bool = True) -> None:
    """Removes what the run folder tells of `step` and later, and a line that a kill has torn.

    A killed run may have got further than its last checkpoint; the resumed one tells those steps again.
    Each file is replaced in one move, so a kill in here loses nothing.

    Args:
        looked: False: the evaluation of the step before is told again too, and removed.
    """
    for name in FILES:
        path = Path(run_dir) / name
        if path.exists():
            with path.open("rb") as old:
                whole_files.write_lines(path, (line for line in old if _is_before(line, step, looked=looked)))


def abandon(run_dir: str | Path, step: int, *, roll_back: int) -> None:
    """Moves what the run folder tells of `step` and later to NAME_rolled_back.jsonl, marked with `roll_back`.

    Doing it again, after a kill anywhere in here, leaves the same files.
    """
    for name in FILES:
        path = Path(run_dir) / name
        aside = path.with_stem(f"{path.stem}_rolled_back")
        told = aside.read_bytes().splitlines(keepends=True) if aside.exists() else []
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        moved = [
            line
            for line in lines
            if _is_before(line, sys.maxsize, looked=True) and not _is_before(line, step, looked=True)
        ]
        if moved:
            marked = [json.dumps({"roll_back": roll_back, **json.loads(line)}) + "\n" for line in moved]
            new = [line for text in marked if (line := text.encode()) not in told]
            whole_files.write_lines(aside, [*told, *new])
    rewind(run_dir, step)


def untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what depends on the clock."""
    return {name: x for name, x in line.items() if name not in TIMED and not name.startswith("time/")}


def _is_before(line: bytes, step: int, *, looked: bool) -> bool:
    try:
        record = json.loads(line)
        if not looked and record["step"] == step - 1 and _is_of_evaluation(record):
            return False
        return line.endswith(b"\n") and record["step"] < step
    except (ValueError, KeyError, TypeError):
        return False


def _is_of_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a line of either file tells of an evaluation."""
    return record.get("split") == "eval" or any(name.startswith("eval/") for name in record)
