"""Small random Hugging Face folders of every family, written without transformers, the same everywhere.

Weights come from NumPy's frozen `RandomState`, so a stored result stays comparable. Tensor names are spelled
out here on their own, so that a wrong name in the project's table does not agree with itself. Norms and
biases are random too: at their initial ones and zeros a swapped or forgotten one would not show.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

_COMMON = {
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "vocab_size": 300,
}
_QWEN2 = {
    **_COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_key_value_heads": 2,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
_QWEN3 = {
    **_COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 16,  # 4 heads of 16 in a width of 32
    "model_type": "qwen3",
    "num_key_value_heads": 2,
}

CONFIGS: dict[str, dict] = {
    # both spellings of the rotary settings: before transformers 5 and since
    "qwen2": {**_QWEN2, "rope_theta": 1000000.0, "tie_word_embeddings": False, "torch_dtype": "float32"},
    "qwen2.5-tied": {
        **_QWEN2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_mrope": False,
    },
    "qwen2.5-untied": {
        **_QWEN2,
        "num_key_value_heads": 4,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "qwen3": {**_QWEN3, "rope_scaling": None, "rope_theta": 1000000, "tie_word_embeddings": True},
    "qwen2.5-yarn": {
        **_QWEN2,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-yarn": {
        **_QWEN3,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 16.0,
            "attention_factor": None,
        },
        "tie_word_embeddings": False,
    },
}


def write_folder(
    folder: Path, config: dict, *, seed: int = 0, dtype: str = "float32", num_shards: int = 1
) -> Path:
    """A Hugging Face folder with random weights, in one file or dealt out over several."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    save_shards(folder, random_tensors(config, seed=seed, dtype=dtype), num_shards=num_shards)
    return folder


def save_shards(folder: Path, tensors: dict[str, np.ndarray], *, num_shards: int = 1) -> None:
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(num_shards):
        name = f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::num_shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def random_tensors(config: dict, *, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {name: _random(name, shape, seed).astype(DTYPES[dtype]) for name, shape in _shapes(config).items()}


def _shapes(config: dict) -> dict[str, tuple[int, ...]]:
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    h = config.get("head_dim", d // config["num_attention_heads"])
    q, kv = h * config["num_attention_heads"], h * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = shapes[layer + "post_attention_layernorm.weight"] = (d,)
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (width, d)
            if config["model_type"] == "qwen2":
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (width,)
        shapes[layer + "self_attn.o_proj.weight"] = (d, q)
        if config["model_type"] == "qwen3":
            shapes[layer + "self_attn.q_norm.weight"] = shapes[layer + "self_attn.k_norm.weight"] = (h,)
        shapes[layer + "mlp.gate_proj.weight"] = shapes[layer + "mlp.up_proj.weight"] = (f, d)
        shapes[layer + "mlp.down_proj.weight"] = (d, f)
    return shapes


def _random(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * noise
    if name.endswith("bias"):
        return 0.3 * noise
    if name.endswith("embed_tokens.weight"):
        return 0.2 * noise  # small beside what the layers add, or a tied model only repeats its input
    return noise * shape[-1] ** -0.5  # keeps the size of what passes through
