"""4-bit weights: the grid is QLoRA's, the rounding is within its bound, and the bytes are as few as said."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import decoder, lora, quantised, qwen, shapes

PUBLISHED = [  # of bitsandbytes
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
]
SIZES = {  # kernel -> sizes whose blocks are whole, and sizes whose last block is padded
    "qkv": [(64, 2, 4, 32), (6, 2, 3, 7)],
    "output": [(2, 2, 32, 24), (1, 3, 30, 8)],
    "gate_up": [(32, 2, 128), (5, 2, 70)],
    "down": [(192, 40), (48, 3)],
}
quantise = jax.jit(quantised.quantise_nf4, static_argnums=1)
dense = jax.jit(lambda weight: weight.astype(jnp.float32))
CASES = [(name, shape) for name, both in SIZES.items() for shape in both]


def in_blocks(weight: np.ndarray, name: str) -> np.ndarray:
    """`[blocks of the kernel, 64]`, padded with zeros, in the order in which scales lie flattened."""
    start, stop = {"qkv": (2, 4), "output": (1, 3), "gate_up": (2, 3), "down": (0, 1)}[name]
    axes = [*range(start), *range(stop, weight.ndim), *range(start, stop)]
    rows = weight.transpose(axes).reshape(*[weight.shape[axis] for axis in axes[: start - stop]], -1)
    rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -rows.shape[-1] % 64)])
    blocks = rows.reshape(*rows.shape[:-1], -1, 64)
    return np.moveaxis(blocks, -2, start).reshape(-1, 64)


def test_the_grid_is_the_published_one():
    # both are float32 of the same quantiles; theirs went through another library's
    np.testing.assert_allclose(quantised.NF4_VALUES, PUBLISHED, atol=2e-7, rtol=0)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_weight_is_off_by_half_the_widest_gap_and_half_a_step_of_its_scale_at_most(rng, name, shape):
    # columns of very different size, so that the bound of one block would not do for another
    weight = (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape[-1]))).astype(np.float32)
    rounded = quantise(jnp.asarray(weight), name)
    assert rounded.codes.dtype == rounded.scales.dtype == jnp.uint8
    error = np.abs(in_blocks(np.asarray(dense(rounded)) - weight, name))
    largest = np.abs(in_blocks(weight, name)).max(axis=1)
    groups = np.pad(largest, (0, -len(largest) % 256), mode="edge").reshape(-1, 256)
    half_step = np.repeat((groups.max(axis=1) - groups.min(axis=1)) / 255 / 2, 256)[: len(largest)]
    gap = np.diff(np.array(PUBLISHED)).max()
    assert gap == pytest.approx(0.30381, abs=1e-5)
    bound = gap / 2 * largest + half_step
    assert (error <= bound[:, None] * 1.00001 + 1e-7).all()  # the last digits are float32's
    assert (error > bound[:, None] / 2).any()  # the bound is no empty one


def test_a_weight_that_lies_on_the_grid_comes_back_as_it_was():
    row = 0.5 * np.tile(np.array(PUBLISHED, np.float32), 12)  # three blocks of one scale
    weight = np.stack([row, row[::-1]], axis=1)
    rounded = quantise(jnp.asarray(weight), "down")
    np.testing.assert_allclose(dense(rounded), weight, atol=1e-7, rtol=0)
    np.testing.assert_array_equal(np.asarray(rounded.steps), 0)


def test_zeros_stay_zeros():
    rounded = quantise(jnp.zeros((64, 3)), "down")
    np.testing.assert_array_equal(dense(rounded), 0.0)


def test_both_ways_to_look_up_give_the_grid():
    codes = jnp.arange(16, dtype=jnp.uint8)
    np.testing.assert_array_equal(quantised._nf4_choose(codes), quantised.NF4_VALUES)
    np.testing.assert_array_equal(quantised._nf4_gather(codes), quantised.NF4_VALUES)


def num_bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("size", sorted(set(shapes.SHAPES) - {"bench-tiny", "bench-small"}))
def test_a_real_base_takes_less_than_three_tenths_of_bfloat16(size):
    config = shapes.SHAPES[size]
    read = qwen.read_qwen3 if config["model_type"] == "qwen3" else qwen.read_qwen2
    _, full = decoder.build(read(config))
    taken = {base: lora.frozen_shapes(full, base_dtype=base) for base in ("bfloat16", "nf4")}
    for part, name in (("attention", "qkv"), ("attention", "output"), ("mlp", "gate_up"), ("mlp", "down")):
        sizes = {base: num_bytes(tree["layers"][part][name]) for base, tree in taken.items()}
        assert sizes["nf4"] <= 0.30 * sizes["bfloat16"]
        assert sizes["nf4"] > 0.25 * sizes["bfloat16"]  # codes alone are a quarter
    assert taken["nf4"]["embedding"].dtype == jnp.bfloat16
    assert taken["nf4"]["layers"]["mlp_norm"]["scale"].dtype == jnp.float32
