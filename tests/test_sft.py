"""The supervised program as users start it: a short run, a stopped one, and the table of stages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from configs import base
from grpo_jax import policy, run_folder, settings, sft_run, text
from grpo_jax.data import data_params
from grpo_jax.data.problems import ProblemSet
from grpo_jax.structs import Problem
from grpo_jax.told_files import untimed
from tests.test_train import arrays, lines
from tools import stages

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "--config.data.max_problems=150",
    "--config.evaluation.max_problems=16",
    "--config.rollout.max_completion_length=64",
    "--config.rollout.num_prompts=4",
    "--config.rollout.num_generations=4",
    "--config.sft.num_rows=8",
    "--config.sft.validation_problems=20",
    "--config.sft.eval_steps=2",
    "--config.sft.save_steps=2",
    "--config.mesh.cpu_devices=2",
    "--config.reward.num_workers=1",
    "--config.telling.tensorboard=False",
)
FOUR = (*SMALL, "--config.sft.max_steps=4", "--config.sft.lr_scheduler_type=cosine")


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, f"tools/{name}.py", "--config", "configs/tiny.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def teach(folder: Path, *overrides: str) -> str:
    done = tool("sft", f"--config.sft.output_dir={folder}", *overrides)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache) -> tuple[Path, str]:
    """A whole run, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return folder, teach(folder, *FOUR, cache)


def test_a_run_tells_its_losses_and_what_it_learns_and_leaves_a_model(straight):
    folder, said = straight
    told = [line for line in lines(folder) if "loss" in line]
    validation = {line["step"]: line["eval/loss"] for line in lines(folder) if "eval/loss" in line}
    assert [line["step"] for line in told] == [1, 2, 3, 4]
    assert list(validation) == [0, 2, 4]
    assert validation[4] < validation[2] < validation[0]
    assert [line["step"] for line in lines(folder) if "eval/accuracy" in line] == [4]
    assert told[-1]["epoch"] == 4 * 8 / 130
    assert told[0]["learning_rate"] == pytest.approx(3e-5)
    assert "compilations" in told[-1]
    assert told[-1]["compilations"] == 0
    assert re.search(r"learned behind it, 50 tokens: '<think>.*</answer><\|im_end\|>'", said)
    assert json.loads((folder / "sft.json").read_text())["worked_answers"] == 130
    assert sorted(os.listdir(folder / "checkpoints")) == ["2", "4"]
    opened, before = (
        policy.open_policy(policy.ModelParams(str(path), "auto", "none"))
        for path in (folder / "final", ROOT / "configs" / "tiny_qwen")
    )
    assert opened.model.spec == before.model.spec
    assert opened.end_ids == before.end_ids
    weights = (folder / "final" / "model.safetensors").read_bytes()
    assert weights != (ROOT / "configs" / "tiny_qwen" / "model.safetensors").read_bytes()


def test_a_stopped_run_ends_with_the_same_bits(straight, tmp_path, cache):
    folder, _ = straight
    shutil.copytree(folder, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "4")  # as if it had not come so far
    said = teach(tmp_path / "stopped", *FOUR, cache)
    assert "going on after step 2 of 4" in said
    for left, right in zip(arrays(folder, 4), arrays(tmp_path / "stopped", 4), strict=True):
        np.testing.assert_array_equal(left, right)
    assert [untimed(line) for line in lines(tmp_path / "stopped")] == [untimed(x) for x in lines(folder)]
    weights = [(path / "final" / "model.safetensors").read_bytes() for path in (folder, tmp_path / "stopped")]
    assert weights[0] == weights[1]


def test_stages_run_once_and_their_table_is_that_of_their_files(tmp_path, cache):
    short = ("--config.max_steps=2", "--config.sft.max_steps=2", "--config.evaluation.eval_steps=0")
    arguments = ("--seeds", "0", "--output", str(tmp_path / "stages"), *SMALL, *short, cache)
    done = tool("stages", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    place = tmp_path / "stages" / "seed_0"
    looks = {
        name: [line for line in lines(place / name) if "eval/accuracy" in line]
        for name in ("grpo", "sft", "sft_grpo")
    }
    rows = {row["stage"]: row for row in json.loads((place.parent / "stages.json").read_text())["rows"]}
    assert list(rows) == ["base", "sft", "grpo", "sft_grpo"]
    for stage, row in (
        ("base", looks["grpo"][0]),
        ("sft", looks["sft"][0]),
        ("grpo", looks["grpo"][1]),
        ("sft_grpo", looks["sft_grpo"][1]),
    ):
        assert rows[stage]["accuracy"] == {
            "mean": row["eval/accuracy"],
            "stderr": None,
            "seeds": [row["eval/accuracy"]],
        }
    config = json.loads((place / "sft_grpo" / "config.json").read_text())
    assert config["model"]["path"] == str(place / "sft" / "final")
    text = (place.parent / "stages.md").read_text()
    assert "| SFT then GRPO |" in text
    assert "8 problems and 32 completions" in text  # 2 steps of 4 x 4
    assert "16 worked answers" in text
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    again = tool("stages", *arguments)
    assert again.stdout.count("done before") == 3
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()} == before
    other = tool("stages", *arguments, "--config.grpo.epsilon=0.3")
    assert other.returncode == 2
    assert "grpo.epsilon was 0.2, is 0.3" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seeds", "a"), "--seeds must be numbers"),
        (("--config.seed=3",), "--config.seed=3 is set by this tool"),
        (("--config.evaluation.task=",), "the config evaluates nothing"),
        (("--config.sft.lr=1",), "the config has no field 'sft.lr'"),
        (("seed",), "do not know what to do with"),
    ],
)
def test_mistakes_of_stages_are_told_before_anything_runs(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        stages.main(["--config", "configs/tiny.py", "--output", str(tmp_path / "x"), *arguments])
    assert not (tmp_path / "x").exists()


def test_a_table_has_the_mean_over_seeds_and_its_standard_error():
    found = {
        seed: {stage: {"": {"accuracy": share, "mean_length": 50.0 + seed}} for stage in stages.STAGES}
        for seed, share in enumerate((0.5, 0.6, 0.7))
    }
    rows = stages.table(found)
    assert [row["stage"] for row in rows] == list(stages.STAGES)
    assert rows[0]["accuracy"]["mean"] == pytest.approx(0.6)
    assert rows[0]["accuracy"]["stderr"] == pytest.approx(0.1 / 3**0.5)  # deviation with n - 1
    assert rows[0]["accuracy"]["seeds"] == [0.5, 0.6, 0.7]
    assert stages.markdown(rows).splitlines()[2] == "| base | 60.0 ± 5.8 | - | 51.0 ± 0.6 | - |"


def test_a_suite_has_rows_of_each_task_and_of_their_mean():
    row = {"eval/gsm8k/accuracy": 0.5, "eval/gsm8k/mean_length": 90.0, "eval/accuracy": 0.4, "eval/loss": 1.0}
    values = stages.values_of(row, 12.0)
    assert values == {
        "gsm8k": {"accuracy": 0.5, "mean_length": 90.0, "seconds": 12.0},
        "": {"accuracy": 0.4, "seconds": 12.0},
    }
    table = stages.markdown(stages.table({0: dict.fromkeys(stages.STAGES, values)}))
    assert "| gsm8k | SFT | 50.0 | - | 90.0 | 12.0 |" in table
    assert "| mean | SFT | 40.0 | - | - | 12.0 |" in table


def test_an_update_that_wants_more_answers_than_a_task_has_is_refused():
    config = base.get_config().to_dict()
    config["sft"] |= {"num_rows": 3, "max_response_length": 10}
    tokenizer = text.load_tokenizer(ROOT / "configs" / "tiny_qwen")
    opened = types.SimpleNamespace(tokenizer=tokenizer, end_ids=(tokenizer.eos_token_id,))
    (task,) = data_params.resolve(data_params.DataParams(task="word_problems"))
    problems = [Problem(i, "", "", "", (1,), response="yes") for i in range(2)]
    with pytest.raises(
        ValueError, match=r"num_rows is 3, of which 3 are of task word_problems, but it has only 2"
    ):
        sft_run.read_answers(settings.read(config), opened, [ProblemSet(task, problems, num_loaded=2)])


def test_other_worked_answers_under_the_same_config_are_refused(tmp_path):
    answers = types.SimpleNamespace(digest=lambda: "new")
    sft_run.check_record(tmp_path, answers)
    (tmp_path / run_folder.SUPERVISED_FILE).write_text('{"digest": "old"}')
    sft_run.check_record(tmp_path, answers)  # no number was told yet
    (tmp_path / "final").mkdir()
    with pytest.raises(ValueError, match="are not those that the run"):
        sft_run.check_record(tmp_path, answers)
    sft_run.check_record(tmp_path, types.SimpleNamespace(digest=lambda: "old"))


def test_what_decides_no_number_of_a_supervised_run_may_change(tmp_path):
    config = base.get_config().to_dict()
    run_folder.write_config(tmp_path, config)
    (tmp_path / "final").mkdir()
    (tmp_path / run_folder.SUPERVISED_FILE).touch()

    def check(section: str, field: str, value: object) -> None:
        now = base.get_config().to_dict()
        now[section][field] = value
        free = sft_run.may_change(settings.read(now))
        run_folder.check_folder(tmp_path, now, free=free, supervised=True)

    for section, field, value in (
        ("sft", "save_steps", 7),
        ("sft", "output_dir", "elsewhere"),
        ("grpo", "epsilon", 0.3),
        ("optimizer", "learning_rate", 1e-3),
        ("checkpoint", "save_total_limit", 1),
    ):
        check(section, field, value)
    for section, field, value in (
        ("sft", "learning_rate", 1e-3),
        ("sft", "num_rows", 2),
        ("sft", "max_steps", 5),  # on which a cosine's rate depends
        ("optimizer", "weight_decay", 0.5),
        ("lora", "r", 4),
    ):
        with pytest.raises(ValueError, match=rf"\({section}\.{field} was .*, is {value}\)"):
            check(section, field, value)
