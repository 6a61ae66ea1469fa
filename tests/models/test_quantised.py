"""Weights as 8-bit integers: the rounding is what it says, and a sampler runs on them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import decoder, quantised
from grpo_jax.sampling.weights import SamplingWeights
from tests.sampling.small_samplers import make_engine, make_problems


@pytest.mark.parametrize(
    ("name", "shape"), [("qkv", (8, 2, 4, 6)), ("output", (2, 3, 6, 8)), ("head", (10, 8))]
)
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most(rng, name, shape):
    weight = rng.standard_normal(shape).astype(np.float32)
    rounded = quantised.quantise(jnp.asarray(weight), name)
    assert rounded.values.dtype == jnp.int8
    largest = np.abs(weight).max(axis=quantised.INPUT_AXES[name], keepdims=True)
    error = np.abs(rounded.astype(jnp.float32) - weight)
    assert (error <= largest / 127 / 2 * 1.0001).all()  # the last digit is float32's
    assert np.abs(rounded.values).max() == 127


def test_zeros_stay_zeros():
    rounded = quantised.quantise(jnp.zeros((4, 3)), "down")
    np.testing.assert_array_equal(rounded.astype(jnp.float32), 0.0)


def test_rows_of_a_quantised_table_are_rows_of_the_table(rng):
    table = quantised.quantise(jnp.asarray(rng.standard_normal((10, 8)), jnp.float32), "embedding")
    index = jnp.array([[3, 9], [0, 3]])
    taken = quantised.rows(table, index, dtype=jnp.float32)
    np.testing.assert_array_equal(taken, table.astype(jnp.float32)[index])


def test_a_sampler_on_integers_gives_what_it_gives_on_the_rounded_weights(tiny_model, tiny_params, mesh, rng):
    """The two differ in nothing but where the rounding happens, so tokens are equal."""
    make = SamplingWeights(tiny_model, mesh=mesh, shapes=tiny_params, dtype=jnp.float32, form="int8")
    integers = make(tiny_params)
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32),
        integers,
        is_leaf=lambda leaf: isinstance(leaf, quantised.Int8),
    )
    problems = make_problems(rng, [3, 9])
    both = [
        make_engine(tiny_model, mesh, slots=8)
        .generate(weights, problems, num_generations=3, temperature=1.0, step_key=jax.random.key(0))
        .completions
        for weights in (integers, rounded)
    ]
    for left, right in zip(*both, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)


def test_integers_take_about_a_quarter_of_float32(tiny_model, tiny_params, mesh):
    sizes = {
        form: SamplingWeights(
            tiny_model, mesh=mesh, shapes=tiny_params, dtype=jnp.float32, form=form
        ).num_bytes
        for form in ("compute", "int8")
    }
    assert sizes["compute"] / 4 < sizes["int8"] < sizes["compute"] / 3  # and the scales


def test_another_form_is_refused(tiny_model, tiny_params, mesh):
    with pytest.raises(ValueError, match=r"'int4'.*compute.*int8"):
        SamplingWeights(tiny_model, mesh=mesh, shapes=tiny_params, dtype=jnp.float32, form="int4")


def test_training_layout_is_left_as_it_is(tiny_params):
    layout = jax.eval_shape(
        lambda p: decoder.unstack(p, num_layers=2, dtype=jnp.bfloat16, int8=True), tiny_params
    )
    block = layout["layers"][0]
    assert block["attention"]["qkv"].values.shape == (32, 2, 4, 16)
    assert block["attention"]["qkv"].scale.shape == (1, 2, 4, 16)
    assert block["attention_norm"]["scale"].dtype == jnp.float32
    assert layout["embedding"].scale.shape == (96, 1)
