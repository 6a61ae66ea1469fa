"""Two evaluations of the same problems, problem by problem.

Enters: two output folders of `tools/evaluate.py`, of one task or of a suite. Leaves: for each task both
accuracies, their difference with its interval, which problems only one has right, and McNemar's p.
No model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax import harmless_text
from grpo_jax.evaluation import scores
from grpo_jax.evaluation.evaluation import Record, is_right
from grpo_jax.evaluation.evaluation_folder import (
    METRICS_FILE,
    OPTIONS_FILE,
    RECORDS_FILE,
    read_options,
    read_records,
)
from grpo_jax.evaluation.scores import Paired

HEAD = (
    *("task", "problems", "accuracy A", "accuracy B", "B - A (95%)", "both", "only A", "only B"),
    *("neither", "McNemar p"),
)


def compare(folder_a: Path, folder_b: Path) -> str:
    """The comparison as Markdown.

    Raises: FileNotFoundError where a folder has no finished evaluation; ValueError where the two have other
        tasks or problems, naming the first that differs, or where nothing graded the answers.
    """
    tasks_a, tasks_b = tasks_in(folder_a), tasks_in(folder_b)
    if set(tasks_a) != set(tasks_b):
        raise ValueError(
            f"{folder_a} has the tasks {sorted(tasks_a)}, {folder_b} has {sorted(tasks_b)}; compare evaluations "
            "of the same tasks."
        )
    rows = {name: pair(tasks_a[name], tasks_b[name]) for name in tasks_a}
    first = next(iter(tasks_a))
    differences = other_options(read_options(tasks_a[first]), read_options(tasks_b[first]))
    lines = [
        f"A: {harmless_text.printable(str(folder_a))}",
        f"B: {harmless_text.printable(str(folder_b))}",
        *(f"{name}: {a} (A), {b} (B)" for name, a, b in differences),
        "",
        _line(HEAD),
        _line(["---", *("---:" for _ in HEAD[1:])]),
        *(_line(cells(name or "-", paired)) for name, paired in rows.items()),
        "",
        "A problem counts as right where more than half of its samples are. The interval is the normal one of the "
        "paired differences; p is exact and two-sided.",
    ]
    return "\n".join(lines)


def tasks_in(folder: Path) -> dict[str, Path]:
    """The folders of finished evaluations by the name of their task; of a single one the name is ""."""
    places = {"": folder} if (folder / OPTIONS_FILE).is_file() else {}
    if not places and folder.is_dir():
        places = {place.name: place for place in sorted(folder.iterdir()) if (place / OPTIONS_FILE).is_file()}
    if not places:
        raise FileNotFoundError(f"{folder} has no {OPTIONS_FILE}; give the output folder of an evaluation.")
    for place in places.values():
        if not (place / METRICS_FILE).is_file():
            raise FileNotFoundError(
                f"{place} has no {METRICS_FILE}: its evaluation has not ended. The same command goes on with it."
            )
    return places


def pair(folder_a: Path, folder_b: Path) -> Paired:
    """Two finished evaluations of one task."""
    shares: tuple[list[float], list[float]] = [], []
    records_a, records_b = (list(read_records(folder / RECORDS_FILE)) for folder in (folder_a, folder_b))
    for number, (a, b) in enumerate(zip(records_a, records_b, strict=False), start=1):
        check_record(a, number, folder_a)
        check_record(b, number, folder_b)
        for field in ("index", "question", "gold"):
            if a[field] != b[field]:
                raise ValueError(
                    f"line {number} of {folder_a / RECORDS_FILE} and {folder_b / RECORDS_FILE} are different "
                    f"problems: {field} {a[field]!r:.80} and {b[field]!r:.80}. Evaluate both on the same."
                )
        shares[0].append(share_right(a, folder_a))
        shares[1].append(share_right(b, folder_b))
    if len(records_a) != len(records_b):
        longer = records_a if len(records_a) > len(records_b) else records_b
        raise ValueError(
            f"{folder_a} has {len(records_a)} problems, {folder_b} has {len(records_b)}; the first that is missing "
            f"is {longer[len(shares[0])]['index']}. Evaluate both on the same."
        )
    return scores.compare(*shares)


def check_record(record: Record, number: int, folder: Path) -> None:
    """Raises ValueError for what no evaluation of this version has written."""
    if lacking := sorted({"index", "question", "gold", "samples"} - set(record)):
        raise ValueError(
            f"line {number} of {folder / RECORDS_FILE} lacks {', '.join(lacking)}: another version wrote it. Evaluate again."
        )


def share_right(record: Record, folder: Path) -> float:
    samples = record["samples"]
    if any(sample["outcome"] == "scored" for sample in samples):
        raise ValueError(
            f"{folder} has no right and wrong answers: none of its rewards grades one. Evaluate with a reward "
            "that does, such as accuracy."
        )
    return sum(map(is_right, samples)) / len(samples)


def other_options(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, of A, of B) of what the two were asked for differently; the problems are the same."""
    return [
        (name, harmless_text.printable(str(a.get(name))), harmless_text.printable(str(b.get(name))))
        for name in dict.fromkeys((*a, *b))
        if name not in ("weights", "problems") and a.get(name) != b.get(name)
    ]


def cells(name: str, paired: Paired) -> list[str]:
    """One row of the table."""
    p = paired
    return [
        name,
        f"{p.both + p.only_a + p.only_b + p.neither:,}",
        f"{100 * p.accuracy_a:.1f}%",
        f"{100 * p.accuracy_b:.1f}%",
        f"{100 * p.difference:+.1f} ({100 * p.low:+.1f} to {100 * p.high:+.1f}) points",
        *(f"{count:,}" for count in (p.both, p.only_a, p.only_b, p.neither)),
        f"{p.p_value:.3g}",
    ]


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"
