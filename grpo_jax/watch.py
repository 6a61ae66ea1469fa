"""How several processes end together: when one fails or is killed, all say so and end within a minute.

A process that waits for others in a collective cannot be interrupted, so a thread watches. Every process
beats in the key-value store that JAX's coordination service keeps on process 0; a failure is written there
once, and whoever reads it, or misses another's beat, tells it in one line and ends. Judging processes end by
themselves when their trainer does. With one process nothing here runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax._src import distributed as jax_distributed  # the store has no public door

from grpo_jax import distributed, secret_values
from grpo_jax.endings import Ended
from grpo_jax.stopping import Stopper
from grpo_jax.structs import Stopped

BEAT_S = 2.0
SILENT_S = 30.0  # without a beat a process counts as gone
FAREWELL_S = 8.0  # process 0, which keeps the store, stays so long at most for others to read
ENDED_BY_ANOTHER = 3  # exit status
_ALIVE, _FAILED, _HEARD = "grpo_jax/alive", "grpo_jax/failed", "grpo_jax/heard"
_STOPPED = "grpo_jax/stopped"
# How the runtime's errors begin when a collective lost somebody; they come as several Python types.
_OTHERS_FAILED = re.compile(
    "(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
)


@contextlib.contextmanager
def together(stopper: Stopper) -> Iterator[None]:
    """Runs the body; whatever ends it early in one process ends all of them.

    Args:
        stopper: its endings are called before another's failure ends this process; and where one process is
            asked to stop, all are.
    """
    if jax_distributed.global_state.num_processes == 1:
        yield
        return
    watch = Watch(stopper)
    stopper.others = watch
    try:
        yield
        watch.finish()
    except Stopped:  # by all: that is no failure
        raise
    except Ended as ending:  # all come here, at the same step: nobody failed
        ending.add_note(watch.name)
        watch.finish()
        raise
    except BaseException as error:
        error.add_note(watch.name)
        watch.fail(error)
        raise


class Watch:
    """One process's beat, and its eye on the others'."""

    def __init__(self, stopper: Stopper):
        state = jax_distributed.global_state
        assert state.client is not None, "distributed.start comes first"
        self._client, self._address = state.client, str(state.coordinator_address)
        self._me, self._count = state.process_id, state.num_processes
        self._stopper = stopper
        self._seen = {i: ("", time.monotonic()) for i in range(self._count)}  # last beat, and when
        self._looked_at = time.monotonic()
        self._failing = False  # this process's own failure is being told
        self._ended = threading.Event()
        self.name = f"process {self._me} of {self._count} on {socket.gethostname()}"
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        # JAX aborts when process 0 is gone. Python's own handlers never run in an abort, this one does.
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits until all have done their work, then stops watching."""
        self._client.wait_at_barrier("grpo_jax/done", timeout_in_ms=24 * 3600 * 1000)
        self._ended.set()
        self._thread.join()
        ctypes.CDLL(None).signal(signal.SIGABRT, None)

    def fail(self, error: BaseException) -> None:
        """Tells all others of this process's error. A broken collective waits for the cause to be known."""
        text = " ".join(secret_values.redacted(str(error)).split()) or type(error).__name__
        if _OTHERS_FAILED.match(text):
            self._ended.wait(SILENT_S + 3 * BEAT_S)  # the watch ends this process when it finds one
        self._failing = True
        self._tell(f"{self.name} failed: {type(error).__name__}: {text}")
        self._farewell()

    def announce(self, status: int, why: str) -> None:
        """Asks all others to stop; the first who does is heard."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_STOPPED}/first", f"{status} {why} of {self.name}")

    def part(self) -> None:
        """Returns when this process, which was stopped, may end: process 0 last, since it keeps the store."""
        self._failing = True  # from now on others may be silent
        self._farewell()

    def _watch(self) -> None:
        reached_at = time.monotonic()
        while not self._ended.wait(BEAT_S):
            try:
                self._look()
                reached_at = time.monotonic()
            except jax.errors.JaxRuntimeError:
                if time.monotonic() - reached_at > SILENT_S:
                    self._end(f"process 0 could not be reached at {self._address} for {SILENT_S:.0f} s")

    def _look(self) -> None:
        """One beat: shows that this process lives, reads what failed, counts who is silent."""
        now = time.monotonic()
        paused, self._looked_at = now - self._looked_at > SILENT_S / 2, now
        self._client.key_value_set(f"{_ALIVE}/{self._me}", f"{now}", allow_overwrite=True)
        beats = dict(self._client.key_value_dir_get(_ALIVE))
        for i, (beat, since) in self._seen.items():
            new = beats.get(f"{_ALIVE}/{i}", "")
            # After a pause of this process, or of the whole machine, silence says nothing.
            if new != beat or paused or i == self._me:
                self._seen[i] = (new, now)
            elif now - since > SILENT_S:
                self._tell(
                    f"process {i} of {self._count} has given no sign of life for {SILENT_S:.0f} s: "
                    "it was killed, or its machine or network is gone"
                )
        if told := dict(self._client.key_value_dir_get(_STOPPED)):
            status, _, why = next(iter(told.values())).partition(" ")
            self._stopper.ask(int(status), why)
        if (failed := dict(self._client.key_value_dir_get(_FAILED))) and not self._failing:
            self._end(next(iter(failed.values())))

    def _tell(self, line: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or the store is gone
            self._client.key_value_set(f"{_FAILED}/first", line)

    def _end(self, line: str) -> None:
        print(f"error: {self.name} ends with the others: {line}", file=sys.stderr, flush=True)
        self._farewell()
        closing = threading.Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(timeout=5)
        os._exit(ENDED_BY_ANOTHER)

    def _close(self) -> None:
        for close in self._stopper.endings:
            close()
        sys.stdout.flush()

    def _farewell(self) -> None:
        """Says that this process has heard; process 0 waits for the others to have."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_HEARD}/{self._me}", "", allow_overwrite=True)
            until = time.monotonic() + FAREWELL_S
            while self._me == 0 and time.monotonic() < until:
                gone = sum(time.monotonic() - since > SILENT_S for _, since in self._seen.values())
                if len(self._client.key_value_dir_get(_HEARD)) >= self._count - gone:
                    return
                time.sleep(0.1)

    def _aborted(self, _: int) -> None:
        """Called while the process aborts: what follows may do little, and must end it."""
        try:
            if self._stopper.asked:
                os.write(
                    2, f"{self.name} ends: all were asked to stop, and another has ended first\n".encode()
                )
                os._exit(self._stopper.asked)
            why = "the runtime stopped it, with the message above"
            if self._me and not distributed.answers(self._address):
                why = f"process 0 of {self._count} is gone: nothing answers at {self._address} any more"
            os.write(2, f"error: {self.name} ends: {why}\n".encode())
        finally:
            os._exit(ENDED_BY_ANOTHER)
