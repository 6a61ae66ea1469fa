"""The line that a step has on the console: which numbers, in columns that fit, and how each is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

HEADER_EVERY_LINES = 20


class Column(NamedTuple):
    """One column of the step lines."""

    header: str
    metric: str
    width: int  # characters, without the two spaces before it; at least 6, so that any number fits
    style: str  # a key of NUMBER_STYLES
    rank: int  # on a narrow terminal the columns with the highest rank are left out first


class Table(NamedTuple):
    """What the step lines of a program show, the most telling number first, and a line that explains them."""

    columns: tuple[Column, ...]
    legend: str


COLUMNS = (
    Column("reward", "reward", 7, "decimals", 0),
    Column("accur", "accuracy", 6, "percent", 0),
    Column("length", "completions/mean_length", 7, "tenths", 0),
    Column("cut", "completions/clipped_ratio", 6, "percent", 2),
    Column("flat", "frac_reward_zero_std", 6, "percent", 1),
    Column("kl", "kl", 7, "small", 1),
    Column("entropy", "entropy", 7, "decimals", 2),
    Column("grad", "grad_norm", 7, "small", 1),
    Column("loss", "loss", 7, "decimals", 3),
    Column("gap", "sampling/sampling_logp_difference/max", 7, "small", 0),
    Column("step s", "time/step", 6, "tenths", 1),
    Column("sample", "time/sample", 6, "tenths", 3),
    Column("judge", "time/judge", 6, "tenths", 3),
    Column("hidden", "judge/hidden", 6, "percent", 4),
    Column("update", "time/update", 6, "tenths", 3),
    Column("tok/s", "tokens_per_second", 7, "whole", 2),
    Column("slots", "sampling/occupancy", 6, "percent", 4),
    Column("roof", "sampling/roofline_share", 6, "percent", 4),
)
LEGEND = (
    "accur: correct completions; length: tokens; cut: reached the length limit; flat: groups whose rewards "
    "are all equal (no signal); gap: largest difference between the sampler's and the trainer's "
    "log-probabilities; step s to update: seconds; judge: waited for it after sampling; hidden: share of judging "
    "that cost no time; slots: share of slots x steps that gave a token; roof: share of what the memory could give"
)
GRPO_TABLE = Table(COLUMNS, LEGEND)
SFT_TABLE = Table(
    (
        Column("loss", "loss", 7, "decimals", 0),
        Column("entropy", "entropy", 7, "decimals", 1),
        Column("grad", "grad_norm", 7, "small", 1),
        Column("rate", "learning_rate", 7, "small", 1),
        Column("epoch", "epoch", 7, "decimals", 1),
        Column("tokens", "num_tokens", 7, "whole", 2),
        Column("step s", "time/step", 6, "tenths", 1),
        Column("tok/s", "tokens_per_second", 7, "whole", 2),
    ),
    "loss: nats a response token, before the update; tokens: of the update's responses; step s: seconds",
)


class StepLines:
    """The step lines of one run: which columns fit, and when the header is due again."""

    def __init__(self, num_steps: int, *, width: int = 0, table: Table = GRPO_TABLE):
        self._step_width = max(len(str(num_steps)), len("step"))
        self._table = table
        self._columns = columns_that_fit(width - self._step_width, table.columns) if width else table.columns
        self._num_lines = 0

    def lines(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """The line of a step, after the header when that is due (and the legend, the first time)."""
        lines = []
        if self._num_lines == 0:
            lines.append(self._table.legend)
            if left_out := [column.header for column in self._table.columns if column not in self._columns]:
                lines.append(f"no room in this terminal for: {', '.join(left_out)} (all are in the files)")
        if self._num_lines % HEADER_EVERY_LINES == 0:
            cells = [f"{column.header:>{column.width}}" for column in self._columns]
            lines.append("  ".join([f"{'step':>{self._step_width}}", *cells]))
        self._num_lines += 1
        cells = [number(metrics.get(column.metric), column.width, column.style) for column in self._columns]
        return [*lines, "  ".join([f"{step:>{self._step_width}}", *cells])]


def columns_that_fit(width: int, columns: Sequence[Column] = COLUMNS) -> tuple[Column, ...]:
    """The most important columns that fit into so many characters, in their usual order."""
    kept = list(columns)
    while len(kept) > 1 and sum(column.width + 2 for column in kept) > width:
        worst = max(range(len(kept)), key=lambda index: (kept[index].rank, index))
        del kept[worst]
    return tuple(kept)


def _small(value: float) -> list[str]:
    """Three decimals, or a power of ten where those would hide the value."""
    return [_power(value, 1)] if 0 < abs(value) < 0.01 else [f"{value:.3f}", f"{value:.1f}"]


NUMBER_STYLES = {
    "whole": lambda value: [f"{value:.0f}"],
    "tenths": lambda value: [f"{value:.1f}", f"{value:.0f}"],
    "decimals": lambda value: [f"{value:.4f}", f"{value:.2f}"],
    "percent": lambda value: [f"{100 * value:.1f}%", f"{100 * value:.0f}%"],
    "small": _small,
}
"""How a number may be written, the fullest way first; `number` takes the first that fits."""


def number(value: float | None, width: int, style: str) -> str:
    """A value in exactly `width` characters, right-aligned; a dash where there is none."""
    if value is None:
        return "-".rjust(width)
    if not math.isfinite(value):
        return f"{value:.0f}".rjust(width)
    forms = [*NUMBER_STYLES[style](value), _power(value, 1), _power(value, 0)]
    text = next((form for form in forms if len(form) <= width), "?")
    if not text.strip("-0.%"):
        text = text.lstrip("-")  # minus nothing
    return text.rjust(width)


def _power(value: float, decimals: int) -> str:
    mantissa, exponent = f"{value:.{decimals}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
