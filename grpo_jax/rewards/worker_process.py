"""The parent's handle on one worker process: start it, write lines, read lines by a deadline, kill.

Lines of JSON go in and come out; what they mean is known to `seat.py` and `worker.py`. Started with
`subprocess`, not `multiprocessing`, which would import the trainer's main module, and JAX with it,
into every worker. Each worker leads a process group of its own, so a kill also ends what a reward
function started.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from grpo_jax.rewards.progress import NUM_BYTES, Progress

FOR_THE_TRAINER = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send to every process of a job: the trainer alone acts on it, and needs its workers until then."""
_READ_BYTES = 65_536
_PACKAGE_PARENT = pathlib.Path(__file__).resolve().parents[2]


class DeadlinePassed(Exception):
    """The worker did not answer, or did not take its input, in time."""


class WorkerDied(Exception):
    """The worker ended, or wrote something that is no reply."""


class WorkerProcess:
    """One running `grpo_jax.rewards.worker`. For one thread, but for `kill`."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as shared:
            shared.truncate(NUM_BYTES)
            self.progress = Progress(shared.fileno())
            # A worker is born with this thread's mask, and ignores these signals before it lifts it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_TRAINER)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "grpo_jax.rewards.worker", str(shared.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    env=_environment(),
                    pass_fds=[shared.fileno()],
                    start_new_session=True,  # the terminal's Ctrl-C is for the trainer alone
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._unread = bytearray()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once the worker has ended. Asked only while no reply is awaited."""
        # Not by Popen.poll, which would reap it: see close.
        poll = select.poll()
        poll.register(self._stdout.fileno(), select.POLLIN)
        return not poll.poll(0)

    def write_line(self, message: Any, *, timeout_s: float) -> None:
        """Sends a message; raises DeadlinePassed or WorkerDied.

        The worker must be waiting for one: it reads the whole line before it answers, so that a line may be
        longer than a pipe holds.
        """
        data = memoryview(json.dumps(message, default=_plain).encode() + b"\n")
        deadline = time.monotonic() + timeout_s
        while data:
            _wait(self._stdin.fileno(), select.POLLOUT, deadline)
            try:
                data = data[os.write(self._stdin.fileno(), data) :]
            except BlockingIOError:
                continue
            except OSError:
                raise WorkerDied from None

    def read_line(self, *, timeout_s: float) -> Any:
        """The next reply; raises DeadlinePassed or WorkerDied."""
        deadline = time.monotonic() + timeout_s
        searched = 0
        while (end := self._unread.find(b"\n", searched)) < 0:
            searched = len(self._unread)
            _wait(self._stdout.fileno(), select.POLLIN, deadline)
            chunk = os.read(self._stdout.fileno(), _READ_BYTES)
            if not chunk:
                raise WorkerDied
            self._unread += chunk
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        try:
            return json.loads(line)
        except ValueError:
            raise WorkerDied from None

    def kill(self) -> None:
        """Ends the worker and its whole process group at once. From any thread, any number of times."""
        with self._lock:
            self._kill_group()

    def close(self) -> int:
        """Kills, gives the pipes back, returns the exit status (negative: the signal)."""
        with self._lock:
            self._kill_group()
            status = self._process.wait()
        self._stdin.close()
        self._stdout.close()
        return status

    def _kill_group(self) -> None:
        # Only before the worker is reaped: until then its number names this group and no stranger's,
        # also when the worker itself has ended and only what it started still runs.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _plain(value: Any) -> Any:
    """What JSON does not know of a problem's further columns: arrays as lists, all else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _wait(fd: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise DeadlinePassed


def _environment() -> dict[str, str]:
    """The trainer's environment, and what makes a worker the same on every host."""
    path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        # With gmpy2 a huge power cannot be interrupted and may end the process.
        "SYMPY_GROUND_TYPES": "python",
        "MPMATH_NOGMPY": "1",
        # Sets of texts in one order in every worker and run: what sympy makes of them may follow it.
        "PYTHONHASHSEED": "0",
        # One thread each: BLAS would reserve address space for every core, against the memory cap.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
