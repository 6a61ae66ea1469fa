"""Known pairs that every judge must grade right before a run may trust it.

A broken installation (another antlr runtime, a missing library) does not raise: it grades
everything wrong, and the run learns nothing for hours. `Judge.self_test` sends these through its
workers and raises on the first mistake. Own rewards take no part: what they must give is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grpo_jax.rewards.registry import RewardSpec
from grpo_jax.structs import Attempt, Judgement


class KnownCase(NamedTuple):
    """One attempt and what the built-in rewards must say of it."""

    completion: str
    answer: str
    outcome: str  # of the accuracy reward
    format_reward: float


KNOWN_CASES = (
    KnownCase("<think>6 * 7</think>\n<answer>42</answer>", "42", "correct", 1.0),
    KnownCase("<think>6 * 7</think>\n<answer>41</answer>", "42", "wrong", 1.0),
    KnownCase("It is \\boxed{1,234.50}", "1234.5", "correct", 0.0),
    KnownCase("<think>root</think>\n<answer>\\boxed{3\\sqrt{8}}</answer>", "6\\sqrt{2}", "correct", 1.0),
    KnownCase("<think>root</think>\n<answer>\\boxed{3\\sqrt{7}}</answer>", "6\\sqrt{2}", "wrong", 1.0),
    KnownCase("Well, \\boxed{(x+1)^2}", "x^2 + 2x + 1", "correct", 0.0),
    KnownCase("I do not know. Perhaps 42.", "42", "unparsable", 0.0),
)


def attempt_of(case: KnownCase) -> Attempt:
    """The case as the rewards see it."""
    return Attempt(case.completion, "", case.answer, len(case.completion) // 4, True)


def mistake(case: KnownCase, specs: Sequence[RewardSpec], judgement: Judgement) -> str:
    """What is wrong with a judgement by the built-in specs, in one line; empty when it is right."""
    right = 1.0 if case.outcome == "correct" else 0.0
    expected = {"accuracy": right, "format": case.format_reward}
    names = [spec.name for spec in specs if not spec.path]
    outcome = case.outcome if "accuracy" in names else "scored"
    if judgement.outcome == outcome and judgement.rewards == tuple(expected[n] for n in names):
        return ""
    return (
        f"the judge misgrades {case.completion!r} against {case.answer!r}: it must be {outcome} "
        f"with {', '.join(f'{name} {expected[name]}' for name in names)}; got {judgement.outcome} "
        f"with {judgement.rewards}. Is math-verify[antlr4_13_2] installed as setup.py asks?"
    )
