"""Files and folders that are whole or not there, whenever a kill or a power cut comes.

What is written is first on the disk and then gets its name; what is deleted first loses its name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

DELETED = ".deleted"  # behind the name of a folder whose deletion has begun


def write_text(path: Path, text: str) -> None:
    """Writes a file that is on the disk when this returns; lone surrogates become question marks."""
    write_lines(path, [text.encode("utf-8", "replace")])


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Writes the pieces one after the other, as `write_text`; the file has another name until it is whole."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def publish(unfinished: Path, folder: Path) -> None:
    """Gives a folder its name, after every file in it has reached the disk."""
    for path in (*unfinished.rglob("*"), unfinished):
        sync(path)
    unfinished.rename(folder)
    sync(folder.parent)


def delete(folder: Path) -> None:
    """Deletes a folder, which has another name while it is no longer whole.

    What cannot be deleted stays under that name: call `sweep` later.
    """
    doomed = folder.with_name(folder.name + DELETED)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sync(path: Path) -> None:
    """Returns when what was written to a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
