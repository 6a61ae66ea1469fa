"""Evaluation numbers against counting by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from grpo_jax.evaluation import pass_at_k, summary


@pytest.mark.parametrize(("n", "c", "k"), itertools.product([1, 4, 7], [0, 1, 3], [1, 2, 4]))
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n, c, k):
    if c > n or k > n:
        pytest.skip("no such draw")
    samples = [True] * c + [False] * (n - c)
    draws = list(itertools.combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_summary_by_hand():
    # samples, right, well formed, tokens, cut: three problems with two samples each
    metrics = summary(np.array([[2, 2, 2, 20, 0], [2, 1, 2, 30, 1], [2, 0, 1, 40, 2]], float))
    assert metrics["eval/accuracy"] == pytest.approx(0.5)  # 1, 0.5, 0
    assert metrics["eval/accuracy_stderr"] == pytest.approx(0.5 / math.sqrt(3))  # deviation 0.5
    assert metrics["eval/format_rate"] == pytest.approx(5 / 6)
    assert metrics["eval/mean_length"] == pytest.approx(15.0)
    assert metrics["eval/clipped_ratio"] == pytest.approx(0.5)
    assert metrics["eval/pass@2"] == pytest.approx(2 / 3)
    assert "eval/pass@4" not in metrics
