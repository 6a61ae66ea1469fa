"""The report of a run: one HTML file that holds everything it shows.

Enters: a run folder with metrics.jsonl and, where there are any, samples.jsonl and config.json. Leaves:
report.html (curves, time by phase, outcomes, samples that went from wrong to right, the config), without
scripts and without anything to fetch. Completions are hostile: every text is escaped.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax import charts, told_files, whole_files
from grpo_jax.charts import escaped

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
    ("Validation loss", "nats a response token", 1, {"validation": "eval/loss"}),  # of a supervised run
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
FACTS = (
    *("model.path", "data.dataset", "seed", "max_steps", "rollout.num_prompts", "rollout.num_generations"),
    *("rollout.max_completion_length", "rollout.temperature", "grpo.loss_type", "grpo.beta"),
    *("optimizer.learning_rate", "reward.reward_funcs", "reward.shuffle_rewards"),
)
SUPERVISED_FACTS = (
    *("model.path", "data.task", "data.dataset", "seed", "sft.max_steps", "sft.num_train_epochs"),
    *("sft.num_rows", "sft.learning_rate", "sft.lr_scheduler_type", "sft.max_response_length", "lora.r"),
)
SUPERVISED_FILE = "sft.json"  # only a supervised run's folder has it
MOST_STORIES = 6


# The report ----------------------------------------------------------------------------------------


def write_report(
    run_dir: str | Path, *, facts: Mapping[str, str] | None = None, happened: Sequence[str] = ()
) -> Path:
    """Writes RUN/report.html from what the run folder tells, and returns its path.

    Args:
        facts: more lines for the head, such as the devices; they stand before those from config.json.
        happened: sentences about the run's starts and what interrupted it.

    Raises: FileNotFoundError if the folder has no metrics.jsonl.
    """
    folder = Path(run_dir).absolute()
    if not (folder / told_files.METRICS_FILE).exists():
        raise FileNotFoundError(
            f"{folder} has no {told_files.METRICS_FILE}; give the folder of a run that was started."
        )
    rows = list(told_files.read(folder / told_files.METRICS_FILE))
    samples = list(told_files.read(folder / told_files.SAMPLES_FILE))
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
    fields = SUPERVISED_FACTS if (folder / SUPERVISED_FILE).exists() else FACTS
    page = _page(folder.name, rows, samples, config, {**(facts or {}), **_facts(config, fields)}, happened)
    whole_files.write_text(folder / "report.html", page)
    return folder / "report.html"


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


def _page(
    title: str, rows: list, samples: list, config: Mapping, facts: Mapping[str, str], happened: Sequence[str]
) -> str:
    facts_html = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts.items()
    )
    tiles = "".join(
        f'<div class="tile"><span>{escaped(name)}</span><b>{escaped(value)}</b><small>{escaped(more)}</small></div>'
        for name, value, more in _headlines(rows)
    )
    story = "".join(f"<li>{escaped(line)}</li>" for line in happened)
    charts = "".join(f'<figure class="card">{chart}</figure>' for chart in _charts(rows))
    config_text = json.dumps(config, indent=2, ensure_ascii=False)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{escaped(title)} - grpo_jax</title><style>{PAGE_STYLE}</style></head><body><main>
<header><p class="over">grpo_jax run report</p><h1>{escaped(title)}</h1><dl>{facts_html}</dl></header>
<section class="tiles">{tiles or "<p>No step has been told yet.</p>"}</section>
<section class="charts">{charts}</section>
<section><h2>From wrong to right</h2>{_stories(samples)}</section>
{f'<section><h2>What happened</h2><ul class="card">{story}</ul></section>' if story else ""}
<section><h2>Configuration</h2><details class="card"><summary>The resolved config of this run</summary>
<pre>{escaped(config_text) if config else "The run folder has no config.json."}</pre></details></section>
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
        tiles.append(("time", _duration(total_seconds(rows)), updates))
    if tokens := _points(rows, "completions/num_tokens"):
        speeds = [value for _, value in _points(rows, "tokens_per_second")]
        more = f"{statistics.median(speeds):,.0f} a second (median)" if speeds else ""
        tiles.append(("sampled tokens", f"{sum(int(count) for _, count in tokens):,}", more))
    return tiles


def _charts(rows: list) -> Iterator[str]:
    """Every chart that this run has numbers for."""
    rewards = sorted({name for row in rows for name in row if re.fullmatch(r"rewards/.+/mean", name)})
    parts = {name.removeprefix("rewards/").removesuffix("/mean"): name for name in rewards}
    for title, y_label, scale, metrics in CURVES:
        metrics = {**metrics, **parts} if title == "Reward" else {**metrics, **_by_task(rows, metrics)}
        series = {
            name: [(x, y * scale) for x, y in _points(rows, metric)] for name, metric in metrics.items()
        }
        if any(series.values()):
            yield charts.line_chart(series, title=title, x_label="step", y_label=y_label)
    if phases := _phases(rows):
        yield charts.stacked_bars(
            phases, title="Time by phase", x_label="step", y_label="seconds", colours=PHASE_COLOURS
        )
    if outcomes := _outcomes(rows):
        yield charts.stacked_bars(
            outcomes,
            title="Outcomes",
            x_label="step",
            y_label="completions (%)",
            colours=OUTCOME_COLOURS,
        )


def _by_task(rows: list, metrics: Mapping[str, str]) -> dict[str, str]:
    """Where several tasks are evaluated: each one's `eval/TASK/x` beside the `eval/x` of a chart."""
    ends = [name.removeprefix("eval/") for name in metrics.values() if name.startswith("eval/")]
    names = {name for row in rows for name in row}
    found = [re.fullmatch(f"eval/(.+)/{re.escape(end)}", name) for end in ends for name in sorted(names)]
    return {match[1]: match[0] for match in found if match}


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
            f'<div class="{mark}"><h4>step {escaped(sample["step"])}: {escaped(sample.get("outcome", ""))}</h4>'
            f"<pre>{escaped(sample.get('completion', ''))}</pre>"
            f"<p>read: <b>{escaped(sample.get('parsed') or 'nothing')}</b> &middot; {escaped(rewards)}</p></div>"
        )
    kind = "held-out" if early.get("split") == "eval" else "training"
    return (
        f'<article class="card"><p class="over">{kind} problem {escaped(early.get("problem_index"))}</p>'
        f'<p class="question">{escaped(early.get("question", ""))}</p>'
        f'<p>gold: <b>{escaped(early.get("gold", ""))}</b></p><div class="sides">{sides}</div></article>'
    )


def _facts(config: Mapping, fields: Sequence[str]) -> dict[str, str]:
    """The fields of the config that name a run, as far as it has them."""
    facts = {}
    for field in fields:
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


def total_seconds(rows: list) -> float:
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
ul.card{padding-left:34px;overflow-wrap:anywhere}details pre{max-height:none}summary{cursor:pointer}
"""
