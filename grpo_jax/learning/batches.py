"""A rollout and its advantages -> fixed-shape minibatches on the mesh.

`packing.py` says where each completion goes; here that becomes arrays. Sizes follow from the config and from
one of three completion widths (a quarter, half or all of the longest allowed), so few programs are ever
compiled. Completions without signal are left out where they have no gradient; how many microbatches that
leaves is an argument of the update, not a shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_jax.learning import packing
from grpo_jax.learning.packing import Piece, PieceShape, Row
from grpo_jax.models.packed_tokens import PackedTokens
from grpo_jax.structs import Rollout, TrainBatch


@dataclasses.dataclass(frozen=True)
class BatchParams:
    """How rows become minibatches; sizes are of this process where they say so."""

    max_prompt_length: int  # columns of a prompt
    max_completion_length: int  # tokens of a completion at most
    num_generations: int  # completions a prompt
    num_rows: int  # completions a step, on this process
    num_minibatches: int  # optimizer updates a pass over the rollout
    num_shards: int  # devices of this process that rows are cut over
    rows_per_device: int  # longest completions of one backward pass on a device
    max_tokens_per_microbatch: (
        int  # of one backward pass on a device, instead of rows_per_device; 0: no limit
    )
    packing: int  # longest completions that a line has room for; 0: every completion has its own line
    share_prompts: bool  # a group's prompt is read once a piece
    mask_truncated_completions: bool  # completions that were cut off are not trained on
    keep_rows_without_signal: bool  # True where they have a gradient all the same (KL, entropy)

    def piece_shape(self, num_columns: int) -> PieceShape:
        """Sizes of a piece for completions of at most `num_columns` tokens."""
        prompt, a_line = self.max_prompt_length, max(self.packing, 1)
        width = a_line * (num_columns + (0 if self.share_prompts else prompt))
        lines = max(self.rows_per_device // a_line, 1)
        group = self.num_generations
        if self.max_tokens_per_microbatch:
            of_prompts = prompt * min(2 * a_line / group, 1.0) if self.share_prompts else 0
            lines = max(int(self.max_tokens_per_microbatch / (width + of_prompts)), 1)
        lines = min(lines, self.num_rows)
        prompts = 0
        if self.share_prompts and self.packing:  # packed, a group may fill half the lines of its rows
            prompts = min(-(-2 * a_line * lines // group), lines)
        elif self.share_prompts:
            straddles = lines % group and group % lines
            prompts = min(-(-lines // group) + bool(straddles), lines)
        return PieceShape(
            num_prompts=prompts,
            prompt_columns=prompt if prompts else 0,
            num_lines=lines,
            line_columns=width,
            num_rows=2 * a_line * lines if self.packing else lines,
            completion_columns=num_columns,
            num_places=lines * (width if self.share_prompts else a_line * num_columns),
        )

    def num_microbatches(self, shape: PieceShape) -> int:
        """A that is enough for any lengths: pieces close for want of lines, of prompts or of rows."""
        rows = self.num_rows // self.num_minibatches
        groups = -(-rows // self.num_generations) + 1
        whole_groups = not rows % self.num_generations and not shape.num_lines % self.num_generations
        if whole_groups and not self.packing:
            pieces = -(-rows // shape.num_lines)
        else:
            pieces = -(-rows // shape.num_lines) + -(-2 * rows // shape.num_rows)
            pieces += -(-groups // shape.num_prompts) if shape.num_prompts else 1
        return -(-min(pieces, rows) // self.num_shards)


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """One update's completions as NumPy arrays of this process."""

    batch: TrainBatch
    num_active: int  # microbatches that hold anything, at least 1 so that the step always measures itself
    num_rows: int  # completions, with those that were left out
    places: list[list[tuple[int, int]]]  # (problem, generation) of each piece's completions, in order of S


def pack(
    rollout: Rollout, advantages_PG: np.ndarray, *, num_columns: int, params: BatchParams
) -> list[Minibatch]:
    """Cuts this process's completions into `num_minibatches` batches.

    Args:
        advantages_PG: float32, of this process's problems.
        num_columns: C, from `completion_columns` of the longest completion over all processes.

    Raises: ValueError if the completions do not divide into minibatches.
    """
    rows = [
        Row(problem, completion, float(advantages_PG[p, g]), (p, g))
        for p, problem in enumerate(rollout.problems)
        for g, completion in enumerate(rollout.completions[p])
    ]
    size, rest = divmod(len(rows), params.num_minibatches)
    if rest:
        raise ValueError(f"{len(rows)} rows do not divide into {params.num_minibatches} minibatches.")
    return [minibatch(rows[i : i + size], num_columns, params) for i in range(0, len(rows), size)]


def completion_columns(longest: int, *, max_completion_length: int) -> int:
    """The narrowest of three widths that holds the longest completion."""
    widths = sorted({-(-max_completion_length // part) for part in (4, 2, 1)})
    return next(width for width in widths if width >= longest)


def minibatch(rows: Sequence[Row], num_columns: int, params: BatchParams) -> Minibatch:
    """Lays completions out as one minibatch with C = `num_columns`."""
    shape = params.piece_shape(num_columns)
    kept = [row for row in rows if params.keep_rows_without_signal or row.advantage != 0]
    kept = kept or list(rows[:1])  # nothing to learn, something to measure
    made = packing.pieces(kept, shape, pack=params.packing > 0)
    arrays = empty(shape, num_microbatches=params.num_microbatches(shape), num_shards=params.num_shards)
    for i, piece in enumerate(made):
        index = divmod(i, params.num_shards)
        _fill(TrainBatch(*(_at(field, index) for field in arrays[:7])), piece, shape, params)
    return Minibatch(
        arrays,
        num_active=-(-len(made) // params.num_shards),
        num_rows=len(rows),
        places=[[row.place for line in piece for row in line] for piece in made],
    )


def empty(shape: PieceShape, *, num_microbatches: int, num_shards: int) -> TrainBatch:
    """A batch of nothing, all zeros, NumPy: for its shapes, or to be filled."""
    lead = (num_microbatches, num_shards)
    y, e, s = shape.num_prompts, shape.num_lines, shape.num_rows
    ints = lambda *sizes: np.zeros((*lead, *sizes), np.int32)  # noqa: E731
    floats = lambda *sizes: np.zeros((*lead, *sizes), np.float32)  # noqa: E731
    return TrainBatch(
        packed=PackedTokens(
            prompts_UYZ=ints(y, shape.prompt_columns),
            prompt_length_UY=ints(y),
            lines_UEW=ints(e, shape.line_columns),
            segments_UEW=ints(e, shape.line_columns),
            positions_UEW=ints(e, shape.line_columns),
            prompt_of_line_UE=ints(e),
        ),
        source_AUQ=ints(shape.num_places),
        targets_AUQ=ints(shape.num_places),
        start_AUS=ints(s),
        completion_mask_AUSC=floats(s, shape.completion_columns),
        advantages_AUS=floats(s),
        sampler_logprobs_AUSC=floats(s, shape.completion_columns),
    )


def _at(field: Any, index: tuple[int, int]) -> Any:
    """Views of one piece."""
    if isinstance(field, PackedTokens):
        return PackedTokens(*(array[index] for array in field))
    return None if field is None else field[index]


def _fill(piece: TrainBatch, lines: Piece, shape: PieceShape, params: BatchParams) -> None:
    """Writes one piece into its views."""
    seen: dict[tuple[int, ...], int] = {}  # prompt -> its place
    s = 0
    for e, line in enumerate(lines):
        column, place = 0, e * (shape.num_places // shape.num_lines)
        for segment, row in enumerate(line, start=1):
            prompt, count = row.problem.prompt_ids, row.completion.num_tokens
            if shape.num_prompts:
                last = _write_shared_prompt(piece.packed, e, prompt, seen.setdefault(prompt, len(seen)))
            else:
                _write(piece.packed, e, column, prompt, segment, first_position=0)
                column += len(prompt)
                last = e * shape.line_columns + column - 1
            _write(piece.packed, e, column, row.completion.ids, segment, first_position=len(prompt))
            first = shape.num_prompts * shape.prompt_columns + e * shape.line_columns + column
            piece.source_AUQ[place] = last
            piece.source_AUQ[place + 1 : place + count] = first + np.arange(count - 1)
            piece.targets_AUQ[place : place + count] = row.completion.ids
            piece.start_AUS[s] = place
            _write_row(piece, s, row, trained=row.completion.ended or not params.mask_truncated_completions)
            column, place, s = column + count, place + count, s + 1


def _write_shared_prompt(packed: PackedTokens, e: int, prompt: Sequence[int], y: int) -> int:
    """Returns: the position of the prompt's last token in the piece."""
    packed.prompts_UYZ[y, : len(prompt)] = prompt
    packed.prompt_length_UY[y] = len(prompt)
    packed.prompt_of_line_UE[e] = y
    return y * packed.prompts_UYZ.shape[1] + len(prompt) - 1


def _write(
    packed: PackedTokens,
    e: int,
    column: int,
    ids: Sequence[int] | np.ndarray,
    segment: int,
    *,
    first_position: int,
) -> None:
    """Tokens of a line, with segment and positions."""
    span = slice(column, column + len(ids))
    packed.lines_UEW[e, span] = ids
    packed.segments_UEW[e, span] = segment
    packed.positions_UEW[e, span] = first_position + np.arange(len(ids))


def _write_row(piece: TrainBatch, s: int, row: Row, *, trained: bool) -> None:
    """What the loss knows of a completion."""
    count = row.completion.num_tokens
    piece.completion_mask_AUSC[s, :count] = float(trained)
    piece.sampler_logprobs_AUSC[s, :count] = row.completion.sampler_logprobs
    piece.advantages_AUS[s] = row.advantage
