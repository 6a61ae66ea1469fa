"""Inside a worker: calls the reward functions and turns whatever they do into plain results.

Requests of each part (`parts.py`) enter as plain lists, `Result`s leave. What a function returns or raises is
settled here, by the table in `grade.py`; what it does to its process is the parent's business. Before each
attempt and each function `Judging.begin` is told, so that the parent knows whom a hang or a death belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from grpo_jax.rewards import parts, registry
from grpo_jax.rewards.grade import Grade, RewardFunction, as_grade, printable
from grpo_jax.rewards.parts import Result
from grpo_jax.structs import Attempt

EXIT_OUT_OF_MEMORY = 70
"""Exit status of a worker that met its memory cap; what it still holds cannot be trusted."""

_CAUSE_CHARS = 300
_READ_CHARS = 16_384  # of a message, in which secrets are sought before it is cut
Named = tuple[registry.RewardSpec, RewardFunction]


class Lost(NamedTuple):
    """Why a function gave no grade."""

    outcome: str  # "failed" or "timed_out"
    cause: str


class Judging:
    """The loaded rewards of a run.

    Args:
        rewards: specs and their functions, in the run's order.
        timeout_s: seconds that an awaited function has; all others are timed by the parent.
        begin: called with the function's place in its part before each call, with -1 before what has no one place.
    """

    def __init__(
        self,
        rewards: Sequence[Named],
        *,
        timeout_s: float,
        begin: Callable[[int], None] = lambda place: None,
    ) -> None:
        self._timeout_s, self._begin = timeout_s, begin
        self._parts = {part: [r for r in rewards if parts.part_of(r[0]) == part] for part in parts.PARTS}
        graders = [spec.name for spec, _ in rewards if not spec.path and spec.name in registry.GOLD_READERS]
        self._gold_readers = [registry.GOLD_READERS[name] for name in graders]
        self._runner: asyncio.Runner | None = None

    def singly(self, part: str, entry: Any) -> Any:
        """The answer to one entry of a request whose entries have nothing to do with each other."""
        if part == parts.GOLD:
            return self.can_read(entry)
        if part == parts.KNOWN_PAIR:
            name, attempt = entry
            return self.item(Attempt(*attempt), [(registry.RewardSpec(name), registry.REWARDS[name])])
        return self.item(Attempt(*entry), self._parts[parts.ITEM])

    def whole(self, part: str, entries: Sequence[Sequence[Any]]) -> list[Result]:
        """The answer to a request whose entries are a group."""
        attempts = [Attempt(*entry) for entry in entries]
        return self.together(attempts) if part == parts.TOGETHER else self.group(attempts)

    def item(self, attempt: Attempt, functions: Sequence[Named]) -> Result:
        """One attempt by each plain function in turn, until one fails."""
        start = time.perf_counter()
        grades: list[Grade | Lost] = []
        for place, (spec, function) in enumerate(functions):
            self._begin(place)
            try:
                grades.append(as_grade(function(attempt)))
            except BaseException as error:  # sys.exit and timeout exceptions are no Exception
                grades.append(failure(spec.name, error))
                break
        return _result(functions, grades, time.perf_counter() - start)

    def together(self, attempts: list[Attempt]) -> list[Result]:
        """Attempts awaited at once by all async functions of single ones, each until the deadline."""
        functions, start = self._parts[parts.TOGETHER], time.perf_counter()
        self._begin(-1)
        calls = [(spec.name, function, attempt) for attempt in attempts for spec, function in functions]
        found = iter(self._run(_await_all(calls, self._timeout_s)))
        grades_GF = [[_graded(spec.name, next(found)) for spec, _ in functions] for _ in attempts]
        seconds = (time.perf_counter() - start) / len(attempts)
        return [_result(functions, grades, seconds) for grades in grades_GF]

    def group(self, attempts: list[Attempt]) -> list[Result]:
        """A whole group by each function of `attempts` in turn, until one fails."""
        functions, start = self._parts[parts.GROUP], time.perf_counter()
        grades_GF: list[list[Grade | Lost]] = [[] for _ in attempts]
        for place, (spec, function) in enumerate(functions):
            self._begin(place)
            returned = self._ask_group(spec, function, attempts)
            for grades, result in zip(grades_GF, returned, strict=True):
                grades.append(_graded(spec.name, result))
        seconds = (time.perf_counter() - start) / len(attempts)
        return [_result(functions, grades, seconds) for grades in grades_GF]

    def can_read(self, gold: str) -> bool:
        """Whether any grader of the run can read this gold; also where there is no grader."""
        self._begin(-1)
        for reader in self._gold_readers:
            try:
                if reader(gold):
                    return True
            except BaseException as error:  # an odd gold is no reason to end the run: it is left out and told
                failure("", error)
        return not self._gold_readers

    def _ask_group(
        self, spec: registry.RewardSpec, function: RewardFunction, attempts: list[Attempt]
    ) -> list[Any]:
        """What a function of `attempts` says of each; a failure of the whole stands at each."""
        try:
            if spec.is_async:
                returned = self._run(_settle(spec.name, function, list(attempts)))
            else:
                returned = function(list(attempts))
            return (
                [returned] * len(attempts)
                if isinstance(returned, Lost)
                else _as_many(returned, len(attempts))
            )
        except BaseException as error:
            return [failure(spec.name, error)] * len(attempts)

    def _run(self, coroutine: Any) -> Any:
        self._runner = (
            self._runner or asyncio.Runner()
        )  # one loop for good: a client of the user's may live on it
        return self._runner.run(coroutine)


def failure(name: str, error: BaseException) -> Lost:
    """A failure and its cause in one line: the function, where, what kind, the message.

    Ends the worker where memory was the matter.
    """
    if isinstance(error, MemoryError):
        os._exit(EXIT_OUT_OF_MEMORY)
    place, where, message = error.__traceback__, "", ""
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is not None:
        where = f"{os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno}: "
    with contextlib.suppress(Exception):  # the text of an exception is the user's code too
        message = " ".join(str(error)[:_READ_CHARS].split())
    return Lost("failed", printable(f"{name}: {where}{type(error).__name__}: {message}", _CAUSE_CHARS))


async def _await_all(calls: Sequence[tuple[str, RewardFunction, Attempt]], timeout_s: float) -> list[Any]:
    """What each call returns, or `Lost`. What has not ended by the deadline is cancelled, nothing else."""
    tasks = [asyncio.ensure_future(_settle(*call)) for call in calls]
    _, late = await asyncio.wait(tasks, timeout=timeout_s)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(
            late, timeout=0.1
        )  # for their clean-up; who goes on all the same is not waited for
    return [
        Lost("timed_out", f"{name}: not done within {timeout_s:g} s (config.reward.timeout_s)")
        if task in late
        else Lost("failed", f"{name}: CancelledError")
        if task.cancelled()
        else task.result()
        for task, (name, *_) in zip(tasks, calls, strict=True)
    ]


async def _settle(name: str, function: RewardFunction, argument: Any) -> Any:
    """What an async function returns, or `Lost` where it raises: asyncio itself would end at a SystemExit."""
    try:
        return await function(argument)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return failure(name, error)


def _as_many(returned: Any, count: int) -> list[Any]:
    if getattr(returned, "ndim", None) == 1:
        returned = returned.tolist()
    if not isinstance(returned, list | tuple):
        raise TypeError(f"a function of `attempts` must return a list; got a {type(returned).__name__}")
    if len(returned) != count:
        raise ValueError(f"{len(returned)} rewards came back for {count} attempts")
    return list(returned)


def _graded(name: str, result: Any) -> Grade | Lost:
    try:
        return result if isinstance(result, Lost) else as_grade(result)
    except BaseException as error:
        return failure(name, error)


def _result(functions: Sequence[Named], grades: Sequence[Grade | Lost], seconds: float) -> Result:
    """One attempt's result from what its functions gave; no more is read behind a loss."""
    columns: dict[str, float | str] = {}
    rewards: list[float] = []
    outcome, parsed, graded_by = "scored", "", ""
    for (spec, _), grade in zip(functions, grades, strict=False):
        if isinstance(grade, Lost):
            return parts.lost(len(functions), grade.outcome, grade.cause, seconds=seconds)
        if grade.outcome == "timed_out":
            # As where the parent ends the worker: which clock struck first must not show in rewards.
            return parts.lost(len(functions), "timed_out", "", parsed=grade.parsed, seconds=seconds)
        if both := columns.keys() & grade.columns.keys():
            return parts.lost(len(functions), "failed", parts.twice(min(both)), seconds=seconds)
        if grade.outcome != "scored" and not graded_by:
            outcome, parsed, graded_by = grade.outcome, grade.parsed, spec.name
        columns.update(grade.columns)
        rewards.append(cast(float, grade.reward))
    return Result(rewards, outcome, parsed, seconds, "", columns, graded_by)
