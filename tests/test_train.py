"""The whole program as users start it: a short run, a killed run, the default run and its control."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from configs import base
from grpo_jax import settings
from grpo_jax.structs import Rollout
from grpo_jax.told_files import untimed
from grpo_jax.train import centre

ROOT = Path(__file__).resolve().parent.parent

SHORT = (
    "--config.max_steps=4",
    "--config.checkpoint.save_steps=2",
    "--config.evaluation.max_problems=64",
    "--config.evaluation.eval_steps=0",
    "--config.rollout.num_prompts=8",
    "--config.rollout.num_generations=4",
    "--config.grpo.per_device_train_batch_size=8",
)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as users have it


def command(folder: Path, *overrides: str) -> list[str]:
    base = [sys.executable, "-m", "grpo_jax.train", "--config", "configs/tiny.py"]
    # two devices, as on the machine that the README speaks of, wherever the tests run
    return [*base, f"--config.output_dir={folder}", "--config.mesh.cpu_devices=2", *overrides]


def run(folder: Path, *overrides: str) -> str:
    done = subprocess.run(
        command(folder, *overrides), cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def short_run(tmp_path_factory, cache) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "short"
    run(folder, *SHORT, cache)
    return folder


def test_a_run_leaves_metrics_samples_report_checkpoints_and_a_model(short_run):
    steps = [line["step"] for line in lines(short_run) if "reward" in line]
    looked = [line["step"] for line in lines(short_run) if "eval/accuracy" in line]
    assert steps == [1, 2, 3, 4]
    assert looked == [0, 4]
    assert {"config.json", "samples.jsonl", "report.html", "tensorboard", "final"} <= set(
        os.listdir(short_run)
    )
    assert sorted(os.listdir(short_run / "checkpoints")) == ["2", "4"]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(
        os.listdir(short_run / "final")
    )


def test_the_gap_between_sampler_and_trainer_is_told_every_step_and_is_rounding(short_run):
    gaps = [line["sampling/sampling_logp_difference/max"] for line in lines(short_run) if "reward" in line]
    assert len(gaps) == 4
    assert all(0 <= gap < 1e-4 for gap in gaps)


def test_nothing_compiles_after_the_second_step(short_run):
    compiled = [line["compilations"] for line in lines(short_run) if "reward" in line]
    assert compiled[0] > 0
    assert compiled[2:] == [0, 0]


def test_transformers_loads_the_final_folder(short_run):
    torch = pytest.importorskip("torch", reason="transformers needs torch to run the exported model")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(short_run / "final", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(short_run / "final")
    question = [
        {
            "role": "user",
            "content": "Tom has 47 apples. He buys 35 more and sells 18. How many apples does he have?",
        }
    ]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = tokenizer.decode(model.generate(**prompt, max_new_tokens=70, do_sample=False)[0])
    assert "assistant" in answer


def test_a_killed_run_ends_as_one_that_was_not(short_run, tmp_path, cache):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command(folder, *SHORT, cache),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(folder / "checkpoints" / "2", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = run(folder, *SHORT, cache)
    assert "going on after step 2" in said
    for left, right in zip(arrays(short_run, 4), arrays(folder, 4), strict=True):
        np.testing.assert_array_equal(left, right)  # bit for bit: parameters and moments
    assert [untimed(line) for line in lines(folder)] == [untimed(line) for line in lines(short_run)]


def test_the_same_command_on_a_finished_run_changes_nothing(short_run, cache):
    before = (short_run / "metrics.jsonl").read_text()
    weights = (short_run / "final" / "model.safetensors").read_bytes()
    run(short_run, *SHORT, cache)
    assert (short_run / "metrics.jsonl").read_text() == before
    assert (short_run / "final" / "model.safetensors").read_bytes() == weights


def test_a_folder_of_another_run_is_refused_untouched(short_run):
    before = sorted(os.listdir(short_run))
    done = subprocess.run(
        command(short_run, *SHORT, "--config.seed=7"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "seed was 0, is 7" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(os.listdir(short_run)) == before


def test_export_makes_the_same_folder_from_a_checkpoint(short_run, tmp_path):
    subprocess.run(
        [
            sys.executable,
            "tools/export.py",
            "--checkpoint",
            str(short_run / "checkpoints/4"),
            "--output",
            str(tmp_path / "x"),
        ],
        cwd=ROOT,
        check=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "x" / name).read_bytes() == (short_run / "final" / name).read_bytes()


def test_a_run_with_adapters_goes_on_as_if_it_had_not_stopped_and_leaves_both_folders(tmp_path, cache):
    """Checkpoints hold adapters and their moments only; the 4-bit base is read from the model's folder again."""
    qlora = (*SHORT, cache, "--config.lora.r=4", "--config.lora.base_dtype=nf4")
    run(tmp_path / "straight", *qlora)
    shutil.copytree(tmp_path / "straight", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "4")  # as if it had not come so far
    said = run(tmp_path / "stopped", *qlora)
    assert "going on after step 2" in said
    gaps = [
        line["sampling/sampling_logp_difference/max"]
        for line in lines(tmp_path / "straight")
        if "reward" in line
    ]
    assert len(gaps) == 4
    assert max(gaps) < 1e-4
    kept = [arrays(tmp_path / name, 4) for name in ("straight", "stopped")]
    for left, right in zip(*kept, strict=True):
        np.testing.assert_array_equal(left, right)
    # of 3 layers: 4 x (inputs + outputs) of q, k, v, o, gate, up, down; twice again for the moments
    widths = (128 + 128) + 2 * (128 + 64) + (128 + 128) + 3 * (128 + 384)
    assert sum(array.size for array in kept[0] if array.ndim) == 3 * 3 * 4 * widths
    assert (tmp_path / "stopped" / "final_adapter_of_step_2" / "adapter_config.json").is_file()
    subprocess.run(
        [
            *(sys.executable, "tools/export.py"),
            *(
                "--checkpoint",
                str(tmp_path / "stopped" / "checkpoints" / "4"),
                "--output",
                str(tmp_path / "x"),
            ),
        ],
        cwd=ROOT,
        check=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )
    for final, exported, name in (
        ("final", "x", "model.safetensors"),
        ("final_adapter", "x_adapter", "adapter_model.safetensors"),
    ):
        weights = (tmp_path / "straight" / final / name).read_bytes()
        assert (tmp_path / exported / name).read_bytes() == weights
        assert (ROOT / "configs" / "tiny_qwen" / "model.safetensors").read_bytes() != weights


def test_a_checkpoint_is_evaluated_as_the_run_evaluated_it(short_run, tmp_path):
    """The same problems, asked alike, greedy: the tool and the loop write the same records."""
    options = ["--task", "word_problems", "--max-problems", "64", "--max-completion-length", "72"]
    subprocess.run(
        [
            *(sys.executable, "tools/evaluate.py", *options),
            *("--model", str(short_run / "checkpoints" / "4"), "--output", str(tmp_path / "e")),
        ],
        cwd=ROOT,
        check=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )
    told = json.loads((tmp_path / "e" / "metrics.json").read_text())["metrics"]
    looked = [line for line in lines(short_run) if "eval/accuracy" in line][-1]
    assert told == {name: value for name, value in looked.items() if name.startswith("eval/")}
    kept = short_run / "evaluation" / "word_problems_step_4.jsonl"
    assert kept.read_bytes() == (tmp_path / "e" / "problems.jsonl").read_bytes()
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]  # those of step 0 are gone


def test_the_default_run_learns_and_shuffled_rewards_do_not(tmp_path, cache):
    assert "alarm" not in run(tmp_path / "learns", cache)
    looks = [line["eval/accuracy"] for line in lines(tmp_path / "learns") if "eval/accuracy" in line]
    assert looks[0] <= 0.5
    assert looks[-1] >= 0.9
    run(
        tmp_path / "control",
        "--config.reward.shuffle_rewards=True",
        "--config.evaluation.eval_steps=0",
        cache,
    )
    control = [line["eval/accuracy"] for line in lines(tmp_path / "control") if "eval/accuracy" in line]
    # 500 problems: two standard errors of a difference are at most 6.3 points
    assert control[-1] - control[0] < 0.065


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.time() + 300
    while time.time() < deadline and process.poll() is None:
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} was never there; the program ended with {process.poll()}")


def arrays(folder: Path, step: int) -> list[np.ndarray]:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(folder / "checkpoints" / str(step) / "tree")
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_the_kl_comes_off_the_rewards_before_they_are_centred():
    config = base.get_config().to_dict()
    config["grpo"] |= {"beta": 0.1, "scale_rewards": "none"}
    run = types.SimpleNamespace(
        settings=settings.read(config),
        judge=types.SimpleNamespace(specs=[types.SimpleNamespace(weight=w) for w in (1.0, 0.5)]),
    )
    rewards_PGF = np.array([[[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]]], np.float32)
    rollout = Rollout(
        problems=[],
        completions=[],
        texts=[],
        judgements=[],
        rewards_PG=np.array([[1.0, 1.0, 2.0]], np.float32),
        metrics={},
        rewards_PGF=rewards_PGF,
    )
    # rewards 1, 1, 2: mean 4/3
    np.testing.assert_allclose(centre(run, rollout), [[-1 / 3, -1 / 3, 2 / 3]], rtol=1e-5)
    # less a tenth of the KL 2, 0, 5: 0.8, 1.0, 1.5, mean 1.1
    kl_PG = np.array([[2.0, 0.0, 5.0]])
    np.testing.assert_allclose(centre(run, rollout, kl_PG=kl_PG), [[-0.3, -0.1, 0.4]], rtol=1e-5)
