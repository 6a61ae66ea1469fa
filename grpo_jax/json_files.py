"""JSON files of others: read as what they must be, or told in one line that names the file.

Enters: the path of a small file. Leaves: its object. Knows what often lies there instead: a pointer of Git LFS.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 256 * 2**20
"""No configuration, index or tokenizer is larger; reading takes several times as much memory."""
_POINTER = b"version https://git-lfs.github.com/spec/"


def read(path: str | Path, *, whose: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        whose: told where the file is missing, such as "a model folder has one".

    Raises: FileNotFoundError; ValueError for what is no object in JSON, names a key twice, or is a pointer.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing{whose and f'; {whose}'}.")
    check_no_pointer(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size / 2**20:.0f} MiB: no file of its kind is so large."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError(f"{path} is no JSON that can be read: it nests without end.") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {str(error)[:200]}. Fetch or write it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object.")
    return content


def check_no_pointer(path: Path) -> None:
    """Raises ValueError where a repository was cloned without its large files."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(
                f"{path} is a pointer of Git LFS and not the file itself: run `git lfs pull` in {path.parent}."
            )


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it names {twice[:100]!r} twice")
    return found
