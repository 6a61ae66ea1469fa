"""Rewards that tell completions of a random model apart."""

from grpo_jax.structs import Attempt


def letters(attempt: Attempt) -> float:
    """The share of the letter e."""
    return attempt.completion.count("e") / max(len(attempt.completion), 1)


def has_q(attempt: Attempt) -> float:
    """Whether there is a letter q, which is rare: some groups have none and are flat."""
    return float("q" in attempt.completion)
