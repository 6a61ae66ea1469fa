"""The reward of the step's benchmark. The judging processes of our side load this file by its path."""

from __future__ import annotations

import zlib

from grpo_jax.structs import Attempt


def checksum(attempt: Attempt) -> float:
    """Of the completion's text, 0 to 1: it costs nothing, and differs inside every group."""
    return checksum_of_text(attempt.completion)


def checksum_of_text(text: str) -> float:
    return zlib.crc32(text.encode("utf-8", "replace")) / 2**32
