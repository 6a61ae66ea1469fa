"""A seat of the judge: one thread that keeps one healthy worker, feeds it and watches its deadlines.

A worker that passes the deadline of an entry, dies or runs out of memory is killed, with all it started, and
replaced. Only the entry that it was at pays; what was sent with it is asked again elsewhere. A death counts only
in a worker that had judged nothing before: else what earlier attempts left there (memory, threads) could be the
cause, and the entry is judged again, first of all in the new worker.
"""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from grpo_jax.rewards import judging, parts, worker
from grpo_jax.rewards.worker_process import DeadlinePassed, WorkerDied, WorkerProcess

_START_SECONDS = 120.0  # for the imports of a worker on a busy host; no attempt pays for it
_START_TRIES = 3
_MOST_ENTRIES = {
    parts.ITEM: 64,
    parts.KNOWN_PAIR: 64,
    parts.GOLD: 1024,
}  # sent at once; each has its own deadline
_MOST_CHARS = 250_000


class Work(NamedTuple):
    """What a worker is asked: entries that belong together, one where they have nothing to do with each other."""

    part: str
    keys: tuple[Hashable, ...]  # one an entry
    entries: tuple[Any, ...]  # what `judging` reads: attempts, golds, (name, attempt)

    def num_chars(self) -> int:
        return sum(
            len(entry)
            if isinstance(entry, str)
            else sum(len(text) for text in entry if isinstance(text, str))
            for entry in self.entries
        )


class Loss(NamedTuple):
    """How a worker was lost over a request."""

    outcome: str  # "timed_out" or "crashed"
    cause: str
    num_answered: int  # entries of the request
    at: int  # the entry that was at work
    fresh: bool  # it was the worker's first one


Record = Callable[[str, Sequence[Hashable], Sequence[Any]], None]  # part, keys, their answers


class Seat:
    """See the head of this file.

    Args:
        settings: of the worker, as `worker.py` reads them.
        names: reward names of each part, in order.
        todo: shared by all seats; None ends one.
        record: hears every answer.
        new_process: a started worker; raises RuntimeError when the judge is closed.
    """

    def __init__(
        self,
        *,
        settings: dict[str, Any],
        names: dict[str, list[str]],
        todo: queue.SimpleQueue[Work | None],
        num_seats: int,
        record: Record,
        new_process: Callable[[], WorkerProcess],
    ) -> None:
        self._settings, self._names, self._todo, self._num_seats = settings, names, todo, num_seats
        self._record, self._new_process = record, new_process
        self._timeout_s: float = settings["timeout_s"]

    def serve(self) -> None:
        """Until None comes. Raises: RuntimeError where no worker can be started."""
        process, first = self._start(), []
        try:
            while batch := first or self._next_batch():
                if not process.alive:  # killed while idle: nobody's attempt is to blame
                    process.close()
                    process = self._start()
                first = []
                if loss := self._ask(process, batch):
                    first = self._settle(loss, batch)
                    process = self._start()
        finally:
            process.close()

    def _start(self) -> WorkerProcess:
        """A worker that has said that it is ready. Raises: RuntimeError where there is none."""
        why = ""
        for _ in range(_START_TRIES):
            process = self._new_process()
            try:
                process.write_line(self._settings, timeout_s=_START_SECONDS)
                reply = process.read_line(timeout_s=_START_SECONDS)
            except DeadlinePassed:
                process.close()
                why = f"it was not ready within {_START_SECONDS:.0f} s"
            except WorkerDied:
                why = self._ending(process.close())
            else:
                if "ready" in reply:
                    return process
                process.close()
                raise RuntimeError(
                    f"a judge worker cannot start: {reply['failed']}; mend that, or choose other rewards in "
                    "config.reward.reward_funcs"
                )
        raise RuntimeError(f"a judge worker cannot start: {why}")

    def _next_batch(self) -> list[Work]:
        """Waits for work and takes as much as leaves enough for the others; [] to end."""
        work = self._todo.get()
        batch: list[Work] = []
        num_chars = 0
        most = _MOST_ENTRIES.get(work.part, 1) if work else 0
        wanted = min(most, max(1, self._todo.qsize() // self._num_seats))
        while work is not None:
            batch.append(work)
            num_chars += work.num_chars()
            if len(batch) == wanted:
                break
            try:
                work = self._todo.get_nowait()
            except queue.Empty:
                break
            if work is None or work.part != batch[0].part or num_chars + work.num_chars() > _MOST_CHARS:
                self._todo.put(work)
                break
        return batch

    def _ask(self, process: WorkerProcess, batch: list[Work]) -> Loss | None:
        """Sends a batch and records its answers; what was lost where the worker had to be, or was, killed."""
        part, num_done, num_before = batch[0].part, 0, process.progress.num_begun
        keys = [key for work in batch for key in work.keys]
        slack_s = parts.TOGETHER_GRACE_S if part == parts.TOGETHER else worker.HOLD_S
        try:
            request = [part, [entry for work in batch for entry in work.entries]]
            process.write_line(request, timeout_s=self._timeout_s)
            while num_done < len(keys):
                answers = process.read_line(timeout_s=self._timeout_s + slack_s)
                self._record(part, keys[num_done : num_done + len(answers)], answers)
                num_done += len(answers)
            return None
        except DeadlinePassed:
            process.close()
            outcome = "timed_out"
            why = f"passed its deadline of {self._timeout_s:g} s (config.reward.timeout_s)"
        except WorkerDied:
            outcome, why = "crashed", self._ending(process.close())
        num_begun = process.progress.num_begun
        at = max(num_begun - num_before - 1, num_done)
        cause = f"{self._culprit(part, process.progress.function)}: {why}"
        return Loss(outcome, cause, num_done, min(at, len(keys) - 1), fresh=num_begun <= 1)

    def _settle(self, loss: Loss, batch: list[Work]) -> list[Work]:
        """Records what is lost for good and hands the rest back; returns what the next worker is asked first."""
        part, num_lost = batch[0].part, len(self._names.get(batch[0].part, ()))
        at = loss.at if part in _MOST_ENTRIES else 0
        culprit = batch[at]
        for index, work in enumerate(batch):
            if index != at and index >= loss.num_answered:
                self._todo.put(work)
        if part == parts.TOGETHER and len(culprit.keys) > 1:  # one by one, so that only the guilty one pays
            for key, entry in zip(culprit.keys, culprit.entries, strict=True):
                self._todo.put(Work(part, (key,), (entry,)))
            return []
        if loss.outcome == "crashed" and not loss.fresh:
            return [culprit]
        if part == parts.GOLD:
            answers: list[Any] = [False] * len(culprit.keys)
        else:
            seconds = self._timeout_s / len(culprit.keys) if loss.outcome == "timed_out" else 0.0
            answers = [parts.lost(max(num_lost, 1), loss.outcome, loss.cause, seconds=seconds)] * len(
                culprit.keys
            )
        self._record(part, culprit.keys, answers)
        return []

    def _culprit(self, part: str, place: int) -> str:
        names = self._names.get(part, [])
        return names[place] if 0 <= place < len(names) else ", ".join(names) or "a reward"

    def _ending(self, status: int) -> str:
        """How a worker ended, from its exit status, in words."""
        if status == judging.EXIT_OUT_OF_MEMORY:
            return f"the worker ran out of memory (config.reward.memory_mb={self._settings['memory_mb']})"
        if status < 0:
            return f"the worker was killed by {signal.Signals(-status).name}"
        return f"the worker ended with exit status {status}"
