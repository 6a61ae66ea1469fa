"""Texts made to fool, hang, kill or enter the judge."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from grpo_jax.rewards import pool
from grpo_jax.structs import Attempt

Write = Callable[[str, str], Attempt]

BOMBS = [
    "9^{9^{9^{9}}}",
    "9**9**9**9",
    "((9^9)^{9999})^{9999}",
    "((999!)!)!",
    "\\binom{1000000000}{500000000}",
    "\\binom{9^{9^9}}{9^9}",
    "9" * 100_000,
    "9" * 59 + "^{9999}",
    "1e999999999",
    "9^{99999999} \\bmod 7",
    "\\operatorname{zeros}(999999,999999)",
    "(x+y+z+w)^{99999}",
]
NESTS = [
    "(" * 5000 + "5" + ")" * 5000,
    "(" * 12 + "x" + ")" * 12,
    "{" * 5000 + "}" * 5000,
    "\\boxed{" * 20_000,
    "\\boxed{" * 3000 + "5" + "}" * 3000,
    "\\sqrt{2+" * 12 + "x" + "}" * 12,
    "-" * 900 + "5",
    "|" * 900,
]
NOISE = [
    "x" * 100_000,
    "1+" * 50_000 + "1",
    "\\frac{" * 30_000,
    " " * 100_000 + "6",
    "5\u202e6\u202c",
    "6\x00",
    "\ud800",
    "\u0665",
    "$" * 30_000,
    ",".join(map(str, range(200))),
]


def test_bombs_nests_and_noise_earn_nothing_and_break_nothing(judge: pool.Judge, attempt: Write) -> None:
    texts = BOMBS + NESTS + NOISE
    start = time.monotonic()
    for index, text in enumerate(texts):
        judge.submit(index, attempt(text, "5"))
        judge.submit(-1 - index, attempt(f"\\boxed{{{text}}}", "x+5"))
        judge.submit(("plain", index), attempt(str(index), "7"))
    judgements = judge.collect()
    seconds = time.monotonic() - start
    for index, text in enumerate(texts):
        for key in (index, -1 - index):
            accuracy = judgements[key].rewards[0]
            opened = text.endswith("5" + "}" * 3000)  # 3000 boxes around the right answer
            assert accuracy == 0.0 or (opened and key == index), text[:40]
            assert judgements[key].outcome != "crashed", text[:40]
            assert len(judgements[key].parsed) <= 200
            assert judgements[key].seconds < 10.0
        plain = judgements["plain", index]
        assert plain.outcome == ("correct" if index == 7 else "wrong")
    # Two workers; alone this takes about 10 s. A minute is far below one hang at each deadline.
    assert seconds < 60.0


def test_nothing_of_a_completion_is_run(judge: pool.Judge, attempt: Write, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    call = f"__import__('os').system('touch {canary}')"
    forms = [
        call,
        f"\\text{{{call}}}",
        f"1+1 if {call} else 2",
        f"\\operatorname{{{call}}}(5)",
        f"eval({call!r})",
        f"[{call} for _ in (1,)][0]",
        f"x = {call}",
        f"\\frac{{{call}}}{{2}}",
        f"$5${call}",
    ]
    for index, form in enumerate(forms):
        judge.submit((index, "bare"), attempt(form, "5"))
        judge.submit((index, "box"), attempt(f"\\boxed{{{form}}}", "x+5"))
        judge.submit((index, "gold"), attempt("\\boxed{x+6}", form))
    judgements = judge.collect()
    assert not canary.exists()
    assert {judgement.rewards[0] for judgement in judgements.values()} == {0.0}
    assert {judgement.outcome for judgement in judgements.values()} <= {"wrong", "unparsable"}


def test_a_parsed_text_can_be_printed(judge: pool.Judge, attempt: Write) -> None:
    judge.submit(0, attempt("\ud800 half a pair", "5"))
    assert judge.collect()[0].parsed.encode("utf-8") == b"? half a pair"
