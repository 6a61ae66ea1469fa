"""Charts as SVG text: lines and stacked bars that stand alone as a file or inside a page.

Enters: numbers by name. Leaves: one `<svg>` element that reads well in light and dark, without scripts.
Names come from outside and are escaped. This room knows nothing of runs.
"""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from grpo_jax import harmless_text

Points = Sequence[tuple[float, float]]

COLOURS = ("#3b82f6", "#e8710a", "#16a34a", "#a855f7", "#e5484d", "#0e9aa7", "#8b949e", "#d6409f")
SVG_STYLE = (
    ".gj-bg{fill:#fff}.gj-t{fill:#57606a;font:12px system-ui,sans-serif}"
    ".gj-h{fill:#1f2328;font:600 14px system-ui,sans-serif}.gj-g{stroke:#8b949e;stroke-opacity:.28}"
    "@media(prefers-color-scheme:dark){.gj-bg{fill:#161b22}.gj-t{fill:#9aa4b2}.gj-h{fill:#e6edf3}}"
)
MOST_POINTS = 600  # of a curve; more would only make the file larger
MOST_BARS = 120


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    dashed: Collection[str] = (),
    width: int = 560,
    height: int = 280,
) -> str:
    """Several curves as one SVG picture that reads well in light and dark.

    Args:
        series: by name, (x, y) in the order to join them; points that are not finite are left out.
        dashed: names of the series drawn with a broken line, such as a control.
        width, height: pixels.
    """
    series = {name: _thinned(points) for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    colours = dict(zip(series, COLOURS * (len(series) // len(COLOURS) + 1), strict=False))
    frame = _Frame(title, x_label, y_label, colours, width=width, height=height)
    frame.scale(_range(xs), _range(ys), whole_x=all(float(x).is_integer() for x in xs))
    body = []
    for name, points in reversed(series.items()):  # the first name ends on top
        spots = [(frame.x(x), frame.y(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        dash = ' stroke-dasharray="6 4"' if name in dashed else ""
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="{2 if len(points) < 200 else 1}" '
            f'stroke-linejoin="round"{dash}/>'
        )
        if len(points) <= 40:  # few enough to be looked at one by one
            body += [
                f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" fill="{colours[name]}">'
                f"<title>{escaped(name)}: {y:.4g} ({escaped(x_label)} {x:g})</title></circle>"
                for (cx, cy), (x, y) in zip(spots, points, strict=True)
            ]
    return frame.picture(body)


def stacked_bars(
    bars: Sequence[tuple[float, Mapping[str, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    colours: Mapping[str, str] | None = None,
    cut_high: bool = True,
    width: int = 560,
    height: int = 280,
) -> str:
    """Bars of stacked parts as one SVG picture; many bars are averaged into fewer.

    Parts stand in the order of `colours`, from the bottom up, then those that it does not name.

    With `cut_high` a bar more than four times as high as the median is cut and its height is written above it:
    the first step, which compiles, would flatten all others.
    """
    bars = _merged(bars) or [(0.0, {})]
    given = dict(colours or {})
    seen = dict.fromkeys(name for _, bar in bars for name, value in bar.items() if value)
    names = [*(name for name in given if name in seen), *(name for name in seen if name not in given)]
    colours = {name: given.get(name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)}
    totals = [sum(bar.values()) for _, bar in bars]
    usual = [total for total in totals if not cut_high or total <= 4 * statistics.median(totals)]
    frame = _Frame(title, x_label, y_label, colours, width=width, height=height)
    xs = [x for x, _ in bars]
    gap = (xs[-1] - xs[0]) / (len(xs) - 1) if len(xs) > 1 else 1.0
    frame.scale((xs[0] - gap / 2, xs[-1] + gap / 2), (0.0, max(usual) or 1.0), whole_x=True)
    bar_width = max(1.0, 0.8 * (frame.x(gap) - frame.x(0)))
    body = []
    for (x, bar), total in zip(bars, totals, strict=True):
        left, low = frame.x(x) - bar_width / 2, 0.0
        for name in names:
            high = min(low + bar.get(name, 0.0), frame.y_high)
            top, bottom = frame.y(high), frame.y(min(low, frame.y_high))
            if bottom - top > 0.05:
                body.append(
                    f'<rect x="{left:.1f}" y="{top:.1f}" width="{bar_width:.1f}" height="{bottom - top:.1f}" '
                    f'fill="{colours[name]}"><title>{escaped(x_label)} {x:g}, {escaped(name)}: '
                    f"{bar.get(name, 0.0):.3g} {escaped(y_label)}</title></rect>"
                )
            low += bar.get(name, 0.0)
        if total > frame.y_high * (1 + 1e-6):
            body.append(frame.text(left, frame.y(frame.y_high) - 4, f"↑ {total:.3g}"))
    return frame.picture(body)


class _Frame:
    """Title, legend, axes and the way from values to pixels of one chart."""

    def __init__(
        self,
        title: str,
        x_label: str,
        y_label: str,
        colours: Mapping[str, str],
        *,
        width: int,
        height: int,
    ):
        self.title, self.x_label, self.y_label = title, x_label, y_label
        self.width, self.height = width, height
        self.legend, rows = self._legend(colours)
        self.left, self.right = 70, width - 18
        self.top, self.bottom = 48 + 20 * rows, height - 44

    def scale(self, x_range: tuple[float, float], y_range: tuple[float, float], *, whole_x: bool) -> None:
        self.x_low, self.x_high = x_range
        self.x_ticks, self.x_step = ticks(*x_range, most=8, whole=whole_x)
        low, high = y_range
        _, self.y_step = ticks(low, high, most=5)
        self.y_low = math.floor(low / self.y_step + 1e-9) * self.y_step
        self.y_high = math.ceil(high / self.y_step - 1e-9) * self.y_step
        self.y_ticks, _ = ticks(self.y_low, self.y_high, most=5, step=self.y_step)

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - share * (self.bottom - self.top)

    def text(self, x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
        return (
            f'<text class="gj-t" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escaped(text)}</text>'
        )

    def picture(self, body: Sequence[str]) -> str:
        middle = (self.top + self.bottom) / 2
        parts = [f'<text class="gj-h" x="16" y="24">{escaped(self.title)}</text>', *self.legend]
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="gj-g" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(self.text(self.left - 8, y + 4, tick_text(tick, self.y_step), "end"))
        for tick in self.x_ticks:
            parts.append(self.text(self.x(tick), self.bottom + 18, tick_text(tick, self.x_step), "middle"))
        parts.append(self.text((self.left + self.right) / 2, self.height - 8, self.x_label, "middle"))
        turn = f' transform="rotate(-90 18 {middle:.0f})"'
        parts.append(self.text(18, middle, self.y_label, "middle", turn))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escaped(self.title)}"><style>{SVG_STYLE}</style>'
            f'<rect class="gj-bg" width="{self.width}" height="{self.height}" rx="8"/>'
            f"{''.join([*parts, *body])}</svg>"
        )

    def _legend(self, colours: Mapping[str, str]) -> tuple[list[str], int]:
        """The legend's parts and rows; a chart of one series needs none."""
        if len(colours) < 2:
            return [], 0
        parts, x, row = [], 16.0, 0
        for name, colour in colours.items():
            needed = 30 + 6.8 * len(name)
            if x + needed > self.width and x > 16:
                x, row = 16.0, row + 1
            y = 44 + 20 * row
            parts.append(f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" rx="2" fill="{colour}"/>')
            parts.append(self.text(x + 15, y, name))
            x += needed
        return parts, row + 1


def ticks(
    low: float, high: float, *, most: int, whole: bool = False, step: float = 0.0
) -> tuple[list[float], float]:
    """Round values from low to high, at most about `most`, and the distance between them."""
    if not step:
        power = 10.0 ** math.floor(math.log10((high - low) / most))
        step = next(n * power for n in (1, 2, 5, 10) if n * power * most >= (high - low) * (1 - 1e-9))
        step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)], step


def tick_text(value: float, step: float) -> str:
    """A tick with as many decimals as its distance from the next one needs."""
    if abs(value) < step / 2:
        return "0"
    if step < 1e-3 or step > 5e4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From smallest to largest, widened where they are equal."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        half = abs(low) / 2
        return (low - half, high + half) if half else (0.0, 1.0)
    return low, high


def _thinned(points: Points) -> Points:
    """At most MOST_POINTS finite points: of each stretch the lowest and the highest, so that spikes stay."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / (MOST_POINTS // 2))
    kept = []
    for start in range(0, len(points), size):
        part = range(start, min(start + size, len(points)))
        ends = {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
        kept += [points[index] for index in sorted(ends)]
    return kept


def _merged(
    bars: Sequence[tuple[float, Mapping[str, float]]],
) -> list[tuple[float, dict[str, float]]]:
    """At most MOST_BARS bars: the means of neighbours."""
    size = max(1, math.ceil(len(bars) / MOST_BARS))
    merged = []
    for start in range(0, len(bars), size):
        part = bars[start : start + size]
        names = dict.fromkeys(name for _, bar in part for name in bar)
        means = {name: sum(bar.get(name, 0.0) for _, bar in part) / len(part) for name in names}
        merged.append((sum(x for x, _ in part) / len(part), means))
    return merged


def escaped(value: Any) -> str:
    """Text for HTML and SVG; what a terminal or a browser would not show is spelled out."""
    return html.escape(harmless_text.printable(str(value)))
