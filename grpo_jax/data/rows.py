"""Rows of one task: read, with the fields that are needed, and what stands in them.

Enters: a `ResolvedTask` (`data_params.py`), which names the source and its fields. Leaves: plain rows, and of
each its question, gold answer and worked answer as text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping
from typing import Any

from grpo_jax.data import sources
from grpo_jax.data.data_params import DataParams, ResolvedTask

Row = dict[str, Any]


def read(task: ResolvedTask, params: DataParams) -> tuple[list[tuple[int, Row]], int]:
    """(row number in the source, its fields) of the rows that are taken, and how many rows there are."""
    source = task.source
    table = sources.read_columns(
        source.dataset, name=source.name, split=source.split, num=params.max_problems
    )
    fields = fields_of(table, task, params)
    columns = {field: table[field] for field in fields}
    num_rows = len(columns[fields[0]])
    order = list(range(num_rows))
    if params.shuffle_seed >= 0:
        random.Random(params.shuffle_seed).shuffle(order)
    taken = order[: params.max_problems or None]
    return [(index, {field: columns[field][index] for field in fields}) for index in taken], num_rows


def extra_fields(params: DataParams) -> list[str]:
    return [field.strip() for field in params.extra_fields.split(",") if field.strip()]


def fields_of(there: Collection[str], task: ResolvedTask, params: DataParams) -> list[str]:
    """The fields that are read; a task's worked answers only where the data has them.

    Raises:
        ValueError: one is missing; it lists the fields there are.
    """
    worked = [task.solution_field] if params.solution_field or task.solution_field in there else []
    needed = list(dict.fromkeys((task.question_field, task.answer_field, *worked, *extra_fields(params))))
    missing = [field for field in needed if field not in there]
    if missing:
        settings = {
            task.question_field: "question_field",
            task.answer_field: "answer_field",
            task.solution_field: "solution_field",
        }
        (only,) = there if len(there) == 1 else ("",)
        commas = " (a .csv has commas between its fields)" if re.search(r"[;\t|]", only) else ""
        raise ValueError(
            f"{task.source.dataset!r} has no field {missing[0]!r}; its fields are {sorted(there)}{commas}; "
            f"set config.data.{settings.get(missing[0], 'extra_fields')}"
        )
    return needed


def question_text(row: Mapping[str, Any], *, index: int, task: ResolvedTask) -> str:
    value = row[task.question_field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"row {index} of {task.source.dataset!r} has no text in {task.question_field!r} but "
            f"{type(value).__name__} {str(value)[:80]!r}; set config.data.question_field to a text field"
        )
    return value


def gold_answer(row: Mapping[str, Any], *, index: int, task: ResolvedTask) -> str:
    """The gold answer without white space around it; "" where the row has none."""
    value = row[task.answer_field]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(
            f"row {index} of {task.source.dataset!r} has {type(value).__name__} in {task.answer_field!r}; "
            "a gold answer must be text or a number; set config.data.answer_field"
        )
    if not task.answer_pattern:
        return str(value).strip()
    match = re.search(task.answer_pattern, str(value))
    return (match[1] or "").strip() if match else ""


def solution_text(row: Mapping[str, Any], task: ResolvedTask) -> str:
    """The worked answer; "" where the task or the row has none."""
    value = row.get(task.solution_field)
    if not isinstance(value, str):
        return ""
    if not task.solution_pattern:
        return value.strip()
    match = re.search(task.solution_pattern, value)
    return (match[1] or "").strip() if match else ""


def is_sound(row: Mapping[str, Any], task: ResolvedTask) -> bool:
    """Whether the row has a question, and a gold answer of the right kind if any."""
    try:
        question_text(row, index=0, task=task)
        gold_answer(row, index=0, task=task)
    except ValueError:
        return False
    return True
