"""The report of an evaluation, for people: report.md and report.html.

Enters: metrics, records and options. Leaves: numbers with their intervals, how many completions are right,
well formed only, or neither, with examples of each, and how long they are. The page holds everything it
shows, runs no script and fetches nothing. Completions are hostile: every text is cut, escaped, and what
would not show is spelled out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax import charts, harmless_text, whole_files
from grpo_jax.charts import escaped
from grpo_jax.evaluation import scores
from grpo_jax.evaluation.evaluation import Record, is_formed, is_right
from grpo_jax.report import PAGE_STYLE

MOST_EXAMPLES = 5  # of a category
QUESTION_CHARS = 300
COMPLETION_CHARS = 600
ANSWER_CHARS = 200
MOST_BINS = 24
ABOUT = {
    "right": "the grader took the answer as right",
    "format only": "well formed, but not right",
    "neither": "not well formed and not right",
    "scored": "no reward of this evaluation grades an answer",
}
COLOURS = {"right": "#2fa24f", "not right": "#e8710a", "scored": "#3b82f6"}


class Example(NamedTuple):
    """One completion as it is shown: texts already cut, not yet escaped."""

    index: int
    question: str
    gold: str
    parsed: str
    outcome: str
    completion: str


class Group(NamedTuple):
    """The completions of one category."""

    name: str  # key of ABOUT
    count: int
    share: float  # of all completions
    examples: list[Example]  # of different problems, the first ones


def write_report(
    folder: Path,
    *,
    metrics: Mapping[str, float],
    records: Sequence[Record],
    options: Mapping[str, Any],
    command: str,
    format_reward: str,
) -> None:
    """Writes FOLDER/report.md and FOLDER/report.html, each in one move."""
    groups = grouped(records, format_reward)
    title = str(options.get("task") or folder.name)
    about = dict(ABOUT)
    if not any(format_reward in sample["rewards"] for record in records for sample in record["samples"]):
        about["format only"] = "an answer could be read, but it is not right"
        about["neither"] = "no answer could be read"
    whole_files.write_text(folder / "report.md", _markdown(title, metrics, groups, options, command, about))
    chart = length_chart(records)
    whole_files.write_text(
        folder / "report.html", _page(title, metrics, groups, options, command, about, chart)
    )


def grouped(records: Sequence[Record], format_reward: str) -> list[Group]:
    """All completions by category, in the order of ABOUT; ungraded ones are one group of their own."""
    counts: dict[str, int] = {}
    examples: dict[str, dict[int, Example]] = {}
    for position, record in enumerate(records):
        for sample in record["samples"]:
            name = category(sample, format_reward)
            counts[name] = counts.get(name, 0) + 1
            shown = examples.setdefault(name, {})
            if len(shown) < MOST_EXAMPLES and position not in shown:
                shown[position] = example(record, sample)
    names = ["scored"] if set(counts) == {"scored"} else scores.CATEGORIES
    total = sum(counts.values())
    return [
        Group(name, counts.get(name, 0), counts.get(name, 0) / total, [*examples.get(name, {}).values()])
        for name in names
    ]


def category(sample: Mapping[str, Any], format_reward: str) -> str:
    if sample["outcome"] == "scored":
        return "scored"
    return scores.category(right=is_right(sample), formed=is_formed(sample, format_reward))


def example(record: Record, sample: Mapping[str, Any]) -> Example:
    return Example(
        record["index"],
        harmless_text.cut_middle(record["question"], QUESTION_CHARS, QUESTION_CHARS),
        harmless_text.cut_middle(record["gold"], ANSWER_CHARS, ANSWER_CHARS),
        harmless_text.cut_middle(sample["parsed"], ANSWER_CHARS, ANSWER_CHARS),
        sample["outcome"],
        harmless_text.cut_middle(sample["completion"], COMPLETION_CHARS, COMPLETION_CHARS),
    )


def numbers(metrics: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """(name, value, how sure it is) of each number, in words, the most wanted first."""
    found = {name.removeprefix("eval/"): value for name, value in metrics.items()}
    for name, value in found.items():
        if name == "accuracy":
            sure = f"95%: {100 * found['accuracy_low']:.1f}% to {100 * found['accuracy_high']:.1f}%"
            if "accuracy_stderr" in found:
                sure += f"; standard error {100 * found['accuracy_stderr']:.1f} points"
            yield name, f"{100 * value:.1f}%", sure
        elif name.startswith("accuracy_"):
            continue
        elif "length" in name:
            yield name, f"{value:.1f}", "tokens"
        elif name == "reward":
            yield name, f"{value:.4g}", "weighted sum, mean over completions"
        elif name == "num_problems":
            yield name, f"{value:,.0f}", ""
        else:
            yield name, f"{100 * value:.1f}%", "of completions" if "@" not in name else ""


def length_chart(records: Sequence[Record]) -> str:
    """How many completions are how long, those that are right apart from the others."""
    lengths = [(sample["num_tokens"], _colour(sample)) for record in records for sample in record["samples"]]
    width = math.ceil(max(length for length, _ in lengths) / MOST_BINS)
    bins: list[dict[str, float]] = [{} for _ in range(math.ceil(max(lengths)[0] / width))]
    for length, name in lengths:
        part = bins[(length - 1) // width]
        part[name] = part.get(name, 0) + 1
    bars = [(i * width + (width + 1) / 2, part) for i, part in enumerate(bins)]
    return charts.stacked_bars(
        bars,
        title="Length of completions",
        x_label="tokens" if width == 1 else f"tokens, {width} a bar",
        y_label="completions",
        colours=COLOURS,
        cut_high=False,
    )


def _colour(sample: Mapping[str, Any]) -> str:
    return "scored" if sample["outcome"] == "scored" else "right" if is_right(sample) else "not right"


def _markdown(
    title: str,
    metrics: Mapping[str, float],
    groups: Sequence[Group],
    options: Mapping[str, Any],
    command: str,
    about: Mapping[str, str],
) -> str:
    lines = [f"# Evaluation: {_cell(title)}", "", *_fenced(command), ""]
    lines += ["| number | value | |", "| --- | ---: | --- |"]
    lines += [f"| {name} | {value} | {sure} |" for name, value, sure in numbers(metrics)]
    lines += ["", "| completions | count | share | |", "| --- | ---: | ---: | --- |"]
    lines += [
        f"| {group.name} | {group.count:,} | {100 * group.share:.1f}% | {about[group.name]} |"
        for group in groups
    ]
    for group in groups:
        lines += ["", f"## Examples: {group.name}"]
        for shown in group.examples:
            text = (
                f"question: {shown.question}\ngold: {shown.gold}\nread: {shown.parsed or '(nothing)'} "
                f"({shown.outcome})\ncompletion:\n{shown.completion}"
            )
            lines += ["", f"Problem {shown.index}", "", *_fenced(text)]
        if not group.examples:
            lines += ["", "none"]
    lines += ["", "## Settings", "", "| option | value |", "| --- | --- |"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in options.items()]
    return "\n".join(lines) + "\n"


def _fenced(text: str) -> list[str]:
    """A block of Markdown that nothing in the text can end."""
    text = harmless_text.printable(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [f"{fence}text", text, fence]


def _cell(value: Any) -> str:
    """Text inside a Markdown table or heading: on one line, no markup."""
    text = harmless_text.printable(str(value)).replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]<>#|&!])", r"\\\1", text)


def _page(
    title: str,
    metrics: Mapping[str, float],
    groups: Sequence[Group],
    options: Mapping[str, Any],
    command: str,
    about: Mapping[str, str],
    chart: str,
) -> str:
    told = "".join(_row(*row) for row in numbers(metrics))
    shares = "".join(
        _row(group.name, f"{group.count:,}", f"{100 * group.share:.1f}%", about[group.name])
        for group in groups
    )
    settings = "".join(_row(name, value) for name, value in options.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{escaped(title)} - grpo_jax evaluation</title><style>{PAGE_STYLE}{TABLE_STYLE}</style></head><body><main>
<header><p class="over">grpo_jax evaluation</p><h1>{escaped(title)}</h1><pre>{escaped(command)}</pre></header>
<section class="charts"><div class="card"><table class="numbers">{told}</table></div>
<figure class="card">{chart}</figure></section>
<section><h2>Completions</h2><div class="card"><table class="numbers">{shares}</table></div></section>
{"".join(_examples(group) for group in groups)}
<section><h2>Settings</h2><details class="card"><summary>What was asked for</summary>
<table>{settings}</table></details></section>
</main></body></html>
"""


def _row(*cells: Any) -> str:
    head, *rest = (escaped(cell) for cell in cells)
    return f"<tr><th>{head}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"


def _examples(group: Group) -> str:
    mark = "right" if group.name in ("right", "scored") else "wrong"
    articles = "".join(
        f'<article class="card"><p class="over">problem {shown.index}</p>'
        f'<p class="question">{escaped(shown.question)}</p>'
        f"<p>gold: <b>{escaped(shown.gold)}</b> &middot; read: <b>{escaped(shown.parsed or 'nothing')}</b> "
        f"({escaped(shown.outcome)})</p>"
        f'<div class="sides"><div class="{mark}"><pre>{escaped(shown.completion)}</pre></div></div></article>'
        for shown in group.examples
    )
    return f"<section><h2>Examples: {escaped(group.name)}</h2>{articles or '<p>none</p>'}</section>"


TABLE_STYLE = """
table{border-collapse:collapse;width:100%}th,td{padding:4px 10px 4px 0;text-align:left;vertical-align:top}
th{font-weight:400;color:var(--dim);white-space:nowrap}td{overflow-wrap:anywhere}
td:nth-child(2){font-weight:600}.numbers td:nth-child(2){white-space:nowrap}
tr+tr{border-top:1px solid var(--line)}
"""
