"""The judge: a pool of worker processes that grade attempts while the device samples.

Attempts enter with a key of the caller's choice, `Judgement`s leave under the same keys; their order means
nothing. One small thread per worker hands out work and watches the deadlines (`seat.py`); what becomes of
functions that raise, hang, die or return nonsense stands in `grade.py`. `collect` waits for hostile attempts at
most about (num_hanging * timeout_s + (num_hanging + 2 * num_crashing) * start) / num_workers, where a worker takes
about a second to start; groups with async functions whose event loop is blocked cost one deadline more each.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, cast

from grpo_jax.rewards import parts, registry, self_test
from grpo_jax.rewards.grade import LOST
from grpo_jax.rewards.registry import RewardSpec
from grpo_jax.rewards.seat import Seat, Work
from grpo_jax.rewards.worker_process import WorkerProcess
from grpo_jax.structs import AskedToStop, Attempt, Judgement, never

_STOP_POLL_S = 0.2
MOST_PER_CORE = 32  # worker processes, which judges that wait for endpoints may need
MOST_TIMEOUT_S = 86_400.0
MOST_WORKERS = 8  # by default: one grades thousands of plain answers a second
LEAST_ALL_LOST = 8
"""So many judgements at least, and every one of them lost: then the rewards are broken, and the run ends."""


class Judge:
    """Grades attempts in worker processes. For one thread; `with Judge(...) as judge` closes it.

    Args:
        specs: the rewards of the run, from `registry.resolve`.
        num_workers: processes; 0: one per core this process may use, at most 8.
        timeout_s: seconds of wall time that one attempt may take, all its plain rewards together; that it is
            awaited by async ones; that a whole group may take, all functions of `attempts` together.
        memory_mb: address space of one worker, MiB (macOS does not enforce it). A reward that
            imports a large library needs more than the default.

    Raises:
        ValueError: a setting out of range, or options that a reward cannot work with.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        num_workers: int = 0,
        timeout_s: float = 10.0,
        memory_mb: int = 2048,
    ) -> None:
        check_settings(num_workers, timeout_s, memory_mb)
        registry.check(specs, timeout_s=timeout_s)
        self.specs = tuple(specs)
        self.num_workers = num_workers or default_num_workers()
        self._by_part = parts.by_part(self.specs)
        self._settings = {
            "specs": [dataclasses.asdict(spec) for spec in self.specs],
            "memory_mb": memory_mb,
            "timeout_s": timeout_s,
        }
        self._todo: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._groups: dict[
            Hashable, tuple[list[tuple[Hashable, Attempt]], int]
        ] = {}  # not yet whole; their sizes
        self._changed = threading.Condition()  # guards what follows
        self._pending: set[Hashable] = set()
        self._partial: dict[Hashable, dict[str, parts.Result]] = {}
        self._judgements: dict[Any, Judgement] = {}
        self._answers: dict[Hashable, Any] = {}  # to golds and known pairs
        self._causes: dict[str, str] = {}  # the first of each outcome that loses an attempt
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

    @property
    def first_failure(self) -> str:
        """Why an attempt was lost, in one line: the first that failed, else crashed, else timed out; or ""."""
        return next((self._causes[o] for o in ("failed", "crashed", "timed_out") if o in self._causes), "")

    def submit(self, key: Hashable, attempt: Attempt, *, group: Hashable = None, group_size: int = 1) -> None:
        """Hands one attempt over and returns at once.

        Args:
            group: name of the attempts that functions of `attempts` shall see together, in the order of their
                keys, which must be comparable; None: this one alone.
            group_size: how many they are. They are held until all are there.

        Raises:
            ValueError: the key is in use since the last `collect`.
        """
        self._add([key])
        if parts.ITEM in self._by_part:
            self._todo.put(Work(parts.ITEM, (key,), (attempt,)))
        whole = [part for part in self._by_part if part != parts.ITEM]
        if not whole:
            return
        members, group_size = ([], 1) if group is None else self._groups.setdefault(group, ([], group_size))
        members.append((key, attempt))
        if len(members) == group_size:
            self._groups.pop(group, None)
            # By key, so that a function of `attempts` sees the same whatever order they ended in.
            keys, attempts = zip(*sorted(members, key=lambda member: cast(Any, member[0])), strict=True)
            for part in whole:
                self._todo.put(Work(part, keys, attempts))

    def collect(self, *, stop: AskedToStop = never) -> dict[Any, Judgement]:
        """Waits for everything submitted and returns it by key; the next collection starts empty.

        Args:
            stop: asked while it waits. A judge that was stopped gives nothing back and is of no more use.

        Raises:
            ValueError: a group lacks attempts.
            RuntimeError: a worker cannot start, for instance for an error in an own reward file; or at least
                LEAST_ALL_LOST attempts were judged and every one timed out, crashed or failed: a run must not
                learn from zeros that only say that its reward is broken.
        """
        for group, (members, group_size) in self._groups.items():
            raise ValueError(f"the group {group!r} has only {len(members)} of its {group_size} attempts")
        if not self._wait(stop):
            return {}
        with self._changed:
            judgements, self._judgements = self._judgements, {}
        if len(judgements) >= LEAST_ALL_LOST and all(j.outcome in LOST for j in judgements.values()):
            raise RuntimeError(
                f"none of {len(judgements)} completions could be judged; first cause: {self.first_failure}. Mend "
                "this reward, or raise config.reward.timeout_s or memory_mb if it only needs more."
            )
        return judgements

    def self_test(self) -> None:
        """Grades known pairs by the built-in rewards, once per worker. Needs an idle judge.

        Raises:
            RuntimeError: a pair is graded otherwise than it must be, or a worker cannot start.
        """
        names = [spec.name for spec in self.specs if not spec.path]
        cases = [(name, case) for name in names for case in self_test.CASES.get(name, ())] * self.num_workers
        answers = self._ask(parts.KNOWN_PAIR, [(name, case.attempt()) for name, case in cases])
        for (name, case), answer in zip(cases, answers, strict=True):
            result = parts.Result(*answer)
            judgement = Judgement(tuple(result.rewards), result.outcome, result.parsed)
            if wrong := self_test.mistake(name, case, judgement):
                raise RuntimeError(f"{wrong} {result.cause}".rstrip())

    def read_golds(self, golds: Sequence[str]) -> list[bool]:
        """Whether any grader of the run can read each gold; True where no built-in reward grades. Needs an idle judge.

        Each has the deadline of an attempt; one that passes it, or ends its worker, cannot be read.

        Raises:
            RuntimeError: a worker cannot start.
        """
        unique = list(dict.fromkeys(golds))
        readable = dict(zip(unique, self._ask(parts.GOLD, unique), strict=True))
        return [readable[gold] for gold in golds]

    def close(self) -> None:
        """Kills every worker and waits until none is left. What is pending is lost."""
        with self._changed:
            self._closing = True
            for process in self._workers.values():
                process.kill()
            self._changed.notify_all()
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, part: str, entries: Sequence[Any]) -> list[Any]:
        """The answers to entries that are no attempts of a step."""
        assert not self._pending and not self._judgements, "this needs an idle judge"
        keys = [(part, index) for index in range(len(entries))]
        self._add(keys)
        for key, entry in zip(keys, entries, strict=True):
            self._todo.put(Work(part, (key,), (entry,)))
        self._wait()
        return [self._answers.pop(key) for key in keys]

    def _add(self, keys: Iterable[Hashable]) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError("the judge is closed")
            for key in keys:
                if key in self._pending or key in self._judgements:
                    raise ValueError(f"the key {key!r} is in use since the last collect")
                self._pending.add(key)

    def _wait(self, stop: AskedToStop = never) -> bool:
        """Whether all is judged; False when it was stopped."""
        over = lambda: self._error or self._closing or not self._pending  # noqa: E731
        with self._changed:
            while not self._changed.wait_for(over, timeout=_STOP_POLL_S):
                if stop():
                    return False
            if self._error or self._pending:
                raise RuntimeError(self._error or "the judge was closed before it was done")
            return True

    # From here on: what the threads do.

    def _serve(self, slot: int) -> None:
        names = {part: [spec.name for spec in specs] for part, specs in self._by_part.items()}
        seat = Seat(
            settings=self._settings,
            names=names,
            todo=self._todo,
            num_seats=self.num_workers,
            record=self._record,
            new_process=lambda: self._new_process(slot),
        )
        try:
            seat.serve()
        except Exception as error:
            # Whatever it is, the caller must hear of it instead of waiting for ever.
            with self._changed:
                self._error = self._error or str(error) or repr(error)
                self._changed.notify_all()
        finally:
            if slot in self._workers:
                self._workers[slot].close()

    def _new_process(self, slot: int) -> WorkerProcess:
        with self._changed:
            # Under the lock, so that close either sees this process or prevents it.
            if self._closing:
                raise RuntimeError("the judge is closed")
            self._workers[slot] = WorkerProcess()
            return self._workers[slot]

    def _record(self, part: str, keys: Sequence[Hashable], answers: Sequence[Any]) -> None:
        with self._changed:
            for key, answer in zip(keys, answers, strict=True):
                if part in parts.PARTS:
                    self._add_result(part, key, parts.Result(*answer))
                else:
                    self._answers[key] = answer
                    self._pending.discard(key)
            if not self._pending:
                self._changed.notify_all()

    def _add_result(self, part: str, key: Hashable, result: parts.Result) -> None:
        """Keeps one part; when it is the last one of its attempt, the judgement is whole."""
        results = {**self._partial.pop(key, {}), part: result}
        if len(results) < len(self._by_part):
            self._partial[key] = results
        else:
            self._judgements[key], cause = parts.merge(self.specs, results)
            if cause:
                self._causes.setdefault(self._judgements[key].outcome, cause)
            self._pending.discard(key)


def default_num_workers() -> int:
    """One per core this process may use, at most 8."""
    if hasattr(os, "sched_getaffinity"):
        return min(MOST_WORKERS, len(os.sched_getaffinity(0)))
    return min(MOST_WORKERS, os.cpu_count() or 1)


def check_settings(num_workers: int, timeout_s: float, memory_mb: int) -> None:
    """Raises ValueError for a number that no judge can work with."""
    most = MOST_PER_CORE * (os.cpu_count() or 1)
    if not 0 <= num_workers <= most:
        raise ValueError(
            f"config.reward.num_workers must be 0 (one per core) to {most} on this machine; got {num_workers}"
        )
    if not 0 < timeout_s <= MOST_TIMEOUT_S:
        raise ValueError(
            f"config.reward.timeout_s must be above 0 seconds, {MOST_TIMEOUT_S:.0f} at most; got {timeout_s}"
        )
    if memory_mb < 512:
        raise ValueError(
            f"config.reward.memory_mb must be at least 512, which math-verify needs; got {memory_mb}"
        )
