"""Qwen2, Qwen2.5 and Qwen3, dense: how to read their `config.json` and what their tensors are called.

Qwen2 and Qwen2.5 share one architecture ("qwen2": bias on query, key and value); Qwen3 norms queries and
keys instead and states its head width. A new family of the same shape is another reader here and one line
in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo_jax.models import spec as spec_lib
from grpo_jax.models.spec import ModelSpec

_NEUTRAL = {  # settings that change nothing that is computed here
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "max_window_layers",  # only read by sliding windows, which are refused below
    "model_type",
    "pad_token_id",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_READ = {
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
}
_ONLY: dict[str, Callable[[object], bool]] = {  # settings computed in one way only
    "attention_bias": lambda value: not value,
    "attention_dropout": lambda value: not value,
    "hidden_act": lambda value: value == "silu",
    "layer_types": lambda value: value is None or all(kind == "full_attention" for kind in _listed(value)),
    "sliding_window": lambda value: True,  # means something only with use_sliding_window
    "tie_word_embeddings": lambda value: isinstance(value, bool),
    "use_mrope": lambda value: not value,
    "use_sliding_window": lambda value: not value,
}


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def read_qwen2(config: dict) -> ModelSpec:
    """Sizes of a Qwen2 or Qwen2.5 from its `config.json`."""
    return _read(config, family="qwen2", qkv_bias=True, qk_norm=False)


def read_qwen3(config: dict) -> ModelSpec:
    """Sizes of a dense Qwen3 from its `config.json`."""
    return _read(config, family="qwen3", qkv_bias=False, qk_norm=True)


def _read(config: dict, *, family: str, qkv_bias: bool, qk_norm: bool) -> ModelSpec:
    check_settings(config)
    num_heads = spec_lib.whole(config, "num_attention_heads")
    num_kv_heads = spec_lib.whole(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"config.json has {num_heads} attention heads, no multiple of its {num_kv_heads} key/value heads."
        )
    hidden_size = spec_lib.whole(config, "hidden_size")
    # transformers' Qwen3 takes 128 where the file names no head width; Qwen2 divides the width
    head_dim = spec_lib.whole(config, "head_dim", 128 if family == "qwen3" else hidden_size // num_heads)
    if head_dim % 2:
        raise ValueError(
            f"config.json: head_dim is {head_dim}; rotary positions turn pairs, so it must be even."
        )
    theta, rope_type, rope_settings = spec_lib.read_rope(config, default_theta=10000.0)
    return ModelSpec(
        family=family,
        vocab_size=spec_lib.whole(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=spec_lib.whole(config, "intermediate_size"),
        num_layers=spec_lib.whole(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=spec_lib.whole(config, "max_position_embeddings", 32768),
        rms_norm_eps=spec_lib.real(config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_type=rope_type,
        rope_settings=rope_settings,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        initializer_range=spec_lib.real(config, "initializer_range", 0.02),
    )


def check_settings(config: dict) -> None:
    """Raises ValueError, with the names, for settings that are missing, unknown or not computed here."""
    needed = _READ - {"head_dim", "rope_parameters", "rope_scaling", "rope_theta", "num_key_value_heads"}
    missing = sorted(
        needed - {"tie_word_embeddings", "rms_norm_eps", "max_position_embeddings"} - set(config)
    )
    if missing:
        raise ValueError(f"config.json lacks {missing}.")
    if quantised := config.get("quantization_config"):
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"config.json has a quantization_config ({kind}): only weights that are not quantised are read. Take that "
            "model's own weights; config.lora.base_dtype quantises a frozen base here."
        )
    unknown = sorted(set(config) - _NEUTRAL - _READ - set(_ONLY) - {"quantization_config"})
    if unknown:
        raise ValueError(
            f"config.json has settings this project does not know: {unknown}. "
            "Remove them if they change nothing of the computation."
        )
    refused = {
        name: config[name] for name, fine in _ONLY.items() if name in config and not fine(config[name])
    }
    if refused:
        raise ValueError(f"config.json asks for what is not computed here: {refused}.")
