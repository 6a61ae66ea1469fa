"""A frozen kernel with low-rank adapters, and the one function by which layers multiply by any kind of weight.

The model's kernels are fused; PEFT has one adapter a projection. So each projection keeps its own A and B here
too, and `JOIN` lays their outputs where the fused kernel has them: any adapter maps to PEFT's, exactly. The
merged kernel is made for sampling and export only. Source: Hu et al. 2021 (LoRA).

Shape letters are in `grpo_jax/structs.py`; R is the rank, J is M + 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models.quantised import NF4, Int8


class Projection(NamedTuple):
    """One of PEFT's modules: A is `[inputs, R]`, B is `[R, outputs]`."""

    part: str  # of a layer
    weight: str  # the fused kernel that holds it
    inputs: str
    outputs: str


PROJECTIONS: dict[str, Projection] = {
    "q_proj": Projection("attention", "qkv", "D", "KMH"),
    "k_proj": Projection("attention", "qkv", "D", "KH"),
    "v_proj": Projection("attention", "qkv", "D", "KH"),
    "o_proj": Projection("attention", "output", "KMH", "D"),
    "gate_proj": Projection("mlp", "gate_up", "D", "F"),
    "up_proj": Projection("mlp", "gate_up", "D", "F"),
    "down_proj": Projection("mlp", "down", "F", "D"),
}
WEIGHTS: dict[str, str] = {"qkv": "DKJH", "output": "KMHD", "gate_up": "DcF", "down": "FD"}
"""The fused kernels of a layer and their axes."""

JOIN: dict[str, Callable[..., jax.Array]] = {
    "qkv": lambda q, k, v: jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2),
    "output": lambda o: o,
    "gate_up": lambda gate, up: jnp.stack([gate, up], axis=-2),
    "down": lambda down: down,
}
"""Outputs of a kernel's projections `[..., outputs]` -> the kernel's own `[..., outputs]`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A frozen kernel with the adapters of its projections; where layers are stacked, all arrays are."""

    base: jax.Array | Int8 | NF4
    adapters: dict[str, dict[str, jax.Array]]  # projection -> lora_A, lora_B, float32; none: only the base
    key: jax.Array | None  # of dropout; None: no dropout
    name: str = dataclasses.field(metadata={"static": True})  # key of WEIGHTS
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Any) -> Adapted:
        """`weight[...]`, as a parameter of a module is read; nothing else."""
        if index is not ...:
            raise TypeError("A weight with adapters can only be read whole.")
        return self

    def astype(self, dtype: Any) -> jax.Array:
        """One layer's merged kernel, summed in float32: for the sampler and for export."""
        dense = self.base.astype(jnp.float32)
        if self.adapters:
            product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
            outputs = [
                product(f"{kind.inputs}R,R{kind.outputs}->{kind.inputs}{kind.outputs}", a, b)
                for kind, a, b in self._pairs()
            ]
            dense = dense + self.scale * JOIN[self.name](*outputs)
        return dense.astype(dtype)

    def adapter_outputs(self, x: jax.Array) -> jax.Array:
        """What the adapters add to `x [B, T, inputs] @ kernel`, in the dtype of `x`."""
        outputs = []
        for i, (kind, a, b) in enumerate(self._pairs()):
            inner = _einsum(f"BT{kind.inputs},{kind.inputs}R->BTR", self._dropped(x, i), a.astype(x.dtype))
            outputs.append(_einsum(f"BTR,R{kind.outputs}->BT{kind.outputs}", inner, b.astype(x.dtype)))
        return self.scale * JOIN[self.name](*outputs)

    def _pairs(self) -> list[tuple[Projection, jax.Array, jax.Array]]:
        """Every projection of this kernel with its A and B; of rank 1 and zero where it has none."""
        sizes = dict(zip(WEIGHTS[self.name], self.base.shape, strict=True))
        sizes["M"] = sizes.get("M", sizes.get("J", 2) - 2)
        pairs = []
        for name, kind in PROJECTIONS.items():
            if kind.weight != self.name:
                continue
            shapes = adapter_shapes(kind, sizes | {"R": 1})
            none = {part: jnp.zeros(shape, jnp.float32) for part, shape in shapes.items()}
            found = self.adapters.get(name, none)
            pairs.append((kind, found["lora_A"], found["lora_B"]))
        return pairs

    def _dropped(self, x: jax.Array, index: int) -> jax.Array:
        """`x` with a share of it left out and the rest scaled up; every projection draws its own, as in PEFT."""
        if self.key is None:
            return x
        keep = jax.random.bernoulli(jax.random.fold_in(self.key, index), 1 - self.dropout, x.shape)
        return jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)


def contract(equation: str, x: jax.Array, weight: Any) -> jax.Array:
    """`einsum(equation, x, weight)` in the dtype of `x`, for a weight of any kind that a layer may hold.

    Args:
        equation: such as "BTD,DKJH->BTKJH"; what is summed stands last in `x` and first in the weight.
        weight: an array, which gets a gradient; `Int8`; or `Adapted`, whose base gets none.
    """
    if not isinstance(weight, Adapted):
        return _einsum(equation, x, weight.astype(x.dtype))
    outputs: Any = _frozen_contract(equation, x, weight.base)
    return outputs + weight.adapter_outputs(x) if weight.adapters else outputs


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen_contract(equation: str, x: jax.Array, base: Any) -> jax.Array:
    """The backward pass makes the dense kernel anew: else every layer's would be kept for it."""
    return _einsum(equation, x, base.astype(x.dtype))


def _frozen_forward(equation: str, x: jax.Array, base: Any) -> tuple[jax.Array, Any]:
    return _frozen_contract(equation, x, base), base


def _frozen_backward(equation: str, base: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    inputs, outputs = equation.split("->")
    x, kernel = inputs.split(",")
    return jnp.einsum(f"{outputs},{kernel}->{x}", gradient, base.astype(gradient.dtype)), None


_frozen_contract.defvjp(_frozen_forward, _frozen_backward)


def _einsum(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Several summed axes are made one first: else XLA on a CPU lays the kernel out anew at every step."""
    inputs, outputs = equation.split("->")
    num_summed = sum(axis not in outputs for axis in inputs.split(",")[1])
    if num_summed == 1:
        return jnp.einsum(equation, x, kernel)
    x = x.reshape(*x.shape[:-num_summed], -1)
    return jnp.einsum("...X,XD->...D", x, kernel.reshape(-1, *kernel.shape[num_summed:]))


def adapter_shapes(kind: Projection, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """A and B of one layer, from the sizes of the letters."""
    return {
        "lora_A": tuple(sizes[axis] for axis in kind.inputs + "R"),
        "lora_B": tuple(sizes[axis] for axis in "R" + kind.outputs),
    }
