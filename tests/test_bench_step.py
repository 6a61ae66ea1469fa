"""The step's benchmark: its command line, its last line, and that TRL does the same work on the same weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax.models import decoder
from tools import bench, bench_step, step_folder, step_ours
from tools.step_work import StepResult, StepWork

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--prompts", "2", "--generations", "2", "--prompt-length", "6", "--new-tokens", "8"]


def small_work(folder: Path, *more: str) -> StepWork:
    options = bench.parse(["step", "--shape", "bench-tiny", "--against", "none", *SMALL, *more])
    return bench_step.plan_work(options, folder)


def test_ours_alone_ends_in_the_line_that_is_promised():
    fitting = ["--set", "grpo.per_device_train_batch_size=2", "--set", "mesh.cpu_devices=1"]
    line = ["--against", "none", "--steps", "2", "--rounds", "1", *fitting]
    done = subprocess.run(
        [sys.executable, "tools/bench.py", "step", "--shape", "bench-tiny", *SMALL, *line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"compile_seconds", "others_share", "device", "versions", "settings", "num_cores"} <= set(found)
    assert found["compilations"] == 0
    taken = found["seconds"]["ours"]
    assert all(len(seconds) == 2 for seconds in taken.values())
    for i in range(2):  # five digits are printed
        parts = sum(taken[name][i] for name in ("sampling", "scoring", "update"))
        assert taken["step"][i] == pytest.approx(parts, rel=1e-3)
    assert all(found[name]["ours"] > 0 for name in ("step", "sampling", "scoring", "update"))
    # the libraries alone take 0.2 GB; a judge is a Python process of its own
    assert found["memory"]["ours"] > 0.2 + found["judges_peak_rss_gb"] > 0.21
    assert "ratio" not in found["step"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--shape bench-tiny --against vllm", "--against takes one of trl, none; got vllm"),
        ("--shape bench-tiny --trl-batch some", "whole numbers above 0, such as 8,16,64; got 'some'"),
        ("--shape bench-tiny --trl-batch 0", "whole numbers above 0, such as 8,16,64; got '0'"),
        ("--shape bench-tiny --trl-batch 5,7", "divides the 64 completions"),
        ("--shape bench-tiny --against none --beta -1", "--beta must be 0 or more; got -1"),
        ("--shape bench-tiny --against none --rounds 0", "--rounds must be 1 or more; got 0"),
        ("--new-tokens 8", "--shape"),
    ],
)
def test_mistakes_on_the_command_line_are_told(line, words):
    with pytest.raises(ValueError, match=words) as raised:
        bench.parse(["step", *line.split()])
    assert "\n" not in str(raised.value)


def test_a_missing_trl_is_told_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install torch 'trl>=1.16', or say --against none"):
        bench.parse(["step", "--shape", "bench-tiny"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grpo.per_device_train_batch_size", "section.field=value"),
        ("rollout.num_prompts=3", "decided by the benchmark's own flags"),
        ("grpo.no_such_field=3", "no_such_field"),
    ],
)
def test_mistakes_in_overrides_are_told(tmp_path, override, words):
    with pytest.raises(ValueError, match=words) as raised:
        step_ours.read_config(small_work(tmp_path, "--set", override), output_dir="x")
    assert "\n" not in str(raised.value)


def test_an_override_reaches_our_config(tmp_path):
    work = small_work(tmp_path, "--set", "grpo.per_device_train_batch_size=2", "--beta", "0.5")
    config = step_ours.read_config(work, output_dir="x")
    assert (config["grpo"]["per_device_train_batch_size"], config["grpo"]["beta"]) == (2, 0.5)


def test_our_parts_of_a_step_are_what_each_clock_leaves():
    # 10 s: judge waited 1 s; the update took 5 s, of which the reference 2 s
    found = step_ours.parts(10.0, 1.0, 2.0, 5.0)
    assert found == {"step": 10.0, "sampling": 4.0, "scoring": 3.0, "update": 3.0}


def test_ratios_are_of_medians_and_say_how_much_faster_and_how_much_larger():
    def result(memory: float, *steps: float) -> StepResult:
        seconds = [{"step": s, "sampling": s / 2, "scoring": 0.0, "update": s / 2} for s in steps]
        return StepResult(seconds, [9.0, 1.0], 9.0, memory, 0.5, [], 0)

    rows = bench_step.compare(
        {"ours": [result(1.5, 1.0, 3.0), result(1.5, 2.0)], "trl": [result(3.5, 6.0, 5.0), result(3.5, 9.0)]}
    )
    assert rows["step"] == {"ours": 2.0, "trl": 6.0, "ratio": 3.0}
    assert rows["memory"] == {"ours": 2.0, "trl": 4.0, "ratio": 0.5}
    assert "ratio" not in rows["scoring"]


@pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="TRL is not installed")
def test_trl_does_the_same_work_on_the_same_weights(tmp_path, mesh):
    work = dataclasses.replace(small_work(tmp_path, "--beta", "0"), steps=1, trl_batch=2)
    opened, params = step_folder.make_model("bench-tiny", Path(work.model), seed=3, mesh=mesh)
    prompts = step_folder.write_prompts(work)
    found = bench_step.run_side("trl", work, tmp_path)  # checks lengths and that groups have signal
    (taken,) = found.seconds
    assert taken["step"] == pytest.approx(taken["sampling"] + taken["scoring"] + taken["update"])
    assert min(taken.values()) > 0
    assert len(found.warm_up_seconds) == 2
    assert all(prompt in prompts for prompt in found.prompts)
    kept = np.load(tmp_path / "trl.npz")
    assert kept["tokens_BT"].shape == (2, 6 + 8)
    # float32's rounding of log-probabilities near -6
    assert bench_step.check_logprobs(opened, params, tmp_path / "trl.npz") < 1e-4
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    others = decoder.initialise(opened.model.spec, seed=4, shardings=shardings)
    with pytest.raises(RuntimeError, match="computes other log-probabilities"):
        bench_step.check_logprobs(opened, others, tmp_path / "trl.npz")
