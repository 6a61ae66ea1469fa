"""What a `config.json` says about a decoder, as one frozen, hashable record.

Enters: the JSON of a Hugging Face folder. Leaves: a `ModelSpec` that every jitted function may hold as
a static value. A setting that this project does not know, or knows and does not compute (sliding
windows, another activation), is an error: a model that is read wrongly trains without complaint.
Rotary frequencies, with the scaling that Qwen's configs use, are computed here in float64.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Sizes and switches of one decoder-only transformer."""

    family: str  # key of the registry: "qwen2" or "qwen3"
    vocab_size: int  # rows of the embedding, V; may exceed the tokenizer's
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    max_position_embeddings: int  # longest row, tokens
    rms_norm_eps: float
    rope_theta: float
    rope_type: str = "default"  # "default", "linear" or "yarn"
    rope_settings: tuple[tuple[str, float], ...] = ()  # of the scaling, sorted by name
    tie_word_embeddings: bool = False  # the head is the embedding
    qkv_bias: bool = False
    qk_norm: bool = False
    initializer_range: float = 0.02  # standard deviation of random weights

    @property
    def queries_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def layer_weights(self) -> int:
        """Entries of all layers' matrices."""
        attention = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return self.num_layers * self.hidden_size * (attention + 3 * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def num_weights(self) -> int:
        """Entries of all matrices: parameters without norms and biases."""
        return self.layer_weights + (1 if self.tie_word_embeddings else 2) * self.head_weights


MOST_OF_A_SIZE = 2**24
MOST = {"num_hidden_layers": 2**12, "max_position_embeddings": 2**27}
"""Beyond what any model has: such a number is a mistake, and building it would take for ever."""

ROPE_TYPES = {  # setting names each scaling may carry; the first ones are needed
    "default": (),
    "linear": ("factor",),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
    ),
}


def read_rope(config: dict, *, default_theta: float) -> tuple[float, str, tuple[tuple[str, float], ...]]:
    """Reads base and scaling from either spelling of `config.json` (before and after transformers 5).

    Returns: (theta, type, settings sorted by name).
    Raises: ValueError for a scaling or a setting that is not computed here, or no number.
    """
    both: dict = {}
    for name in ("rope_scaling", "rope_parameters"):
        given = config.get(name) or {}
        if not isinstance(given, dict):
            raise ValueError(f"config.json: {name} is {given!r}, not a JSON object.")
        both |= given
    rope = {name: value for name, value in both.items() if value is not None}  # null: the default
    theta = rope.pop("rope_theta", config.get("rope_theta", default_theta))
    theta = real({"rope_theta": theta}, "rope_theta")
    kind = str(rope.pop("rope_type", rope.pop("type", "default")))
    rope.pop("type", None)  # older files carry both spellings
    if kind not in ROPE_TYPES:
        raise ValueError(f"config.json asks for rope scaling {kind!r}; known are {sorted(ROPE_TYPES)}.")
    unknown = sorted(set(rope) - set(ROPE_TYPES[kind]))
    if unknown:
        raise ValueError(f"config.json has unknown settings {unknown} for rope scaling {kind!r}.")
    if kind != "default" and "factor" not in rope:
        raise ValueError(f"config.json asks for rope scaling {kind!r} without its 'factor'.")
    if kind == "yarn":
        rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings", 32768))
    return theta, kind, tuple(sorted((name, real(rope, name)) for name in rope))


def whole(config: dict, name: str, default: int | None = None) -> int:
    """A size, 1 to `MOST`; `default` where it is missing or null. Raises: ValueError for anything else."""
    value, most = config.get(name), MOST.get(name, MOST_OF_A_SIZE)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"config.json: {name} is {value!r}; it must be a whole number from 1 to {most}.")
    return value


def real(config: dict, name: str, default: float | None = None) -> float:
    """A finite number above 0; `default` where it is missing or null. Raises: ValueError for anything else."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"config.json: {name} is {value!r}; it must be a number above 0.")
    return float(value)


def rope_inverse_frequencies(spec: ModelSpec) -> np.ndarray:
    """float32 `[H/2]`: radians per position of each rotary pair, after scaling.

    Source: Su et al. 2021 for the plain ones; Peng et al. 2023 (YaRN), section 3.2, for `yarn`.
    """
    settings = dict(spec.rope_settings)
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    plain = spec.rope_theta**-exponents
    if spec.rope_type == "default":
        return plain.astype(np.float32)
    stretched = plain / settings["factor"]
    if spec.rope_type == "linear":
        return stretched.astype(np.float32)
    low = max(math.floor(_pair_turning(settings.get("beta_fast", 32.0), spec, settings)), 0)
    high = min(math.ceil(_pair_turning(settings.get("beta_slow", 1.0), spec, settings)), spec.head_dim - 1)
    ramp = (np.arange(spec.head_dim // 2) - low) / max(high - low, 0.001)
    keep = 1.0 - np.clip(ramp, 0.0, 1.0)  # 1: fast pair, left as it is; 0: slow pair, stretched
    return (stretched * (1.0 - keep) + plain * keep).astype(np.float32)


def rope_attention_factor(spec: ModelSpec) -> float:
    """Scale of cosines and sines; 1 except for YaRN (its equation 22: 0.1 ln(factor) + 1)."""
    if spec.rope_type != "yarn":
        return 1.0
    settings = dict(spec.rope_settings)
    if "attention_factor" in settings:
        return settings["attention_factor"]
    return 0.1 * math.log(settings["factor"]) + 1.0 if settings["factor"] > 1.0 else 1.0


def _pair_turning(turns: float, spec: ModelSpec, settings: dict[str, float]) -> float:
    """The rotary pair, as a real number, that makes `turns` full turns over the original context."""
    context = settings["original_max_position_embeddings"]
    return spec.head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(spec.rope_theta))
