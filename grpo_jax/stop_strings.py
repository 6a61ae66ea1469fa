"""Stop strings: where in a completion's tokens a text appears for the first time.

They are looked for in the text as it is judged, never among token ids: a string may begin and end inside
tokens and its characters may be spread over several. Nothing is tokenised anew.

Asked again and again while a completion grows, only the new tokens and a short tail of the old ones are
decoded. That this finds the same as decoding all rests on byte-level tokenizers such as Qwen's, whose text is
the tokens' bytes one after another, read as UTF-8:

- The text of fewer tokens is the beginning of the text of more, but for its last character, which stands
  for bytes of a character that is not whole yet. So a string that is new begins at most as many characters
  before the end of the old text as it is long.
- A tail that starts inside a character differs from the end of the whole text in up to three replacement
  characters at its start, for the bytes that lack their beginning. A stop string contains none of those.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character are decoded to
MOST_BROKEN = 3  # replacement characters at the start of a tail; a character has at most four bytes


class StopStrings:
    """Finds the first of some strings in the text of completions.

    Args:
        tokenizer: a byte-level one. Special tokens are no part of the text, nor of a stop string found.
        strings: none may be empty; with no string at all nothing is ever found.

    Raises:
        ValueError: a string that is empty or contains the replacement character; a string in place of several.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]):
        if isinstance(strings, str):
            raise ValueError(f"stop_strings must be a tuple of strings; got the string {strings!r} alone.")
        if wrong := [string for string in strings if not string or REPLACEMENT in string]:
            raise ValueError(
                f"a stop string must be text, not empty and without {REPLACEMENT!r}; got {wrong[0]!r}."
            )
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        self.tail_length = max(map(len, self.strings), default=0) + MOST_BROKEN  # characters

    def num_tokens(self, ids: np.ndarray, start: int) -> int | None:
        """The smallest n such that the text of `ids[:n]` contains a stop string; None if there is none.

        Args:
            ids: int32, the tokens of a completion so far.
            start: how many of them were searched before; the text of `ids[:start]` must contain none.
        """
        first = self._tail_start(ids, start)
        if not self._found(ids[first:]):
            return None
        # once found, always found: more tokens leave the text before them as it is
        counts = range(start + 1, len(ids))
        return start + 1 + bisect.bisect_left(counts, True, key=lambda n: self._found(ids[first:n]))

    def cut(self, text: str) -> str:
        """The text before the first stop string; all of it if there is none."""
        return text[: min((at for string in self.strings if (at := text.find(string)) >= 0), default=None)]

    def _tail_start(self, ids: np.ndarray, start: int) -> int:
        """From where to decode such that the text of what was searched before is long enough."""
        num_ids = self.tail_length
        while num_ids < start and len(self._text(ids[start - num_ids : start])) < self.tail_length:
            num_ids *= 2  # special tokens, or tokens of single bytes
        return max(0, start - num_ids)

    def _found(self, ids: np.ndarray) -> bool:
        text = self._text(ids)
        return any(string in text for string in self.strings)

    def _text(self, ids: np.ndarray) -> str:
        """As `text.decode_completions` decodes."""
        return self.tokenizer.decode(  # type: ignore[return-value]
            ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
