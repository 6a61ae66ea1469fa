"""The report of a run: one HTML file that holds everything it shows.

Enters: a run folder with metrics.jsonl and, where there are any, samples.jsonl and config.json. Leaves:
report.html (curves, time by phase, outcomes, samples that went from wrong to right, the config), without
scripts and without anything to fetch. Completions are hostile: every text is escaped. `line_chart` and
`stacked_bars` draw SVG that also stands alone as a file; they know nothing of runs.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax import console

Points = Sequence[tuple[float, float]]

COLOURS = ("#3b82f6", "#e8710a", "#16a34a", "#a855f7", "#e5484d", "#0e9aa7", "#8b949e", "#d6409f")
OUTCOME_COLOURS = {
    "correct": "#2fa24f",
    "wrong": "#e8710a",
    "unparsable": "#8b949e",
    "scored": "#3b82f6",
    "timed_out": "#a855f7",
    "crashed": "#e5484d",
}
PHASE_COLOURS = {  # as the others, from the bottom of a bar to its top
    "sample": "#3b82f6",
    "judge": "#e8710a",
    "update": "#16a34a",
    "other": "#8b949e",
    "evaluate": "#0e9aa7",
}
LOG_DIFFERENCE = "sampling/sampling_logp_difference"
CURVES = (
    # title, unit, factor, name in the legend -> metric
    ("Accuracy", "correct (%)", 100, {"held-out": "eval/accuracy", "training": "accuracy"}),
    ("Reward", "mean reward", 1, {"total": "reward"}),  # and every reward function's own
    (
        *("Completion length", "tokens", 1),
        {"training": "completions/mean_length", "held-out": "eval/mean_length"},
    ),
    (
        *("Cut completions and groups without signal", "share (%)", 100),
        {"cut at the limit": "completions/clipped_ratio", "no signal": "frac_reward_zero_std"},
    ),
    ("Entropy", "nats a token", 1, {"entropy": "entropy"}),
    ("KL to the reference", "nats a token", 1, {"kl": "kl"}),
    ("Gradient norm", "norm before clipping", 1, {"gradient norm": "grad_norm"}),
    (
        *("Gap between sampler and trainer", "nats a token", 1),
        {"largest": f"{LOG_DIFFERENCE}/max", "mean": f"{LOG_DIFFERENCE}/mean"},
    ),
    ("Speed", "tokens a second", 1, {"tokens a second": "tokens_per_second"}),
)
SVG_STYLE = (
    ".gj-bg{fill:#fff}.gj-t{fill:#57606a;font:12px system-ui,sans-serif}"
    ".gj-h{fill:#1f2328;font:600 14px system-ui,sans-serif}.gj-g{stroke:#8b949e;stroke-opacity:.28}"
    "@media(prefers-color-scheme:dark){.gj-bg{fill:#161b22}.gj-t{fill:#9aa4b2}.gj-h{fill:#e6edf3}}"
)
FACTS = (
    *("model.path", "data.dataset", "seed", "max_steps", "rollout.num_prompts", "rollout.num_generations"),
    *("rollout.max_completion_length", "rollout.temperature", "grpo.loss_type", "grpo.beta"),
    *("optimizer.learning_rate", "reward.reward_funcs", "reward.shuffle_rewards"),
)
MOST_POINTS = 600  # of a curve; more would only make the file larger
MOST_BARS = 120
MOST_STORIES = 6


# The report ----------------------------------------------------------------------------------------


def write_report(run_dir: str | Path, *, facts: Mapping[str, str] | None = None) -> Path:
    """Writes RUN/report.html from what the run folder tells, and returns its path.

    Args:
        facts: more lines for the head, such as the devices; they stand before those from config.json.

    Raises: FileNotFoundError if the folder has no metrics.jsonl.
    """
    folder = Path(run_dir).absolute()
    if not (folder / "metrics.jsonl").exists():
        raise FileNotFoundError(f"{folder} has no metrics.jsonl; give the folder of a run that was started.")
    rows = list(read_json_lines(folder / "metrics.jsonl"))
    samples = list(read_json_lines(folder / "samples.jsonl"))
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
    page = _page(folder.name, rows, samples, config, {**(facts or {}), **_facts(config)})
    part = folder / "report.html.part"
    part.write_text(page, encoding="utf-8")
    os.replace(part, folder / "report.html")
    return folder / "report.html"


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, without a line that a kill has torn; nothing where there is no file."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(record, dict):
                    yield record


def wrong_to_right(
    samples: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[dict, dict]], int, int]:
    """Problems seen at two or more steps: none right when first seen, all right when last seen.

    Returns: (pairs of an early and a late sample, evaluation problems first; how many problems were seen
        at two or more steps; how many of those went the other way, from all right to none right).
    """
    by_problem: dict[tuple, dict[int, list]] = {}
    for sample in samples:
        problem = (sample.get("split") != "eval", sample.get("problem_index"))
        by_problem.setdefault(problem, {}).setdefault(sample["step"], []).append(sample)
    pairs, num_seen_again, num_lost = [], 0, 0
    for _, steps in sorted(by_problem.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        first, last = steps[min(steps)], steps[max(steps)]
        if len(steps) < 2:
            continue
        num_seen_again += 1
        right_first = [sample.get("outcome") == "correct" for sample in first]
        right_last = [sample.get("outcome") == "correct" for sample in last]
        if not any(right_first) and all(right_last):
            pairs.append((dict(first[0]), dict(last[0])))
        num_lost += all(right_first) and not any(right_last)
    return pairs, num_seen_again, num_lost


def _page(title: str, rows: list, samples: list, config: Mapping, facts: Mapping[str, str]) -> str:
    facts_html = "".join(
        f"<div><dt>{_esc(name)}</dt><dd>{_esc(value)}</dd></div>" for name, value in facts.items()
    )
    tiles = "".join(
        f'<div class="tile"><span>{_esc(name)}</span><b>{_esc(value)}</b><small>{_esc(more)}</small></div>'
        for name, value, more in _headlines(rows)
    )
    charts = "".join(f'<figure class="card">{chart}</figure>' for chart in _charts(rows))
    config_text = json.dumps(config, indent=2, ensure_ascii=False)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{_esc(title)} - grpo_jax</title><style>{PAGE_STYLE}</style></head><body><main>
<header><p class="over">grpo_jax run report</p><h1>{_esc(title)}</h1><dl>{facts_html}</dl></header>
<section class="tiles">{tiles or "<p>No step has been told yet.</p>"}</section>
<section class="charts">{charts}</section>
<section><h2>From wrong to right</h2>{_stories(samples)}</section>
<section><h2>Configuration</h2><details class="card"><summary>The resolved config of this run</summary>
<pre>{_esc(config_text) if config else "The run folder has no config.json."}</pre></details></section>
</main></body></html>
"""


def _headlines(rows: list) -> list[tuple[str, str, str]]:
    """(name, value, more about it) for each number a reader looks for first."""
    tiles = []
    if evals := _points(rows, "eval/accuracy"):
        best = max(evals, key=lambda point: point[1])
        tiles.append(
            (
                "held-out accuracy",
                _first_to_last(evals, lambda value: f"{100 * value:.1f}%"),
                f"best {100 * best[1]:.1f}% after step {best[0]}",
            )
        )
    for name, metric in (("training accuracy", "accuracy"), ("reward", "reward")):
        if points := _points(rows, metric):
            form = (lambda v: f"{100 * v:.1f}%") if metric == "accuracy" else (lambda v: f"{v:.3f}")
            more = f"step {points[0][0]} to step {points[-1][0]}"
            tiles.append((name, _first_to_last(points, form), more))
    if rows:
        times = [value for _, value in _points(rows, "time/step")]
        each = f", {statistics.median(times):.2f} s each (median)" if times else ""
        steps = max(row["step"] for row in rows)
        updates = f"{steps:,} update{'' if steps == 1 else 's'}{each}"
        tiles.append(("time", _duration(_total_seconds(rows)), updates))
    if tokens := _points(rows, "num_tokens"):
        speeds = [value for _, value in _points(rows, "tokens_per_second")]
        more = f"{statistics.median(speeds):,.0f} a second (median)" if speeds else ""
        tiles.append(("tokens", f"{int(tokens[-1][1]):,}", more))
    return tiles


def _charts(rows: list) -> Iterator[str]:
    """Every chart that this run has numbers for."""
    rewards = sorted({name for row in rows for name in row if re.fullmatch(r"rewards/.+/mean", name)})
    parts = {name.removeprefix("rewards/").removesuffix("/mean"): name for name in rewards}
    for title, y_label, scale, metrics in CURVES:
        metrics = {**metrics, **parts} if title == "Reward" else metrics
        series = {
            name: [(x, y * scale) for x, y in _points(rows, metric)] for name, metric in metrics.items()
        }
        if any(series.values()):
            yield line_chart(series, title=title, x_label="step", y_label=y_label)
    if phases := _phases(rows):
        yield stacked_bars(
            phases, title="Time by phase", x_label="step", y_label="seconds", colours=PHASE_COLOURS
        )
    if outcomes := _outcomes(rows):
        yield stacked_bars(
            outcomes,
            title="Outcomes",
            x_label="step",
            y_label="completions (%)",
            colours=OUTCOME_COLOURS,
        )


def _phases(rows: list) -> list[tuple[float, dict[str, float]]]:
    """Seconds by phase of each step, with those of the evaluation after it.

    `other` is what the phases in the step's own line do not cover of its `time/step`.
    """
    by_step: dict[int, dict[str, float]] = {}
    for row in rows:
        times = {
            name.removeprefix("time/"): value
            for name, value in row.items()
            if name.startswith("time/") and value is not None
        }
        if "step" in times:
            seconds = times.pop("step")
            times["other"] = max(0.0, seconds - sum(times.values()))
        if times:
            by_step.setdefault(row["step"], {}).update(times)
    return list(by_step.items())


def _outcomes(rows: list) -> list[tuple[float, dict[str, float]]]:
    """Each outcome's part of a step's completions in per cent, from counts or shares alike."""
    bars = []
    for row in rows:
        parts = {name: row.get(f"outcome/{name}") or 0.0 for name in OUTCOME_COLOURS}
        if total := sum(parts.values()):
            bars.append((row["step"], {name: 100 * part / total for name, part in parts.items()}))
    return bars


def _stories(samples: list) -> str:
    pairs, num_seen_again, num_lost = wrong_to_right(samples)
    if not num_seen_again:
        return "<p>No problem has samples from two different steps.</p>"
    told = (
        f"<p>Of {num_seen_again} problems with samples from two or more steps, {len(pairs)} went from wrong "
        f"to right and {num_lost} from right to wrong"
        + (f"; {MOST_STORIES} of the former are shown." if len(pairs) > MOST_STORIES else ".")
        + "</p>"
    )
    return told + "".join(_story(early, late) for early, late in pairs[:MOST_STORIES])


def _story(early: Mapping, late: Mapping) -> str:
    sides = ""
    for sample in (early, late):
        rewards = ", ".join(
            f"{name} {value:g}" for name, value in (sample.get("rewards") or {}).items() if value is not None
        )
        mark = "right" if sample.get("outcome") == "correct" else "wrong"
        sides += (
            f'<div class="{mark}"><h4>step {_esc(sample["step"])}: {_esc(sample.get("outcome", ""))}</h4>'
            f"<pre>{_esc(sample.get('completion', ''))}</pre>"
            f"<p>read: <b>{_esc(sample.get('parsed') or 'nothing')}</b> &middot; {_esc(rewards)}</p></div>"
        )
    kind = "held-out" if early.get("split") == "eval" else "training"
    return (
        f'<article class="card"><p class="over">{kind} problem {_esc(early.get("problem_index"))}</p>'
        f'<p class="question">{_esc(early.get("question", ""))}</p>'
        f'<p>gold: <b>{_esc(early.get("gold", ""))}</b></p><div class="sides">{sides}</div></article>'
    )


def _facts(config: Mapping) -> dict[str, str]:
    """The fields of the config that name a run, as far as it has them."""
    facts = {}
    for field in FACTS:
        value: Any = config
        for name in field.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value not in (None, ""):
            facts[field] = str(value)
    return facts


def _points(rows: list, metric: str) -> list[tuple[int, float]]:
    return [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]


def _first_to_last(points: Sequence[tuple[int, float]], form: Any) -> str:
    first, last = form(points[0][1]), form(points[-1][1])
    return last if len(points) == 1 else f"{first} → {last}"


def _total_seconds(rows: list) -> float:
    """Seconds of all programs of a run: where the clock falls back, a resumed program began."""
    total, before = 0.0, 0.0
    for seconds in (row.get("seconds") or 0.0 for row in rows):
        if seconds < before:
            total += before
        before = seconds
    return total + before


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _esc(value: Any) -> str:
    return html.escape(console.printable(str(value)))


PAGE_STYLE = """
:root{--bg:#f6f8fa;--card:#fff;--text:#1f2328;--dim:#57606a;--line:#d8dee4;--good:#2fa24f;--bad:#e8710a}
@media(prefers-color-scheme:dark){:root{--bg:#0d1117;--card:#161b22;--text:#e6edf3;--dim:#9aa4b2;--line:#30363d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 20px 64px}
h1{margin:0 0 12px;font-size:28px;overflow-wrap:anywhere}h2{margin:40px 0 8px;font-size:20px}h4{margin:0}
.over{margin:0;color:var(--dim);font-size:13px}
dl{display:flex;flex-wrap:wrap;gap:4px 24px;margin:0}dl div{display:flex;gap:6px}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.card,.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px;margin:24px 0 14px}
.tile span,.tile small{display:block;color:var(--dim);font-size:13px}.tile b{font-size:20px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr));gap:14px}
figure{margin:0}svg{display:block;width:100%;height:auto}
article{margin:14px 0}.question{margin:6px 0;font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:14px}
.sides>div{border-left:4px solid var(--good);padding-left:12px;min-width:0}.sides>.wrong{border-color:var(--bad)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.45 ui-monospace,monospace;max-height:420px;overflow:auto}
details pre{max-height:none}summary{cursor:pointer}
"""


# Charts --------------------------------------------------------------------------------------------


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
                f"<title>{_esc(name)}: {y:.4g} ({_esc(x_label)} {x:g})</title></circle>"
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
    width: int = 560,
    height: int = 280,
) -> str:
    """Bars of stacked parts as one SVG picture; many bars are averaged into fewer.

    Parts stand in the order of `colours`, from the bottom up, then those that it does not name.

    A bar more than four times as high as the median is cut and its height is written above it: the first
    step, which compiles, would flatten all others.
    """
    bars = _merged(bars) or [(0.0, {})]
    given = dict(colours or {})
    seen = dict.fromkeys(name for _, bar in bars for name, value in bar.items() if value)
    names = [*(name for name in given if name in seen), *(name for name in seen if name not in given)]
    colours = {name: given.get(name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)}
    totals = [sum(bar.values()) for _, bar in bars]
    usual = [total for total in totals if total <= 4 * statistics.median(totals)]
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
                    f'fill="{colours[name]}"><title>{_esc(x_label)} {x:g}, {_esc(name)}: '
                    f"{bar.get(name, 0.0):.3g} {_esc(y_label)}</title></rect>"
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
        return f'<text class="gj-t" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{_esc(text)}</text>'

    def picture(self, body: Sequence[str]) -> str:
        middle = (self.top + self.bottom) / 2
        parts = [f'<text class="gj-h" x="16" y="24">{_esc(self.title)}</text>', *self.legend]
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
            f'aria-label="{_esc(self.title)}"><style>{SVG_STYLE}</style>'
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
        half = abs(low) / 2 or 0.5
        return low - half, high + half
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
