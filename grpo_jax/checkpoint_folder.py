"""One step's folder on the disk: sealed when it is whole, and what is wrong with it where it is not.

RUN/checkpoints/STEP has what Orbax writes and `record.jsonl`: one line of JSON with the size and hash of every
other file, then one line with the hash of the first. A folder gets its step's name last, so all that has one
and does not fit its record is damaged. Other names here: STEP.unfinished (a save, or one that was killed),
STEP.deleted, set_aside/.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grpo_jax import whole_files

RECORD = "record.jsonl"
UNFINISHED = ".unfinished"
SET_ASIDE = "set_aside"
_STEP = re.compile(r"0|[1-9][0-9]*")
_LEFT_OVER = re.compile(r"[0-9]+\.(unfinished|deleted|orbax-checkpoint-tmp).*")  # by a kill
_READERS = min(8, os.cpu_count() or 1)  # threads that hash files


class Flaw(Exception):
    """What is wrong with a step's folder."""


def steps(folder: Path) -> list[int]:
    """All steps that have a folder, or something else, of their name; whole or not, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _STEP.fullmatch(path.name))


def commit(unfinished: Path, place: Path, content: dict[str, Any]) -> None:
    """Seals a folder whose other files are all written, and gives it its name.

    Args:
        content: what JSON can hold; `read` returns it, with "files" beside it.
    """
    paths = sorted(path for path in unfinished.rglob("*") if path.is_file())
    names = [path.relative_to(unfinished).as_posix() for path in paths]
    with ThreadPoolExecutor(_READERS) as pool:
        files = dict(zip(names, pool.map(_size_and_hash, paths), strict=True))
    line = json.dumps({**content, "files": files})
    whole_files.write_text(unfinished / RECORD, f"{line}\n{_seal(line)}\n")
    whole_files.publish(unfinished, place)


def read(place: Path) -> dict[str, Any]:
    """The content of a folder's record. Raises: Flaw, also where a file is missing or has another size."""
    if not place.is_dir():
        raise Flaw("it is no folder")
    try:
        lines = (place / RECORD).read_bytes().decode().split("\n")
    except FileNotFoundError:
        what = (
            f"it has no {RECORD}, which every save writes" if any(place.iterdir()) else "its folder is empty"
        )
        raise Flaw(what) from None
    except UnicodeDecodeError:
        lines = []
    except OSError as error:
        raise Flaw(f"{RECORD} cannot be read ({error.strerror})") from None
    if len(lines) != 3 or lines[1] != _seal(lines[0]) or lines[2]:
        raise Flaw(f"{RECORD} is not as it was written")
    content = json.loads(lines[0])
    for name, (size, _) in content["files"].items():
        if not (place / name).is_file():
            raise Flaw(f"the file {name} is missing")
        if (found := (place / name).stat().st_size) != size:
            raise Flaw(f"the file {name} has {found} bytes, not {size}")
    return content


def check_files(place: Path, files: dict[str, Any]) -> None:
    """Reads files whole and compares them with what `commit` has noted. Raises: Flaw naming the first."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(_size_and_hash, (place / name for name in files))
        for name, noted in files.items():
            try:
                seen = next(found)
            except OSError as error:
                raise Flaw(f"the file {name} cannot be read ({error.strerror})") from None
            if seen != noted:
                raise Flaw(f"the file {name} is not as it was written")


def clean(folder: Path) -> None:
    """Removes what killed saves and deletions have left, as far as that can be removed."""
    for path in folder.iterdir():
        if _LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def set_aside(place: Path) -> Path:
    """Moves a step's folder to set_aside/, under a number behind its name where that is taken."""
    shelf = place.parent / SET_ASIDE
    shelf.mkdir(exist_ok=True)
    target, number = shelf / place.name, 1
    while target.exists():
        target, number = shelf / f"{place.name}.{number}", number + 1
    place.rename(target)
    whole_files.sync(place.parent)
    return target


def _size_and_hash(path: Path) -> list[Any]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return [file.tell(), found.hexdigest()]


def _seal(line: str) -> str:
    return json.dumps({"blake2b": hashlib.blake2b(line.encode(), digest_size=16).hexdigest()})
