"""LoRA and QLoRA: which weights carry adapters, how the frozen rest is kept, and how the two become a model.

What is trained is a tree of adapters, what is frozen a tree like the model's, and `assemble` makes of both the
parameters that `decoder.Model` reads, in which every frozen matrix of a layer is an `adapted.Adapted`.
Source: Hu et al. 2021 (LoRA); Dettmers et al. 2023 (QLoRA).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models import adapted, quantised
from grpo_jax.models.adapted import PROJECTIONS, WEIGHTS
from grpo_jax.models.spec import ModelSpec

Assemble = Callable[[Any, Any, jax.Array | None], Any]
"""`assemble(trained, frozen, key)` -> the model's parameters; no dropout where `key` is None."""

ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True)
class LoraParams:
    """What is trained beside a frozen base. Names as in PEFT's LoraConfig where it has one."""

    r: int  # rank; 0: no adapters, every weight is trained
    lora_alpha: float  # adapters' outputs are multiplied by lora_alpha / r
    lora_dropout: float  # share of an adapter's inputs that an update leaves out
    target_modules: str  # "all-linear", or some of PROJECTIONS, comma-separated
    base_dtype: str  # key of BASE_FORMS, or "auto": as the model computes
    learning_rate_ratio: float  # the optimizer's learning rate is multiplied by this where r is not 0

    @property
    def targets(self) -> tuple[str, ...]:
        """Projections with an adapter, in the order of PROJECTIONS."""
        if self.target_modules == ALL_LINEAR:
            return tuple(PROJECTIONS)
        named = {name.strip() for name in self.target_modules.split(",")}
        if not named <= set(PROJECTIONS):
            raise ValueError(
                f"config.lora.target_modules is {self.target_modules!r}; "
                f"known are {ALL_LINEAR!r} and, comma-separated, {list(PROJECTIONS)}."
            )
        return tuple(name for name in PROJECTIONS if name in named)

    @property
    def scale(self) -> float:
        return self.lora_alpha / self.r


BASE_FORMS: dict[str, Callable[[jax.Array, str], Any]] = {
    "float32": lambda weight, name: weight.astype(jnp.float32),
    "bfloat16": lambda weight, name: weight.astype(jnp.bfloat16),
    "int8": quantised.quantise,
    "nf4": quantised.quantise_nf4,
}
"""How one layer's frozen matrix is kept: `(weight, its name in WEIGHTS)` -> what `astype` makes dense again."""


def create(spec: ModelSpec, params: LoraParams, *, seed: int) -> Any:
    """Fresh adapters, float32, stacked over layers. Call it under jit or `jax.eval_shape`.

    A is uniform within 1 / sqrt(its inputs) and B is 0, as in PEFT: the model begins as its base.
    """
    sizes = {
        "D": spec.hidden_size,
        "F": spec.intermediate_size,
        "K": spec.num_kv_heads,
        "M": spec.queries_per_kv,
        "H": spec.head_dim,
        "R": params.r,
    }
    layers: dict = {}
    for i, name in enumerate(PROJECTIONS):
        if name not in params.targets:
            continue
        kind = PROJECTIONS[name]
        shapes = adapted.adapter_shapes(kind, sizes)
        a_shape, b_shape = ((spec.num_layers, *shape) for shape in shapes.values())
        num_inputs = jnp.prod(jnp.array(shapes["lora_A"][:-1]))
        key = jax.random.fold_in(jax.random.key(seed), i)
        a = jax.random.uniform(key, a_shape, jnp.float32, -1, 1) / jnp.sqrt(num_inputs)
        layers.setdefault(kind.part, {})[name] = {"lora_A": a, "lora_B": jnp.zeros(b_shape, jnp.float32)}
    return {"layers": layers}


def freeze(path: tuple[str, ...], weight: jax.Array, *, base_dtype: str) -> Any:
    """One leaf (of one layer, where layers are stacked) as a frozen base keeps it.

    Matrices of layers as `base_dtype` says; norms and biases float32, which are few; embedding and head
    float32 in a float32 base and bfloat16 otherwise, since rounding them further costs most.
    """
    name = path[-1]
    if name in WEIGHTS:
        return BASE_FORMS[base_dtype](weight, name)
    if name in ("embedding", "head"):
        return weight.astype(jnp.float32 if base_dtype == "float32" else jnp.bfloat16)
    return weight


def frozen_shapes(shapes: Any, *, base_dtype: str) -> Any:
    """The tree of a frozen base as shapes, from the model's parameters as shapes."""

    def frozen(path: tuple, leaf: Any) -> Any:
        names = tuple(key.key for key in path)
        keep = partial(freeze, names, base_dtype=base_dtype)
        return jax.eval_shape(jax.vmap(keep) if names[0] == "layers" else keep, leaf)

    return jax.tree_util.tree_map_with_path(frozen, shapes)


def whole(trained: Any, frozen: Any, key: jax.Array | None) -> Any:
    """Full fine-tuning's `assemble`: what is trained is the model."""
    del frozen, key
    return trained


def assemble(trained: Any, frozen: Any, key: jax.Array | None, *, params: LoraParams, seed: int) -> Any:
    """The model's parameters: the frozen ones, whose matrices carry their adapters.

    Args:
        trained: adapters as `create` makes them; None: the base alone, as a reference policy.
        frozen: as `freeze` keeps it, stacked.
        key: names this forward pass among all; None: no dropout (scoring, sampling, export).
        seed: of the run, for dropout.
    """
    layers = {part: dict(leaves) for part, leaves in frozen["layers"].items()}
    num_layers = frozen["layers"]["mlp_norm"]["scale"].shape[0]
    for i, name in enumerate(WEIGHTS):
        kinds = {projection: kind for projection, kind in PROJECTIONS.items() if kind.weight == name}
        part = next(iter(kinds.values())).part
        found = trained["layers"].get(part, {}) if trained is not None else {}
        keys = None
        if key is not None and params.lora_dropout:
            own = jax.random.fold_in(jax.random.fold_in(key, seed), i)
            keys = jax.random.split(own, num_layers)
        layers[part][name] = adapted.Adapted(
            base=layers[part][name],
            adapters={projection: found[projection] for projection in kinds if projection in found},
            key=keys,
            name=name,
            scale=params.scale,
            dropout=params.lora_dropout,
        )
    return {**frozen, "layers": layers}
