"""Telling: what stands in the files, what a resumed run takes back, what is missing."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from grpo_jax import metrics, told_files
from grpo_jax.metrics import Sample, TellingParams

SAMPLE = Sample(
    problem_index=4,
    question="3 + 4?",
    completion="<answer>7</answer> \ud800 \x1b[2J",
    gold="7",
    parsed="7",
    rewards={"accuracy": np.float32(1.0), "format": float("nan")},  # type: ignore[dict-item]
    outcome="correct",
    advantage=0.5,
)


def open_teller(
    folder: Path, *, first_step: int = 0, looked: bool = True, stream: io.StringIO | None = None, **params
):
    return metrics.open_teller(
        folder,
        params=TellingParams(**{"tensorboard": False, **params}),
        num_steps=10,
        config={"seed": 0},
        started_at=time.time() - 100,
        first_step=first_step,
        looked=looked,
        stream=stream or io.StringIO(),
    )


def strict_lines(path: Path) -> list[dict]:
    """The objects of a file; NaN and Infinity, which are no JSON, are refused."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_step_is_one_json_object_with_step_seconds_and_metrics(tmp_path):
    with open_teller(tmp_path) as teller:
        teller.tell_step(1, {"reward": np.float32(0.5), "num_tokens": np.int64(2**40)})  # type: ignore[dict-item]
        (line,) = strict_lines(tmp_path / "metrics.jsonl")  # there before the file is closed
    assert list(line) == ["step", "seconds", "reward", "num_tokens"]
    assert line["step"] == 1 and 100 <= line["seconds"] < 160
    assert line["reward"] == 0.5 and line["num_tokens"] == 2**40


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    with open_teller(tmp_path, tensorboard=True) as teller:
        teller.tell_step(1, {"loss": float("nan"), "kl": float("inf"), "reward": float("-inf")})
    (line,) = strict_lines(tmp_path / "metrics.jsonl")
    assert line["loss"] is line["kl"] is line["reward"] is None


def test_text_among_the_numbers_goes_to_the_metrics_file_alone(tmp_path):
    stream, written = io.StringIO(), []
    with open_teller(tmp_path, stream=stream) as teller:
        teller._sinks = [types.SimpleNamespace(write=lambda step, numbers: written.append(numbers))]
        teller.tell_step(1, {"loss": 0.5, "digest/samples": "00ff00ff00ff00ff"})
    (line,) = strict_lines(tmp_path / "metrics.jsonl")
    assert line["digest/samples"] == "00ff00ff00ff00ff"
    assert written == [{"loss": 0.5}]
    assert "00ff" not in stream.getvalue()


def test_an_evaluation_has_its_prefix_once_and_one_console_line(tmp_path):
    stream = io.StringIO()
    with open_teller(tmp_path, stream=stream) as teller:
        teller.tell_evaluation(
            5, {"eval/accuracy": 0.624, "mean_length": 51.25, "time/evaluate": 3.0}, samples=[SAMPLE]
        )
    (line,) = strict_lines(tmp_path / "metrics.jsonl")
    assert line["eval/accuracy"] == 0.624 and line["eval/mean_length"] == 51.25
    assert line["time/evaluate"] == 3.0
    assert stream.getvalue() == "evaluation after step 5: accuracy 62.4%, mean_length 51.25, 3.0 s\n"
    (sample,) = strict_lines(tmp_path / "samples.jsonl")
    assert sample["split"] == "eval"


def test_all_samples_are_kept_and_a_few_are_shown(tmp_path):
    stream = io.StringIO()
    with open_teller(tmp_path, stream=stream, num_completions_to_print=2) as teller:
        teller.tell_samples(3, [SAMPLE] * 5)
        teller.tell_samples(4, [])
    lines = strict_lines(tmp_path / "samples.jsonl")
    assert len(lines) == 5 and stream.getvalue().count("3 + 4?") == 2
    assert lines[0] == {
        "step": 3,
        "split": "train",
        "problem_index": 4,
        "question": "3 + 4?",
        "completion": "<answer>7</answer> \ud800 \x1b[2J",
        "gold": "7",
        "parsed": "7",
        "rewards": {"accuracy": 1.0, "format": None},
        "outcome": "correct",
        "advantage": 0.5,
        "columns": {},
    }


@pytest.mark.parametrize("torn", ['{"step": 1, "rew', '{"step": 1, "reward": 9.0}'])
def test_a_resumed_run_tells_no_step_twice(tmp_path, torn):
    with open_teller(tmp_path) as teller:
        teller.tell_evaluation(0, {"accuracy": 0.1})
        for step in (1, 2, 3, 4):
            teller.tell_step(step, {"reward": 0.0})
            teller.tell_samples(step, [SAMPLE])
        teller.tell_evaluation(4, {"accuracy": 0.1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)  # the kill came before the line's end
    with open_teller(tmp_path, first_step=3) as teller:
        for step in (3, 4):
            teller.tell_step(step, {"reward": 1.0})
            teller.tell_samples(step, [SAMPLE])
    told = [(line["step"], line.get("reward")) for line in strict_lines(tmp_path / "metrics.jsonl")]
    assert told == [(0, None), (1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)]
    assert [line["step"] for line in strict_lines(tmp_path / "samples.jsonl")] == [1, 2, 3, 4]
    assert not list(tmp_path.glob("*.part"))


def test_a_kill_while_rewinding_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        told_files.rewind(tmp_path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    monkeypatch.undo()
    told_files.rewind(tmp_path, 2)  # a half-written file of the first try does not disturb
    assert path.read_text() == '{"step": 1}\n'


def test_an_evaluation_that_will_be_told_again_is_removed_with_its_samples(tmp_path):
    with open_teller(tmp_path) as teller:
        for step in (1, 2):
            teller.tell_step(step, {"reward": 0.5})
            teller.tell_samples(step, [SAMPLE])
            teller.tell_evaluation(step, {"accuracy": 0.5, "time/evaluate": 1.0}, samples=[SAMPLE])
    told_files.rewind(tmp_path, 3, looked=True)
    assert len(strict_lines(tmp_path / "metrics.jsonl")) == len(strict_lines(tmp_path / "samples.jsonl")) == 4
    told_files.rewind(tmp_path, 3, looked=False)
    told = [(line["step"], "reward" in line) for line in strict_lines(tmp_path / "metrics.jsonl")]
    kept = [(line["step"], line["split"]) for line in strict_lines(tmp_path / "samples.jsonl")]
    assert told == [(1, True), (1, False), (2, True)]
    assert kept == [(1, "train"), (1, "eval"), (2, "train")]


def test_tensorboard_forgets_the_evaluation_and_is_given_its_step_again(tmp_path):
    with open_teller(tmp_path, tensorboard=True) as teller:
        teller.tell_step(2, {"reward": 0.5, "loss": float("nan"), "digest/samples": "0123456789abcdef"})
        teller.tell_evaluation(2, {"accuracy": 0.5})
    with open_teller(tmp_path, first_step=3, looked=False, tensorboard=True) as teller:
        teller.tell_evaluation(2, {"accuracy": 0.5})
    events = read_events(tmp_path / "tensorboard")
    (purge,) = [i for i, event in enumerate(events) if event.session_log.status == 1 and event.step == 2]
    after = [(value.tag, event.step) for event in events[purge:] for value in event.summary.value]
    assert after == [("reward", 2), ("eval/accuracy", 2)]


def read_events(folder: Path) -> list:
    """TensorBoard's records: length, its checksum, an Event, its checksum."""
    from tensorboardX.proto import event_pb2

    events = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event()  # pyright: ignore[reportAttributeAccessIssue]  # made at import
            event.ParseFromString(data[12 : 12 + length])
            events.append(event)
            data = data[16 + length :]
    return events


def test_tensorboard_gets_scalars_and_is_told_where_a_resumed_run_begins(tmp_path):
    with open_teller(tmp_path, first_step=7, tensorboard=True) as teller:
        teller.tell_step(7, {"reward": 0.5, "loss": float("nan")})
    events = read_events(tmp_path / "tensorboard")
    assert any(event.session_log.status == event.session_log.START and event.step == 7 for event in events)
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(7, "reward", 0.5)]


def test_a_note_is_told_once_and_again_only_after_a_hundred_steps(tmp_path):
    stream = io.StringIO()
    with open_teller(tmp_path, stream=stream) as teller:
        for step in range(1, 102):
            teller.tell_step(step, {}, notes=("the loss prints 0",))
    assert stream.getvalue().count("note: the loss prints 0") == 2


def test_notes_say_when_the_loss_prints_zero_and_when_no_group_has_signal():
    on_policy = metrics.step_notes({"loss": -2e-9, "frac_reward_zero_std": 0.9}, on_policy=True)
    assert on_policy == (metrics.ON_POLICY_NOTE,)
    no_signal = metrics.step_notes({"loss": 0.0, "frac_reward_zero_std": 1.0}, on_policy=True)
    assert no_signal == (metrics.NO_SIGNAL_NOTE,)
    assert metrics.step_notes({"loss": 0.01}, on_policy=True) == ()  # dapo's mean over tokens
    assert metrics.step_notes({"loss": 0.0}, on_policy=False) == ()
    waiting = metrics.step_notes({"loss": 0.01, "time/judge": 2.1, "time/step": 10.0}, on_policy=True)
    assert waiting == (metrics.JUDGE_NOTE,)
    assert not metrics.step_notes({"loss": 0.01, "time/judge": 1.9, "time/step": 10.0}, on_policy=True)


@pytest.mark.parametrize(("package", "value"), [("wandb", "offline"), ("trackio", True)])
def test_a_missing_tracker_is_one_line_that_names_the_extra(package, value, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ValueError, match=rf"pip install 'grpo_jax\[{package}\]'") as caught:
        open_teller(tmp_path, **{package: value})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_wandb_online_wants_its_key_from_the_environment(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        metrics.check_trackers(TellingParams(wandb="online"))
    metrics.check_trackers(TellingParams(wandb="offline"))


@pytest.mark.parametrize(
    "wrong", [{"wandb": "on"}, {"completions_every_steps": -1}, {"num_completions_to_print": 0}]
)
def test_a_wrong_setting_is_refused_with_its_field(wrong):
    with pytest.raises(ValueError, match=f"config.telling.{next(iter(wrong))}"):
        TellingParams(**wrong)


def test_all_parts_are_closed_even_when_one_fails(tmp_path):
    teller = open_teller(tmp_path)

    class Broken:
        def close(self):
            raise OSError("disk full")

    teller._parts = (*teller._parts, Broken())
    with pytest.raises(OSError, match="disk full"):
        teller.finish()
    assert teller._metrics_file._file.closed
    teller.finish()  # a second time does nothing


def test_the_silent_teller_takes_all_that_the_teller_takes():
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if name.startswith("tell_") or name == "finish"}

    assert public(metrics.SilentTeller) == public(metrics.Teller)
    with metrics.SilentTeller() as teller:
        teller.tell_step(1, {"reward": 1.0}, notes=("x",))
        teller.tell_evaluation(1, {"accuracy": 1.0}, samples=[SAMPLE])


def test_importing_the_room_loads_no_heavy_library():
    heavy = "{'rich', 'tensorboardX', 'numpy', 'jax', 'wandb', 'trackio'}"
    code = f"import sys, grpo_jax.metrics, grpo_jax.report; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_an_evaluation_is_told_with_its_interval_and_several_tasks_by_their_accuracies():
    told = {
        "eval/accuracy": 0.5,
        "eval/accuracy_stderr": 0.05,
        "eval/accuracy_low": 0.402,
        "eval/accuracy_high": 0.598,
        "eval/majority@4": 0.75,
        "eval/outcome/crashed": 0.125,
        "eval/num_problems": 100.0,
        "time/evaluate": 2.0,
    }
    assert list(metrics.evaluation_in_words(told)) == [
        *("accuracy 50.0% (40.2 to 59.8)", "majority@4 75.0%", "outcome/crashed 12.5%", "2.0 s"),
    ]
    told = {
        name.replace("eval/", f"eval/{task}/"): value for task in ("a", "b") for name, value in told.items()
    }
    assert list(metrics.evaluation_in_words(told)) == [
        *("a/accuracy 50.0% (40.2 to 59.8)", "2.0 s", "b/accuracy 50.0% (40.2 to 59.8)"),
    ]
