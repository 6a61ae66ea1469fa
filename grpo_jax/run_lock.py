"""The one owner of a run folder: RUN/lock says who it is, and two can never be.

On one machine the system knows: the owner holds an exclusive `flock` until its process ends, however it ends. Where
that says nothing, because the owner was on another machine or the file system has no locks, its beat does: a thread
touches the file every few seconds, and an owner that has not for a minute, by the clock of the file system itself,
is dead. An owner that finds another's name in its lock ends at once. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOCK_FILE = "lock"
BEAT_S = 10.0
DEAD_AFTER_S = 60.0  # without a beat
SETTLE_S = 2.0  # where there are no locks: within so long two may have written one after the other
LOST = 2  # exit status

Owner = dict[str, str]


class RunLock:
    """The lock of a folder, held from its making to `release` or the end of the process.

    Args:
        folder: made if missing.
        say: told in one line that this takes time, or that a dead owner's lock was taken over.

    Raises: ValueError if a living process holds it, before anything in the folder is changed, or if the folder
        cannot be written.
    """

    def __init__(self, folder: str | Path, *, say: Callable[[str], None]):
        self.path = Path(folder).absolute() / LOCK_FILE
        self.nonce = secrets.token_hex(8)  # tells this owner from every other
        self._released = threading.Event()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while (fd := self._take(say)) is None:
                pass
        except OSError as error:
            raise ValueError(
                f"{self.path.parent} cannot be written ({error.strerror}). Set config.output_dir to a folder in "
                "which files can be made."
            ) from error
        self._fd = fd
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def release(self) -> None:
        """Gives the folder back. May be called twice."""
        if not self._released.is_set():
            self._released.set()
            with contextlib.suppress(OSError):  # a folder that is gone, or read-only by now
                if _read(self.path).get("nonce") == self.nonce:
                    self.path.unlink()
            os.close(self._fd)

    def _take(self, say: Callable[[str], None]) -> int | None:
        """The file, locked where that is possible; None if it was removed meanwhile."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = self._is_locked(fd)
            owner = _read(self.path)
            if owner and not (locked and owner.get("machine") == _machine(fd)):
                _wait_until_dead(self.path, owner, say)
            if not _is_file(fd, self.path):
                os.close(fd)
                return None
            self._write(fd)
            if not locked:
                time.sleep(SETTLE_S)
                if (winner := _read(self.path)).get("nonce") != self.nonce:
                    raise ValueError(_refusal(self.path, winner))
            if owner:
                say(f"note: took over {self.path}: {_in_words(owner)} has ended without giving it back")
            return fd
        except BaseException:
            os.close(fd)
            raise

    def _is_locked(self, fd: int) -> bool:
        """Locks the file; False where the file system cannot. Raises: ValueError if it is locked already."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            until = time.monotonic() + 1.0
            while not (owner := _read(self.path)) and time.monotonic() < until:
                time.sleep(0.05)  # it is about to write its name
            raise ValueError(_refusal(self.path, owner)) from None
        except OSError:
            return False
        return True

    def _write(self, fd: int) -> None:
        owner: Owner = {
            "host": socket.gethostname(),
            "machine": _machine(fd),
            "process": str(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": shlex.join(sys.argv),
            "nonce": self.nonce,
        }
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(owner, indent=2).encode() + b"\n", 0)
        os.fsync(fd)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(
                OSError
            ):  # the file system is away; or somebody removed the file by hand
                owner = _read(self.path)
                if owner and owner.get("nonce") != self.nonce and not self._released.is_set():
                    line = f"error: {self.path} was taken over by {_in_words(owner)}: this process ends\n"
                    os.write(2, line.encode())
                    os._exit(LOST)
                os.utime(self.path)


def is_seen(folder: str | Path, nonce: str, *, within_s: float) -> bool:
    """Whether this process sees the lock that another process of its run holds: whether they share the folder.

    A file system of several machines may show a new file late.
    """
    until = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError):
            os.listdir(folder)  # network file systems look again
            if _read(Path(folder) / LOCK_FILE).get("nonce") == nonce:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _wait_until_dead(path: Path, owner: Owner, say: Callable[[str], None]) -> None:
    """Raises: ValueError if the owner beats meanwhile. A file that disappears was given back."""
    with contextlib.suppress(FileNotFoundError):
        begun, beat = time.monotonic(), _beat_of(path)
        with tempfile.TemporaryFile(dir=path.parent) as new:  # without a name: nothing to be seen
            age = max(os.fstat(new.fileno()).st_mtime - beat, 0.0)
        if age > DEAD_AFTER_S:
            return
        say(f"note: {path} is of {_in_words(owner)}; waiting {DEAD_AFTER_S - age:.0f} s for a sign of life")
        while time.monotonic() - begun + age <= DEAD_AFTER_S:
            time.sleep(min(1.0, BEAT_S / 4))
            if _beat_of(path) != beat:
                raise ValueError(_refusal(path, _read(path) or owner))


def _beat_of(path: Path) -> float:
    with path.open("rb") as file:  # opened each time: network file systems look again only then
        return os.fstat(file.fileno()).st_mtime


def _is_file(fd: int, path: Path) -> bool:
    """Whether the open file is still the one that the path names."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> Owner:
    """Who the lock names; nobody where it is empty, gone or half written."""
    try:
        owner = json.loads(path.read_bytes()[:100_000])
    except (FileNotFoundError, ValueError):
        return {}
    return {str(name): str(value) for name, value in owner.items()} if isinstance(owner, dict) else {}


def _machine(fd: int) -> str:
    """Names what a `flock` of this file reaches: a running system, and its mount of the file system."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        booted = socket.gethostname()
    return f"{booted} {os.fstat(fd).st_dev}"


def _in_words(owner: Owner) -> str:
    if not owner:
        return "a process that has not yet said who it is"
    return f"process {owner.get('process', '?')} on {owner.get('host', '?')}, since {owner.get('since', '?')}"


def _refusal(path: Path, owner: Owner) -> str:
    command = owner.get("command", "")[:200]
    return (
        f"{path.parent} is in use by {_in_words(owner)}{command and f' ({command})'}. Wait for its end, stop it, or "
        "set config.output_dir to another folder."
    )
