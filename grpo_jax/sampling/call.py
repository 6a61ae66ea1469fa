"""One call of the sampler as the host sees it: which row is where, and what it has said so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from grpo_jax.sampling import decode
from grpo_jax.sampling.counters import Counters
from grpo_jax.sampling.plan import Plan
from grpo_jax.sampling.schedule import Round, Row, Schedule
from grpo_jax.structs import Completion, Problem

OnFinished = Callable[[int, int, Completion], None]
"""`on_finished(p, g, completion)`: positions within this process's problems."""

FindStop = Callable[[np.ndarray, int], int | None]
"""`find_stop(ids, start)`: how many of the ids to keep, if their text shows that they end there.

Nothing was found in `ids[:start]` before.
"""


class _Slots(NamedTuple):
    """What the host knows of the rows in its slots; n windows of W tokens."""

    runs_B: np.ndarray  # bool
    length_B: np.ndarray  # columns that a row has filled: prompt and tokens but for the last, not yet read
    num_tokens_B: np.ndarray
    limit_B: np.ndarray
    tokens_BnW: np.ndarray
    logprobs_BnW: np.ndarray

    def enter(self, slot: int, *, length: int, limit: int) -> None:
        self.runs_B[slot], self.num_tokens_B[slot] = True, 0
        self.length_B[slot], self.limit_B[slot] = length, limit

    def completion(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probabilities so far."""
        count = self.num_tokens_B[slot]
        return self.tokens_BnW[slot].reshape(-1)[:count], self.logprobs_BnW[slot].reshape(-1)[:count]


class Call:
    """The rows of one call on this process, from waiting to finished.

    Raises: ValueError for a prompt or a limit that does not fit the plan.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        num_generations: int,
        limits_PG: np.ndarray | None,
        *,
        plan: Plan,
        end_ids: tuple[int, ...],
        on_finished: OnFinished | None,
        find_stop: FindStop | None,
    ):
        self.problems, self.num_generations, self.plan = problems, num_generations, plan
        self.end_ids, self.on_finished, self.find_stop = end_ids, on_finished, find_stop
        self.schedule = Schedule(
            len(problems),
            num_generations,
            num_shards=plan.num_shards // jax.process_count(),
            slots=plan.slots,
            places=plan.places,
        )
        shape = (len(problems), num_generations)
        longest = plan.max_completion_length
        self.limits_PG = np.full(shape, longest) if limits_PG is None else np.broadcast_to(limits_PG, shape)
        self._check()
        self._finished: dict[Row, Completion] = {}
        self._stopped: list[int] = []  # slots whose row the host has ended
        slots = plan.slots * len(self.schedule)
        self._slots = _Slots(
            runs_B=np.zeros(slots, bool),
            length_B=np.zeros(slots, np.int64),
            num_tokens_B=np.zeros(slots, np.int64),
            limit_B=np.zeros(slots, np.int64),
            tokens_BnW=np.zeros((slots, -(-longest // plan.window), plan.window), np.int32),
            logprobs_BnW=np.zeros((slots, -(-longest // plan.window), plan.window), np.float32),
        )

    def has_news(self, entering: Round) -> bool:
        """Whether the device must hear anything before the next window."""
        return bool(entering.arrivals or self._stopped)

    def arrivals(self, entering: Round, *, num_slots: int) -> np.ndarray:
        """int32 `[slots of this process, fields of decode.Arrivals]`; call once a round."""
        news = np.zeros((num_slots * len(self.schedule), len(decode.Arrivals._fields)), np.int32)
        news[:, 0] = decode.KEEP
        news[self._stopped, 0] = decode.STOP
        self._stopped = []
        for arrival in entering.arrivals:
            problem, limit = self.problems[arrival.row.problem], self.limits_PG[arrival.row]
            position = arrival.shard * num_slots + arrival.slot
            self._slots.enter(position, length=len(problem.prompt_ids) - 1, limit=limit)
            news[position] = (
                arrival.place,
                len(problem.prompt_ids),
                problem.prompt_ids[-1],
                problem.index,
                arrival.row.generation,
                limit,
            )
        return news

    def columns_needed(self) -> int:
        """Columns that the cache must have for the next window.

        A row that reaches its limit in the window may write past the end: nobody reads it again.
        """
        slots = self._slots
        goes_on_B = slots.num_tokens_B + self.plan.window < slots.limit_B
        return int((slots.length_B + self.plan.window * goes_on_B).max(initial=0, where=slots.runs_B))

    def move(self, num_slots: int) -> np.ndarray:
        """Gathers the rows in fewer slots a shard; int32 `[slots]`, where each was in its shard."""
        old, origin = (
            len(self._slots.runs_B) // len(self.schedule),
            np.array(self.schedule.move(num_slots), np.int32),
        )
        shard = np.arange(len(origin)) // num_slots
        self._slots = _Slots(*(array[shard * old + origin] for array in self._slots))
        return origin

    def read(
        self, tokens_BW: np.ndarray, logprobs_BW: np.ndarray, done_B: np.ndarray, counters: Counters
    ) -> None:
        """Takes in a window's tokens; hands over what has finished and frees its slots."""
        slots, running = self._slots, np.flatnonzero(self._slots.runs_B)
        emitted = (tokens_BW[running] >= 0).sum(axis=1)
        counters.add_window(emitted, slots.length_B[running], slots=len(tokens_BW), steps=self.plan.window)
        window = slots.num_tokens_B[running] // self.plan.window  # a row that runs has only had whole ones
        slots.tokens_BnW[running, window] = tokens_BW[running]
        slots.logprobs_BnW[running, window] = logprobs_BW[running]
        slots.num_tokens_B[running] += emitted
        slots.length_B[running] += emitted
        for slot in (running if self.find_stop else running[done_B[running]]).tolist():
            count = self._stop(slot)
            if count is not None or done_B[slot]:
                self._finish(slot, count)
            if count is not None and not done_B[slot]:
                self._stopped.append(slot)

    def completions(self) -> list[list[Completion]]:
        """`[P_local][G]`, once all have finished."""
        generations = range(self.num_generations)
        return [[self._finished[Row(p, g)] for g in generations] for p in range(len(self.problems))]

    def _stop(self, slot: int) -> int | None:
        """How many tokens to keep, where the text of a slot's row ends in its last window."""
        if not self.find_stop:
            return None
        ids, _ = self._slots.completion(slot)
        return self.find_stop(ids, (len(ids) - 1) // self.plan.window * self.plan.window)

    def _finish(self, slot: int, stopped: int | None) -> None:
        row = self.schedule.leave(slot)
        self._slots.runs_B[slot] = False
        ids, logprobs = (array[:stopped].copy() for array in self._slots.completion(slot))
        ended = stopped is not None or int(ids[-1]) in self.end_ids
        self._finished[row] = completion = Completion(ids, logprobs, ended=ended)
        if self.on_finished:
            self.on_finished(*row, completion)

    def _check(self) -> None:
        longest = self.plan.prompt_columns[-1]
        for problem in self.problems:
            if not 0 < len(problem.prompt_ids) <= longest:
                raise ValueError(
                    f"Problem {problem.index} has {len(problem.prompt_ids)} prompt tokens; "
                    f"this sampler takes 1 to {longest}."
                )
        most = self.plan.max_completion_length
        if self.limits_PG.size and not 1 <= self.limits_PG.min() <= self.limits_PG.max() <= most:
            raise ValueError(
                f"Completions may have 1 to {most} tokens in this sampler; "
                f"got limits from {self.limits_PG.min()} to {self.limits_PG.max()}."
            )
