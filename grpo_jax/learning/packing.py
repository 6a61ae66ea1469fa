"""Which completion goes where: rows into lines, lines into pieces of a microbatch. Plain Python on the host.

A line holds completions of one prompt end to end, so that short ones leave no padding; a piece is what one
device reads in one backward pass, a fixed number of lines and of the prompts that they continue. A prompt
is read once a piece however many of its completions are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grpo_jax.structs import Completion, Problem


@dataclasses.dataclass(frozen=True)
class Row:
    """One completion with its prompt and what it is worth."""

    problem: Problem
    completion: Completion
    advantage: float
    place: tuple[int, int] = (0, 0)  # problem and generation in this process's rollout

    def length(self, *, share_prompts: bool) -> int:
        """Columns that it takes in a line."""
        own = 0 if share_prompts else len(self.problem.prompt_ids)
        return own + self.completion.num_tokens


@dataclasses.dataclass(frozen=True)
class PieceShape:
    """The fixed sizes of a piece; letters as in `structs.py`."""

    num_prompts: int  # Y; 0: prompts stand in the lines
    prompt_columns: int  # Z
    num_lines: int  # E
    line_columns: int  # W
    num_rows: int  # S
    completion_columns: int  # C
    num_places: int  # Q

    @property
    def num_positions(self) -> int:
        """Tokens that the model reads of a piece, padding counted."""
        return self.num_prompts * self.prompt_columns + self.num_lines * self.line_columns


Line = list[Row]
Piece = list[Line]


def pieces(rows: Sequence[Row], shape: PieceShape, *, pack: bool) -> list[Piece]:
    """Lines of rows, grouped into pieces; every row is in exactly one line.

    Args:
        pack: several completions may share a line; otherwise each has its own.
    """
    shared = shape.num_prompts > 0
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.problem.prompt_ids if shared else None, []).append(row)
    made: list[Piece] = []
    prompts: set[object] = set()  # of the piece that is being filled
    num_rows = 0
    for prompt, members in groups.items():
        for line in lines(members, shape, pack=pack):
            full = not made or len(made[-1]) == shape.num_lines or num_rows + len(line) > shape.num_rows
            if full or (shared and len(prompts | {prompt}) > shape.num_prompts):
                made.append([])
                prompts, num_rows = set(), 0
            made[-1].append(line)
            prompts.add(prompt)
            num_rows += len(line)
    return made


def lines(rows: Sequence[Row], shape: PieceShape, *, pack: bool) -> list[Line]:
    """First fit, longest rows first: at most 11/9 of the fewest lines possible (Johnson 1973)."""
    shared = shape.num_prompts > 0
    if not pack:
        return [[row] for row in rows]
    places = shape.num_places // shape.num_lines  # of one line
    made: list[Line] = []
    room: list[int] = []
    scored: list[int] = []
    for row in sorted(rows, key=lambda row: -row.length(share_prompts=shared)):  # stable
        length, count = row.length(share_prompts=shared), row.completion.num_tokens
        for i, line in enumerate(made):
            if room[i] >= length and len(line) < shape.num_rows and scored[i] + count <= places:
                break
        else:
            made.append([])
            room.append(shape.line_columns)
            scored.append(0)
            i = len(made) - 1
        made[i].append(row)
        room[i] -= length
        scored[i] += count
    return made
