"""The objective's pieces against numbers worked by hand, two rows of three tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learning import losses
from grpo_jax.learning.losses import Limits, Totals

LIMITS = Limits(0.2, 0.28)
RATIOS, ADVANTAGES = [[0.5, 1.0, 2.0], [0.5, 1.0, 2.0]], [[3.0], [-3.0]]
OLD = -1.0  # log-probability of each token before


def cost(policy, ratios, advantages, limits=LIMITS):
    """A policy loss, its flags, and its gradient by each token's log-probability."""
    logprobs_BC = jnp.log(jnp.array(ratios)) + OLD
    advantages_BC = jnp.broadcast_to(jnp.array(advantages), logprobs_BC.shape)

    def total(logprobs_BC):
        result = policy(jnp.exp(logprobs_BC - OLD), logprobs_BC, advantages_BC, limits)
        return result.loss_BC.sum(), result

    gradient_BC, result = jax.grad(total, has_aux=True)(logprobs_BC)
    return *result, gradient_BC


def test_clipped_loss_flags_and_gradient_by_hand():
    loss_BC, low_BC, high_BC, gradient_BC = cost(losses.clipped, RATIOS, ADVANTAGES)
    # A = 3: min(1.5, 0.8 * 3) = 1.5; 3; min(6, 1.28 * 3) = 3.84 (limited)
    # A = -3: min(-1.5, 0.8 * -3) = -2.4 (limited); -3; min(-6, 1.28 * -3) = -6
    np.testing.assert_allclose(loss_BC, [[-1.5, -3.0, -3.84], [2.4, 3.0, 6.0]], rtol=1e-6)
    np.testing.assert_array_equal(low_BC, [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(high_BC, [[0, 0, 1], [0, 0, 0]])
    # d(-ratio * A)/d(log-probability) = -ratio * A where it is not limited
    np.testing.assert_allclose(gradient_BC, [[-1.5, -3.0, 0.0], [0.0, 3.0, 6.0]], atol=1e-6)


def test_the_two_limits_are_separate():
    # inside [1 - 0.1, 1 + 0.5] nothing is clipped; outside each limit bites on its own side
    limits = Limits(0.1, 0.5)
    _, low_BC, high_BC, _ = cost(losses.clipped, [[0.91, 1.49, 1.0]] * 2, [[1.0], [-1.0]], limits)
    np.testing.assert_array_equal(low_BC + high_BC, np.zeros((2, 3)))
    loss_BC, low_BC, high_BC, _ = cost(losses.clipped, [[0.89, 1.51, 1.0]] * 2, [[1.0], [-1.0]], limits)
    np.testing.assert_array_equal(low_BC, [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(high_BC, [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(loss_BC, [[-0.89, -1.5, -1.0], [0.9, 1.51, 1.0]], rtol=1e-6)


def test_delta_bounds_the_loss_where_the_advantage_is_negative():
    limits = Limits(0.2, 0.28, delta=1.5)
    loss_BC, low_BC, high_BC, gradient_BC = cost(losses.clipped, RATIOS, ADVANTAGES, limits)
    # as without it but for ratio 2 with A = -3: -min(1.5 * -3, 1.28 * -3) = 4.5 and no gradient
    np.testing.assert_allclose(loss_BC, [[-1.5, -3.0, -3.84], [2.4, 3.0, 4.5]], rtol=1e-6)
    np.testing.assert_allclose(gradient_BC, [[-1.5, -3.0, 0.0], [0.0, 3.0, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(low_BC, [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(high_BC, [[0, 0, 1], [0, 0, 1]])


def test_delta_is_the_constant_of_dual_clip(rng):
    ratios, advantages = np.exp(rng.normal(0, 1.5, (50, 20))), rng.standard_normal((50, 1))
    plain = np.minimum(ratios * advantages, np.clip(ratios, 0.8, 1.28) * advantages)
    dual = np.where(advantages < 0, np.maximum(plain, 3.0 * advantages), plain)  # Ye et al.'s own form
    assert (dual != plain).any()
    loss_BC, *_ = cost(losses.clipped, ratios, advantages, Limits(0.2, 0.28, delta=3.0))
    np.testing.assert_allclose(loss_BC, -dual, rtol=1e-5)  # float32 against float64


def test_cispo_by_hand():
    loss_BC, low_BC, high_BC, gradient_BC = cost(losses.clipped_weight, RATIOS, ADVANTAGES)
    # weights 0.5, 1, min(2, 1.28); log-probabilities -1 + log(0.5, 1, 2) = -1.693147, -1, -0.306853
    # -w * 3 * logprob: 2.539721, 3, 1.178315; the gradient is -w * A, also beyond the limit
    np.testing.assert_allclose(loss_BC[0], [2.539721, 3.0, 1.178315], rtol=1e-6)
    np.testing.assert_allclose(loss_BC[1], [-2.539721, -3.0, -1.178315], rtol=1e-6)
    np.testing.assert_allclose(gradient_BC, [[-1.5, -3.0, -3.84], [1.5, 3.0, 3.84]], rtol=1e-6)
    np.testing.assert_array_equal(low_BC, np.zeros((2, 3)))
    np.testing.assert_array_equal(high_BC, [[0, 0, 1], [0, 0, 1]])


def test_sapo_by_hand():
    limits = Limits(0.0, 0.0, sapo_temperature_pos=1.0, sapo_temperature_neg=2.0)
    loss_BC, _, _, gradient_BC = cost(losses.soft_gate, RATIOS, ADVANTAGES, limits)
    # sigmoid(-0.5) = 0.377541, sigmoid(0) = 0.5, sigmoid(1) = 0.731059: -4 * s * 3
    np.testing.assert_allclose(loss_BC[0], [-4.530488, -6.0, -8.772703], rtol=1e-6)
    # tau 2: sigmoid(-1) = 0.268941, 0.5, sigmoid(2) = 0.880797: -4 / 2 * s * -3
    np.testing.assert_allclose(loss_BC[1], [1.613648, 3.0, 5.284782], rtol=1e-6)
    # -4 * s * (1 - s) * ratio * A: 0.235004 * 0.5, 0.25 * 1, 0.196612 * 2 times -12; with tau 2:
    # 0.196612 * 0.5, 0.25, 0.104994 * 2 times 12. At ratio 1 that of ratio * A, whatever tau is.
    np.testing.assert_allclose(gradient_BC[0], [-1.410023, -3.0, -4.718687], rtol=1e-5)
    np.testing.assert_allclose(gradient_BC[1], [1.179672, 3.0, 2.519846], rtol=1e-5)


def test_reinforce_by_hand():
    loss_BC, low_BC, high_BC, gradient_BC = cost(losses.reinforce, RATIOS, ADVANTAGES)
    np.testing.assert_allclose(loss_BC[0], [5.079442, 3.0, 0.920558], rtol=1e-6)  # -3 * logprob
    np.testing.assert_allclose(gradient_BC, [[-3.0] * 3, [3.0] * 3], rtol=1e-6)
    np.testing.assert_array_equal(low_BC + high_BC, np.zeros((2, 3)))


@pytest.mark.parametrize(
    "policy", [losses.clipped, losses.clipped_weight, losses.soft_gate, losses.reinforce]
)
def test_a_row_without_advantage_has_neither_loss_nor_gradient_nor_limit(policy):
    for result_BC in cost(policy, [[0.5, 1.0, 2.0]], [[0.0]]):
        np.testing.assert_array_equal(np.abs(result_BC), [[0, 0, 0]])


@pytest.mark.parametrize("policy", [losses.clipped, losses.clipped_weight, losses.soft_gate])
def test_on_policy_every_loss_has_the_gradient_of_reinforce(policy):
    gradient_BC = cost(policy, np.ones((2, 3)), ADVANTAGES)[-1]
    np.testing.assert_allclose(
        gradient_BC, cost(losses.reinforce, np.ones((2, 3)), ADVANTAGES)[-1], rtol=1e-6
    )


MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)  # 2, 1 and 0 trained tokens
LOG_RATIO = jnp.array([[0.2, 0.6, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])


def ratio_and_gradient(level: str, log_ratio_BC=LOG_RATIO, clamp=20.0):
    """Ratios, and the gradient of the sum of those that are not masked."""

    def total(log_ratio_BC):
        ratio_BC = losses.LEVELS[level](log_ratio_BC, jnp.asarray(MASK), clamp)
        return (ratio_BC * MASK).sum(), ratio_BC

    gradient_BC, ratio_BC = jax.grad(total, has_aux=True)(log_ratio_BC)
    return ratio_BC, gradient_BC


def test_ratios_of_each_level_by_hand():
    # of a token: e^0.2, e^0.6; e^-0.5.  Of a sequence: e^((0.2 + 0.6) / 2) = e^0.4 = 1.491825
    ratio_BC, gradient_BC = ratio_and_gradient("token")
    np.testing.assert_allclose(
        ratio_BC * MASK, [[1.221403, 1.822119, 0], [0.606531, 0, 0], [0] * 3], rtol=1e-6
    )
    np.testing.assert_allclose(gradient_BC, ratio_BC * MASK)
    of_sequence = [[1.491825, 1.491825, 0], [0.606531, 0, 0], [0, 0, 0]]
    ratio_BC, gradient_BC = ratio_and_gradient("sequence")
    np.testing.assert_allclose(ratio_BC * MASK, of_sequence, rtol=1e-6)
    # each of two tokens has half of the gradient of either ratio, and there are two: the same number
    np.testing.assert_allclose(gradient_BC, of_sequence, rtol=1e-6)
    ratio_BC, gradient_BC = ratio_and_gradient("sequence_token")
    np.testing.assert_allclose(ratio_BC * MASK, of_sequence, rtol=1e-6)
    np.testing.assert_allclose(gradient_BC, of_sequence, rtol=1e-6)


def test_only_the_own_token_moves_a_sequence_token_ratio():
    first = lambda level: jax.grad(  # noqa: E731
        lambda log_ratio_BC: losses.LEVELS[level](log_ratio_BC, jnp.asarray(MASK), 20.0)[0, 0]
    )(LOG_RATIO)
    np.testing.assert_allclose(first("sequence")[0], [0.745912, 0.745912, 0.0], rtol=1e-6)
    np.testing.assert_allclose(first("sequence_token")[0], [1.491825, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("level", sorted(losses.LEVELS))
def test_ratios_beyond_the_clamp_are_the_clamps_and_have_no_gradient(level):
    far = jnp.array([[1e4, 1e4, 0.0], [-1e4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    ratio_BC, gradient_BC = ratio_and_gradient(level, far, clamp=3.0)
    np.testing.assert_allclose(ratio_BC * MASK, [[20.085537, 20.085537, 0], [0] * 3, [0] * 3], rtol=1e-6)
    if level != "sequence_token":  # whose gradient is its value
        np.testing.assert_array_equal(gradient_BC, np.zeros((3, 3)))
    assert np.isfinite(gradient_BC).all()


SHARES = {
    # TRL: ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean(): 1 / 2 and 1 / 1, over 3 rows
    "sequence_mean": [[1 / 6, 1 / 6, 0], [1 / 3, 0, 0], [0, 0, 0]],
    # TRL's bnpo: (loss * mask).sum() / mask.sum().clamp(min=1): 3 tokens
    "minibatch_token_mean": [[1 / 3, 1 / 3, 0], [1 / 3, 0, 0], [0, 0, 0]],
    # TRL's dr_grpo: (loss * mask).sum() / (rows * max_completion_length): 3 * 5
    "constant_length": [[1 / 15, 1 / 15, 0], [1 / 15, 0, 0], [0, 0, 0]],
    # TRL's dapo: (loss * mask).sum() / num_items_in_batch: 8 tokens in the whole step
    "token_mean": [[1 / 8, 1 / 8, 0], [1 / 8, 0, 0], [0, 0, 0]],
}


def shares(aggregation: str, mask, totals=(3.0, 3.0, 8.0)):
    return losses.AGGREGATIONS[aggregation](jnp.asarray(mask), Totals(*map(jnp.float32, totals)), 5)


def test_every_aggregation_has_its_numbers_here():
    assert set(SHARES) == set(losses.AGGREGATIONS)


@pytest.mark.parametrize("aggregation", sorted(SHARES))
def test_shares_of_tokens_by_hand(aggregation):
    np.testing.assert_allclose(shares(aggregation, MASK), SHARES[aggregation], rtol=1e-6)


@pytest.mark.parametrize("aggregation", sorted(SHARES))
def test_a_batch_with_nothing_to_train_on_weighs_nothing(aggregation):
    np.testing.assert_array_equal(shares(aggregation, np.zeros((2, 3)), (0.0, 0.0, 0.0)), np.zeros((2, 3)))


@pytest.mark.parametrize("aggregation", sorted(SHARES))
def test_neither_empty_columns_nor_other_rows_change_a_share(aggregation):
    wider = np.pad(MASK, ((0, 0), (0, 4)))
    np.testing.assert_array_equal(shares(aggregation, wider)[:, :3], shares(aggregation, MASK))
    np.testing.assert_array_equal(shares(aggregation, MASK[1:]), shares(aggregation, MASK)[1:])
