"""What a person sees while a run goes on: one aligned line a step, tables of samples, a progress bar.

Enters: metrics by name, sample records, sentences. Leaves: text on a stream. On a terminal it is drawn
with rich (bar, colours, tables); anywhere else it is plain lines without colour codes, flushed one by one.
Completions are hostile text: whatever could steer a terminal is shown as an escape, never sent.
"""

from __future__ import annotations

import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TextIO

from grpo_jax.harmless_text import cut_middle, encodable, printable
from grpo_jax.step_lines import GRPO_TABLE, StepLines, Table, number

WIDTH_FOR_TABLES = 100  # columns; a narrower terminal gets samples as plain blocks


class Screen(Protocol):
    """Where the telling goes. `PlainScreen` and `RichScreen` are the two there are."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def message(self, text: str) -> None: ...
    def samples(self, step: int, records: Sequence[Mapping[str, Any]]) -> None: ...
    def close(self) -> None: ...


def open_screen(
    stream: TextIO | None = None,
    *,
    num_steps: int,
    first_step: int,
    max_characters: int,
    table: Table = GRPO_TABLE,
) -> Screen:
    """The screen that fits the stream (default: stdout): rich on a terminal, plain otherwise.

    Args:
        table: of the step lines.
        first_step: the first step that will be told; the bar starts just before it.
        max_characters: longer questions and completions are cut in the middle.
    """
    out = stream or sys.stdout
    if out.isatty() and os.environ.get("TERM") != "dumb":
        return RichScreen(
            out, num_steps=num_steps, first_step=first_step, max_characters=max_characters, table=table
        )
    return PlainScreen(out, num_steps=num_steps, max_characters=max_characters, table=table)


class PlainScreen:
    """Lines of plain text, for log files and pipes."""

    def __init__(self, stream: TextIO, *, num_steps: int, max_characters: int, table: Table = GRPO_TABLE):
        self._stream = stream
        self._lines = StepLines(num_steps, table=table)
        self._max_characters = max_characters

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        for line in self._lines.lines(step, metrics):
            self._print(line)

    def message(self, text: str) -> None:
        self._print(printable(text))

    def samples(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        self._print(f"samples of step {step}")
        for index, record in enumerate(records, start=1):
            self._print(sample_block(record, index, self._max_characters))

    def close(self) -> None:
        self._stream.flush()

    def _print(self, text: str) -> None:
        print(encodable(text, self._stream), file=self._stream, flush=True)


class RichScreen:
    """A progress bar at the bottom of the terminal and everything else above it."""

    def __init__(
        self,
        stream: TextIO,
        *,
        num_steps: int,
        first_step: int,
        max_characters: int,
        width: int | None = None,
        table: Table = GRPO_TABLE,
    ):
        from rich import console, progress

        self._stream = stream
        self._console = console.Console(file=stream, force_terminal=True, width=width, highlight=False)
        self._lines = StepLines(num_steps, width=self._console.width, table=table)
        self._first = table.columns[0]  # which the bar repeats
        self._max_characters = max_characters
        self._progress = progress.Progress(
            progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[last]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=2,  # the cores are busy with training
            expand=True,
        )
        self._task = self._progress.add_task("", total=num_steps, completed=max(first_step - 1, 0), last="")
        self._progress.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        *head, line = self._lines.lines(step, metrics)
        for text in head:
            self._print(text, style="bold")
        self._print(line)
        first = self._first
        last = f"{first.header} {number(metrics.get(first.metric), first.width, first.style)}"
        self._progress.update(self._task, completed=step, last=last)

    def message(self, text: str) -> None:
        self._print(printable(text), style="cyan")

    def samples(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        if self._console.width < WIDTH_FOR_TABLES:
            self._print(f"samples of step {step}", style="bold")
            for index, record in enumerate(records, start=1):
                self._print(sample_block(record, index, self._max_characters, self._console.width))
        else:
            self._console.print(sample_table(step, records, self._max_characters, stream=self._stream))

    def close(self) -> None:
        self._progress.stop()

    def _print(self, text: str, style: str = "") -> None:
        # A string would be read as rich markup, a Text is not.
        from rich.text import Text

        self._console.print(Text(encodable(text, self._stream), style=style), soft_wrap=True)


def sample_block(record: Mapping[str, Any], index: int, max_characters: int, width: int = 100) -> str:
    """One sample as plain text, its lines at most `width` wide where words allow.

    Each line of a question or completion is led by a bar, so that it cannot pose as a line of ours.
    """
    cells = sample_cells(record, max_characters)
    facts = "  ".join(f"{name} {cells[name] or '-'}" for name in ("gold", "parsed", "rewards", "advantage"))
    lines = [f"  {index}. {cells['outcome']}  {facts}".replace("\n", " ")]
    for name in ("question", "completion"):
        label = name
        for line in cells[name].split("\n"):
            for piece in textwrap.wrap(line, max(width - 18, 20)) or [""]:
                lines.append(f"     {label:<10} | {piece}")
                label = ""
    return "\n".join(lines)


def sample_table(
    step: int, records: Sequence[Mapping[str, Any]], max_characters: int, *, stream: TextIO
) -> Any:
    """The samples as a rich table."""
    from rich.table import Table
    from rich.text import Text

    widths = {
        "question": 20,
        "completion": 30,
        "gold": 4,
        "parsed": 12,
        "rewards": 10,
        "advantage": 9,
    }
    table = Table(title=f"samples of step {step}", expand=True, show_lines=True)
    for name, width in widths.items():
        table.add_column(name, min_width=width, ratio=width // 4, overflow="fold")
    for record in records:
        cells = sample_cells(record, max_characters)
        cells["parsed"] += f"\n({cells['outcome']})"
        cells["rewards"] = cells["rewards"].replace(", ", "\n")
        # A string would be read as rich markup, a Text is not.
        row = {name: Text(encodable(cells[name], stream)) for name in widths}
        row["parsed"].stylize({"correct": "green", "wrong": "red"}.get(cells["outcome"], "yellow"))
        table.add_row(*row.values())
    return table


def sample_cells(record: Mapping[str, Any], max_characters: int) -> dict[str, str]:
    """The fields of a sample as harmless text."""
    cells = {
        name: cut_middle(printable(str(record.get(name, ""))), max_characters)
        for name in ("question", "completion", "gold", "parsed", "outcome")
    }
    rewards = record.get("rewards") or {}
    told = (f"{name} {'-' if math.isnan(value) else f'{value:g}'}" for name, value in rewards.items())
    cells["rewards"] = printable(", ".join(told))
    advantage = record.get("advantage")
    cells["advantage"] = "-" if advantage is None else f"{advantage:+.2f}"
    return cells
