"""Rows of one task become problems: fields read, golds found, prompts rendered and tokenised.

Enters: a `ResolvedTask` (`data_params.py`), whose rows `rows.py` reads. Leaves: a `ProblemSet`, which counts
and names what cannot be used. Nothing is dealt to steps here: see `dealing.py` and `streams.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax import text
from grpo_jax.data import prompts
from grpo_jax.data import rows as rows_lib
from grpo_jax.data.data_params import DataParams, ResolvedTask
from grpo_jax.data.rows import Row
from grpo_jax.structs import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_PROBED = 32  # prompts that are decoded again to see that the tokenizer keeps text
TOO_LONG, WITHOUT_GOLD = "too long", "without a gold answer"  # why rows are left out
UNREADABLE, EVALUATED = "with a gold answer that no reward can read", "evaluation problems"

Accept = Callable[[Sequence[Problem]], Sequence[bool]]
"""Says which problems have a gold answer that a reward can read."""


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """The problems of one task that can be used, and the rows that cannot."""

    task: ResolvedTask
    problems: list[Problem]
    num_loaded: int  # rows taken from the source
    offset: int = 0  # a problem's index is its row plus this
    num_rows: int = 0  # rows that the source has
    left: tuple[tuple[str, tuple[int, ...]], ...] = ()  # (reason, rows of the source)

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def weight(self) -> float:
        """The task's share in a mixture, relative."""
        return self.task.weight

    def left_out(self, indices: Collection[int], reason: str) -> ProblemSet:
        """Without the problems of these indices, which are counted under the reason."""
        gone = set(indices)
        rows = tuple(problem.index - self.offset for problem in self.problems if problem.index in gone)
        if not rows:
            return self
        kept = [problem for problem in self.problems if problem.index not in gone]
        return dataclasses.replace(self, problems=kept, left=(*self.left, (reason, rows)))

    def summary(self) -> str:
        """One line for people: what was read, and what was left out with the first rows' numbers."""
        parts = [f"{len(self.problems)} problems from {self.num_loaded} rows"]
        for reason, rows in self.left:
            if rows:
                parts.append(f"{len(rows)} {reason} left out ({first_rows(rows)})")
        return ", ".join(parts)

    def describe(self) -> str:
        """One line: which task, from where, asked how."""
        source = self.task.source
        place = " ".join(part for part in (source.dataset, source.name, source.split) if part)
        return f"task {self.name} ({place}), template {self.task.template_name}"


def load_task(
    task: ResolvedTask, params: DataParams, tokenizer: PreTrainedTokenizerBase, *, offset: int = 0
) -> ProblemSet:
    """Reads, renders and tokenises the problems of one task.

    Args:
        offset: added to row numbers to give problem indices.

    Raises:
        FileNotFoundError: no such file or data set.
        ValueError: a field that the data lacks, a setting or template that does not fit, or nothing
            left to train on.
    """
    check_params(task, params)
    taken, num_rows = rows_lib.read(task, params)
    found = make_problems(taken, task, params, tokenizer, offset=offset)
    if not found.problems:
        raise ValueError(
            f"no problem of {task.source.dataset!r} can be used: {found.summary()}; look at "
            "config.data.answer_field, config.data.answer_pattern and config.data.max_prompt_length "
            f"(now {task.answer_field!r}, {task.answer_pattern!r} and {params.max_prompt_length})"
        )
    return dataclasses.replace(found, num_rows=num_rows)


def make_problems(
    taken: Sequence[tuple[int, Row]],
    task: ResolvedTask,
    params: DataParams,
    tokenizer: PreTrainedTokenizerBase,
    *,
    offset: int = 0,
) -> ProblemSet:
    """The problems of (row number, row) pairs; rows without a gold or with too long a prompt are left out."""
    golds = {index: rows_lib.gold_answer(row, index=index, task=task) for index, row in taken}
    questions = {index: rows_lib.question_text(row, index=index, task=task) for index, row in taken}
    usable = [(index, row) for index, row in taken if golds[index]]
    rendered = prompts.render(
        [questions[index] for index, _ in usable], task.template, tokenizer, thinking=params.enable_thinking
    )
    text.check_round_trip(tokenizer, rendered[:: max(1, len(rendered) // NUM_PROBED)])
    problems, too_long = [], []
    for (index, row), prompt, ids in zip(usable, rendered, text.encode(tokenizer, rendered), strict=True):
        if len(ids) > params.max_prompt_length:
            too_long.append(index)
            continue
        problems.append(
            Problem(
                index=index + offset,
                question=questions[index],
                answer=golds[index],
                prompt=prompt,
                prompt_ids=tuple(ids),
                task=task.name,
                prefill=task.template.prefill,
                response=prompts.response(task.template, rows_lib.solution_text(row, task), golds[index]),
                extra={field: row[field] for field in rows_lib.extra_fields(params)},
            )
        )
    without_gold = tuple(index for index, _ in taken if not golds[index])
    left = ((TOO_LONG, tuple(too_long)), (WITHOUT_GOLD, without_gold))
    return ProblemSet(task, problems, num_loaded=len(taken), offset=offset, left=left)


def check_params(task: ResolvedTask, params: DataParams, *, section: str = "data") -> None:
    """Raises ValueError for a number, a pattern or a template that cannot be used.

    Args:
        section: of the config, "data" or "evaluation", that asks for these problems.
    """
    if params.max_prompt_length < 1:
        raise ValueError(f"config.data.max_prompt_length must be at least 1; got {params.max_prompt_length}")
    if params.max_problems < 0:
        raise ValueError(
            f"config.{section}.max_problems must be at least 0, which takes all; got {params.max_problems}"
        )
    check_pattern("answer_pattern", task.answer_pattern, "the gold answer")
    check_pattern("solution_pattern", task.solution_pattern, "the worked answer")
    prompts.check(task.template, task.template_name, thinking=params.enable_thinking)


def check_pattern(field: str, pattern: str, what: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"config.data.{field} {pattern!r} is no regular expression: {error}") from error
    if pattern and groups != 1:
        raise ValueError(
            f"config.data.{field} must have exactly one group, {what}; got {groups} in {pattern!r}"
        )


def first_rows(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:5])
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{', ...' if len(rows) > 5 else ''}"


def readable(found: ProblemSet, accept: Accept) -> ProblemSet:
    """Without the problems whose gold `accept` cannot read, which are counted."""
    good = accept(found.problems) if found.problems else []
    bad = [problem.index for problem, fine in zip(found.problems, good, strict=True) if not fine]
    return found.left_out(bad, UNREADABLE)


def check_fingerprint(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError where a saved data position belongs to other data; it says what changed."""
    changed = [
        f"{key} was {saved.get(key)!r}, is {value!r}" for key, value in now.items() if saved.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"the saved data position belongs to other data: {'; '.join(changed)}; "
            "restore these settings, or start in a new output folder"
        )


def all_problems(sets: Sequence[ProblemSet]) -> list[Problem]:
    return [problem for found in sets for problem in found.problems]


def digest(problems: Sequence[Problem]) -> str:
    """Changes with any problem's row number, prompt ids or gold answer, and with their order."""
    hashed = hashlib.sha256()
    for problem in problems:
        hashed.update(repr((problem.index, problem.prompt_ids, problem.answer)).encode())
    return hashed.hexdigest()[:16]


def normalised(question: str) -> str:
    return " ".join(question.casefold().split())
