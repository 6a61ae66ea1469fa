"""Reading the final answer of a completion, as text.

A completion enters, the text of its final answer leaves, tidied; numbers become exact fractions.
Nothing here evaluates anything or imports more than the standard library, and every function takes
time linear in its input: completions are hostile text. `math_reward.py` decides what is right.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

READ_CHARS = 20_000
"""Only this much of the end of a completion is searched for its answer."""

ANSWER_CHARS = 1_000
"""A longer answer is refused: the longest gold answers in use have about 200 characters."""

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOX_WORD = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
_MAX_NESTED_BOXES = 3
_MAX_BRACKET_DEPTH = 12
_MAX_DIGIT_RUN = 60
_LONG_EXPONENT = re.compile(r"[0-9.][eE][-+]?[0-9]{4}")
# Commands that the LaTeX reader computes while it reads, before a tree could be looked at.
_COMPUTED_AT_ONCE = re.compile(r"\\(?:d|t)?binom|\\choose|\\[gG]amma|\\operatorname|vmatrix|\\det")

_TIDY = (
    (re.compile(r"[\u2212\u2013\uff0d]"), "-"),  # minus signs of other alphabets
    (re.compile(r"(?<!\\)\\!\s*"), ""),
    (re.compile(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))"), ""),  # thin space between thousands
    (re.compile(r"(?<!\\)\\[,;: ]|~|\u00a0"), " "),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])"), ""),
    (re.compile(r"\\displaystyle(?![a-zA-Z])"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\?\$|(?<!\\)\\[()\[\]]"), ""),
)
_PERCENT = re.compile(r"\s*\\?%$")
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit|textrm)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\s+")

_SIGN = r"(?P<sign>[-+]?)\s*"
_NUMBER = re.compile(_SIGN + r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.(?P<decimals>[0-9]*))?")
_SLASH = re.compile(_SIGN + r"(?P<top>[0-9]+)\s*/\s*(?P<bottom>[0-9]+)")
_FRAC = re.compile(
    _SIGN
    + r"\\frac\s*(?:\{\s*(?P<top>-?[0-9]+)\s*\}|(?P<top1>[0-9]))"
    + r"\s*(?:\{\s*(?P<bottom>[0-9]+)\s*\}|(?P<bottom1>[0-9]))"
)


class Number(NamedTuple):
    """A number read exactly."""

    value: Fraction
    decimals: int | None  # digits written behind the point; None for a fraction
    digits: int  # significant digits written; 0 for a fraction


def final_answer(completion: str) -> str | None:
    """The text of the final answer; None where none is given.

    What stands before the last `</think>` is reasoning and not read. The content of the last
    `<answer>...</answer>` is the answer: its last whole box, or all of it when it holds no box.
    Without answer tags it is the last whole box of the text.
    """
    text = completion[-READ_CHARS:]
    text = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start < 0:
        return last_box(text)
    inside = text[start + len("<answer>") : end]
    box = last_box(inside)
    return inside.strip() if box is None else box


def last_box(text: str) -> str | None:
    """Content of the last whole `\\boxed{...}` or `\\fbox{...}`; None without one.

    Of nested boxes the outermost counts, and a box that holds nothing but a box is opened.
    """
    content = None
    for _ in range(_MAX_NESTED_BOXES):
        span = _last_box_span(text)
        if span is None or (content is not None and text[: span[0]].strip()):
            break
        if content is not None and text[span[2] :].strip():
            break
        text = content = text[span[1] : span[2] - 1].strip()
    return content


def _last_box_span(text: str) -> tuple[int, int, int] | None:
    """(start of the command, start of the content, end) of the whole box that closes last."""
    # One pass with a stack: trying each opening by itself is quadratic on a text full of them.
    last, open_boxes = None, []
    for token in _BOX_TOKEN.finditer(text):
        if token[0] == "}":
            opened = open_boxes.pop() if open_boxes else None
            if opened is not None:
                last = (opened.start(), opened.end(), token.end())
        elif token[0] == "{":
            open_boxes.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:
            open_boxes.append(token)
    return last


def refusal(answer: str) -> str:
    """Why a text is not handed to the evaluator, in a few words; empty when it may be."""
    if not answer:
        return "empty"
    if len(answer) > ANSWER_CHARS:
        return "too long"
    if _BOX_WORD.search(answer):
        return "a box without an end or inside another"
    if _bracket_depth(answer) > _MAX_BRACKET_DEPTH:
        return "nested too deeply"
    if _LONG_EXPONENT.search(answer) or _longest_digit_run(answer) > _MAX_DIGIT_RUN:
        return "a number too large"
    if _COMPUTED_AT_ONCE.search(answer) and _longest_digit_run(answer) > 4:
        return "a function of a large number"
    return ""


def _bracket_depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth -= 1
    return deepest


def _longest_digit_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"[0-9]+", text)), default=0)


def tidy(answer: str) -> str:
    """The answer without spacing commands, delimiters, currency and a final percent sign.

    A percent sign is a unit here: 10% is 10, never 0.1, so that it stands for one value only.
    """
    answer = answer.strip().strip("*").strip()
    for pattern, replacement in _TIDY:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip().removesuffix(".").strip()
    return _PERCENT.sub("", answer)


def squeeze(tidied: str) -> str:
    """A tidied answer without white space and text commands, for comparison letter by letter."""
    return _SPACE.sub("", _TEXT_COMMAND.sub(r"\1", tidied))


def read_number(tidied: str) -> Number | None:
    """The exact value of an integer, a decimal or a fraction of integers; None for anything else."""
    if len(tidied) > ANSWER_CHARS:
        return None
    if match := _NUMBER.fullmatch(tidied):
        whole, decimals = (match["whole"] or "").replace(",", ""), match["decimals"] or ""
        if not whole + decimals:
            return None
        value = Fraction(int(whole + decimals), 10 ** len(decimals))
        return Number(_signed(match, value), len(decimals), len((whole + decimals).lstrip("0")))
    match = _SLASH.fullmatch(tidied) or _FRAC.fullmatch(tidied)
    if not match:
        return None
    groups = match.groupdict()
    bottom = int(groups["bottom"] or groups["bottom1"])
    if bottom == 0:
        return None
    return Number(_signed(match, Fraction(int(groups["top"] or groups["top1"]), bottom)), None, 0)


def _signed(match: re.Match[str], value: Fraction) -> Fraction:
    return -value if match["sign"] == "-" else value
