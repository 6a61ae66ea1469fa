"""Token choice: distributions by hand, filters, and the edges of the uniform number."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.sampling.token_choice import SamplingParams, choose

LOGITS = np.log(np.array([[0.1, 0.2, 0.4, 0.3]], np.float32))


def pick(uniform: float, params: SamplingParams, logits=LOGITS, num_valid_ids: int = 4) -> int:
    tokens, _ = choose(
        jnp.asarray(logits), jnp.array([uniform], jnp.float32), params, num_valid_ids=num_valid_ids
    )
    return int(tokens[0])


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.09, 0), (0.11, 1), (0.29, 1), (0.31, 2), (0.69, 2), (0.71, 3), (0.9999999, 3)],
)
def test_the_uniform_number_picks_by_running_probability(uniform, token):
    assert pick(uniform, SamplingParams()) == token


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(top_k=1), {2}),
        (SamplingParams(top_k=2), {2, 3}),
        (SamplingParams(top_p=0.35), {2}),  # 0.4 alone reaches it
        (SamplingParams(top_p=0.65), {2, 3}),
        (SamplingParams(top_p=0.95), {0, 1, 2, 3}),
        (SamplingParams(min_p=0.6), {2, 3}),  # at least 0.24
        (SamplingParams(top_k=3, min_p=0.6), {2, 3}),
    ],
)
def test_filters_keep_the_tokens_worked_out_by_hand(params, kept):
    assert {pick(u, params) for u in np.linspace(0, 0.999, 200)} == kept


def test_logprob_is_that_of_the_whole_distribution_at_the_temperature():
    params = SamplingParams(temperature=2.0, top_k=1)
    _, logprob = choose(jnp.asarray(LOGITS), jnp.array([0.5]), params, num_valid_ids=4)
    roots = np.sqrt([0.1, 0.2, 0.4, 0.3])  # temperature 2 takes the square root of probabilities
    np.testing.assert_allclose(logprob, [np.log(roots[2] / roots.sum())], rtol=1e-6)


def test_ids_beyond_the_tokenizer_are_never_chosen_and_have_no_probability():
    assert {pick(u, SamplingParams(), num_valid_ids=2) for u in np.linspace(0, 0.99999, 50)} == {0, 1}
    _, logprob = choose(jnp.asarray(LOGITS), jnp.array([0.9]), SamplingParams(), num_valid_ids=2)
    np.testing.assert_allclose(logprob, [np.log(0.2 / 0.3)], rtol=1e-6)


def test_frequencies_follow_the_distribution_over_many_blocks(rng):
    vocab, draws = 1300, 200_000  # three blocks, the last one partly filled
    logits = rng.normal(size=(1, vocab)).astype(np.float32) * 2
    uniform = (np.arange(draws) + 0.5) / draws
    tokens, _ = choose(
        jnp.broadcast_to(jnp.asarray(logits), (1, vocab)).repeat(1, axis=0).repeat(2000, axis=0),
        jnp.asarray(uniform[:: draws // 2000], jnp.float32),
        SamplingParams(),
        num_valid_ids=vocab,
    )
    probabilities = np.exp(logits[0].astype(np.float64))
    probabilities /= probabilities.sum()
    counts = np.bincount(np.asarray(tokens), minlength=vocab) / 2000
    # an even grid of uniforms hits each interval within one grid step, 1/2000
    assert np.abs(counts - probabilities).max() < 1.01 / 2000


def test_a_token_of_no_weight_is_never_chosen_even_when_rounding_overshoots():
    logits = np.full((1, 700), -1e9, np.float32)
    logits[0, 5] = 0.0
    assert pick(np.nextafter(np.float32(1), np.float32(0)), SamplingParams(), logits, 700) == 5
    assert pick(0.0, SamplingParams(), logits, 700) == 5


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2.0}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)
