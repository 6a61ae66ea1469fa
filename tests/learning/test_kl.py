"""KL estimators by hand, and what each promises of its mean, exactly, over a whole small vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learning import kl

LN2 = 0.69314718


def value_and_gradient(name: str, now, ref, old=None, clamp=20.0):
    """The estimator and its gradient by `now`; `old` is what sampled, `now` itself by default."""
    now_BC, ref_BC = jnp.array([now]), jnp.array([ref])
    old_BC = now_BC if old is None else jnp.array([old])

    def total(now_BC):
        value_BC = kl.KL_ESTIMATORS[name](ref_BC - now_BC, jnp.exp(now_BC - old_BC), clamp)
        return value_BC.sum(), value_BC

    gradient_BC, value_BC = jax.grad(total, has_aux=True)(now_BC)
    return np.asarray(value_BC)[0], np.asarray(gradient_BC)[0]


@pytest.mark.parametrize(
    ("name", "values", "gradients"),
    [
        # d = ref - now = 0, ln 2, -ln 2
        ("k1", [0.0, -0.693147, 0.693147], [1.0, 1.0, 1.0]),
        ("k2", [0.0, 0.240227, 0.240227], [0.0, -0.693147, 0.693147]),  # d^2 / 2; -d
        ("k3", [0.0, 0.306853, 0.193147], [0.0, -1.0, 0.5]),  # e^d - d - 1; 1 - e^d
        # times the ratio 2: values double; the gradient is ratio * (now - ref) = 2 * -d
        ("k3_unbiased", [0.0, 0.613706, 0.386294], [0.0, -1.386294, 1.386294]),
    ],
)
def test_estimators_and_their_gradients_by_hand(name, values, gradients):
    now, ref = [-1.0, -1.0, -1.0], [-1.0, -1.0 + LN2, -1.0 - LN2]
    old = [-1.0 - LN2] * 3 if name == "k3_unbiased" else now
    value, gradient = value_and_gradient(name, now, ref, old)
    np.testing.assert_allclose(value, values, atol=1e-6)
    np.testing.assert_allclose(gradient, gradients, atol=1e-6)


def expected_gradient(name: str, logits, reference, sampler) -> np.ndarray:
    """The mean over the sampler's tokens of the estimator's gradient by the policy's logits."""

    def mean(logits):
        now, old = jax.nn.log_softmax(logits), jax.nn.log_softmax(sampler)
        values = kl.KL_ESTIMATORS[name](jax.nn.log_softmax(reference) - now, jnp.exp(now - old), 20.0)
        return (jnp.exp(old) * values).sum()  # the sampler's probabilities have no gradient

    return np.asarray(jax.grad(mean)(logits))


def test_which_estimators_have_the_gradient_of_the_divergence(rng):
    policy, reference, sampler = (jnp.asarray(rng.standard_normal(6), jnp.float32) for _ in range(3))

    def divergence(logits):
        now = jax.nn.log_softmax(logits)
        return (jnp.exp(now) * (now - jax.nn.log_softmax(reference))).sum()

    true = np.asarray(jax.grad(divergence)(policy))
    assert np.abs(true).max() > 0.05
    # float32 sums of six terms
    np.testing.assert_allclose(expected_gradient("k1", policy, reference, policy), np.zeros(6), atol=1e-6)
    np.testing.assert_allclose(expected_gradient("k2", policy, reference, policy), true, atol=1e-6)
    np.testing.assert_allclose(expected_gradient("k3_unbiased", policy, reference, sampler), true, atol=1e-6)
    assert np.abs(expected_gradient("k3", policy, reference, policy) - true).max() > 0.01


def test_k1_and_k3_are_unbiased_in_value(rng):
    policy, reference = (jax.nn.log_softmax(rng.standard_normal(6).astype(np.float32)) for _ in range(2))
    true = float((jnp.exp(policy) * (policy - reference)).sum())
    for name in ("k1", "k3"):
        values = kl.KL_ESTIMATORS[name](reference - policy, jnp.ones(6), 20.0)
        assert float((jnp.exp(policy) * values).sum()) == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize("name", sorted(kl.KL_ESTIMATORS))
def test_kl_of_equal_policies_is_exactly_zero(name):
    logprobs = [-0.3, -7.1, -30.0]
    np.testing.assert_array_equal(value_and_gradient(name, logprobs, logprobs)[0], [0, 0, 0])


def test_k3_loses_no_tiny_difference_and_is_never_negative():
    # d^2 / 2 for a small d; exp(d) - d - 1 written out would round to 0 in float32
    np.testing.assert_allclose(value_and_gradient("k3", [0.0], [1e-3])[0], [5.0017e-7], rtol=1e-3)
    assert (value_and_gradient("k3", [0.0] * 401, np.linspace(-4, 4, 401))[0] >= 0).all()


@pytest.mark.parametrize("name", sorted(kl.KL_ESTIMATORS))
def test_extreme_differences_stay_finite_with_finite_gradients(name):
    value, gradient = value_and_gradient(name, [0.0, -1e4], [-1e4, 0.0])
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    if name == "k3":  # far below: e^-10000 + 10000 - 1, slope 1; far above: the clamp's, no slope
        np.testing.assert_allclose(value, [9999.0, np.exp(20.0) - 21.0], rtol=1e-6)
        np.testing.assert_allclose(gradient, [1.0, 0.0])


def test_the_sum_of_a_row_is_over_its_own_tokens_and_is_a_plain_number():
    mask_BC = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    old_BC = jnp.array([[-1.0, -2.0, jnp.nan], [jnp.inf, jnp.nan, 0.0], [-1.0, jnp.nan, -jnp.inf]])
    ref_BC = jnp.array([[-1.5, -1.0, 0.0], [jnp.nan] * 3, [-3.0, -jnp.inf, -jnp.inf]])
    rows = lambda old_BC: kl.of_rows(old_BC, ref_BC, mask_BC, estimator="k1", clamp=20.0)  # noqa: E731
    np.testing.assert_allclose(rows(old_BC), [0.5 - 1.0, 0.0, 2.0], rtol=1e-6)
    gradient_BC = jax.grad(lambda old_BC: rows(old_BC).sum())(old_BC)
    np.testing.assert_array_equal(gradient_BC, np.zeros((3, 3)))
