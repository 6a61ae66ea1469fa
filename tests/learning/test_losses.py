"""The objective's pieces against numbers worked by hand, two rows of three tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learning import losses

LN2 = 0.69314718


def clipped(ratios, advantages, *, epsilon=0.2, epsilon_high=0.28):
    logprobs_BC = jnp.log(jnp.array(ratios)) - 1.0
    old_BC = jnp.full_like(logprobs_BC, -1.0)
    return losses.clipped_policy_loss(
        logprobs_BC, old_BC, jnp.array(advantages), epsilon=epsilon, epsilon_high=epsilon_high
    )


def test_clipped_loss_by_hand():
    loss_BC, clipped_BC = clipped([[0.5, 1.0, 2.0], [0.5, 1.0, 2.0]], [3.0, -3.0])
    # A = 3: min(1.5, 0.8 * 3) = 1.5; 3; min(6, 1.28 * 3) = 3.84 (clipped)
    # A = -3: min(-1.5, 0.8 * -3) = -2.4 (clipped); -3; min(-6, 1.28 * -3) = -6
    np.testing.assert_allclose(loss_BC, [[-1.5, -3.0, -3.84], [2.4, 3.0, 6.0]], rtol=1e-6)
    np.testing.assert_array_equal(clipped_BC, [[0, 0, 1], [1, 0, 0]])


def test_the_two_limits_are_separate():
    # inside [1 - 0.1, 1 + 0.5] nothing is clipped; outside each limit bites on its own side
    _, inside_BC = clipped([[0.91, 1.49, 1.0]] * 2, [1.0, -1.0], epsilon=0.1, epsilon_high=0.5)
    np.testing.assert_array_equal(inside_BC, np.zeros((2, 3)))
    loss_BC, outside_BC = clipped([[0.89, 1.51, 1.0]] * 2, [1.0, -1.0], epsilon=0.1, epsilon_high=0.5)
    np.testing.assert_array_equal(outside_BC, [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(loss_BC, [[-0.89, -1.5, -1.0], [0.9, 1.51, 1.0]], rtol=1e-6)


def test_the_flag_says_where_the_gradient_is_gone():
    ratios, advantages = [[0.5, 1.0, 2.0], [0.5, 1.0, 2.0]], [3.0, -3.0]

    def total(logprobs_BC):
        old_BC = jnp.zeros_like(logprobs_BC)
        advantages_B = jnp.array(advantages)
        return losses.clipped_policy_loss(logprobs_BC, old_BC, advantages_B, epsilon=0.2, epsilon_high=0.28)[
            0
        ].sum()

    gradient_BC = jax.grad(total)(jnp.log(jnp.array(ratios)))
    # d(-ratio * A)/d(log-probability) = -ratio * A where it is not clipped
    np.testing.assert_allclose(gradient_BC, [[-1.5, -3.0, 0.0], [0.0, 3.0, 6.0]], atol=1e-6)


def test_a_row_without_advantage_has_neither_loss_nor_clipping():
    loss_BC, clipped_BC = clipped([[0.5, 1.0, 2.0]], [0.0])
    np.testing.assert_array_equal(np.abs(loss_BC), [[0, 0, 0]])
    np.testing.assert_array_equal(clipped_BC, [[0, 0, 0]])


def test_kl_by_hand():
    now_BC = jnp.zeros((2, 3))
    ref_BC = jnp.array([[0.0, LN2, -LN2], [0.1, -0.1, 1.0]])
    # exp(d) - d - 1:  0;  2 - 0.693147 - 1;  0.5 + 0.693147 - 1;  e^0.1 - 1.1;  e^-0.1 - 0.9;  e - 2
    expected = [[0.0, 0.306853, 0.193147], [0.00517092, 0.00483742, 0.718282]]
    np.testing.assert_allclose(losses.kl_k3(now_BC, ref_BC), expected, rtol=1e-5)


def test_kl_of_equal_policies_is_exactly_zero_and_tiny_differences_are_not_lost():
    logprobs_BC = jnp.array([[-0.3, -7.1, -30.0]])
    np.testing.assert_array_equal(losses.kl_k3(logprobs_BC, logprobs_BC), [[0, 0, 0]])
    # d^2 / 2 for a small d; exp(d) - d - 1 written out would round to 0 in float32
    small = losses.kl_k3(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-3))
    np.testing.assert_allclose(small, [[5.0017e-7]], rtol=1e-3)
    assert (np.asarray(losses.kl_k3(jnp.zeros((1, 401)), jnp.linspace(-4, 4, 401)[None])) >= 0).all()


MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)  # 2, 1 and 0 trained tokens
WEIGHTS = {
    # TRL: ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean(): 1 / 2 and 1 / 1, over 3 rows
    "grpo": [[1 / 6, 1 / 6, 0], [1 / 3, 0, 0], [0, 0, 0]],
    # TRL: (loss * mask).sum() / mask.sum().clamp(min=1): 3 tokens
    "bnpo": [[1 / 3, 1 / 3, 0], [1 / 3, 0, 0], [0, 0, 0]],
    # TRL: (loss * mask).sum() / (rows * max_completion_length): 3 * 5
    "dr_grpo": [[1 / 15, 1 / 15, 0], [1 / 15, 0, 0], [0, 0, 0]],
    # TRL: (loss * mask).sum() / num_items_in_batch: 8 tokens in the whole step
    "dapo": [[1 / 8, 1 / 8, 0], [1 / 8, 0, 0], [0, 0, 0]],
}


def weights(loss_type: str, mask, rollout_tokens=8.0):
    return losses.TOKEN_WEIGHTS[loss_type](
        jnp.asarray(mask), max_completion_length=5, rollout_tokens=jnp.float32(rollout_tokens)
    )


def test_every_loss_type_has_its_number_here():
    assert set(WEIGHTS) == set(losses.TOKEN_WEIGHTS)


@pytest.mark.parametrize("loss_type", sorted(WEIGHTS))
def test_token_weights_by_hand(loss_type):
    np.testing.assert_allclose(weights(loss_type, MASK), WEIGHTS[loss_type], rtol=1e-6)


@pytest.mark.parametrize("loss_type", sorted(WEIGHTS))
def test_a_batch_with_nothing_to_train_on_weighs_nothing(loss_type):
    np.testing.assert_array_equal(weights(loss_type, np.zeros((2, 3)), rollout_tokens=0.0), np.zeros((2, 3)))


@pytest.mark.parametrize("loss_type", sorted(WEIGHTS))
def test_empty_columns_change_no_weight(loss_type):
    wider = np.pad(MASK, ((0, 0), (0, 4)))
    np.testing.assert_array_equal(weights(loss_type, wider)[:, :3], weights(loss_type, MASK))


def test_on_policy_losses_by_hand():
    # ratio 1 everywhere: the loss is minus the weighted mean of advantages 1, -2, 4, which need not be 0
    advantages = np.array([[1.0], [-2.0], [4.0]])
    totals = {name: float((np.array(weights) * -advantages).sum()) for name, weights in WEIGHTS.items()}
    # grpo: -(1 - 2) / 3;  bnpo: -(2 - 2) / 3;  dr_grpo: the same over 15;  dapo: over 8
    assert totals == pytest.approx({"grpo": 1 / 3, "bnpo": 0.0, "dr_grpo": 0.0, "dapo": 0.0})
