"""Two processes of the whole program over loopback: same result as one, same end, and the same way on.

They find each other by the environment. Every program leads a process group of its own, which is killed at the end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

STEPS = 5
CUT_DOWN = (
    f"--config.max_steps={STEPS}",
    "--config.checkpoint.save_steps=2",
    "--config.checkpoint.export_dtype=float32",
    "--config.evaluation.task=",
    "--config.rollout.num_prompts=8",
    "--config.rollout.num_generations=4",
    "--config.rollout.max_completion_length=32",  # one shape of the cache: fewer programs to compile
    "--config.rollout.window=32",
    "--config.reward.num_workers=1",
    "--config.telling.tensorboard=False",
)
ENDS_WITHIN_S = 60  # the promise
RUNS_WITHIN_S = 240


def start(folder: Path, *overrides: str, devices: int, process: int | None = None, port: int = 0):
    """One process of the program; its output goes to FOLDER.PROCESS.log."""
    arguments = [
        *CUT_DOWN,
        f"--config.output_dir={folder}",
        f"--config.mesh.cpu_devices={devices}",
        *overrides,
    ]
    environment = dict(os.environ)
    if process is not None:
        arguments.append("--config.distributed.mode=auto")
        environment |= {
            "COORDINATOR_ADDRESS": f"localhost:{port}",
            "NUM_PROCESSES": "2",
            "PROCESS_ID": str(process),
        }
    with log_of(folder, process or 0).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "grpo_jax.train", "--config", "configs/tiny.py", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_pair(folder: Path, *overrides: str, devices: int = 1) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [start(folder, *overrides, devices=devices, process=i, port=port) for i in range(2)]


def end(processes: list[subprocess.Popen], *, within: float) -> list[int]:
    """Exit statuses; kills what is left after so many seconds, and then fails."""
    deadline = time.monotonic() + within
    try:
        return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run(folder: Path, *overrides: str, devices: int, pair: bool) -> Path:
    made = (
        start_pair(folder, *overrides, devices=devices)
        if pair
        else [start(folder, *overrides, devices=devices)]
    )
    statuses = end(made, within=RUNS_WITHIN_S)
    assert statuses == [0] * len(made), [log_of(folder, i).read_text()[-3000:] for i in range(len(made))]
    return folder


def log_of(folder: Path, process: int) -> Path:
    return folder.with_name(f"{folder.name}.{process}.log")


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "final" / "model.safetensors")


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def error_lines(folder: Path, process: int) -> list[str]:
    return [line for line in log_of(folder, process).read_text().splitlines() if line.startswith("error:")]


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory, cache) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "pair", cache, PAIR_ROWS, devices=1, pair=True)


PAIR_ROWS = "--config.grpo.per_device_train_batch_size=8"


def test_two_processes_teach_as_one_with_the_same_mesh(pair_run, tmp_path, cache):
    alone = run(tmp_path / "alone", cache, PAIR_ROWS, devices=2, pair=False)
    ours, theirs = weights(pair_run), weights(alone)
    assert ours.keys() == theirs.keys()
    # Not bit for bit: a process with one device cuts its matrix products among more threads. Adam's steps
    # are learning_rate large however small a gradient is, so it is the whole tensor that is compared.
    for name, tensor in theirs.items():
        gap = np.linalg.norm(ours[name] - tensor) / np.linalg.norm(tensor)
        assert gap < 1e-5, (name, gap)
    assert [line["step"] for line in steps(pair_run)] == list(range(1, STEPS + 1))  # told once, by one
    for ours, theirs in zip(steps(pair_run), steps(alone), strict=True):
        for name in ("reward", "completions/num_tokens"):
            assert ours[name] == theirs[name]


def test_one_step_of_two_times_four_devices_is_that_of_eight(tmp_path, cache):
    one_step = (
        *(cache, "--config.max_steps=1", "--config.grpo.per_device_train_batch_size=2"),
        # an evaluation of a number of problems that the two cannot share alike
        *("--config.evaluation.task=word_problems", "--config.evaluation.max_problems=5"),
        *("--config.evaluation.num_generations=3", "--config.evaluation.temperature=1.0"),
    )
    before, ours, after = steps(run(tmp_path / "pair", *one_step, devices=4, pair=True))
    before_alone, theirs, after_alone = steps(run(tmp_path / "alone", *one_step, devices=8, pair=False))
    for name in ("loss", "grad_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)  # float32 sums in another order
    for name in ("digest/samples", "digest/rewards"):
        assert ours[name] == theirs[name]
    for looked, alone in ((before, before_alone), (after, after_alone)):
        told = {name: value for name, value in looked.items() if name.startswith("eval/")}
        # counts go between processes as float32
        assert told == {name: pytest.approx(alone[name], rel=1e-6) for name in told}
        assert told["eval/num_problems"] == 5
    files = sorted(path.name for path in (tmp_path / "pair" / "evaluation").iterdir())
    assert files == [f"word_problems_process_{i}_step_1.jsonl" for i in (0, 1)]


def test_when_one_is_killed_the_other_ends_and_the_pair_goes_on_as_if_unbroken(pair_run, tmp_path, cache):
    folder = tmp_path / "killed"
    pair = start_pair(folder, cache, PAIR_ROWS)
    wait_for(folder / "checkpoints" / "2", pair)
    pair[1].kill()
    statuses = end(pair, within=ENDS_WITHIN_S)
    assert statuses[0] not in (0, None) and statuses[1] == -signal.SIGKILL
    (line,) = error_lines(folder, 0)
    assert "process 1 of 2 has given no sign of life for 30 s: it was killed" in line
    assert not (folder / "final").exists()
    (folder / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(exist_ok=True)  # a save that a kill has cut
    run(folder, cache, PAIR_ROWS, devices=1, pair=True)
    assert "going on after step 2" in log_of(folder, 0).read_text()
    for name, tensor in weights(pair_run).items():
        np.testing.assert_array_equal(weights(folder)[name], tensor)  # bit for bit


def test_when_one_is_told_to_stop_both_save_and_the_pair_goes_on_as_if_unbroken(pair_run, tmp_path, cache):
    folder, told = tmp_path / "stopped", 1
    only_at_the_end = "--config.checkpoint.save_steps=0"
    pair = start_pair(folder, cache, PAIR_ROWS, only_at_the_end)
    wait_for(folder / "metrics.jsonl", pair)
    while not (folder / "metrics.jsonl").read_text().count("\n") >= 2:
        time.sleep(0.02)
    pair[told].send_signal(signal.SIGTERM)
    assert end(pair, within=ENDS_WITHIN_S) == [143, 143]
    lines = [log_of(folder, i).read_text().splitlines()[-1] for i in (0, 1)]
    assert lines[told].startswith("stopped by SIGTERM: step ")
    assert re.match("stopped by (SIGTERM of process . of 2|a signal to another process)", lines[1 - told])
    steps_kept = {re.search(r"step (\d+) is kept", line)[1] for line in lines}  # type: ignore[index]
    assert len(steps_kept) == 1 and not (folder / "lock").exists()
    run(folder, cache, PAIR_ROWS, only_at_the_end, devices=1, pair=True)
    assert f"going on after step {steps_kept.pop()}" in log_of(folder, 0).read_text()
    for name, tensor in weights(pair_run).items():
        np.testing.assert_array_equal(weights(folder)[name], tensor)  # bit for bit


def test_when_process_0_is_killed_the_other_says_so(tmp_path, cache):
    folder = tmp_path / "killed"
    pair = start_pair(folder, cache, PAIR_ROWS)
    wait_for(folder / "checkpoints" / "2", pair)
    pair[0].kill()
    statuses = end(pair, within=ENDS_WITHIN_S)
    assert statuses[0] == -signal.SIGKILL and statuses[1] not in (0, None)
    (line,) = error_lines(folder, 1)
    assert "process 0 of 2 is gone" in line


REWARD = """
import os
if os.environ["PROCESS_ID"] == "1":
    raise ImportError("no such dictionary here")

def words(attempt):
    return 0.0
"""


def test_an_error_in_one_process_is_told_by_both(tmp_path, cache):
    (tmp_path / "reward.py").write_text(REWARD)
    rewards = f"--config.reward.reward_funcs=accuracy,{tmp_path / 'reward.py'}:words"
    folder = tmp_path / "failed"
    started = time.monotonic()
    statuses = end(start_pair(folder, cache, PAIR_ROWS, rewards), within=RUNS_WITHIN_S)
    assert time.monotonic() - started < ENDS_WITHIN_S + 60  # of which the start takes a part
    assert all(status > 0 for status in statuses)
    (first,), (second,) = error_lines(folder, 0), error_lines(folder, 1)
    assert first.startswith("error: process 0 of 2 on ") and "process 1 of 2 on " in first
    assert second.startswith("error: process 1 of 2 on ")
    assert "no such dictionary here" in first and "no such dictionary here" in second


def wait_for(path: Path, pair: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + RUNS_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline or any(process.poll() is not None for process in pair):
            end(pair, within=0)
            raise AssertionError(f"{path} did not appear")
        time.sleep(0.02)
