"""Weights in fewer bits, for the sampler's copy and for a frozen base under LoRA. Nothing here is trained.

`Int8`: one scale an output channel, half the bytes of bfloat16. Rounding is to the nearest, symmetric around 0:
an error of at most half a scale, which is the channel's largest weight over 127.

`NF4`: 4.13 bits a weight. Blocks of 64 weights are divided by their largest magnitude and rounded to the 16
values of `NF4_VALUES`; the blocks' scales are kept as 8 bits, 256 of them between one lowest and one step.
Source: Dettmers et al. 2023 (QLoRA), sections 3 and A; there the second level is an 8-bit float around the
tensor's mean, here a linear 8-bit grid, whose error has a bound.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
NF4_BLOCK = 64  # weights that share a scale
NF4_GROUP = 256  # scales that share a second-level one
NF4_BLOCKED: dict[str, tuple[int, int]] = {  # weight -> its axes [from, to) that blocks run along
    "qkv": (2, 4),  # J and H: no mesh axis cuts them, so blocks lie whole on a device
    "output": (1, 3),  # M and H, likewise
    "gate_up": (2, 3),  # F, which `tensor` may cut between blocks
    "down": (0, 1),  # F
}


def _nf4_values() -> np.ndarray:
    """Quantiles of the normal distribution at even distances, 8 above 0 and 7 below, divided by the largest.

    The outermost probability is the mean of what 30 and what 32 steps would leave, as in QLoRA's own code.
    """
    outermost = (29 / 30 + 31 / 32) / 2
    quantile = statistics.NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    return (np.array(sorted([*below, 0.0, *above])) / max(above)).astype(np.float32)


NF4_VALUES = _nf4_values()


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

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def astype(self, dtype: Any) -> jax.Array:
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


def quantise(weight: jax.Array, name: str) -> Int8:
    """Rounds a weight called `name` in `INPUT_AXES`; a channel of zeros gets scale 1."""
    weight = weight.astype(jnp.float32)
    largest = jnp.abs(weight).max(axis=INPUT_AXES[name], keepdims=True)
    scale = jnp.where(largest > 0, largest / LARGEST, 1.0)
    return Int8(jnp.round(weight / scale).astype(jnp.int8), scale)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class NF4:
    """One layer's weight `name` of shape `layer_shape`, or a stack of them with a leading axis on each array.

    Its parts have names in tree paths, so that `mesh.PARAMETER_RULES` can say where each lies.
    """

    codes: jax.Array  # uint8, the blocked axes replaced by [blocks, 32]: place i, and i + 32 in the high bits
    scales: jax.Array  # uint8, the blocked axes replaced by [blocks]
    lows: jax.Array  # float32 [groups]; groups run over `scales` flattened
    steps: jax.Array  # float32 [groups]
    name: str  # key of NF4_BLOCKED
    layer_shape: tuple[int, ...]

    def tree_flatten_with_keys(self) -> tuple[tuple, tuple]:
        names = ("codes", "scales", "lows", "steps")
        children = tuple((jax.tree_util.DictKey(name), getattr(self, name)) for name in names)
        return children, (self.name, self.layer_shape)

    @classmethod
    def tree_unflatten(cls, static: tuple, children: tuple) -> NF4:
        return cls(*children, *static)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.lows.shape[:-1], *self.layer_shape)

    def astype(self, dtype: Any) -> jax.Array:
        """The weight of one layer, rounded as it is kept, computed in float32."""
        axis, codes, scale = NF4_BLOCKED[self.name][0], self.codes, self._scales()
        codes = jnp.concatenate([codes & 15, codes >> 4], axis=axis + 1)
        blocks = _nf4_look_up(codes) * jnp.expand_dims(scale, axis + 1)
        flat = blocks.reshape(*blocks.shape[:axis], -1, *blocks.shape[axis + 2 :])
        start, stop = NF4_BLOCKED[self.name]
        length = math.prod(self.layer_shape[start:stop])
        flat = jax.lax.slice_in_dim(flat, 0, length, axis=axis)  # without the last block's padding
        return flat.reshape(self.layer_shape).astype(dtype)

    def _scales(self) -> jax.Array:
        spread = lambda x: jnp.repeat(x, NF4_GROUP)[: self.scales.size].reshape(self.scales.shape)  # noqa: E731
        return spread(self.lows) + spread(self.steps) * self.scales.astype(jnp.float32)


def quantise_nf4(weight: jax.Array, name: str) -> NF4:
    """Rounds one layer's weight called `name` in `NF4_BLOCKED`.

    Off by at most half the widest gap of `NF4_VALUES` (0.152) times the block's largest magnitude, plus half
    a step of its scale's group: that scale's own error, by which a value of at most 1 is multiplied.
    """
    start, stop = NF4_BLOCKED[name]
    shape = weight.shape
    length = math.prod(shape[start:stop])
    flat = weight.astype(jnp.float32).reshape(*shape[:start], length, *shape[stop:])
    padding = [(0, 0)] * flat.ndim
    padding[start] = (0, -length % NF4_BLOCK)
    flat = jnp.pad(flat, padding)
    blocks = flat.reshape(*flat.shape[:start], -1, NF4_BLOCK, *flat.shape[start + 1 :])
    largest = jnp.abs(blocks).max(axis=start + 1)
    unit = blocks / jnp.expand_dims(jnp.where(largest > 0, largest, 1.0), start + 1)
    between = jnp.asarray((NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2)
    codes = jnp.searchsorted(between, unit).astype(jnp.uint8)
    low, high = jnp.split(codes, 2, axis=start + 1)
    return NF4(low | (high << 4), *_quantise_scales(largest), name, tuple(shape))


def _quantise_scales(scales: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """8-bit places on a line between each group's least and largest scale: places, lows, steps."""
    flat = scales.reshape(-1)
    grouped = jnp.pad(flat, (0, -flat.size % NF4_GROUP), mode="edge").reshape(-1, NF4_GROUP)
    lows, highs = grouped.min(axis=1), grouped.max(axis=1)
    steps = (highs - lows) / 255
    places = jnp.round((grouped - lows[:, None]) / jnp.where(steps > 0, steps, 1.0)[:, None])
    return places.astype(jnp.uint8).reshape(-1)[: flat.size].reshape(scales.shape), lows, steps


def _nf4_look_up(codes: jax.Array) -> jax.Array:
    """`NF4_VALUES[codes]`. A TPU gathers slowly; a CPU would not fuse the choices, and keep them all at once."""
    return jax.lax.platform_dependent(codes, tpu=_nf4_choose, default=_nf4_gather)


def _nf4_gather(codes: jax.Array) -> jax.Array:
    return jnp.take(jnp.asarray(NF4_VALUES), codes.astype(jnp.int32), mode="clip")


def _nf4_choose(codes: jax.Array) -> jax.Array:
    """A tree of choices, one bit a level."""
    values: list[Any] = [jnp.float32(value) for value in NF4_VALUES]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


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
