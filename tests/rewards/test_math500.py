"""Every gold answer of MATH-500 and GSM8K, graded by real workers. Needs GRPO_JAX_DATA."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

from grpo_jax.rewards import pool
from grpo_jax.structs import Attempt

EQUAL_NEIGHBOURS = {22, 186, 403}
"""Rows whose answer equals the next one: 5 and x=5, 7 and 7, 3 and 3."""


def _rows(file: pathlib.Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_all_math500_golds_are_right_and_wrong_against_the_next(
    data_folder: pathlib.Path, judge: pool.Judge, attempt: Callable[[str, str], Attempt]
) -> None:
    golds = [row["answer"] for row in _rows(data_folder / "math500" / "test.jsonl")]
    assert len(golds) == 500
    for row, gold in enumerate(golds):
        boxed = f"\\boxed{{{gold}}}"
        judge.submit(("own", row), attempt(boxed, gold))
        judge.submit(("next", row), attempt(boxed, golds[(row + 1) % 500]))
    judgements = judge.collect()
    own = [judgements["own", row] for row in range(500)]
    assert [golds[row] for row in range(500) if own[row].outcome != "correct"] == []
    assert all(judgement.rewards == (1.0, 1.0) for judgement in own)
    outcomes = [judgements["next", row].outcome for row in range(500)]
    assert {row for row in range(500) if outcomes[row] == "correct"} == EQUAL_NEIGHBOURS
    assert set(outcomes) == {"correct", "wrong"}  # nothing timed out, nothing was unreadable


def test_all_gsm8k_golds_are_right_plain_with_commas_and_as_money(
    data_folder: pathlib.Path, judge: pool.Judge, attempt: Callable[[str, str], Attempt]
) -> None:
    rows = _rows(data_folder / "gsm8k" / "test.jsonl")
    golds = [row["answer"].rpartition("####")[2].strip() for row in rows]
    assert len(golds) == 1319
    for row, gold in enumerate(golds):
        plain = gold.replace(",", "")
        for spelling in {plain, f"{int(plain):,}", f"${plain}", f"{plain}.00"}:
            judge.submit((row, spelling), attempt(spelling, gold))
        judge.submit((row, "wrong"), attempt(str(int(plain) + 1), gold))
    for (row, spelling), judgement in judge.collect().items():
        assert judgement.outcome == ("wrong" if spelling == "wrong" else "correct"), golds[row]
