"""Tiled log-probabilities and entropies against the plain formula in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learning.token_logprobs import default_tile, token_logprobs

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 7, 8, 50


@pytest.fixture
def inputs(rng):
    """Hidden states, head, targets below 40, and cotangents of both outputs."""
    hidden_BCD = rng.standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)
    head_VD = rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    targets_BC = rng.integers(0, 40, (ROWS, LENGTH)).astype(np.int32)
    return hidden_BCD, head_VD, targets_BC, rng.standard_normal((2, ROWS, LENGTH)).astype(np.float32)


def plain(hidden_BCD, head_VD, targets_BC, *, temperature: float, num_valid: int):
    """By the definition, in float64: value, and derivatives with respect to each distribution's logits."""
    hidden, head = hidden_BCD.astype(np.float64), head_VD.astype(np.float64)[:num_valid]
    logits = hidden @ head.T / temperature
    logp = logits - logits.max(-1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
    p, onehot = np.exp(logp), np.eye(num_valid)[targets_BC]
    entropy = -(p * logp).sum(-1)
    return (logp * onehot).sum(-1), entropy, onehot - p, -p * (logp + entropy[..., None])


def plain_gradients(inputs, *, temperature: float, num_valid: int):
    hidden, head, targets, (of_logprob, of_entropy) = inputs
    _, _, d_logprob, d_entropy = plain(hidden, head, targets, temperature=temperature, num_valid=num_valid)
    d_logits = (of_logprob[..., None] * d_logprob + of_entropy[..., None] * d_entropy) / temperature
    head_gradient = np.zeros(head.shape)
    head_gradient[:num_valid] = np.einsum("bcv,bcd->vd", d_logits, hidden)
    return d_logits @ head[:num_valid].astype(np.float64), head_gradient


@functools.partial(jax.jit, static_argnames=("temperature", "num_valid", "tile"))
def tiled(hidden, head, targets, cotangents, *, temperature=1.0, num_valid=VOCABULARY, tile=1024):
    def function(hidden, head):
        return token_logprobs(
            hidden,
            head,
            targets,
            temperature=temperature,
            num_valid_ids=num_valid,
            tile_columns=tile,
            entropy_gradient=True,
        )

    values, pullback = jax.vjp(function, hidden, head)
    return values, pullback(tuple(cotangents))


SETTINGS = [
    {"temperature": 1.0, "num_valid": VOCABULARY},
    {"temperature": 0.7, "num_valid": VOCABULARY},
    {"temperature": 1.3, "num_valid": 40},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("tile", [1, 2, 3, 1024])  # columns; 2 and 3 do not divide 7; all in one
def test_values_and_gradients_equal_the_plain_formula(inputs, settings, tile):
    (logprobs_BC, entropy_BC), gradients = tiled(*inputs, **settings, tile=tile)
    expected_logprobs, expected_entropy, _, _ = plain(*inputs[:3], **settings)
    # float32 sums over 50 ids and 8 columns, of terms up to about 10
    np.testing.assert_allclose(logprobs_BC, expected_logprobs, atol=1e-5)
    np.testing.assert_allclose(entropy_BC, expected_entropy, atol=1e-5)
    for ours, expected in zip(gradients, plain_gradients(inputs, **settings), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_uniform_logits_by_hand():
    values, _ = tiled(
        np.zeros((1, 2, WIDTH), np.float32),
        np.ones((VOCABULARY, WIDTH), np.float32),
        np.zeros((1, 2), np.int32),
        np.zeros((2, 1, 2), np.float32),
    )
    np.testing.assert_allclose(values[0], np.full((1, 2), -np.log(50)), rtol=1e-6)
    np.testing.assert_allclose(values[1], np.full((1, 2), np.log(50)), rtol=1e-6)


def test_ids_beyond_the_tokenizer_get_neither_probability_nor_gradient(inputs):
    hidden, head, targets, cotangents = inputs
    loud = head.copy()
    loud[40:] *= 100.0  # would take all the probability
    values, (_, head_gradient) = tiled(hidden, loud, targets, cotangents, num_valid=40)
    expected, _, _, _ = plain(hidden, head, targets, temperature=1.0, num_valid=40)
    np.testing.assert_allclose(values[0], expected, atol=1e-5)
    np.testing.assert_array_equal(head_gradient[40:], np.zeros((10, WIDTH)))


def test_temperature_zero_counts_as_one_as_it_does_for_the_sampler(inputs):
    zero, one = (tiled(*inputs, temperature=temperature) for temperature in (0.0, 1.0))
    for left, right in zip(jax.tree.leaves(zero), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_certain_token_has_log_probability_zero_and_finite_gradients():
    hidden = np.full((1, 1, 1), 1e4, np.float32)
    head = np.array([[1.0], [-1.0]], np.float32)
    values, gradients = tiled(
        hidden, head, np.zeros((1, 1), np.int32), np.ones((2, 1, 1), np.float32), num_valid=2
    )
    np.testing.assert_array_equal(values, np.zeros((2, 1, 1)))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_bfloat16_hidden_states_round_the_matmul_only(inputs):
    hidden, head, targets, cotangents = inputs
    rough = jnp.asarray(hidden, jnp.bfloat16)
    (logprobs_BC, entropy_BC), (hidden_gradient, head_gradient) = tiled(rough, head, targets, cotangents)
    assert logprobs_BC.dtype == entropy_BC.dtype == jnp.float32
    assert (hidden_gradient.dtype, head_gradient.dtype) == (jnp.bfloat16, jnp.float32)
    # Both factors are rounded to 8 bits first. On the same rounded numbers only float32 rounding is left, since
    # the sum is kept in float32: a bfloat16 logit of size 8 alone would be off by 0.03.
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (hidden, head)]
    expected_logprobs, expected_entropy, _, _ = plain(
        *rounded, targets, temperature=1.0, num_valid=VOCABULARY
    )
    np.testing.assert_allclose(logprobs_BC, expected_logprobs, atol=1e-5)
    np.testing.assert_allclose(entropy_BC, expected_entropy, atol=1e-5)
    # the gradient of a logit is rounded to bfloat16 (2^-9 of itself) before it meets the other factor
    expected = plain_gradients((*rounded, targets, cotangents), temperature=1.0, num_valid=VOCABULARY)
    for ours, exact in zip((hidden_gradient, head_gradient), expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=0.01 * np.abs(exact).max())


def test_without_its_gradient_the_entropy_is_a_constant(inputs):
    hidden, head, targets, (of_logprob, _) = inputs
    logprobs_alone = plain_gradients(
        (hidden, head, targets, (of_logprob, 0 * of_logprob)), temperature=1.0, num_valid=VOCABULARY
    )
    scored = functools.partial(
        token_logprobs, targets_BC=targets, temperature=1.0, num_valid_ids=VOCABULARY, tile_columns=2
    )
    _, pullback = jax.vjp(lambda hidden, head: scored(hidden, head), hidden, head)
    for ours, expected in zip(pullback((of_logprob, 100 + of_logprob)), logprobs_alone, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_the_default_tile_has_a_fixed_size_in_bytes():
    assert default_tile(151_936, "gpu") == 1104  # 640 MiB of float32 logits
    assert default_tile(303_872, "gpu") == 552  # twice the ids, half the tokens, in steps of 8
    assert default_tile(10_000_000, "cpu") == 128  # and never fewer


def test_no_array_of_all_positions_and_all_ids_is_made(inputs):
    hidden, head, targets, _ = inputs

    def total(hidden, head):
        logprobs, entropy = token_logprobs(
            hidden, head, targets, temperature=1.0, num_valid_ids=VOCABULARY, tile_columns=1
        )
        return (logprobs + entropy).sum()

    text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden, head).as_text()
    assert f"tensor<{ROWS}x1x{VOCABULARY}xf32>" in text  # a tile: the search would find such a shape
    assert f"{ROWS}x{LENGTH}x{VOCABULARY}" not in text
    assert f"{LENGTH}x{ROWS}x1x{VOCABULARY}" not in text  # nor one kept by the loop, tile by tile
