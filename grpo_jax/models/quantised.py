"""Weights as 8-bit integers with one scale an output channel, for sampling only.

Half the bytes of bfloat16 to keep and to read. Rounding is to the nearest, symmetric around 0: an error of
at most half a scale, which is the channel's largest weight over 127. Nothing here is trained.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

INPUT_AXES: dict[str, tuple[int, ...]] = {  # weight -> the axes that a matmul sums over, without layers
    "qkv": (0,),
    "output": (0, 1, 2),
    "gate_up": (0,),
    "down": (0,),
    "embedding": (1,),
    "head": (1,),
    "head_DV": (0,),
}
LARGEST = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A weight of the shape of `values`; behaves as one where it is cast to the dtype of a matmul."""

    values: jax.Array  # int8
    scale: jax.Array  # float32, 1 along the input axes

    def __getitem__(self, index: Any) -> Int8:
        """`weight[...]`, as a parameter of a module is read; nothing else."""
        if index is not ...:
            raise TypeError("A quantised weight can only be read whole; use rows() for a table.")
        return self

    def astype(self, dtype: Any) -> jax.Array:
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


def quantise(weight: jax.Array, name: str) -> Int8:
    """Rounds a weight called `name` in `INPUT_AXES`; a channel of zeros gets scale 1."""
    weight = weight.astype(jnp.float32)
    largest = jnp.abs(weight).max(axis=INPUT_AXES[name], keepdims=True)
    scale = jnp.where(largest > 0, largest / LARGEST, 1.0)
    return Int8(jnp.round(weight / scale).astype(jnp.int8), scale)


def rows(table: jax.Array | Int8, index: jax.Array, *, dtype: Any) -> jax.Array:
    """Rows of an embedding `[V, D]`, quantised or not, in `dtype`."""
    if isinstance(table, Int8):
        taken = Int8(_take(table.values, index), _take(table.scale, index))
        return taken.astype(dtype)
    return _take(table, index).astype(dtype)


def columns(table: jax.Array | Int8, index: jax.Array, *, dtype: Any) -> jax.Array:
    """`rows` of an embedding that is stored turned, `[D, V]`."""
    if isinstance(table, Int8):
        return rows(Int8(table.values.T, table.scale.T), index, dtype=dtype)
    return jnp.moveaxis(jnp.take(table, index, axis=1, mode="clip"), 0, -1).astype(dtype)


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(table, index, axis=0, mode="clip")  # ids are valid: no pass to blank those that are not


def read_in_loop(params: Any, index: jax.Array) -> Any:
    """The same parameters, whose integers the compiler cannot turn into floats before a loop over `index`.

    It would, since they do not change in it; the loop would then read the larger floats.
    """

    def hold(leaf: Any) -> Any:
        if not isinstance(leaf, Int8):
            return leaf
        values, _ = jax.lax.optimization_barrier((leaf.values, index))
        return Int8(values, leaf.scale)

    return jax.tree.map(hold, params, is_leaf=lambda leaf: isinstance(leaf, Int8))
