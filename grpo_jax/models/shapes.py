"""Sizes of models by name, as their `config.json` has them: for random weights of a real shape.

Two are nobody's model: `bench-tiny` and `bench-small` are quick to measure on a CPU.
"""

from __future__ import annotations

_QWEN2P5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 151936,
    "dtype": "bfloat16",
}
_QWEN3 = {
    **_QWEN2P5,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "num_key_value_heads": 8,
    "attention_bias": False,
}


def _sized(base: dict, *, width: int, mlp: int, layers: int, heads: int, kv_heads: int, tied: bool) -> dict:
    return {
        **base,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
    }


SHAPES: dict[str, dict] = {
    "bench-tiny": {
        **_sized(_QWEN2P5, width=128, mlp=384, layers=4, heads=4, kv_heads=2, tied=True),
        "vocab_size": 512,
    },
    "bench-small": {
        **_sized(_QWEN2P5, width=512, mlp=1536, layers=8, heads=8, kv_heads=2, tied=False),
        "vocab_size": 32000,
    },
    "qwen2.5-0.5b": _sized(_QWEN2P5, width=896, mlp=4864, layers=24, heads=14, kv_heads=2, tied=True),
    "qwen2.5-1.5b": _sized(_QWEN2P5, width=1536, mlp=8960, layers=28, heads=12, kv_heads=2, tied=True),
    "qwen2.5-3b": _sized(_QWEN2P5, width=2048, mlp=11008, layers=36, heads=16, kv_heads=2, tied=True),
    "qwen2.5-7b": {
        **_sized(_QWEN2P5, width=3584, mlp=18944, layers=28, heads=28, kv_heads=4, tied=False),
        "vocab_size": 152064,
    },
    "qwen2.5-32b": {
        **_sized(_QWEN2P5, width=5120, mlp=27648, layers=64, heads=40, kv_heads=8, tied=False),
        "vocab_size": 152064,
    },
    "qwen3-0.6b": _sized(_QWEN3, width=1024, mlp=3072, layers=28, heads=16, kv_heads=8, tied=True),
    "qwen3-1.7b": _sized(_QWEN3, width=2048, mlp=6144, layers=28, heads=16, kv_heads=8, tied=True),
    "qwen3-4b": _sized(_QWEN3, width=2560, mlp=9728, layers=36, heads=32, kv_heads=8, tied=True),
    "qwen3-8b": _sized(_QWEN3, width=4096, mlp=12288, layers=36, heads=32, kv_heads=8, tied=False),
}
