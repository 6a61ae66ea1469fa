"""The folder of an evaluation: what it was asked for, and its records, chunk by chunk.

`options.json` says what was evaluated and how, so that nothing else is ever mixed in; `problems.jsonl` has
one object a problem. A chunk of problems is written whole and handed to the disk; what a kill has torn is
dropped when the same command goes on. This room knows no model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax import json_files, whole_files

OPTIONS_FILE = "options.json"
UNFINISHED_OPTIONS = "options.json.part"
RECORDS_FILE = "problems.jsonl"
METRICS_FILE = "metrics.json"  # written last: an evaluation that has it is done


class RecordFile:
    """The records of an evaluation, appended chunk by chunk.

    Args:
        path: of the file; made when missing. What is in it beyond the last whole chunk is cut off.
        indices: of all problems, in the order in which they will be evaluated.
        chunk: problems that are evaluated at a time, 1 or more.

    Raises: ValueError if the file holds other problems, or a line before the last one is torn.
    """

    def __init__(self, path: Path, indices: Sequence[int], *, chunk: int):
        if chunk < 1:
            raise ValueError(f"a chunk has 1 problem or more; got {chunk}.")
        self.path, self.chunk = path, chunk
        path.touch()
        self.num_done, num_bytes = _whole_chunks(path, indices, chunk)
        os.truncate(path, num_bytes)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes one chunk; returns when it is on the disk."""
        with self.path.open("ab") as file:
            file.write(as_lines(records).encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        self.num_done += len(records)

    def read(self) -> Iterator[dict[str, Any]]:
        """All records so far."""
        return read_records(self.path)


def as_lines(records: Sequence[Mapping[str, Any]]) -> str:
    """One object a line, in ASCII: no character of a text can end a line, or cannot be written."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def keep_newest(folder: Path, name: str, step: int, records: Sequence[Mapping[str, Any]]) -> Path:
    """Writes FOLDER/NAME_step_N.jsonl in one move, and removes those of this name and other steps."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plain_name(name)}_step_{step}.jsonl"
    whole_files.write_text(path, as_lines(records))
    for other in folder.iterdir():
        if other != path and re.fullmatch(rf"{re.escape(plain_name(name))}_step_\d+\.jsonl", other.name):
            other.unlink()
    return path


def plain_name(name: str) -> str:
    """A task's name as the name of a file or folder."""
    return re.sub(r"[^\w.-]+", "_", name)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises: FileNotFoundError; ValueError for a line that is none."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield _record(path, number, line)


def _whole_chunks(path: Path, indices: Sequence[int], chunk: int) -> tuple[int, int]:
    """How many problems stand in whole chunks, and how many bytes those take."""
    done = size = kept_problems = kept_bytes = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break  # torn by a kill
            record = _record(path, done + 1, line)
            if done >= len(indices) or record.get("index") != indices[done]:
                raise ValueError(
                    f"{path} has problem {record.get('index')} in line {done + 1}, where this evaluation has "
                    f"{indices[done] if done < len(indices) else 'none'}; give a new output folder."
                )
            done, size = done + 1, size + len(line)
            if done % chunk == 0 or done == len(indices):
                kept_problems, kept_bytes = done, size
    return kept_problems, kept_bytes


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"line {number} of {path} is no JSON object; give a new output folder.")
    return record


def check(folder: Path, options: Mapping[str, Any]) -> None:
    """Whether an evaluation with these options may begin or go on in a folder. Changes nothing.

    Args:
        options: all of what decides its numbers, or a part of it that is already known.

    Raises: ValueError if the folder holds something else, naming what differs.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Name a new folder with --output.")
    if not folder.exists() or {path.name for path in folder.iterdir()} <= {UNFINISHED_OPTIONS}:
        return
    if not (folder / OPTIONS_FILE).is_file():
        raise ValueError(
            f"{folder} is not empty and has no {OPTIONS_FILE}: it is no evaluation's folder. "
            "Name a new one with --output."
        )
    before, now = read_options(folder), json.loads(json.dumps(options))
    changed = [
        f"{name} was {_short(before.get(name))}, is {_short(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{folder} holds an evaluation with other options ({'; '.join(changed)}). Name a new folder with "
            "--output, or restore these to go on with it."
        )


def claim(folder: Path, options: Mapping[str, Any]) -> None:
    """Makes the folder this evaluation's, or finds that it is. Raises: as `check`."""
    check(folder, options)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / OPTIONS_FILE).is_file():
        whole_files.write_text(folder / OPTIONS_FILE, json.dumps(options, indent=2) + "\n")


def read_options(folder: Path) -> dict[str, Any]:
    """What the folder's evaluation was asked for."""
    return json_files.read(folder / OPTIONS_FILE)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
