"""Stop strings: found where decoding every beginning finds them, however the tokens were handed over."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from grpo_jax import text
from grpo_jax.stop_strings import StopStrings

ROOT = Path(__file__).resolve().parent.parent
MIXED = "Tom\u2019s 47 apples 😀😀\ufe0f 漢字測試 né — ok\n\n<think>\nx_1 = 3\n</think>\r\n\n\nQuestion: 👩‍🚀 next?"


@pytest.fixture(scope="module")
def tiny():
    return text.load_tokenizer(ROOT / "configs" / "tiny_qwen")


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def real(request: pytest.FixtureRequest, data_folder: Path):
    return text.load_tokenizer(data_folder / "tokenizers" / request.param)


def encode(tokenizer, string: str) -> np.ndarray:
    return np.array(text.encode(tokenizer, [string])[0], np.int32)


def by_decoding_all(tokenizer, strings: tuple[str, ...], ids: np.ndarray) -> int | None:
    """The definition: the text of every beginning, decoded as completions are."""
    texts = text.decode_completions(tokenizer, [ids[:n] for n in range(len(ids) + 1)])
    return next((n for n, part in enumerate(texts) if any(s in part for s in strings)), None)


def in_windows(stops: StopStrings, ids: np.ndarray, ends: list[int]) -> int | None:
    """Asked at each end in turn, as the engine asks after each window, until something is found."""
    for start, end in pairwise([0, *ends, len(ids)]):
        found = stops.num_tokens(ids[:end], start)
        if found is not None:
            assert start < found <= end
            return found
    return None


def check_all_ways(tokenizer, strings: tuple[str, ...], ids: np.ndarray, rng: random.Random) -> int | None:
    expected = by_decoding_all(tokenizer, strings, ids)
    stops = StopStrings(tokenizer, strings)
    cuts = [sorted(rng.sample(range(1, len(ids)), rng.randrange(min(8, len(ids))))) for _ in range(4)]
    for ends in [[], list(range(1, len(ids))), *cuts]:
        assert in_windows(stops, ids, ends) == expected, (strings, ids.tolist(), ends)
    return expected


def drawn_strings(rng: random.Random, whole: str) -> tuple[str, ...]:
    """One or two pieces of a text, and sometimes one that is not in it."""
    pieces = []
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(whole))
        pieces.append(whole[at : at + rng.choice([1, 2, 3, 8, 30])].replace("\ufffd", "") or "a")
    return (*pieces, "never there") if rng.random() < 0.3 else tuple(pieces)


def test_a_string_is_found_at_the_token_that_completes_it(tiny):
    ids = encode(tiny, "Tom has 47 apples.")  # Tom| has| |4|7| apples|.
    assert len(ids) == 7
    for string, expected in [
        ("Tom", 1),
        ("m h", 2),
        ("47", 5),
        ("7 app", 6),
        (".", 7),
        ("s 4", 4),
        ("48", None),
    ]:
        assert StopStrings(tiny, (string,)).num_tokens(ids, 0) == expected
        assert StopStrings(tiny, ("never", string)).num_tokens(ids, 0) == expected
    assert StopStrings(tiny, ("apples", "4")).num_tokens(ids, 0) == 4  # whichever comes first
    assert StopStrings(tiny, ()).num_tokens(ids, 0) is None


def test_nothing_is_found_in_no_tokens_and_in_no_new_ones(tiny):
    ids = encode(tiny, "Tom has")
    assert StopStrings(tiny, ("x",)).num_tokens(ids[:0], 0) is None
    assert StopStrings(tiny, ("x",)).num_tokens(ids, len(ids)) is None


def test_a_character_of_several_tokens_is_found_at_its_last(tiny):
    ids = encode(tiny, "a😀b")
    assert len(ids) == 6  # four of them for the emoji
    stops = StopStrings(tiny, ("😀",))
    assert stops.num_tokens(ids, 0) == 5
    assert in_windows(stops, ids, [3]) == 5
    special = np.insert(ids, 3, tiny.eos_token_id)  # no part of the text, even inside a character
    assert in_windows(stops, special, [2, 4]) == 6


def test_the_tail_is_as_long_as_it_must_be(tiny):
    """Cut after the first byte of é; a tail of one token less would start inside the emoji and miss it."""
    ids = encode(tiny, "a😀Aé")
    assert len(ids) == 8
    assert [in_windows(StopStrings(tiny, ("😀Aé",)), ids, [end]) for end in range(1, 8)] == [8] * 7


def test_special_tokens_are_no_text_but_tags_are(tiny):
    ids = encode(tiny, "a</answer><|im_end|>")
    assert StopStrings(tiny, ("<|im_end|>",)).num_tokens(ids, 0) is None
    assert StopStrings(tiny, ("a</answer>",)).num_tokens(ids, 0) == 2


def test_many_special_tokens_do_not_hide_what_came_before_them(tiny):
    ids = encode(tiny, "Tom has")
    ids = np.concatenate([ids[:1], np.full(500, tiny.eos_token_id, np.int32), ids[1:]])
    assert in_windows(StopStrings(tiny, ("Tom has",)), ids, [501]) == 502


def test_any_cutting_of_any_tokens_gives_what_decoding_every_beginning_gives(tiny):
    """Random ids: bytes that are no characters, broken characters, special tokens, words."""
    rng, found = random.Random(0), 0
    single_bytes = [index for index in range(len(tiny)) if len(tiny.convert_ids_to_tokens(index)) == 1]
    for _ in range(150):
        some = rng.choice([range(len(tiny)), single_bytes, rng.sample(range(len(tiny)), 6)])
        ids = np.array(rng.choices(some, k=rng.randrange(2, 50)), np.int32)
        (whole,) = text.decode_completions(tiny, [ids])
        found += check_all_ways(tiny, drawn_strings(rng, whole or "a"), ids, rng) is not None
    assert 50 < found < 150


def test_any_cutting_of_mixed_text_gives_the_same(tiny):
    rng = random.Random(1)
    for _ in range(60):
        ids = encode(tiny, MIXED[rng.randrange(20) :])
        assert check_all_ways(tiny, drawn_strings(rng, MIXED[20:]), ids, rng) is not None


def test_a_real_tokenizer_finds_the_same_however_cut(real):
    rng = random.Random(2)
    for _ in range(60):
        ids = encode(real, MIXED[rng.randrange(20) :])
        assert check_all_ways(real, drawn_strings(rng, MIXED[20:]), ids, rng) is not None
    ids = encode(real, MIXED)
    for string in ("漢", "字測", "😀\ufe0f", "👩‍🚀", "hink>\r", "\n\nQ", "pples 😀"):
        assert check_all_ways(real, (string,), ids, rng) is not None


def test_a_long_completion_is_not_decoded_again(tiny, monkeypatch):
    ids = np.tile(encode(tiny, "Tom has 47 apples. "), 1000)
    stops, lengths = StopStrings(tiny, ("\n\nQuestion:",)), []
    decode = stops._text
    monkeypatch.setattr(stops, "_text", lambda part: lengths.append(len(part)) or decode(part))
    assert stops.num_tokens(ids, len(ids) - 64) is None
    assert sum(lengths) < 64 + 3 * stops.tail_length


def test_text_is_cut_before_the_first_of_the_strings():
    stops = StopStrings(None, ("b", "abc", "zz"))  # type: ignore[arg-type]  # no tokens here
    assert stops.cut("xabcb") == "x"
    assert stops.cut("xb abc") == "x"
    assert stops.cut("zz") == ""
    assert stops.cut("x") == "x"
    assert StopStrings(None, ()).cut("x") == "x"  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [("",), ("a", ""), ("a\ufffd",), "abc", ""])
def test_strings_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=r"stop.string.*must.*got .*\.\Z"):
        StopStrings(None, wrong)  # type: ignore[arg-type]
