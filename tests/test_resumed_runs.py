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
def test_a_run_that_goes_on_from_between_has_the_same_bits(options, micro_model, compiled, files, tmp_path):
    fields = {name: str(x).format(**files) if isinstance(x, str) else x for name, x in options.items()}
    fields |= {
        "compilation_cache": compiled,
        "checkpoint__save_steps": 3,
        "telling__completions_every_steps": 2,
    }
    run(micro_model, tmp_path / "whole", **fields)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    said = run(micro_model, tmp_path / "stopped", "--config.checkpoint.resume_step=3", **fields)
    assert "going on after step 3 of 6" in said
    assert "within rounding" not in said
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    told = [line for line in micro_run.told(tmp_path / "whole") if "reward" in line]
    if "grpo__beta" in options:
        assert told[-1]["kl"] > 0  # there is a reference, and the policy has left it
        assert max(line["dynamic_sampling/rounds"] for line in told) > 0
    assert (tmp_path / "stopped" / "final_of_step_6").is_dir()
    assert (tmp_path / "stopped" / "checkpoints" / "set_aside" / "6").is_dir()


def test_two_runs_of_one_seed_are_equal_and_so_are_one_and_four_judging_processes(
    micro_model, compiled, tmp_path
):
    runs = {"one": 1, "again": 1, "four": 4}
    for name, workers in runs.items():
        run(micro_model, tmp_path / name, compilation_cache=compiled, reward__num_workers=workers)
    one = result(tmp_path / "one")
    assert result(tmp_path / "again") == one
    assert result(tmp_path / "four") == one


def test_another_seed_and_batch_go_on_where_they_are_accepted(micro_model, compiled, tmp_path):
    folder = tmp_path / "run"
    first = {"compilation_cache": compiled, "max_steps": 2, "optimizer__lr_scheduler_type": "constant"}
    run(micro_model, folder, **first)
    changed = first | {"max_steps": 4, "seed": 1, "rollout__num_prompts": 2}
    before = sorted(path.name for path in folder.iterdir())
    refused = micro_run.run(micro_run.command(micro_model, folder, **changed), status=2).stderr.strip()
    assert len(refused.splitlines()) == 1
    assert "(rollout.num_prompts was 4, is 2; seed was 0, is 1)" in refused
    switch = "--config.checkpoint.accept_changes=rollout.num_prompts,seed"
    assert switch in refused
    assert sorted(path.name for path in folder.iterdir()) == before
    said = run(micro_model, folder, switch, **changed)
    assert "going on with a change: rollout.num_prompts was 4, is 2; seed was 0, is 1" in said
    assert "an update sees another number of rows; the learning rate stays" in said
    assert "the data begins anew" in said and "num_prompts was 4, is 2" in said
    assert "going on after step 2 of 4" in said
    steps = [line for line in micro_run.told(folder) if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert json.loads((folder / "config_until_step_2.json").read_text())["seed"] == 0
    assert json.loads((folder / "config.json").read_text())["seed"] == 1
    again = run(
        micro_model, folder, switch, **changed | {"max_steps": 5}
    )  # accepted before: nothing begins anew
    assert "going on after step 4 of 5" in again
    assert "anew" not in again and "going on with a change" not in again


def test_other_data_under_the_same_config_is_refused_and_begins_anew_where_accepted(
    micro_model, compiled, files, tmp_path
):
    data = shutil.copy(files["problems"], tmp_path / "data.jsonl")
    fields = {
        "compilation_cache": compiled,
        "max_steps": 2,
        "data__dataset": data,
        "evaluation__eval_steps": 0,
    }
    run(micro_model, tmp_path / "run", **fields)
    rows = word_problems.problems("train", num=40, seed=4)
    Path(data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields["max_steps"] = 3
    refused = micro_run.run(
        micro_run.command(micro_model, tmp_path / "run", **fields), status=2
    ).stderr.strip()
    assert len(refused.splitlines()) == 1
    switch = "--config.checkpoint.accept_changes=data"
    assert "the saved data position belongs to other data" in refused and switch in refused
    said = run(micro_model, tmp_path / "run", switch, **fields)
    assert "the data begins anew (the saved data position belongs to other data: problems was" in said


def test_a_supervised_run_goes_on_from_between_with_the_same_bits(micro_model, compiled, tmp_path):
    fields = {"compilation_cache": compiled, "sft__max_steps": 6, "sft__num_rows": 8, "sft__save_steps": 3}
    fields |= {"sft__eval_steps": 2, "sft__validation_problems": 8, "sft__lr_scheduler_type": "cosine"}
    fields |= {"lora__r": 4, "lora__lora_dropout": 0.3}
    for name, overrides in (("whole", ()), ("stopped", ("--config.checkpoint.resume_step=3",))):
        if name == "stopped":
            shutil.copytree(tmp_path / "whole_sft", tmp_path / "stopped_sft")
        command = micro_run.command(micro_model, tmp_path / name, *overrides, **fields)
        micro_run.run([part.replace("grpo_jax.train", "grpo_jax.sft") for part in command])
    assert (tmp_path / "stopped_sft" / "final_of_step_6").is_dir()
    assert result(tmp_path / "stopped_sft") == result(tmp_path / "whole_sft")
