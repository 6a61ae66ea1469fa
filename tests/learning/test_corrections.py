"""Weights for the sampler's gap and the entropy threshold, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learning import corrections

LN2 = 0.69314718
MASK = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]], np.float32)
# token weights 2, 4, 0.5; 0.5, 0.5.  Sequence weights 4; 0.25; of an empty row 1
GAP = LN2 * np.array([[1, 2, -1], [-1, -1, 0], [0, 0, 0]], np.float32)
WEIGHTS = {
    "none": [[1, 1, 1], [1, 1, 1]],
    "token_truncate": [[2, 3, 0.5], [0.5, 0.5, 1]],
    "token_mask": [[2, 0, 0.5], [0.5, 0.5, 1]],
    "sequence_truncate": [[3, 3, 3], [0.25, 0.25, 0.25]],
    "sequence_mask": [[0, 0, 0], [0.25, 0.25, 0.25]],
}
LIMITED = {"none": 0, "token_truncate": 1, "token_mask": 1, "sequence_truncate": 3, "sequence_mask": 3}


def weights(correction: str, gap_BC=GAP, cap: float = 3.0):
    return corrections.sampler_weights(
        jnp.asarray(gap_BC), jnp.asarray(MASK), correction=correction, cap=cap, clamp=20.0
    )


def test_every_correction_has_its_numbers_here():
    assert set(WEIGHTS) == set(LIMITED) == set(corrections.SAMPLER_CORRECTIONS)


@pytest.mark.parametrize("correction", sorted(WEIGHTS))
def test_weights_by_hand(correction):
    weight_BC, limited_BC = weights(correction)
    np.testing.assert_allclose(weight_BC[:2], WEIGHTS[correction], rtol=1e-6)
    np.testing.assert_array_equal(weight_BC[2], [1, 1, 1])
    assert float((limited_BC * MASK).sum()) == LIMITED[correction]


@pytest.mark.parametrize("correction", sorted(WEIGHTS))
def test_no_gradient_passes_through_a_weight(correction):
    gradient_BC = jax.grad(lambda gap_BC: weights(correction, gap_BC)[0].sum())(jnp.asarray(GAP))
    np.testing.assert_array_equal(gradient_BC, np.zeros((3, 3)))


@pytest.mark.parametrize("correction", sorted(set(WEIGHTS) - {"none"}))
def test_extreme_gaps_end_at_the_cap_or_at_nothing(correction):
    weight_BC, _ = weights(correction, np.array([[1e4, 0, 0], [-1e4, 0, 0], [0, 0, 0]], np.float32))
    assert float(weight_BC[0, 0]) == (3.0 if correction.endswith("truncate") else 0.0)
    assert float(weight_BC[1, 0]) == 0.0


def test_the_entropy_threshold_keeps_the_share_of_tokens_that_is_asked_for():
    entropies = np.array([[0.1, 0.2, 0.3, 9.0], [0.4, 0.5, 0.6, np.nan]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 0]])
    # numpy's and torch's quantile of 0.1 .. 0.6: between the fourth and the fifth for a third of six
    threshold = corrections.entropy_threshold(entropies, mask, 1 / 3)
    assert threshold == pytest.approx(0.4 + 0.1 / 3)
    assert ((entropies >= threshold) & (mask > 0)).sum() == 2
    assert ((entropies >= corrections.entropy_threshold(entropies, mask, 1.0)) & (mask > 0)).sum() == 6
    assert corrections.entropy_threshold(entropies, np.zeros_like(mask), 0.5) == float("inf")
