"""Reward for the think/answer format.

The whole completion must be

    <think>reasoning</think>
    <answer>value</answer>

with each of the four tags exactly once, nothing but white space outside and between the two
blocks, and neither block empty. New lines inside the tags are free; the value may be bare or hold
a \\boxed{}. Unlike the line-anchored expression of open-r1, a second block or text after
`</answer>` earns nothing.
"""

from __future__ import annotations

import re

from grpo_jax.structs import Attempt

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_WHOLE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def format_reward(attempt: Attempt) -> float:
    """1.0 for a completion in the strict think/answer format, else 0.0."""
    # Counting first keeps the expression linear: with single tags it has nothing to backtrack to.
    if any(attempt.completion.count(tag) != 1 for tag in _TAGS):
        return 0.0
    match = _WHOLE.fullmatch(attempt.completion)
    return 1.0 if match and match[1].strip() and match[2].strip() else 0.0
