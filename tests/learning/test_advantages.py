"""Advantages against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_jax.learning import advantages
from grpo_jax.learning.advantages import group_relative

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [2.0, 0.0, 0.0, 0.0]], np.float32)
CENTRED = [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]]  # means 0.5 and 0.5


def test_group_scaling_divides_by_each_groups_sample_deviation():
    # sum of squares 4 * 0.25 = 1, over G - 1 = 3: std 0.57735.   2.25 + 3 * 0.25 = 3, over 3: std 1.
    # TRL adds 1e-4: 0.5 / 0.57745 = 0.865875; 1.5 / 1.0001 = 1.49985; 0.5 / 1.0001 = 0.49995
    expected = [[0.865875, -0.865875, -0.865875, 0.865875], [1.49985, -0.49995, -0.49995, -0.49995]]
    np.testing.assert_allclose(group_relative(REWARDS, scale_rewards="group"), expected, rtol=1e-5)


def test_batch_scaling_divides_by_the_deviation_of_all_rewards():
    # all eight: mean 0.5, squares 5 * 0.25 + ... = 1 + 3 = 4, over 7: std 0.755929; plus 1e-4: 0.756029
    expected = np.array(CENTRED) / 0.756029
    np.testing.assert_allclose(group_relative(REWARDS, scale_rewards="batch"), expected, rtol=1e-5)


def test_no_scaling_only_centres():
    np.testing.assert_array_equal(
        group_relative(REWARDS, scale_rewards="none"), np.array(CENTRED, np.float32)
    )


@pytest.mark.parametrize("scale_rewards", sorted(advantages.SCALES))
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.7, 1 / 3, 1e-8, 1e6 + 0.1])
@pytest.mark.parametrize("num_generations", [2, 3, 6, 7, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero(
    scale_rewards, reward, num_generations, dtype
):
    # the mean of three times 0.1 is not 0.1; that rounding over a deviation of 1e-17 must not become a signal
    rewards_PG = np.full((2, num_generations), reward, dtype)
    rewards_PG[1, 0] += 1.0  # another group that has signal
    result_PG = group_relative(rewards_PG, scale_rewards=scale_rewards)
    np.testing.assert_array_equal(result_PG[0], np.zeros(num_generations))
    assert result_PG[1, 0] > 0


@pytest.mark.parametrize("scale_rewards", sorted(advantages.SCALES))
def test_advantages_of_a_group_sum_to_zero_and_keep_the_order_of_rewards(rng, scale_rewards):
    rewards_PG = rng.standard_normal((5, 8)).astype(np.float32)
    result_PG = group_relative(rewards_PG, scale_rewards=scale_rewards)
    assert result_PG.dtype == np.float32
    np.testing.assert_allclose(result_PG.sum(axis=1), 0, atol=1e-5)
    np.testing.assert_array_equal(result_PG.argsort(axis=1), rewards_PG.argsort(axis=1))


def test_group_scaling_ignores_shift_and_scale_of_the_rewards(rng):
    rewards_PG = rng.random((4, 6)).astype(np.float32)
    plain_PG = group_relative(rewards_PG, scale_rewards="group")
    moved_PG = group_relative(5 * rewards_PG - 3, scale_rewards="group")
    np.testing.assert_allclose(moved_PG, plain_PG, rtol=2e-3)  # the 1e-4 beside the deviation is not scaled


def test_groups_without_signal_are_those_of_equal_rewards():
    rewards_PG = np.array([[0.1, 0.1, 0.1], [0.0, 0.0, 1e-7], [1.0, 0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(advantages.without_signal(rewards_PG), [True, False, False])


@pytest.mark.parametrize("shape", [(3, 1), (4,)])
def test_a_group_of_one_is_refused(shape):
    with pytest.raises(ValueError, match="at least 2 generations; got shape"):
        group_relative(np.zeros(shape), scale_rewards="group")


def test_rewards_that_are_no_numbers_are_counted_and_refused():
    with pytest.raises(ValueError, match="2 rewards are not finite"):
        group_relative(np.array([[0.0, np.nan], [np.inf, 1.0]]), scale_rewards="none")
