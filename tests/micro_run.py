"""A run of the whole program that takes seconds: a random one-layer model, few and short completions.

For tests that start, stop, break and resume runs. `command` is what a user would type, on top of `configs/tiny.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from grpo_jax import told_files

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "configs" / "tiny_qwen"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as users have it
ENVIRONMENT["PYTHONPATH"] = str(ROOT)  # tools/x.py of this checkout, whichever is installed
OVERRIDES = {
    "max_steps": 6,
    "mesh.cpu_devices": 1,
    "rollout.num_prompts": 4,
    "rollout.num_generations": 4,
    "rollout.max_completion_length": 16,
    "rollout.window": 16,
    "grpo.per_device_train_batch_size": 16,
    "reward.num_workers": 1,
    # a random model is never right: rewards that differ all the same, so that there is something to learn
    "reward.reward_funcs": f"accuracy,{ROOT / 'tests' / 'micro_reward.py'}:letters",
    "data.max_problems": 64,
    "evaluation.max_problems": 4,
    "evaluation.eval_steps": 2,
    "checkpoint.save_steps": 2,
    "telling.tensorboard": False,
}


def make_model(folder: Path) -> Path:
    """Writes the model's folder: tiny_qwen's tokenizer, random weights of `SIZES`."""
    import numpy as np
    from safetensors.numpy import save_file

    from grpo_jax.models import hf_table, registry

    folder.mkdir(parents=True)
    for path in TINY.iterdir():
        if path.suffix == ".json" and "safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((TINY / "config.json").read_text()) | SIZES
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    draw = np.random.default_rng(0)
    shapes = hf_table.tensor_shapes(registry.read_spec(folder))
    tensors = {
        name: np.ones(shape, np.float32) if "norm" in name else draw.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def command(model: Path, folder: Path, *overrides: str, **fields: object) -> list[str]:
    """The command line of a run in `folder`; `fields` are `section__field=value`, and come before `overrides`."""
    values = OVERRIDES | {name.replace("__", "."): value for name, value in fields.items()}
    return [
        *(sys.executable, "-m", "grpo_jax.train", "--config", "configs/tiny.py"),
        *(f"--config.model.path={model}", f"--config.output_dir={folder}"),
        *(f"--config.{name}={value}" for name, value in values.items()),
        *overrides,
    ]


def run(arguments: list[str], *, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and checks its exit status."""
    done = subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    return done


def told(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl without what takes time."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [told_files.untimed(json.loads(line)) for line in lines]
