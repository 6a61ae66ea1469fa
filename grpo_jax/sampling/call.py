"""One call of the sampler as the host sees it: which row is where, and what it has said so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        self._pieces: dict[Row, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._num_tokens = np.zeros(shape, np.int64)
        self._finished: dict[Row, Completion] = {}
        self._stopped: list[int] = []  # slots whose row the host has ended

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
            problem = self.problems[arrival.row.problem]
            news[arrival.shard * num_slots + arrival.slot] = (
                arrival.place,
                len(problem.prompt_ids),
                problem.prompt_ids[-1],
                problem.index,
                arrival.row.generation,
                self.limits_PG[arrival.row],
            )
        return news

    def columns_needed(self) -> int:
        """Columns that the cache must have for the next window.

        A row that reaches its limit in the window may write past the end: nobody reads it again.
        """
        needed = 0
        for _, row in self.schedule.running():
            goes_on = self._num_tokens[row] + self.plan.window < self.limits_PG[row]
            needed = max(needed, self._length(row) + (self.plan.window if goes_on else 0))
        return needed

    def read(
        self, tokens_BW: np.ndarray, logprobs_BW: np.ndarray, done_B: np.ndarray, counters: Counters
    ) -> None:
        """Takes in a window's tokens; hands over what has finished and frees its slots."""
        running = self.schedule.running()
        emitted_B = (tokens_BW >= 0).sum(axis=1)
        counters.add_window(
            emitted_B[[slot for slot, _ in running]],
            np.array([self._length(row) for _, row in running]),
            slots=len(tokens_BW),
            steps=self.plan.window,
        )
        for slot, row in running:
            count = emitted_B[slot]
            piece = (tokens_BW[slot, :count], logprobs_BW[slot, :count])
            self._pieces.setdefault(row, []).append(piece)
            self._num_tokens[row] += count
            stopped = self._stop(row) if self.find_stop else None
            if stopped is not None or done_B[slot]:
                self.schedule.leave(slot)
                self._finish(row, stopped)
            if stopped is not None and not done_B[slot]:
                self._stopped.append(slot)

    def completions(self) -> list[list[Completion]]:
        """`[P_local][G]`, once all have finished."""
        generations = range(self.num_generations)
        return [[self._finished[Row(p, g)] for g in generations] for p in range(len(self.problems))]

    def _length(self, row: Row) -> int:
        """Columns that a row has filled: its prompt and tokens, but for the last one, not yet read."""
        return len(self.problems[row.problem].prompt_ids) - 1 + int(self._num_tokens[row])

    def _stop(self, row: Row) -> int | None:
        ids = np.concatenate([ids for ids, _ in self._pieces[row]])
        assert self.find_stop
        return self.find_stop(ids, len(ids) - len(self._pieces[row][-1][0]))

    def _finish(self, row: Row, stopped: int | None) -> None:
        ids, logprobs = (np.concatenate(parts) for parts in zip(*self._pieces.pop(row), strict=True))
        ids, logprobs = ids[:stopped], logprobs[:stopped]
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
