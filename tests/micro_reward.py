"""A reward that tells completions of a random model apart."""

from grpo_jax.structs import Attempt


def letters(attempt: Attempt) -> float:
    """The share of the letter e."""
    return attempt.completion.count("e") / max(len(attempt.completion), 1)
