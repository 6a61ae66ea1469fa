"""Makes the base model of `configs/tiny.py`: a small Qwen that works on word problems in several ways.

    python tools/make_tiny.py --output configs/tiny_qwen

Everything is made here: the tokenizer, a random model, and demonstrations of careful and of careless work
(`grpo_jax/data/word_problems.py`), on which it is trained with the same state, batches and forward pass as GRPO.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import command_line, policy, text, tiny_tokenizer
from grpo_jax import mesh as mesh_lib
from grpo_jax.data import prompts, templates, word_problems
from grpo_jax.learning import supervised, train_state
from grpo_jax.learning.learner import Learner
from grpo_jax.learning.packing import Row
from grpo_jax.learning.scoring import ComputeParams
from grpo_jax.models import decoder
from grpo_jax.structs import Problem


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, trains, exports."""
    options = parse(arguments)
    policy.check_new(options.output)
    mesh_lib.use_cpu_devices(0)
    with tempfile.TemporaryDirectory() as folder:
        write_untrained_folder(Path(folder), options)
        opened = policy.open_policy(policy.ModelParams(folder, "auto", "none"))
        mesh = mesh_lib.create(data=-1, fsdp=1, tensor=1)
        rows = demonstration_rows(options, opened)
        params = train(options, opened, mesh, rows)
        policy.export(opened, params, options.output, dtype="bfloat16", shard_gb=1.0)
    print(f"the model is in {options.output}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--steps", type=int, default=1600, help="optimizer updates")
    parser.add_argument("--batch", type=int, default=64, help="demonstrations an update")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at the end of the warm-up")
    parser.add_argument("--demonstrations", type=int, default=100_000, help="how many are written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=128, help="model width")
    parser.add_argument("--layers", type=int, default=3)
    options = parser.parse_args(arguments)
    for name in ("steps", "batch", "demonstrations", "hidden", "layers"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be 1 or more; got {getattr(options, name)}.")
    return options


def write_untrained_folder(folder: Path, options: argparse.Namespace) -> None:
    """Tokenizer and sizes of the new model; its weights come from `train`."""
    tiny_tokenizer.save_tiny_tokenizer(folder)
    tokenizer = text.load_tokenizer(folder)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": -(-len(tokenizer) // 16) * 16,
        "hidden_size": options.hidden,
        "intermediate_size": 3 * options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": [tokenizer.eos_token_id, tokenizer.pad_token_id]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def demonstration_rows(options: argparse.Namespace, opened: policy.Policy) -> list[Row]:
    """All demonstrations, tokenised."""
    written = word_problems.demonstrations(options.demonstrations, seed=options.seed)
    template = templates.find("tagged")
    rendered = prompts.render([row["question"] for row in written], template, opened.tokenizer)
    end = opened.tokenizer.eos_token
    prompt_ids = text.encode(opened.tokenizer, rendered)
    completion_ids = text.encode(opened.tokenizer, [row["completion"] + end for row in written])
    return [
        supervised.worked_row(Problem(i, "", "", "", tuple(prompt)), ids)
        for i, (prompt, ids) in enumerate(zip(prompt_ids, completion_ids, strict=True))
    ]


def make_learner(
    options: argparse.Namespace,
    opened: policy.Policy,
    mesh: jax.sharding.Mesh,
    rows: list[Row],
    tx: Any,
) -> supervised.SupervisedLearner:
    """One backward pass a batch."""
    shards = mesh_lib.num_row_shards(mesh)
    learner = Learner(
        opened.model,
        mesh=mesh,
        tx=tx,
        shapes=opened.shapes,
        loss=supervised.LOSS,
        compute=ComputeParams(jnp.float32, "none", opened.num_valid_ids),
    )
    layout = supervised.layout(
        max_prompt_length=max(len(row.problem.prompt_ids) for row in rows),
        max_response_length=max(row.completion.num_tokens for row in rows),
        num_rows=options.batch,
        num_shards=shards,
        rows_per_device=-(-options.batch // shards),
        packing=0,
    )
    return supervised.SupervisedLearner(learner, layout)


def train(
    options: argparse.Namespace, opened: policy.Policy, mesh: jax.sharding.Mesh, rows: list[Row]
) -> decoder.Params:
    """Runs the updates on random batches; returns the trained parameters."""
    shardings = mesh_lib.parameter_shardings(mesh, opened.shapes)
    params = decoder.initialise(opened.model.spec, seed=options.seed, shardings=shardings)
    tx = train_state.optimizer(
        train_state.OptimizerParams(
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            adam_beta1=0.9,
            adam_beta2=0.98,
            adam_epsilon=1e-8,
            weight_decay=0.01,
            max_grad_norm=1.0,
            mu_dtype="float32",
        ),
        num_updates=options.steps,
    )
    state = train_state.create(tx, params, mesh=mesh)
    learner = make_learner(options, opened, mesh, rows, tx)
    rng, started = np.random.default_rng(options.seed), time.time()
    for step in range(1, options.steps + 1):
        chosen = [rows[i] for i in rng.integers(0, len(rows), options.batch)]
        state, metrics = learner.learn(state, chosen)
        if step % 50 == 0 or step == options.steps:
            print(f"step {step:5d}  loss {metrics['loss']:.4f}  {time.time() - started:6.1f} s", flush=True)
    return state.params


if __name__ == "__main__":
    command_line.run_program(main)
