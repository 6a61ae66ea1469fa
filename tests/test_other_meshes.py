"""A run goes on with other devices and other numbers of processes: the same samples, the same loss but for rounding."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests import micro_run, test_two_processes

TWO_TIMES_FOUR = {"mesh__data": 2, "mesh__fsdp": 4}
EIGHT = {"mesh__data": 8, "mesh__fsdp": 1}
EVERY_RUN = {
    "grpo__per_device_train_batch_size": 2,
    "grpo__num_iterations": 2,  # a loss that is not 0 by its definition
    "optimizer__learning_rate": 3e-4,
    "checkpoint__save_steps": 1,
    "checkpoint__save_total_limit": 9,
    "evaluation__eval_steps": 0,
}
WITHIN = 1e-5  # must-hold: float32 sums in another order


@pytest.fixture(scope="module")
def whole(micro_model, compiled, tmp_path_factory) -> Path:
    """Four steps on 2 x 4 devices of one process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    micro_run.run(command(micro_model, compiled, folder, TWO_TIMES_FOUR, devices=8, steps=4))
    return folder


def command(
    model: Path, compiled: Path, folder: Path, mesh: dict[str, int], *overrides: str, devices: int, steps: int
) -> list[str]:
    fields = {
        **EVERY_RUN,
        **mesh,
        "mesh__cpu_devices": devices,
        "max_steps": steps,
        "compilation_cache": compiled,
    }
    return micro_run.command(model, folder, *overrides, **fields)


def run_pair(arguments: list[str], folder: Path) -> str:
    """Two processes over loopback. Returns what the first one said."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    pair = []
    for process in range(2):
        place = {"COORDINATOR_ADDRESS": f"localhost:{port}", "NUM_PROCESSES": "2", "PROCESS_ID": str(process)}
        with test_two_processes.log_of(folder, process).open("w") as log:
            pair.append(
                subprocess.Popen(
                    [*arguments, "--config.distributed.mode=auto"],
                    cwd=micro_run.ROOT,
                    env={**os.environ, **place},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    statuses = test_two_processes.end(pair, within=test_two_processes.RUNS_WITHIN_S)
    said = [test_two_processes.log_of(folder, process).read_text() for process in range(2)]
    assert statuses == [0, 0], said
    return said[0]


def step(folder: Path, number: int) -> dict:
    (line,) = [line for line in micro_run.told(folder) if line["step"] == number and "reward" in line]
    return line


def assert_same_step(folder: Path, whole: Path, number: int) -> None:
    """Samples and rewards are equal; what is learned from them is so within rounding."""
    ours, theirs = step(folder, number), step(whole, number)
    for name, value in theirs.items():
        if name.startswith(("reward", "completions/", "outcome/", "accuracy", "frac_")):
            assert ours[name] == value, name
    assert abs(theirs["loss"]) > 100 * WITHIN  # there is something to compare
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=WITHIN)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert ours["learning_rate"] == theirs["learning_rate"]


def test_2_x_4_devices_go_on_as_8_x_1_and_back(whole, micro_model, compiled, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    resume = "--config.checkpoint.resume_step=2"
    said = micro_run.run(command(micro_model, compiled, folder, EIGHT, resume, devices=8, steps=3)).stdout
    assert "mesh.data was 2, is 8; mesh.fsdp was 4, is 1" in said
    assert "within rounding, not bit for bit" in said
    assert "the checkpoint was made elsewhere (mesh" in said
    assert_same_step(folder, whole, 3)
    kept = json.loads((folder / "config_until_step_2.json").read_text())
    now = json.loads((folder / "config.json").read_text())
    assert (kept["mesh"]["fsdp"], now["mesh"]["fsdp"]) == (4, 1)
    said = micro_run.run(command(micro_model, compiled, folder, TWO_TIMES_FOUR, devices=8, steps=4)).stdout
    assert "going on after step 3 of 4" in said
    assert_same_step(folder, whole, 4)


def test_one_process_goes_on_as_two_and_back(whole, micro_model, compiled, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    resume = "--config.checkpoint.resume_step=2"
    said = run_pair(
        command(micro_model, compiled, folder, TWO_TIMES_FOUR, resume, devices=4, steps=3), folder
    )
    assert "processes 1 now 2" in said
    assert_same_step(folder, whole, 3)
    assert [line["step"] for line in micro_run.told(folder) if "reward" in line] == [1, 2, 3]
    said = micro_run.run(command(micro_model, compiled, folder, TWO_TIMES_FOUR, devices=8, steps=4)).stdout
    assert "processes 2 now 1" in said
    assert_same_step(folder, whole, 4)
