"""Values that cannot be: numbers out of range, unknown names, fields that contradict each other, devices, processes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mistakes.harness import Mistake, Prepare, check, ours


def row(text: str, *words: str, name: str = "", environment: dict[str, str] | None = None) -> Mistake:
    """A run with overrides, named by the first of them."""
    overrides = text.split()
    name = name or overrides[0].replace("=", "_is_").replace(".", "_")
    return Mistake(name, ours(*overrides), words, environment=environment or {})


NUMBERS = (
    row("seed=-1", "config.seed must be at least 0; got -1"),
    row("seed=2147483648", "config.seed must be at most 2147483647"),
    row("max_steps=0", "config.max_steps must be at least 1; got 0"),
    row("optimizer.learning_rate=0", "config.optimizer.learning_rate must be above 0", "got 0.0"),
    row("optimizer.learning_rate=-1e-6", "config.optimizer.learning_rate must be above 0", "-1e-06"),
    row("optimizer.learning_rate=nan", "config.optimizer.learning_rate must be above 0", "nan"),
    row("optimizer.learning_rate=inf", "config.optimizer.learning_rate is inf", "1e-6"),
    row("optimizer.learning_rate=1e6", "config.optimizer.learning_rate is 1000000.0", "1e-6"),
    row("optimizer.adam_epsilon=0", "config.optimizer.adam_epsilon must be above 0"),
    row("optimizer.adam_beta2=1", "config.optimizer.adam_beta2 must lie in [0, 1)"),
    row("optimizer.weight_decay=inf", "config.optimizer.weight_decay must be a finite number; got inf"),
    row("rollout.temperature=0", "config.rollout.temperature is 0", "Set 1.0"),
    row("rollout.temperature=-1", "config.rollout.temperature must be 0", "got -1.0"),
    row("rollout.num_generations=1", "config.rollout.num_generations must be at least 2; got 1"),
    row("rollout.top_p=0", "config.rollout.top_p must lie in (0, 1]; got 0.0"),
    row("rollout.top_k=-1", "config.rollout.top_k must be 0 (off) or more"),
    row("rollout.min_p=2", "config.rollout.min_p must lie in [0, 1]"),
    row("rollout.min_completion_length=100", "min_completion_length is 100", "max_completion_length 72"),
    row("grpo.epsilon=-0.1", "config.grpo.epsilon must be at least 0; got -0.1"),
    row("grpo.beta=inf", "config.grpo.beta must be a finite number; got inf"),
    row(
        "grpo.num_minibatches=7",
        "16 prompts x 16 generations = 256 rows",
        "num_minibatches 7",
        "multiple of 7",
    ),
    row("data.streaming_rows=3", "config.data.streaming_rows", "at least twice", "32; got 3"),
    row("data.max_problems=-1", "config.data.max_problems must be at least 0", "got -1"),
    row("evaluation.max_problems=-1", "config.evaluation.max_problems must be at least 0", "got -1"),
    row("evaluation.num_generations=0", "config.evaluation.num_generations must be at least 1"),
    row("checkpoint.save_total_limit=0", "config.checkpoint.save_total_limit must be at least 1"),
    row("telling.num_completions_to_print=0", "config.telling.num_completions_to_print must be at least 1"),
    row("lora.r=8 lora.learning_rate_ratio=0", "config.lora.learning_rate_ratio must be above 0"),
    row("lora.r=100000", "config.lora.r is 100000", "the model's width 128"),
    row("reward.timeout_s=0", "config.reward.timeout_s must be above 0 seconds", "got 0.0"),
    row("reward.timeout_s=inf", "config.reward.timeout_s must be", "inf"),
    row("reward.memory_mb=100", "config.reward.memory_mb must be at least 512", "got 100"),
    row("reward.num_workers=-1", "config.reward.num_workers must be 0", "got -1"),
    row("reward.num_workers=100000", "config.reward.num_workers must be 0", "on this machine; got 100000"),
)

NAMES = (
    row("grpo.loss_type=ppo", "config.grpo.loss_type is 'ppo'", "'dapo'"),
    row("optimizer.lr_scheduler_type=cosin", "config.optimizer.lr_scheduler_type is 'cosin'", "'cosine'"),
    row("data.task=gsm9k", "no task 'gsm9k'", "did you mean 'gsm8k'?"),
    row("data.task=gsm8k=x", "weight of a mixture", "'x'"),
    row("data.template=think", "no template 'think'", "'think_box'"),
    row("model.attention=flash_attention_2", "config.model.attention is 'flash_attention_2'", "'auto'"),
    row("model.compute_dtype=fp16", "config.model.compute_dtype is 'fp16'", "'bfloat16'"),
    row("rollout.attention=flash", "'flash'", "config.rollout.attention", "xla"),
    row("rollout.attention=pallas_gpu", "'pallas_gpu' runs on gpu only", "config.rollout.attention"),
    row("rollout.sampling_weights=fp8", "config.rollout.sampling_weights is 'fp8'", "'int8'"),
    row("rollout.banned_ids=(999999,)", "config.rollout.banned_ids has 999999", "416"),
    row("rollout.stop_strings=('',)", "config.rollout.stop_strings", "not empty"),
    row("lora.target_modules=q_proj,w_proj", "config.lora.target_modules is 'q_proj,w_proj'", "'o_proj'"),
    row("checkpoint.export_dtype=fp8", "config.checkpoint.export_dtype is 'fp8'", "'bfloat16'"),
    row("evaluation.overlap=ignore", "config.evaluation.overlap", "'drop'", "'ignore'"),
    row("telling.wandb=on", "config.telling.wandb", "online", "'on'"),
)

TOGETHER = (
    row("rollout.max_completion_length=100000", "100048 tokens", "1024 positions", "at most 976"),
    row(
        "grpo.ref_model_sync_steps=5", "config.grpo.ref_model_sync_steps is 5", "config.grpo.beta 0", "set 0"
    ),
    row(
        "lora.r=8 grpo.beta=0.1 grpo.ref_model_sync_steps=5",
        *("config.lora.r", "frozen base", "config.grpo.ref_model_sync_steps=0"),
        name="lora_and_a_reference_that_moves",
    ),
    row("lora.base_dtype=nf4", "config.lora.base_dtype is 'nf4'", "config.lora.r=16"),
    row("grpo.delta=1.0", "config.grpo.delta is 1.0", "1.2"),
    row("telling.wandb=offline telling.project=", "config.telling.project is empty"),
)

DEVICES = (
    row("mesh.data=3 mesh.cpu_devices=2", "3 devices; 2 are there", "config.mesh.data=-1"),
    row("mesh.fsdp=0", "config.mesh.fsdp", "at least 1", "fsdp 0"),
    row(
        "mesh.tensor=4 mesh.cpu_devices=4", "config.mesh.tensor is 4", "2 key/value heads", "[1, 2] would do"
    ),
    row("mesh.preset=zero4", "config.mesh.preset is 'zero4'", "'zero3'"),
    row("mesh.preset=zero3 mesh.fsdp=2", "'zero3' chooses the sizes itself", name="preset_and_sizes"),
    row("mesh.cpu_devices=100000", "config.mesh.cpu_devices is 100000", "256"),
    row("distributed.mode=slurm", "config.distributed.mode is 'slurm'", "'auto'"),
    row("distributed.mode=auto", "config.distributed.mode is 'auto'", "nothing tells", "'manual'"),
    row("distributed.num_processes=2", "config.distributed.num_processes is 2", "'manual'"),
    row("distributed.mode=manual", "coordinator_address as host:port", "got ''"),
    row(
        "distributed.mode=manual distributed.coordinator_address=localhost:99999 distributed.num_processes=2",
        "got 'localhost:99999'",
        name="a_port_that_cannot_be",
    ),
    row(
        "distributed.mode=manual distributed.coordinator_address=localhost:1 distributed.num_processes=2 "
        "distributed.process_id=2",
        *("process_id in [0, num_processes)", "2 of 2"),
        name="a_process_too_many",
    ),
    row(
        "distributed.mode=manual distributed.coordinator_address=localhost:1 distributed.num_processes=2 "
        "distributed.process_id=1 distributed.join_timeout_s=2",
        *("process 1 of 2: waited 2 s at localhost:1", "nothing answers there"),
        name="nobody_at_the_address",
    ),
    row(
        "distributed.mode=auto",
        *("RANK", "got 'localhost:1234', 7 of 2"),
        name="variables_that_cannot_be",
        environment={"MASTER_ADDR": "localhost", "MASTER_PORT": "1234", "WORLD_SIZE": "2", "RANK": "7"},
    ),
)


def beside(name: str, content: str, *overrides: str) -> Prepare:
    """A run beside a file with this content, and with overrides that may name it."""

    def prepare(folder: Path) -> Sequence[str]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        return ours(*overrides)

    return prepare


PLACES = (
    Mistake("output_dir_empty", ours("output_dir="), ("config.output_dir is empty",)),
    Mistake(
        "output_dir_is_a_file",
        beside("a", "", "output_dir={folder}/a"),
        ("config.output_dir", "/a is no folder"),
    ),
    Mistake(
        "output_dir_in_a_file",
        beside("a", "", "output_dir={folder}/a/run"),
        ("config.output_dir", "/a is no folder"),
    ),
    Mistake(
        "output_dir_has_other_files",
        beside("run/notes.txt", "mine"),
        ("no run's folder", "config.output_dir"),
    ),
    Mistake(
        "output_dir_is_a_model",
        beside("run/config.json", '{"model_type": "qwen3"}'),
        ("config.output_dir", "is no run's", "model's"),
    ),
    Mistake(
        "compilation_cache_is_a_file",
        beside("a", "", "compilation_cache={folder}/a"),
        ("config.compilation_cache", "/a is no folder"),
    ),
)


@pytest.mark.parametrize(
    "mistake", (*NUMBERS, *NAMES, *TOGETHER, *DEVICES, *PLACES), ids=lambda mistake: mistake.name
)
def test_it_is_told_in_one_line(mistake, run, tmp_path):
    check(mistake, run, tmp_path)


@pytest.mark.skipif(os.access("/proc/1", os.W_OK), reason="this user may write everywhere")
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(run, tmp_path):
    words = ("config.output_dir is '/proc/1/run'", "cannot write in /proc/1")
    check(Mistake("read_only", ours("output_dir=/proc/1/run"), words), run, tmp_path)


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_with_the_command_that_installs_it(package, run, tmp_path):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    chosen = "telling.wandb=offline" if package == "wandb" else "telling.trackio=True"
    check(Mistake(package, ours(chosen), (f"pip install 'grpo_jax[{package}]'",)), run, tmp_path)
