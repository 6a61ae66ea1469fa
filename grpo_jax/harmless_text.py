"""Text of others, made fit for a terminal or a page: nothing steers it, nothing is too long for it."""

from __future__ import annotations

import unicodedata
from typing import TextIO


def printable(text: str) -> str:
    """Text in which nothing can steer a terminal or a page; line ends stay.

    Control, format (also the marks that turn the writing direction), private and surrogate characters
    become escapes such as `\\x1b`.
    """
    return "".join(character if _is_harmless(character) else _escaped(character) for character in text)


def _is_harmless(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in (
        *("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"),
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def encodable(text: str, stream: TextIO) -> str:
    """Text that the stream can write, whatever its encoding: a narrow locale must not end a run."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def cut_middle(text: str, max_characters: int, max_lines: int = 12) -> str:
    """Long text without its middle, which is where a reader misses least, with a word about it."""
    lines = text.split("\n")
    if len(lines) > max_lines:
        half = max_lines // 2
        gap = f"[... {len(lines) - 2 * half} lines left out ...]"
        text = "\n".join([*lines[:half], gap, *lines[-half:]])
    if len(text) > max_characters:
        half = max_characters // 2
        gap = f" [... {len(text) - 2 * half} characters left out ...] "
        text = text[:half] + gap + text[-half:]
    return text
