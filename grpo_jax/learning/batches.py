"""A rollout and its advantages -> fixed-shape minibatches on the mesh.

Rows are laid out as TRL lays them: prompt left-padded, completion right-padded, so the completion stands
in the same columns of every row. The completion's columns are one of three widths (a quarter, half or all
of the longest allowed), so few programs are ever compiled. Rows of groups without signal are sorted to
the end of a minibatch, where the update can leave them out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from grpo_jax.structs import Completion, Problem, Rollout, TrainBatch


@dataclasses.dataclass(frozen=True)
class BatchParams:
    """How rows become minibatches; sizes are of this process."""

    max_prompt_length: int  # columns of the prompt
    max_completion_length: int  # columns of the completion at most
    num_minibatches: int  # optimizer updates a pass over the rollout
    microbatch_rows: int  # rows of one backward pass, on this process
    mask_truncated_completions: bool  # completions that were cut off are not trained on
    keep_rows_without_signal: bool  # True where they have a gradient all the same (KL)


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """One update's rows as NumPy arrays of this process, and how many microbatches can matter."""

    batch: TrainBatch
    num_active: int  # microbatches, at least 1 so that the step always measures itself


@dataclasses.dataclass(frozen=True)
class Row:
    """One completion with its prompt and what it is worth."""

    problem: Problem
    completion: Completion
    advantage: float


def pack(
    rollout: Rollout, advantages_PG: np.ndarray, *, num_columns: int, params: BatchParams
) -> list[Minibatch]:
    """Cuts this process's rows into `num_minibatches` batches of `[A, B, ...]` arrays.

    Args:
        advantages_PG: float32, of this process's problems.
        num_columns: C, from `completion_columns` of the longest completion over all processes.

    Raises: ValueError if the rows do not divide into minibatches and microbatches.
    """
    rows = [
        Row(problem, completion, advantages_PG[p, g])
        for p, problem in enumerate(rollout.problems)
        for g, completion in enumerate(rollout.completions[p])
    ]
    per_minibatch, rest = divmod(len(rows), params.num_minibatches)
    if rest or per_minibatch % params.microbatch_rows:
        raise ValueError(
            f"{len(rows)} rows do not divide into {params.num_minibatches} minibatches of microbatches "
            f"of {params.microbatch_rows} rows."
        )
    return [
        minibatch(rows[i : i + per_minibatch], num_columns, params)
        for i in range(0, len(rows), per_minibatch)
    ]


def completion_columns(longest: int, *, max_completion_length: int) -> int:
    """The narrowest of three widths that holds the longest completion."""
    widths = sorted({-(-max_completion_length // part) for part in (4, 2, 1)})
    return next(width for width in widths if width >= longest)


def minibatch(rows: Sequence[Row], num_columns: int, params: BatchParams) -> Minibatch:
    """Lays rows out as one minibatch of `[A, B, ...]` arrays with C = `num_columns`."""
    if params.keep_rows_without_signal:
        num_with_signal = len(rows)
    else:
        rows = sorted(rows, key=lambda row: row.advantage == 0)  # stable: order stays otherwise
        num_with_signal = sum(row.advantage != 0 for row in rows)
    size = params.microbatch_rows
    arrays = TrainBatch(*(_stack(column, size) for column in _columns(rows, num_columns, params)))
    return Minibatch(arrays, num_active=max(1, -(-num_with_signal // size)))


def _columns(rows: Sequence[Row], num_columns: int, params: BatchParams) -> list[list[np.ndarray]]:
    """One list of row arrays a field of `TrainBatch`, in its order."""
    width = params.max_prompt_length + num_columns
    fields: list[list[np.ndarray]] = [[] for _ in range(5)]
    for row in rows:
        start, count = params.max_prompt_length, row.completion.num_tokens
        prompt = row.problem.prompt_ids
        tokens_T, valid_T = np.zeros(width, np.int32), np.zeros(width, bool)
        tokens_T[start - len(prompt) : start] = prompt
        tokens_T[start : start + count] = row.completion.ids
        valid_T[start - len(prompt) : start + count] = True
        mask_C, logprobs_C = np.zeros(num_columns, np.float32), np.zeros(num_columns, np.float32)
        trained = row.completion.ended or not params.mask_truncated_completions
        mask_C[:count] = float(trained)
        logprobs_C[:count] = row.completion.sampler_logprobs
        values = (tokens_T, valid_T, mask_C, np.float32(row.advantage), logprobs_C)
        for field, value in zip(fields, values, strict=True):
            field.append(np.asarray(value))
    return fields


def _stack(rows: list[np.ndarray], microbatch_rows: int) -> np.ndarray:
    stacked = np.stack(rows)
    return stacked.reshape(-1, microbatch_rows, *stacked.shape[1:])
