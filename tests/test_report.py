"""The report: complete, self-contained, and proof against what completions contain."""

from __future__ import annotations

import html.parser
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from grpo_jax import charts, report, roll_backs, run_story, starts

HOSTILE = (
    '</pre><script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(1)>\x1b[2J\u202e\ud800'
)


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def sample(step: int, index: int, outcome: str, split: str = "eval", **more) -> dict:
    record = {"step": step, "split": split, "problem_index": index, "outcome": outcome}
    return record | {"question": "q", "completion": "c", "gold": "7", "parsed": "7", "rewards": {}} | more


def step_row(step: int) -> dict:
    return {
        "step": step,
        "seconds": 10.0 * step,
        "reward": 0.1 * step,
        "rewards/accuracy/mean": 0.1 * step,
        "accuracy": 0.1 * step,
        "completions/mean_length": 60.0,
        "entropy": 0.7,
        "kl": 1e-4 * step,
        "grad_norm": 0.5,
        "sampling/sampling_logp_difference/max": 2e-6,
        "time/step": 2.0,
        "time/sample": 1.0,
        "time/update": 0.5,
        "outcome/correct": 3,
        "outcome/wrong": 1,
        "completions/num_tokens": 1000,
    }


@pytest.fixture
def run_dir(tmp_path) -> Path:
    rows = [{"step": 0, "seconds": 1.0, "eval/accuracy": 0.3}]
    rows += [step_row(step) for step in range(1, 6)]
    rows += [{"step": 5, "seconds": 51.0, "eval/accuracy": 0.9, "eval/mean_length": 40.0}]
    write_lines(tmp_path / "metrics.jsonl", rows)
    write_lines(
        tmp_path / "samples.jsonl",
        [
            sample(0, 4, "wrong", completion=HOSTILE, question=HOSTILE, rewards={HOSTILE: 0.0}),
            sample(
                5,
                4,
                "correct",
                completion="<think>late thought</think>",
                rewards={"accuracy": None},
            ),
        ],
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"seed": 3, "model": {"path": "models/tiny"}, "data": {"note": HOSTILE}})
    )
    return tmp_path


class Page(html.parser.HTMLParser):
    """Counts the tags of a page and keeps its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_the_report_is_one_file_that_fetches_nothing_and_runs_nothing(run_dir):
    text = report.write_report(run_dir).read_text(encoding="utf-8")
    page = Page(text)
    assert "svg" in page.tags
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "xlink:href", "srcset"} & names
    assert not any(name.startswith("on") for name in names)
    assert not re.search(r"url\(|@import", text)


def test_what_happened_to_a_run_is_told(run_dir):
    assert run_story.tell(run_dir) == []
    facts = {"jax": "1.0", "mesh": {"data": 2, "fsdp": 1}, "devices": 2, "device_kind": "cpu"}
    starts.record(run_dir, facts, after=0)
    starts.record(run_dir, facts | {"jax": "1.1", "device_kind": HOSTILE}, after=4)
    roll_backs.write(run_dir, [roll_backs.RollBack("kl", at=6, to=4, data={}, done=True)])
    began, went_on, back = run_story.tell(run_dir)
    assert began.endswith("Z: began on 2 x cpu (mesh: data 2, fsdp 1), jax 1.0")
    assert "Z: went on after step 4; jax was 1.0, is 1.1; device_kind was cpu, is " in went_on
    assert back == "alarm kl at step 6: back to the checkpoint of step 4"
    page = report.write_report(run_dir, happened=run_story.tell(run_dir)).read_text(encoding="utf-8")
    assert "What happened" in page and f"<li>{back}</li>" in page and "<script" not in page


def test_completions_are_shown_as_text(run_dir):
    text = report.write_report(run_dir).read_text(encoding="utf-8")
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\\x1b[2J\\u202e\\ud800" in text
    assert "\x1b" not in text and "\u202e" not in text
    assert "&lt;think&gt;late thought&lt;/think&gt;" in text


def test_the_head_has_the_numbers_a_reader_looks_for(run_dir):
    text = report.write_report(run_dir, facts={"devices": "2 x cpu"}).read_text(encoding="utf-8")
    for shown in (
        *(
            "30.0% → 90.0%",
            "best 90.0% after step 5",
            "0.100 → 0.500",
            "51.0 s",
            "5,000",
            "2 x cpu",
        ),
        "5 updates, 2.00 s each (median)",
    ):
        assert shown in text
    charts = re.findall(r'aria-label="([^"]*)"', text)
    assert charts == [
        *(
            "Accuracy",
            "Reward",
            "Completion length",
            "Entropy",
            "KL to the reference",
            "Gradient norm",
        ),
        *("Gap between sampler and trainer", "Time by phase", "Outcomes"),
    ]


@pytest.mark.parametrize(
    "lines",
    [
        "",
        '{"step": 1, "seconds": 0.5}\n',
        '{"step": 1, "seconds": 0.5, "reward": null, "kl": 0.0, "time/step": 0.0, "time/sample": 0.0}\n',
        '{"step": 7, "seconds": 0.5, "grad_norm": 1e30, "outcome/correct": 0}\n{"step": 8, "sec',
        '{"step": 0, "seconds": 0.5, "eval/accuracy": 0.5}\n',
    ],
)
def test_short_and_bare_runs_have_a_report(lines, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(lines)
    text = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert "</html>" in text and "nan" not in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        report.write_report(tmp_path)


def test_wrong_to_right_needs_none_right_first_and_all_right_last():
    samples = [
        *(sample(0, 1, "wrong"), sample(9, 1, "correct")),  # went right
        *(sample(0, 2, "correct"), sample(9, 2, "wrong")),  # was lost
        *(sample(0, 3, "unparsable"), sample(5, 3, "correct"), sample(9, 3, "wrong")),  # fell back
        *(
            sample(0, 4, "wrong"),
            sample(0, 4, "correct"),
            sample(9, 4, "correct"),
        ),  # half right first
        *(sample(0, 5, "wrong"), sample(9, 5, "correct"), sample(9, 5, "wrong")),  # half right last
        sample(9, 6, "correct"),  # seen once
        sample(9, 1, "wrong", "train"),  # another problem 1: of the other split
        *(
            sample(8, 8, "correct", "train"),
            sample(2, 8, "timed_out", "train"),
        ),  # order does not matter
    ]
    pairs, num_seen_again, num_lost = report.wrong_to_right(samples)
    found = [(early["problem_index"], early["step"], late["step"]) for early, late in pairs]
    assert found == [(1, 0, 9), (8, 2, 8)]
    assert num_seen_again == 6 and num_lost == 1


def test_time_of_a_resumed_run_is_the_sum_of_its_programs():
    rows = [{"seconds": 1.0}, {"seconds": 8.0}, {"seconds": 2.0}, {"seconds": 3.5}]
    assert report.total_seconds(rows) == 11.5


def test_several_evaluated_tasks_have_a_curve_each(tmp_path):
    rows = [
        {"step": step, "seconds": 1.0}
        | {f"eval/{name}accuracy": 0.1 * step for name in ("", "gsm8k/", "math/")}
        | {f"eval/{name}mean_length": 10.0 for name in ("gsm8k/", "math/")}
        for step in (1, 2)
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    text = report.write_report(tmp_path).read_text(encoding="utf-8")
    accuracy, length = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    for name in ("held-out", "gsm8k", "math"):
        assert f">{name}</text>" in accuracy
    assert ">gsm8k</text>" in length and ">held-out</text>" not in length


def test_what_the_phases_do_not_cover_is_other():
    rows = [
        {"step": 0, "time/evaluate": 4.0},
        {"step": 1, "time/step": 2.0, "time/update": 0.5, "time/sample": 1.0},
        {"step": 1, "time/evaluate": 3.0, "eval/accuracy": 0.5},  # after the step, not inside
        {"step": 2, "time/step": 1.0, "time/sample": 1.5},
    ]
    phases = report._phases(rows)
    assert phases == [
        (0, {"evaluate": 4.0}),
        (1, {"sample": 1.0, "update": 0.5, "other": 0.5, "evaluate": 3.0}),
        (2, {"sample": 1.5, "other": 0.0}),
    ]


def polylines(svg: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline"))


def test_a_line_chart_is_an_svg_file_with_every_series_inside_its_frame():
    series = {
        "seed 0": [(0, 30.0), (10, 95.0)],
        "seed <1>": [(0, 31.0), (5, math.nan), (10, 90.0)],
        "control": [(0, 30.0), (10, 29.0)],
        "empty": [],
    }
    svg = charts.line_chart(
        series, title="A & B", x_label="updates", y_label="correct (%)", dashed=["control"]
    )
    lines = polylines(svg)
    assert len(lines) == 3 and sum("stroke-dasharray" in line.attrib for line in lines) == 1
    for line in lines:
        points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        assert len(points) == 2
        assert all(70 <= x <= 542 and 48 <= y <= 236 for x, y in points)
    assert "seed &lt;1&gt;" in svg and "A &amp; B" in svg


def test_a_long_curve_is_thinned_but_keeps_its_spikes():
    points = [(step, 0.0) for step in range(100_000)]
    points[54_321] = (54_321, 1e6)
    thinned = charts._thinned(points)
    assert len(thinned) <= charts.MOST_POINTS and (54_321, 1e6) in thinned
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)


def test_a_bar_that_would_flatten_all_others_is_cut_and_told():
    bars = [(1, {"sample": 30.0}), *((step, {"sample": 1.0}) for step in range(2, 9))]
    svg = charts.stacked_bars(bars, title="t", x_label="step", y_label="seconds")
    assert "↑ 30" in svg
    heights = [
        float(bar.attrib["height"])
        for bar in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
        if len(bar)  # bars carry a title
    ]
    assert len(heights) == 8 and max(heights) == min(heights)


def test_parts_are_stacked_in_the_order_of_the_colours():
    bars = [(0, {"top": 1.0}), (1, {"top": 1.0, "new": 1.0, "low": 1.0, "none": 0.0})]
    svg = charts.stacked_bars(
        bars, title="t", x_label="x", y_label="y", colours={"none": "red", "low": "blue", "top": "green"}
    )
    names = [
        text
        for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        if text in ("low", "top", "new", "none")
    ]
    assert names == ["low", "top", "new"]  # the legend, which follows the stack
    bottoms = {
        bar.attrib["fill"]: float(bar.attrib["y"]) + float(bar.attrib["height"])
        for bar in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
        if len(bar) and bar[0].text and bar[0].text.startswith("x 1,")
    }
    assert bottoms["blue"] > bottoms["green"] > min(bottoms.values())


def test_many_bars_are_averaged():
    merged = charts._merged([(step, {"a": float(step % 2)}) for step in range(240)])
    assert len(merged) == 120 and all(bar == {"a": 0.5} for _, bar in merged)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 3e-6, ["0", "1e-6", "2e-6", "3e-6"]),
        (-5, 20, ["-5", "0", "5", "10", "15", "20"]),
        (0, 4000, ["0", "1,000", "2,000", "3,000", "4,000"]),
        (0, 1e6, ["0", "2e5", "4e5", "6e5", "8e5", "1e6"]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    values, step = charts.ticks(low, high, most=5)
    assert [charts.tick_text(value, step) for value in values] == expected


def test_a_supervised_run_shows_its_own_fields_and_its_validation_loss(tmp_path):
    write_lines(
        tmp_path / "metrics.jsonl",
        [{"step": step, "seconds": 1.0, "loss": 0.5, "eval/loss": 0.5 - 0.1 * step} for step in range(3)],
    )
    config = {"sft": {"learning_rate": 0.00123}, "optimizer": {"learning_rate": 0.00456}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "sft.json").write_text("{}")
    page = report.write_report(tmp_path).read_text("utf-8")
    head = page.partition("<section")[0]
    assert "Validation loss" in page
    assert "0.00123" in head
    assert "0.00456" not in head
