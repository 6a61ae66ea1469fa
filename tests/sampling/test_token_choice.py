"""Token choice: distributions by hand, filters against sorting in float64, and the edges of rounding."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import ArrayLike

from grpo_jax import mesh as mesh_lib
from grpo_jax.sampling import token_choice
from grpo_jax.sampling.token_choice import TokenFilters

ALL = TokenFilters()
LOGITS = np.log(np.array([[0.1, 0.2, 0.4, 0.3]], np.float32))
ALMOST_1 = np.nextafter(np.float32(1), np.float32(0))


@functools.partial(jax.jit, static_argnames=("filters", "end_ids", "num_valid_ids"))
def _choose(logits_BV, uniform_B, temperature_B, num_tokens_B, **static):
    return token_choice.choose(
        logits_BV, uniform_B, temperature_B=temperature_B, num_tokens_B=num_tokens_B, **static
    )


def choose(
    logits,
    uniform,
    *,
    temperature: ArrayLike = 1.0,
    num_tokens: ArrayLike = 0,
    filters=ALL,
    end_ids=(),
    num_valid_ids=None,
) -> tuple[np.ndarray, np.ndarray]:
    """`token_choice.choose` for one value or one a row of everything; one row of logits may serve all."""
    logits = np.asarray(logits, np.float32)
    rows = max(len(logits), *(np.size(x) for x in (uniform, temperature, num_tokens)))
    tokens, logprobs = _choose(
        np.broadcast_to(logits, (rows, logits.shape[1])),
        np.broadcast_to(np.asarray(uniform, np.float32), (rows,)),
        np.broadcast_to(np.asarray(temperature, np.float32), (rows,)),
        np.broadcast_to(np.asarray(num_tokens, np.int32), (rows,)),
        filters=filters,
        end_ids=end_ids,
        num_valid_ids=num_valid_ids or logits.shape[1],
    )
    assert tokens.dtype == jnp.int32 and logprobs.dtype == jnp.float32
    return np.asarray(tokens), np.asarray(logprobs)


def chosen(**settings) -> set[int]:
    """All ids that an even grid of uniform numbers picks of `LOGITS`."""
    return set(choose(LOGITS, np.linspace(0, 0.999, 200), **settings)[0].tolist())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def test_the_uniform_number_picks_by_running_probability():
    uniform = [0.0, 0.09, 0.11, 0.29, 0.31, 0.69, 0.71, 0.9999999]
    assert choose(LOGITS, uniform)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (TokenFilters(top_k=1), {2}),
        (TokenFilters(top_k=2), {2, 3}),
        (TokenFilters(top_k=9), {0, 1, 2, 3}),
        (TokenFilters(top_p=0.35), {2}),  # 0.4 alone reaches it
        (TokenFilters(top_p=0.65), {2, 3}),
        (TokenFilters(top_p=0.95), {0, 1, 2, 3}),
        (TokenFilters(min_p=0.6), {2, 3}),  # at least 0.24
        (TokenFilters(top_k=3, min_p=0.6), {2, 3}),
        (TokenFilters(top_k=2, top_p=0.55), {2}),  # 0.4 of the 0.7 that top-k leaves
        (TokenFilters(banned_ids=(2,)), {0, 1, 3}),
        (TokenFilters(banned_ids=(2, 70)), {0, 1, 3}),
        (TokenFilters(banned_ids=(2,), top_k=1), {3}),
        (TokenFilters(banned_ids=(2,), top_p=0.45), {3}),  # 0.3 of the 0.6 that are left
        (TokenFilters(banned_ids=(2,), min_p=0.6), {1, 3}),  # at least 0.18
    ],
)
def test_filters_keep_the_tokens_worked_out_by_hand(filters, kept):
    assert chosen(filters=filters) == kept


def test_an_end_id_is_not_chosen_before_the_least_length():
    filters = TokenFilters(min_completion_length=3)
    assert chosen(filters=filters, end_ids=(2, 0), num_tokens=2) == {1, 3}
    assert chosen(filters=filters, end_ids=(2, 0), num_tokens=3) == {0, 1, 2, 3}
    assert chosen(end_ids=(2, 0)) == {0, 1, 2, 3}
    greedy, _ = choose(LOGITS, 0.5, temperature=0.0, num_tokens=[2, 3], filters=filters, end_ids=(2,))
    assert greedy.tolist() == [3, 2]  # each row by its own count


@pytest.mark.parametrize(
    "filters",
    [
        ALL,
        TokenFilters(top_k=1, top_p=0.5, min_p=0.9),
        TokenFilters(banned_ids=(2,)),
        TokenFilters(min_completion_length=5),
        TokenFilters(2, 0.9, 0.1, 5, (3, 1)),
    ],
)
def test_logprob_is_that_of_the_whole_distribution_at_the_rows_temperature(filters):
    """Whatever may be chosen: temperature t takes the t-th root of the probabilities."""
    temperature = np.array([1.0, 2.0, 0.5, 0.0])
    tokens, logprobs = choose(LOGITS, 0.4, temperature=temperature, filters=filters, end_ids=(2, 1))
    roots_BV = np.array([0.1, 0.2, 0.4, 0.3]) ** (1 / np.where(temperature > 0, temperature, 1))[:, None]
    expected = np.log(roots_BV[np.arange(4), tokens] / roots_BV.sum(axis=1))
    np.testing.assert_allclose(logprobs, expected, rtol=1e-6)  # a few float32 roundings


def test_a_greedy_row_takes_the_likeliest_of_what_it_may_choose(rng):
    logits = rng.normal(size=(6, 1300)).astype(np.float32) * 3
    likeliest = logits.argsort(axis=1)[:, ::-1]
    banned = TokenFilters(top_k=50, banned_ids=tuple(likeliest[0, :2].tolist()))
    assert choose(logits, 0.9, temperature=0.0)[0].tolist() == likeliest[:, 0].tolist()
    tokens, logprobs = choose(logits, 0.9, temperature=0.0, filters=banned)
    assert tokens[0] == likeliest[0, 2]
    np.testing.assert_allclose(logprobs[0], log_softmax(logits[0])[tokens[0]], rtol=1e-6)


def test_of_equals_a_greedy_row_takes_the_first():
    logits = np.zeros((1, 1300), np.float32)
    logits[0, [700, 20, 1299]] = 1e-30  # larger than 0, and yet its exponential is that of 0
    assert choose(logits, 0.999, temperature=0.0)[0].tolist() == [20]


def test_rows_of_all_temperatures_share_a_batch_and_know_nothing_of_each_other(rng):
    logits = rng.normal(size=(4, 1300)).astype(np.float32) * 3
    uniform, temperature = rng.random(4), np.array([0.0, 0.7, 1.0, 3.0])
    filters = TokenFilters(top_k=40, top_p=0.9, min_p=0.01)
    tokens, logprobs = choose(logits, uniform, temperature=temperature, filters=filters)
    for i in range(4):
        alone = choose(logits[i : i + 1], uniform[i], temperature=temperature[i], filters=filters)
        assert (alone[0][0], alone[1][0]) == (tokens[i], logprobs[i])
    assert tokens[0] == logits[0].argmax()


def test_ids_beyond_the_tokenizer_are_never_chosen_and_have_no_probability():
    assert chosen(num_valid_ids=2) == {0, 1}
    assert choose(LOGITS, 0.9, temperature=0.0, num_valid_ids=2)[0].tolist() == [1]
    _, logprob = choose(LOGITS, 0.9, num_valid_ids=2)
    np.testing.assert_allclose(logprob, [np.log(0.2 / 0.3)], rtol=1e-6)


def num_kept_by_sorting(logits: np.ndarray, temperature: float, filters: TokenFilters) -> tuple[int, float]:
    """How many of ascending logits stay, after the definitions, in float64; and how near top-p was a tie."""
    kept, margin = np.sort(logits.astype(np.float64))[::-1], np.inf
    if filters.top_k:
        kept = kept[kept >= kept[min(filters.top_k, len(kept)) - 1]]
    if filters.top_p < 1:
        probability = np.exp((kept - kept[0]) / temperature)
        probability /= probability.sum()
        before = np.cumsum(probability) - probability
        firsts = 1 + np.flatnonzero(np.diff(kept))  # of those that tie, the first decides
        margin = np.abs(before[firsts] - filters.top_p).min(initial=np.inf)
        kept = kept[kept >= kept[before < filters.top_p].min()]
    if filters.min_p:
        kept = kept[kept >= kept[0] + temperature * np.log(filters.min_p)]
    return len(kept), float(margin)


@pytest.mark.parametrize(
    "filters",
    [
        *(TokenFilters(top_k=k) for k in (1, 2, 50, 999, 1000)),
        *(TokenFilters(top_p=p) for p in (1e-9, 0.1, 0.5, 0.9, 0.999)),
        *(TokenFilters(top_k=100, top_p=0.8), TokenFilters(top_p=0.95, min_p=0.05)),
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_filters_keep_what_sorting_keeps(filters, ties, rng):
    """With ascending logits the kept ids are the last ones, and the uniform number 0 picks their first."""
    spread = np.array([0.01, 0.3, 1.0, 4.0, 3.0, 3.0])[:, None]  # the last two: all negative, all positive
    shift = np.array([0.0, 0.0, 0.0, 0.0, -40.0, 40.0])[:, None]
    logits = np.sort(rng.normal(size=(6, 1000)) * spread + shift).astype(np.float32)
    if ties:
        logits = np.round(logits * 4) / 4  # many equal, 0 and -0 among them
    temperature = np.array([1.0, 0.7, 1.0, 1.3, 1.0, 2.0])
    tokens, _ = choose(logits, 0.0, temperature=temperature, filters=filters)
    for row, token, t in zip(logits, tokens, temperature, strict=True):
        num_kept, margin = num_kept_by_sorting(row, t, filters)
        assert margin > 1e-6, "the drawn numbers lie too near to a tie for float32; take another seed"
        assert token == len(row) - num_kept


def test_nothing_is_sorted():
    filters = TokenFilters(20, 0.9, 0.1, 4, (5,))
    rows = np.zeros(2, np.float32)
    static = {"filters": filters, "end_ids": (3,), "num_valid_ids": 1000}
    program = _choose.lower(np.zeros((2, 1024), np.float32), rows, rows, rows.astype(int), **static)
    assert not re.search(r"\b(sort|top_k|topk)\b", program.as_text(), re.IGNORECASE)


@pytest.mark.parametrize("vocab", [1300, 32_000, 151_936])
def test_every_choice_lies_where_float64_puts_the_uniform_number(vocab, rng):
    """Running sums of float32 over so many ids put no id elsewhere by more than their rounding."""
    logits = (rng.normal(size=(1, vocab)) * 3).astype(np.float32)
    uniform = ((np.arange(256) + rng.random(256)) / 256).astype(np.float32)
    uniform[:2] = 0, ALMOST_1
    tokens, logprobs = choose(logits, uniform)
    above = np.cumsum(np.exp(log_softmax(logits[0])))
    below = np.concatenate([[0.0], above[:-1]])
    # a few roundings of sums near 1, 6e-8 each: at most 2e-8 of it is systematic, see the next line
    outside = np.maximum(below[tokens] - uniform, uniform - above[tokens])
    assert outside.max() < 5e-7
    np.testing.assert_allclose(logprobs, log_softmax(logits[0])[tokens], atol=2e-6, rtol=0)


def test_frequencies_follow_the_distribution_over_many_blocks(rng):
    vocab, draws = 1300, 2000
    logits = rng.normal(size=(1, vocab)).astype(np.float32) * 2
    tokens, _ = choose(logits, (np.arange(draws) + 0.5) / draws)
    probabilities = np.exp(log_softmax(logits[0]))
    counts = np.bincount(tokens, minlength=vocab) / draws
    # an even grid of uniforms hits each interval within one grid step
    assert np.abs(counts - probabilities).max() < 1.01 / draws


def test_a_token_of_no_weight_is_never_chosen_even_when_rounding_overshoots(rng):
    logits = np.full((1, 700), -1e9, np.float32)
    logits[0, 5] = 0.0
    assert choose(logits, [ALMOST_1, 0.0])[0].tolist() == [5, 5]
    sparse = np.where(rng.random((1, 4096)) < 0.1, rng.normal(size=(1, 4096)), -np.inf)
    above = np.cumsum(np.exp(log_softmax(sparse[0])))
    edges = np.concatenate([above, np.nextafter(np.float32(above), 0), np.nextafter(np.float32(above), 2)])
    tokens, logprobs = choose(sparse, np.clip(edges, 0, ALMOST_1))
    assert np.isfinite(sparse[0, tokens]).all() and np.isfinite(logprobs).all()


def test_running_sums_that_rise_without_weight_take_no_index_there(rng):
    weights = (rng.random((500, 384)) ** 8).astype(np.float32)
    weights[rng.random(weights.shape) < 0.5] = 0
    running = np.asarray(jax.jit(lambda w: jnp.cumsum(w, axis=-1))(weights))
    rows, before = np.nonzero((np.diff(running) > 0) & (weights[:, 1:] == 0))
    assert len(rows) > 50, "running sums are exact now; the guard may go"
    uniform = running[rows, before] / running[rows, -1]
    index, rest = token_choice._first_exceeding(jnp.asarray(weights[rows]), jnp.asarray(uniform))
    assert (weights[rows, np.asarray(index)] > 0).all()
    assert (np.asarray(rest) >= 0).all() and (np.asarray(rest) <= 1).all()


def test_the_end_of_the_running_sum_belongs_to_the_last_index_with_weight():
    weights = jnp.array([[0.0, 3.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0, 0.0]])
    index, rest = token_choice._first_exceeding(weights, jnp.ones(2))
    assert index.tolist() == [3, 1] and rest.tolist() == [1.0, 1.0]
    index, rest = token_choice._first_exceeding(weights, jnp.array([0.375, 0.0]))
    assert index.tolist() == [1, 1] and rest.tolist() == [0.5, 0.0]


def test_a_row_that_has_no_distribution_shows_it_and_harms_no_other():
    logits = np.repeat(LOGITS, 4, axis=0)
    logits[1, 0], logits[2, 0], logits[3] = np.nan, np.inf, -np.inf
    tokens, logprobs = choose(logits, 0.5)
    assert np.isfinite(logprobs).tolist() == [True, False, False, False]
    assert tokens[0] == 2 and ((tokens >= 0) & (tokens < 4)).all()


def test_the_number_of_blocks_divides_the_vocabulary_and_suits_all_cuts_of_it():
    for vocab in (4, 96, 512, 32_000, 50_257, 128_256, 151_936, 152_064):
        count = token_choice.num_blocks(vocab)
        assert vocab % count == 0
        assert all(count % cut == 0 for cut in (2, 4, 8, 16) if vocab % cut == 0)
    assert token_choice.num_blocks(151_936) == 128
    assert token_choice.num_blocks(152_064) == 384


def largest_moved(program: str) -> int:
    """Numbers in the largest array that a compiled program moves between devices without reducing it."""
    moves = re.findall(r"= (.*) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", program)
    shapes = [shape for result in moves for shape in re.findall(r"\w\[([\d,]+)\]", result)]
    return max((math.prod(map(int, shape.split(","))) for shape in shapes), default=0)


@pytest.mark.parametrize("filters", [ALL, TokenFilters(20, 0.9, 0.01, 4, (5, 1000))])
def test_logits_cut_over_the_vocabulary_are_chosen_from_where_they_lie(filters, rng):
    mesh = mesh_lib.create(data=2, fsdp=1, tensor=4)
    put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))  # noqa: E731
    num_rows, vocab = 8, 1044  # as with Qwen's 151,936, other numbers of blocks would lie across the cuts
    logits = (rng.normal(size=(num_rows, vocab)) * 3).astype(np.float32)
    rows = [rng.random(num_rows), np.array([0.0, 1.0] * 4), np.arange(num_rows)]
    settings = {"filters": filters, "end_ids": (7,), "num_valid_ids": vocab - 9}
    arrays = [np.float32(rows[0]), np.float32(rows[1]), np.int32(rows[2])]
    arguments = [put(logits, "data", "tensor"), *(put(x, "data") for x in arrays)]
    program = _choose.lower(*arguments, **settings).compile()
    # what moves unreduced is sums of blocks, never logits
    assert 0 < largest_moved(str(program.as_text())) <= num_rows * token_choice.num_blocks(vocab)
    tokens, logprobs = program(*arguments)
    expected = choose(logits, rows[0], temperature=rows[1], num_tokens=rows[2], **settings)
    assert np.asarray(tokens).tolist() == expected[0].tolist()
    np.testing.assert_allclose(logprobs, expected[1], atol=1e-6)  # sums in another order


@pytest.mark.parametrize(
    "wrong",
    [
        *({"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2.0}, {"min_p": float("nan")}),
        *({"min_completion_length": -1}, {"banned_ids": (3, -1)}, {"banned_ids": [3]}),
    ],
)
def test_filters_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name} must .*\Z"):
        TokenFilters(**wrong)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_temperature_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"^temperature must .*{wrong}.\Z"):
        token_choice.check_temperature(wrong)
    token_choice.check_temperature(0.0)


def test_filters_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="all 4 ids"):
        choose(LOGITS, 0.5, filters=TokenFilters(banned_ids=(0, 1, 2, 3)))
    with pytest.raises(ValueError, match="all 2 ids"):
        choose(LOGITS, 0.5, filters=TokenFilters(1, 0.5, 0.5, 1, (0,)), end_ids=(1,), num_valid_ids=2)
    choose(LOGITS, 0.5, filters=TokenFilters(banned_ids=(0,)), end_ids=(1,), num_valid_ids=2)
