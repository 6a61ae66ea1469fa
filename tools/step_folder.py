"""What the sides of the step's benchmark read: a Hugging Face folder of random weights, and prompts."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from grpo_jax import mesh as mesh_lib
from grpo_jax import policy, text
from grpo_jax.models import decoder, registry
from grpo_jax.models.shapes import SHAPES
from tools.step_work import StepWork

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # what prompts are made of, an id each


def make_model(
    shape: str, folder: Path, *, seed: int, mesh: jax.sharding.Mesh
) -> tuple[policy.Policy, decoder.Params]:
    """Writes the folder, float32; returns what is in it. Each side keeps completions from ending early."""
    config = SHAPES[shape]
    with tempfile.TemporaryDirectory() as source:
        (Path(source) / "config.json").write_text(json.dumps(config))
        (Path(source) / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
        write_tokenizer(Path(source), config["vocab_size"])
        spec = registry.read_spec(source)
        shardings = mesh_lib.parameter_shardings(mesh, decoder.build(spec)[1])
        params = decoder.initialise(spec, seed=seed, shardings=shardings)
        opened = policy.open_policy(policy.ModelParams(source, "float32", "none"))
        policy.export(opened, params, folder, dtype="float32", shard_gb=4.0)
    return opened, params


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer of single bytes, so that letters and ids stand one for one; other ids decode to a name."""
    from tokenizers import Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel

    names = [*sorted(ByteLevel.alphabet()), *(f"<{index}>" for index in range(256, vocab_size))]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{%- for message in messages %}{{- message.content }}{%- endfor %}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_prompts(work: StepWork) -> list[list[int]]:
    """Random letters into the work's data; returns their ids, sorted."""
    letters = np.random.default_rng(work.seed).choice(list(LETTERS), (work.num_prompts, work.prompt_length))
    questions = ["".join(row) for row in letters]
    lines = [json.dumps({"question": question, "answer": "0"}) for question in questions]
    Path(work.data).write_text("\n".join(lines) + "\n")
    return sorted(text.encode(text.load_tokenizer(work.model), questions))
