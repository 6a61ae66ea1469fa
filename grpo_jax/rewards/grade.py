"""What a reward function may take and return, and what becomes of everything else.

    def name(attempt: Attempt, *, option: float = 1.0) -> float | Grade | None
    def name(attempts: list[Attempt], ...) -> list of those, one an attempt

The second form, told by its parameter's name `attempts`, is called once with all completions of a problem.
Either may be `async def`. Options are keyword-only: numbers, texts, truth values.

| a function                                     | its attempt                                       | outcome |
| --- | --- | --- |
| returns a finite number (NumPy's scalars too)  | has this reward                                   | scored |
| returns a `Grade`                              | has its reward; the first `Grade` names the outcome | the Grade's |
| returns None, or a `Grade` of None             | the reward is NaN: nothing is said, others count  | as above |
| raises anything, SystemExit too                | earns 0 of every reward                           | failed |
| returns NaN, infinity, a text, a list, an array | earns 0 of every reward                          | failed |
| takes longer than `timeout_s`                  | earns 0 of every reward; the worker is killed     | timed_out |
| eats memory, ends its process                  | earns 0 of every reward; the worker is replaced   | crashed |

A function of `attempts` that returns another number of rewards, or no sequence, fails all attempts of this
one group; a bad element fails its own attempt alone. Where such a function raises, hangs or ends its process,
its group pays and nobody else. Columns that break the rules of `Grade.columns` are a failure too. Nothing of
this is silent: every outcome is a metric, and the judge tells the first cause with the function's name.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from grpo_jax import secret_values
from grpo_jax.structs import OUTCOMES

PARSED_CHARS = 200
"""Characters that are kept of the answer that was read, and of a column's text."""

_READ_CHARS = 16_384

MAX_COLUMNS = 16
MAX_NAME_CHARS = 64

LOST = ("crashed", "timed_out", "failed")
"""Outcomes that earn 0 of every reward, the gravest first."""

OWN_OUTCOMES = tuple(outcome for outcome in OUTCOMES if outcome not in ("crashed", "failed"))


@dataclasses.dataclass(frozen=True)
class Grade:
    """A reward together with how the answer was read."""

    reward: float | None  # finite, any scale; None: nothing is said of the attempt
    outcome: str = (
        "scored"  # "correct", "wrong", "unparsable", "timed_out" (then every reward is 0), "scored"
    )
    parsed: str = ""  # the answer as it stands in the completion; the judge keeps PARSED_CHARS of it
    columns: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    """What shall be logged: at most MAX_COLUMNS finite numbers or texts, cut at PARSED_CHARS. The steps' metrics
    have the means of the numbers, samples.jsonl has all."""


RewardFunction = Callable[..., Any]
"""See the head of this file; the judge checks what comes back."""


def as_grade(result: Any) -> Grade:
    """What a function returned, as a Grade with plain numbers; the reward is NaN where it said nothing.

    Raises: TypeError or ValueError for what is none of number, Grade and None.
    """
    if not isinstance(result, Grade):
        result = Grade(result)
    reward = math.nan if result.reward is None else _number(result.reward, "a reward")
    if result.outcome not in OWN_OUTCOMES or not isinstance(result.parsed, str):
        raise ValueError(
            f"a Grade needs an outcome of {OWN_OUTCOMES} and parsed as text; got {result.outcome!r} "
            f"and a {type(result.parsed).__name__}"
        )
    return Grade(reward, result.outcome, printable(result.parsed), _columns(result.columns))


def printable(text: str, num_chars: int = PARSED_CHARS) -> str:
    """The beginning of a text, without secrets of the environment, in what UTF-8 can say: half a surrogate pair
    would end the trainer's files."""
    clean = secret_values.redacted(text[:_READ_CHARS])  # before it is cut: half a secret is not recognised
    return clean[:num_chars].encode("utf-8", "replace").decode()


def _number(value: Any, what: str) -> float:
    if isinstance(value, float) and math.isfinite(value):  # nearly always; NumPy's float64 too
        return float(value)
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0:
        value = item()
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{what} must be a number; got a {type(value).__name__}")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite; got {value}")
    return value


def _columns(columns: Any) -> dict[str, float | str]:
    if not columns:
        return {}
    if not isinstance(columns, Mapping) or len(columns) > MAX_COLUMNS:
        raise ValueError(f"Grade.columns must be a dictionary of at most {MAX_COLUMNS} entries")
    for name in columns:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
            raise ValueError(f"a column's name must be a text of 1 to {MAX_NAME_CHARS} characters")
    return {
        printable(name): printable(value)
        if isinstance(value, str)
        else _number(value, f"the column {name!r}")
        for name, value in columns.items()
    }
