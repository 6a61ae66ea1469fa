"""How a run is stopped from outside: the last whole step is saved, one line says so, and the process ends in time.

SIGINT, SIGTERM, SIGUSR1 and notices of preemption take one path. Python's own handlers run in the main thread
and wait for whatever C++ it is in, a compilation for instance; so the system writes a signal's number into a socket,
and a thread acts on it. With one process that thread saves, wherever the main thread is: the gate, which the main
thread holds from the first change of the state until the step is whole, keeps it from half a step. With several
processes saving is a work of all, so the main threads agree where they meet anyway (`structs.Stopped`).
What is not done after `grace_seconds` is not waited for. This room knows no run: it is told how to save.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from grpo_jax import distributed, notices
from grpo_jax.endings import STOP_STATUSES
from grpo_jax.structs import Stopped

PARK_S = 2.0  # so long the main thread may take to reach a place where it uses no device
ENDINGS_S = 5.0  # for giving the terminal back and closing files, all together
ONE_PRESS_S = 0.3  # launchers pass on a terminal's Ctrl-C to who has had it already: that is one, not two
_WAKE = b"\0"  # no signal has this number


class Others(Protocol):
    """The other processes of the run."""

    def announce(self, status: int, why: str) -> None:
        """Asks them to stop, wherever they are."""

    def part(self) -> None:
        """Returns when this process may end without harm to them."""


class Stopper:
    """One run's ear for being stopped. A context manager; the main thread enters it before anything is built.

    Args:
        grace_seconds: from the signal to the end of the process at the latest, above 0.
        notice: key of `notices.NOTICES`.
    """

    def __init__(self, *, grace_seconds: float, notice: str = "none"):
        self.grace_seconds, self.notice = grace_seconds, notice
        self.asked = 0  # the exit status that was asked for; 0: none
        self.checkpoints: Path | None = None  # folder of whole checkpoints, by step
        self.others: Others | None = None
        self.endings: list[Callable[[], None]] = []  # called in this order before the process ends
        self._why, self._deadline, self._line = "", 0.0, ""
        self._say: Callable[[str], None] | None = None
        self._unsaid: list[str] = []
        self._owes: Callable[[], bool] = _nothing
        self._save: Callable[[], object] = _nothing
        self._gate = threading.Lock()
        self._divided = self._broken = False  # the main thread holds the gate; it left by an error
        self._parked, self._closed = threading.Event(), threading.Event()
        self._asking, self._leaving = threading.Lock(), threading.Lock()
        self._handlers: dict[int, object] = {}  # what there was before
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            self._fd = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
            for number in STOP_STATUSES:
                if signal.getsignal(number) != signal.SIG_IGN:  # as shells start what runs in the background
                    self._handlers[number] = signal.signal(number, _nothing)  # the number is in the socket
        threading.Thread(target=self._listen, name="stopping", daemon=True).start()
        notices.watch(self.notice, on_notice=self._take_notice, on_trouble=self.say, until=self._closed)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Stopped):
            self._stop_together(error.status)
        if self.asked and not self.others and not self._broken:
            self._parked.set()
            threading.Event().wait()  # another thread ends the process
        self._closed.set()
        self._ring()
        if self._handlers:
            signal.set_wakeup_fd(self._fd)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
        self._end_all()

    # What the main thread says.

    def say_by(self, say: Callable[[str], None]) -> None:
        """From now on notes go to `say`; those from before too."""
        self._say, unsaid = say, self._unsaid
        for text in unsaid:
            say(text)

    def say(self, text: str) -> None:
        """A note for people, kept until there is somebody to show it."""
        (self._say or self._unsaid.append)(text)

    def keeps(self, *, owes: Callable[[], bool], save: Callable[[], None]) -> None:
        """From now on there may be something to save.

        Args:
            owes: whether a step has become whole since the program began.
            save: saves the last one, where it is not saved, and returns when it is whole on the disk. Called
                once, at the end of the process, by the main threads if there are several processes.
        """
        self._owes, self._save = owes, save

    def all_kept(self) -> None:
        """From now on there is nothing to save."""
        self._owes = self._save = _nothing

    @contextlib.contextmanager
    def undivided(self, *, late: bool = False) -> Iterator[None]:
        """No stop comes between its beginning and its end, where the state and what is told of it agree again.

        Args:
            late: it begins when `begin_change` is called inside.
        """
        if not late:
            self._divide()
        try:
            yield
        except BaseException:
            self._broken = self._divided
            raise
        finally:
            if self._divided:
                self._divided = False
                self._gate.release()

    def begin_change(self) -> None:
        """Right before the first change of the state: what came before it may be given up.

        Every process must call it. Raises: Stopped if any of them was asked to stop.
        """
        if not self._divided and (status := distributed.largest([self.asked])[0]):
            raise Stopped(status)
        self._divide()

    # What any thread may call.

    def ask(self, status: int, why: str) -> None:
        """Stops the run; the first who asks is the one who is named."""
        with self._asking:
            if self.asked:
                return
            self._why, self._deadline = why, time.monotonic() + self.grace_seconds
            self.asked = status
        threading.Thread(target=self._stop, name="stop", daemon=True).start()
        self._ring()

    # From here on: what the threads do.

    def _listen(self) -> None:
        """Reads the numbers of signals, and watches the deadline."""
        pressed_at = 0.0  # the first SIGINT
        while not self._closed.is_set():
            left = max(self._deadline - time.monotonic(), 0.0) if self.asked else None
            if not select.select([self._ear], [], [], left)[0]:
                grace = f"{self.grace_seconds:g} s (config.checkpoint.grace_seconds)"
                self._leave(f"{self._newest()}; nothing newer could be saved within {grace}", now=True)
            for number in self._ear.recv(64):
                if number in STOP_STATUSES:
                    self.ask(STOP_STATUSES[number], signal.Signals(number).name)
                if number == signal.SIGINT:
                    pressed_at = pressed_at or time.monotonic()
                    if time.monotonic() - pressed_at > ONE_PRESS_S:
                        self._leave(f"{self._newest()}; a second SIGINT waits for nothing newer", now=True)
        self._ear.close()
        self._bell.close()

    def _stop(self) -> None:
        """Saves what is whole and ends the process; with several processes only where there is nothing to save."""
        if self.others:
            self.others.announce(self.asked, self._why)
        if self._owes():
            with contextlib.suppress(Exception):  # the screen may be closed
                self.say(f"stopping ({self._why}): saving the last whole step; Ctrl-C again would not wait")
        if not self.others:
            self._parked.wait(PARK_S if self._owes() else 0)
        while True:
            self._gate.acquire()
            if not self._broken and not (self.others and self._owes()):
                self._save_and_leave()
            # The main threads save together, or this one has an error to tell, or a way back from it.
            self._gate.release()
            time.sleep(0.1)

    def _stop_together(self, status: int) -> None:
        """The main threads of several processes, all at the same place of the program."""
        self.ask(status, "a signal to another process")
        if self.others:
            self._save_and_leave()

    def _save_and_leave(self) -> None:
        failed = ""
        try:
            self._save()
        except Exception as error:  # whatever it is, this is the last chance to tell it
            cause = " ".join(str(error).split()) or type(error).__name__
            failed = f"; nothing newer could be saved: {cause}"
        if threading.current_thread() is threading.main_thread():  # of several processes: one of them commits
            distributed.wait_for_all("saved what is whole")
        self._leave(f"{self._newest()}{failed}")

    def _leave(self, what: str, *, now: bool = False) -> None:
        """Ends the process, after its endings; `now`: whatever another thread does."""
        self._leaving.acquire(blocking=not now)
        first, self._line = not self._line, self._line or f"stopped by {self._why}: {what}"
        ending = threading.Thread(target=self._end_all, daemon=True)
        ending.start()
        ending.join(0.5 if now else ENDINGS_S)
        if first or self.endings:  # else another thread has told it and waits for the others
            print(self._line, file=sys.stderr, flush=True)
            self.endings = []
        if self.others and not now:
            self.others.part()
        os._exit(self.asked)

    def _end_all(self) -> None:
        for end in list(self.endings):
            with contextlib.suppress(Exception):  # the others must still come
                end()

    def _divide(self) -> None:
        if not self._divided:
            self._gate.acquire()
            self._divided, self._broken = True, False

    def _take_notice(self, text: str) -> None:
        self.ask(STOP_STATUSES[signal.SIGTERM], text)

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._bell.send(_WAKE)

    def _newest(self) -> str:
        """The newest checkpoint on the disk, and what the same command will do."""
        found = self.checkpoints.iterdir() if self.checkpoints and self.checkpoints.is_dir() else ()
        step = max((int(path.name) for path in found if path.name.isdigit()), default=0)
        if not step:
            return "no step was whole that could be kept; the same command begins again"
        return f"step {step} is kept in {self.checkpoints}; the same command goes on after it"


def _nothing(*_: object) -> bool:
    return False
