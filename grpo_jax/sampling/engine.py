"""The sampler: prompts in, finished completions out, each handed over as soon as its window ends.

The host's part of sampling. Decoding runs in windows of a fixed number of steps (`decode.py`); between
windows the host reads the window's tokens, hands finished completions to whoever waits for them and picks
the next size of the cache, so that only its used part is read. Prompts of a call are padded to one shape
and rows are cut over the mesh's row axes; a call with fewer prompts than the shape has rows that are done
before they start. Enters: the sampling copy of the parameters, `Problem`s, a key. Leaves: `Completion`s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder, kv_cache
from grpo_jax.models.decoder import Model, Params
from grpo_jax.sampling import decode
from grpo_jax.structs import Completion, Problem

OnFinished = Callable[[int, int, Completion], None]
"""`on_finished(p, g, completion)`: positions within this process's problems."""


@dataclasses.dataclass(frozen=True)
class EngineShape:
    """The static sizes of a sampler."""

    num_prompts: int  # a call, over all processes
    num_generations: int  # completions a prompt, G
    max_prompt_length: int  # tokens; prompts are padded to it
    max_completion_length: int  # tokens, the end token counted


class Engine:
    """Samples completions for up to `shape.num_prompts` problems a call.

    Args:
        model: the static model.
        mesh: rows are cut over its row axes.
        shape: the sizes that its programs are compiled for.
        settings: how tokens are chosen and where completions end.
    """

    def __init__(
        self, model: Model, *, mesh: jax.sharding.Mesh, shape: EngineShape, settings: decode.DecodeSettings
    ):
        self.mesh, self.shape, self.settings = mesh, shape, settings
        self.num_rows = _round_up(shape.num_prompts, mesh_lib.num_row_shards(mesh))
        rows = mesh_lib.rows(mesh)
        self._prefill = jax.jit(
            partial(decode.prefill, model, settings=settings),
            static_argnames="num_positions",
            out_shardings=rows,
        )
        self._start = jax.jit(
            partial(decode.start, num_generations=shape.num_generations), out_shardings=rows
        )
        self._grow = jax.jit(
            lambda state, size: state._replace(cache=kv_cache.grow(state.cache, size)),
            static_argnums=1,
            out_shardings=rows,
        )
        self._window = jax.jit(
            partial(decode.decode_window, model, settings=settings),
            donate_argnums=1,
            out_shardings=(rows, decode.WindowOutput(rows, rows, rows, mesh_lib.replicated(mesh))),
        )

    def generate(
        self,
        params: Params,
        problems: Sequence[Problem],
        *,
        step_key: jax.Array,
        on_finished: OnFinished | None = None,
        max_completion_length: int | None = None,
    ) -> list[list[Completion]]:
        """Samples G completions for each of this process's problems.

        Args:
            params: the sampling layout (`SamplingWeights`).
            problems: at most this process's share of `shape.num_prompts`.
            step_key: a key that differs from step to step.
            on_finished: called once a completion, in the order in which they end.
            max_completion_length: a tighter limit than the shape's; compiles nothing.

        Returns: `[P_local][G]` completions.
        """
        limit = min(
            max_completion_length or self.shape.max_completion_length, self.shape.max_completion_length
        )
        state = self._begin(params, problems, step_key, limit)
        collected = _Collected(len(problems), self.shape.num_generations, self.settings.end_ids, on_finished)
        for end in range(self.settings.window, limit + self.settings.window, self.settings.window):
            state = self._fit_cache(state, end)
            state, output = self._window(params, state)
            collected.add(*(mesh_lib.local_rows(x) for x in output[:3]))
            if bool(output.all_done):
                break
        return collected.completions()

    def cache_sizes(self) -> list[int]:
        """The columns the cache may have: after the prompt, room for a quarter, half or all tokens."""
        window = self.settings.window
        rooms = {_round_up(-(-self.shape.max_completion_length // part), window) for part in (4, 2, 1)}
        return sorted(self.shape.max_prompt_length + room for room in rooms)

    def _begin(
        self, params: Params, problems: Sequence[Problem], step_key: jax.Array, limit: int
    ) -> decode.DecodeState:
        local_rows = self.num_rows // jax.process_count()
        if len(problems) > local_rows:
            raise ValueError(
                f"This sampler takes {local_rows} problems a call on this process; got {len(problems)}."
            )
        tokens_PT, length_P = _padded_prompts(problems, local_rows, self.shape.max_prompt_length)
        problem_P = np.zeros(local_rows, np.int32)
        problem_P[: len(problems)] = [problem.index for problem in problems]
        limit_P = np.where(np.arange(local_rows) < len(problems), limit, 0).astype(np.int32)
        last_token_P = tokens_PT[np.arange(local_rows), length_P - 1]
        tokens, length, last, problem, limits = mesh_lib.put_rows(
            self.mesh, (tokens_PT, length_P, last_token_P, problem_P, limit_P)
        )
        cache = self._prefill(params, tokens, length, num_positions=self.cache_sizes()[0])
        return self._start(cache, length, last, problem, limits, step_key)

    def _fit_cache(self, state: decode.DecodeState, end: int) -> decode.DecodeState:
        """Grows the cache where the coming window would not fit behind the longest prompt."""
        needed = self.shape.max_prompt_length + end
        size = next(size for size in self.cache_sizes() if size >= needed)
        return state if state.cache.num_positions >= size else self._grow(state, size)


class SamplingWeights:
    """Makes the sampling copy of the parameters: one jitted cast and relayout, on the devices."""

    def __init__(self, model: Model, *, mesh: jax.sharding.Mesh, shapes: Any, dtype: Any):
        unstack = partial(decoder.unstack, num_layers=model.spec.num_layers, dtype=dtype)
        shardings = mesh_lib.sampling_shardings(mesh, jax.eval_shape(unstack, shapes))
        self._unstack = jax.jit(unstack, out_shardings=shardings)

    def __call__(self, params: Params) -> Params:
        return self._unstack(params)


class _Collected:
    """The tokens of every row so far, and who was finished already."""

    def __init__(
        self,
        num_problems: int,
        num_generations: int,
        end_ids: tuple[int, ...],
        on_finished: OnFinished | None,
    ):
        self.num_generations = num_generations
        self.end_ids = end_ids
        self.on_finished = on_finished
        num_rows = num_problems * num_generations
        self.tokens: list[list[np.ndarray]] = [[] for _ in range(num_rows)]
        self.logprobs: list[list[np.ndarray]] = [[] for _ in range(num_rows)]
        self.finished: dict[int, Completion] = {}

    def add(self, tokens_BW: np.ndarray, logprobs_BW: np.ndarray, done_B: np.ndarray) -> None:
        for row, tokens in enumerate(self.tokens):
            if row in self.finished:
                continue
            emitted = tokens_BW[row] >= 0
            tokens.append(tokens_BW[row][emitted])
            self.logprobs[row].append(logprobs_BW[row][emitted])
            if done_B[row]:
                self._finish(row)

    def _finish(self, row: int) -> None:
        ids, logprobs = np.concatenate(self.tokens[row]), np.concatenate(self.logprobs[row])
        p, g = divmod(row, self.num_generations)
        self.finished[row] = Completion(ids, logprobs, ended=int(ids[-1]) in self.end_ids)
        if self.on_finished:
            self.on_finished(p, g, self.finished[row])

    def completions(self) -> list[list[Completion]]:
        rows = [self.finished[row] for row in range(len(self.tokens))]
        return [rows[i : i + self.num_generations] for i in range(0, len(rows), self.num_generations)]


def _padded_prompts(problems: Sequence[Problem], num_rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded prompt ids int32 `[num_rows, length]` and their lengths; empty rows have length 1."""
    tokens_PT = np.zeros((num_rows, length), np.int32)
    length_P = np.ones(num_rows, np.int32)
    for row, problem in enumerate(problems):
        if not 0 < len(problem.prompt_ids) <= length:
            raise ValueError(
                f"Problem {problem.index} has {len(problem.prompt_ids)} prompt tokens; this sampler takes 1 to {length}."
            )
        tokens_PT[row, : len(problem.prompt_ids)] = problem.prompt_ids
        length_P[row] = len(problem.prompt_ids)
    return tokens_PT, length_P


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
