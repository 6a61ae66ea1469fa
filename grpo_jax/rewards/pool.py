"""The judge: a pool of worker processes that grade attempts while the device samples.

Attempts enter with a key of the caller's choice, `Judgement`s leave under the same keys; their
order means nothing. One small thread per worker hands out attempts and watches the deadline of
each. A worker that passes it, dies or runs out of memory is killed, with all it started, and
replaced; the attempt it worked on is `timed_out` or `crashed` with every reward 0, and no other
attempt is touched. `collect` waits at most about num_hanging * timeout_s / num_workers for those.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import queue
import signal
import threading
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from grpo_jax.rewards import self_test, worker
from grpo_jax.rewards.registry import RewardSpec
from grpo_jax.rewards.worker_process import DeadlinePassed, WorkerDied, WorkerProcess
from grpo_jax.structs import Attempt, Judgement

_START_SECONDS = 120.0  # for the imports of a worker on a busy host; no attempt pays for it
_START_TRIES = 3
_MOST_WORKERS = 8  # by default: one grades thousands of plain answers a second
_BATCH_ITEMS = 16  # attempts sent ahead; each still has a deadline of its own
_BATCH_CHARS = 8_192  # at six bytes a character still less than a pipe holds, so writing never waits


class _Item(NamedTuple):
    key: Hashable
    attempt: Attempt
    self_test: bool = False  # only the built-in rewards are asked

    def request(self) -> dict[str, Any]:
        return {"attempt": self.attempt, "self_test": self.self_test}

    def num_chars(self) -> int:
        return sum(len(text) for text in self.attempt[:3])


class Judge:
    """Grades attempts in worker processes. For one thread; `with Judge(...) as judge` closes it.

    Args:
        specs: the rewards of the run, from `registry.resolve`.
        num_workers: processes; 0: one per core this process may use, at most 8.
        timeout_s: seconds of wall time that one attempt may take, all its rewards together.
        memory_mb: address space of one worker, MiB (macOS does not enforce it). A reward that
            imports a large library needs more than the default.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        num_workers: int = 0,
        timeout_s: float = 10.0,
        memory_mb: int = 2048,
    ) -> None:
        _check_settings(num_workers, timeout_s, memory_mb)
        self.specs = tuple(specs)
        self.num_workers = num_workers or default_num_workers()
        self.first_failure = ""  # why the first `crashed` attempt crashed, in one line
        self._timeout_s, self._memory_mb = timeout_s, memory_mb
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards what follows
        self._pending: set[Hashable] = set()
        self._judgements: dict[Any, Judgement] = {}
        self._error = ""
        self._closing = False
        self._workers: dict[int, WorkerProcess] = {}
        # The threads start their workers, so that construction returns at once.
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), name=f"judge-{slot}", daemon=True)
            for slot in range(self.num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, key: Hashable, attempt: Attempt) -> None:
        """Hands one attempt over and returns at once.

        Raises:
            ValueError: the key is in use since the last `collect`.
        """
        self._submit(_Item(key, attempt))

    def collect(self) -> dict[Any, Judgement]:
        """Waits for everything submitted and returns it by key; the next collection starts empty.

        Raises:
            RuntimeError: a worker cannot start, for instance for an error in an own reward file.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._closing or not self._pending)
            if self._error or self._pending:
                raise RuntimeError(self._error or "the judge was closed before it was done")
            judgements, self._judgements = self._judgements, {}
            return judgements

    def self_test(self) -> None:
        """Grades known pairs by the built-in rewards, once per worker. Needs an idle judge.

        Raises:
            RuntimeError: a pair is graded otherwise than it must be, or a worker cannot start.
        """
        assert not self._pending and not self._judgements, "self_test needs an idle judge"
        for repeat in range(self.num_workers):
            for case in self_test.KNOWN_CASES:
                self._submit(_Item((repeat, case), self_test.attempt_of(case), self_test=True))
        for (_, case), judgement in self.collect().items():
            if mistake := self_test.mistake(case, self.specs, judgement):
                raise RuntimeError(f"{mistake} {self.first_failure}".rstrip())

    def close(self) -> None:
        """Kills every worker and waits until none is left. What is pending is lost."""
        with self._changed:
            self._closing = True
            for process in self._workers.values():
                process.kill()
            self._changed.notify_all()
        for _ in self._threads:
            self._items.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, item: _Item) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError("the judge is closed")
            if item.key in self._pending or item.key in self._judgements:
                raise ValueError(f"the key {item.key!r} is in use since the last collect")
            self._pending.add(item.key)
        self._items.put(item)

    # From here on: what the threads do.

    def _serve(self, slot: int) -> None:
        """The life of one thread: keeps a healthy worker in its slot and feeds it."""
        try:
            process = self._start(slot)
            while batch := self._next_batch():
                if not process.alive:  # killed while idle: nobody's attempt is to blame
                    process.close()
                    process = self._start(slot)
                if not self._judge_batch(process, batch):
                    process = self._start(slot)
        except Exception as error:
            # Whatever it is, the caller must hear of it instead of waiting for ever.
            with self._changed:
                self._error = self._error or str(error) or repr(error)
                self._changed.notify_all()
        finally:
            if slot in self._workers:
                self._workers[slot].close()

    def _start(self, slot: int) -> WorkerProcess:
        """A worker that has said that it is ready. Raises RuntimeError where there is none."""
        settings = {
            "specs": [dataclasses.asdict(spec) for spec in self.specs],
            "memory_mb": self._memory_mb,
            "timeout_s": self._timeout_s,
        }
        why = ""
        for _ in range(_START_TRIES):
            process = self._new_process(slot)
            try:
                process.write_lines([settings], timeout_s=_START_SECONDS)
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
                raise RuntimeError(f"a judge worker cannot start: {reply['failed']}")
        raise RuntimeError(f"a judge worker cannot start: {why}")

    def _new_process(self, slot: int) -> WorkerProcess:
        with self._changed:
            # Under the lock, so that close either sees this process or prevents it.
            if self._closing:
                raise RuntimeError("the judge is closed")
            self._workers[slot] = WorkerProcess()
            return self._workers[slot]

    def _next_batch(self) -> list[_Item]:
        """Waits for an attempt and takes as many as leave enough for the others; [] to end."""
        item = self._items.get()
        batch: list[_Item] = []
        num_chars = 0
        wanted = min(_BATCH_ITEMS, max(1, self._items.qsize() // self.num_workers))
        while item is not None and not self._closing:
            batch.append(item)
            num_chars += item.num_chars()
            if len(batch) == wanted:
                return batch
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                return batch
            if item is None or num_chars + item.num_chars() > _BATCH_CHARS:
                self._items.put(item)
                return batch
        return []

    def _judge_batch(self, process: WorkerProcess, batch: list[_Item]) -> bool:
        """Records the judgements of a batch; False when the worker is gone and must be replaced."""
        waiting = collections.deque(batch)
        requests = [item.request() for item in batch]
        try:
            process.write_lines(requests, timeout_s=self._timeout_s)
            while waiting:
                reply = process.read_line(timeout_s=self._timeout_s)
                self._record(waiting.popleft(), _judgement(reply), reply["cause"])
            return True
        except DeadlinePassed:
            process.close()
            lost, cause = self._no_reward("timed_out", self._timeout_s), ""
        except WorkerDied:
            cause = self._ending(process.close())
            lost = self._no_reward("crashed", 0.0)
        self._record(waiting.popleft(), lost, cause)
        for item in waiting:  # sent ahead, never begun
            self._items.put(item)
        return False

    def _no_reward(self, outcome: str, seconds: float) -> Judgement:
        return Judgement((0.0,) * len(self.specs), outcome, "", seconds)

    def _record(self, item: _Item, judgement: Judgement, cause: str) -> None:
        with self._changed:
            if judgement.outcome == "crashed":
                self.first_failure = self.first_failure or cause
            self._judgements[item.key] = judgement
            self._pending.discard(item.key)
            if not self._pending:
                self._changed.notify_all()

    def _ending(self, status: int) -> str:
        """How a worker ended, from its exit status, in words."""
        if status == worker.EXIT_OUT_OF_MEMORY:
            return f"the worker ran out of memory (config.reward.memory_mb={self._memory_mb})"
        if status < 0:
            return f"the worker was killed by {signal.Signals(-status).name}"
        return f"the worker ended with exit status {status}"


def default_num_workers() -> int:
    """One per core this process may use, at most 8."""
    if hasattr(os, "sched_getaffinity"):
        return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
    return min(_MOST_WORKERS, os.cpu_count() or 1)


def _judgement(reply: dict[str, Any]) -> Judgement:
    return Judgement(tuple(reply["rewards"]), reply["outcome"], reply["parsed"], reply["seconds"])


def _check_settings(num_workers: int, timeout_s: float, memory_mb: int) -> None:
    if num_workers < 0:
        raise ValueError(f"config.reward.num_workers must be 0 (one per core) or more; got {num_workers}")
    if not timeout_s > 0:
        raise ValueError(f"config.reward.timeout_s must be above 0 seconds; got {timeout_s}")
    if memory_mb < 512:
        raise ValueError(
            f"config.reward.memory_mb must be at least 512, which math-verify needs; got {memory_mb}"
        )
