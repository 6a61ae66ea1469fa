"""The whole program goes on with the same bits, whatever of it has a state; and two runs of one seed are one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from grpo_jax import digests, restored
from grpo_jax import mesh as mesh_lib
from grpo_jax.data import word_problems
from tests import micro_run

TASKS = """
from grpo_jax.data.tasks import Source, Task

LETTERS = Task(train=Source({path!r}), template="tagged")
"""
WITH_STATE = {
    "a moving reference, several updates a step, more rounds of sampling, a stream": {
        "grpo__beta": 0.05,
        "grpo__ref_model_sync_steps": 2,
        "grpo__num_iterations": 2,
        "grpo__num_minibatches": 2,
        "grpo__dynamic_sampling_max_rounds": 2,
        "reward__reward_funcs": f"{Path(__file__).parent / 'micro_reward.py'}:has_q",  # some groups are flat
        "optimizer__lr_scheduler_type": "linear",
        "optimizer__warmup_steps": 5,
        "data__dataset": "{problems}",
        "data__streaming_rows": 12,
        "data__max_problems": 30,
    },
    "adapters with dropout, a mixture of tasks, rewards dealt to other rows": {
        "lora__r": 4,
        "lora__lora_dropout": 0.3,
        "data__task": "word_problems=2,{tasks}:LETTERS=1",
        "evaluation__task": "word_problems",
        "data__max_problems": 10,
        "reward__shuffle_rewards": True,
        "optimizer__lr_scheduler_type": "cosine",
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return micro_run.make_model(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A data set of its own, and a task that names it."""
    folder = tmp_path_factory.mktemp("data")
    rows = word_problems.problems("train", num=40, seed=3)
    problems, tasks = folder / "problems.jsonl", folder / "tasks.py"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.write_text(TASKS.format(path=str(problems)))
    return {"problems": problems, "tasks": tasks}


def run(model: Path, folder: Path, *overrides: str, **fields: object) -> str:
    return micro_run.run(micro_run.command(model, folder, *overrides, **fields)).stdout


def result(folder: Path, step: int = 6) -> dict[str, object]:
    """Everything of a run but its times."""
    opened = restored.open_model(str(folder / "checkpoints" / str(step)))
    assert opened.checkpoint is not None
    state = restored.restore_state(
        opened.parts, opened.checkpoint, mesh=mesh_lib.create(data=8, fsdp=1, tensor=1)
    )
    return {
        "state": digests.of_tree(state),
        "metrics": micro_run.told(folder),
        "samples": (folder / "samples.jsonl").read_bytes(),
        "evaluation": {path.name: path.read_bytes() for path in (folder / "evaluation").iterdir()},
        "model": (folder / "final" / "model.safetensors").read_bytes(),
    }


@pytest.mark.parametrize("options", WITH_STATE.values(), ids=["reference", "adapters"])
def test_a_run_that_goes_on_from_between_has_the_same_bits(options, model, cache, files, tmp_path):
    fields = {name: str(x).format(**files) if isinstance(x, str) else x for name, x in options.items()}
    fields |= {"compilation_cache": cache, "checkpoint__save_steps": 3, "telling__completions_every_steps": 2}
    run(model, tmp_path / "whole", **fields)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    said = run(model, tmp_path / "stopped", "--config.checkpoint.resume_step=3", **fields)
    assert "going on after step 3 of 6" in said
    assert "within rounding" not in said
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    told = [line for line in micro_run.told(tmp_path / "whole") if "reward" in line]
    if "grpo__beta" in options:
        assert told[-1]["kl"] > 0  # there is a reference, and the policy has left it
        assert max(line["dynamic_sampling/rounds"] for line in told) > 0
    assert (tmp_path / "stopped" / "final_of_step_6").is_dir()
    assert (tmp_path / "stopped" / "checkpoints" / "set_aside" / "6").is_dir()


def test_two_runs_of_one_seed_are_equal_and_so_are_one_and_four_judging_processes(model, cache, tmp_path):
    runs = {"one": 1, "again": 1, "four": 4}
    for name, workers in runs.items():
        run(model, tmp_path / name, compilation_cache=cache, reward__num_workers=workers)
    one = result(tmp_path / "one")
    assert result(tmp_path / "again") == one
    assert result(tmp_path / "four") == one
