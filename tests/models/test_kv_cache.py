"""The cache against plain NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import decode_attention, kv_cache

NUM_LAYERS, ROWS, KV_HEADS, QUERIES, WIDTH = 2, 3, 2, 2, 4


@pytest.fixture
def kept(rng) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and values `[B, T, K, H]` of each layer, 5 positions."""
    shape = (NUM_LAYERS, 2, ROWS, 5, KV_HEADS, WIDTH)
    return [(k, v) for k, v in rng.standard_normal(shape).astype(np.float32)]


def positions_last(cache: kv_cache.Cache) -> list[np.ndarray]:
    """Keys and values of all layers as `[B, K, H, S]`."""
    return [np.asarray(x) for x in cache.k] + [np.asarray(x).swapaxes(2, 3) for x in cache.v]


def test_rows_become_columns_with_empty_ones_behind(kept):
    cache = jax.jit(kv_cache.from_rows)(kept)
    assert cache.num_positions == 5
    assert cache.k[0].shape == (ROWS, KV_HEADS, WIDTH, 5)
    assert cache.v[0].shape == (ROWS, KV_HEADS, 5, WIDTH)
    rows = [k for k, _ in kept] + [v for _, v in kept]
    for columns_BKHS, row_BTKH in zip(positions_last(cache), rows, strict=True):
        np.testing.assert_array_equal(columns_BKHS, row_BTKH.transpose(0, 2, 3, 1))


def cache_of(kept, num_positions: int) -> kv_cache.Cache:
    """The kept positions with empty columns behind."""
    cache = kv_cache.from_rows(kept)
    k = tuple(kv_cache.grow(x, num_positions=num_positions, axis=3) for x in cache.k)
    v = tuple(kv_cache.grow(x, num_positions=num_positions, axis=2) for x in cache.v)
    return kv_cache.Cache(k, v)


def test_an_empty_cache_has_the_layout_of_a_filled_one(kept):
    empty = kv_cache.empty(NUM_LAYERS, (ROWS, KV_HEADS, WIDTH), num_positions=9, dtype=jnp.float32)
    filled = cache_of(kept, 9)
    assert jax.tree.map(lambda x: x.shape, empty) == jax.tree.map(lambda x: x.shape, filled)
    assert not any(x.any() for x in positions_last(empty))


def test_one_token_a_row_is_written_into_one_column_of_one_layer(kept, rng):
    cache = kv_cache.from_rows(kept)
    k_BKH, v_BKH = rng.standard_normal((2, ROWS, KV_HEADS, WIDTH)).astype(np.float32)
    written = jax.jit(kv_cache.write_column, static_argnums=1)(cache, 1, k_BKH, v_BKH, jnp.int32(3))
    expected = [x.copy() for x in positions_last(cache)]
    expected[1][..., 3], expected[3][..., 3] = k_BKH, v_BKH  # keys 0, keys 1, values 0, values 1
    for left, right in zip(positions_last(written), expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_window_is_copied_behind_each_rows_own_length(kept, rng):
    cache = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), cache_of(kept, 11)
    )  # eight columns and a window of three
    lengths = np.array([5, 0, 2])
    after = jax.jit(kv_cache.append_window, static_argnames="num_steps")(cache, lengths, num_steps=3)
    for new, old in zip(*map(positions_last, (after, cache)), strict=True):
        expected = old.copy()
        for row, length in enumerate(lengths):
            expected[row, ..., length : length + 3] = old[row, ..., 8:]
        np.testing.assert_array_equal(new, expected)


def test_growing_adds_empty_columns_and_moves_nothing(kept):
    cache = kv_cache.from_rows(kept)
    grown = cache_of(kept, 9)
    for new, old in zip(positions_last(grown), positions_last(cache), strict=True):
        np.testing.assert_array_equal(new[..., :5], old)
        np.testing.assert_array_equal(new[..., 5:], np.zeros((ROWS, KV_HEADS, WIDTH, 4)))


@pytest.mark.parametrize("attention", decode_attention.ATTENTIONS)
def test_a_query_attends_to_its_filled_columns_and_the_window_so_far(kept, rng, attention, monkeypatch):
    if attention != "xla":
        kernel = functools.partial(decode_attention.ATTENTIONS[attention], interpret=True)
        monkeypatch.setitem(decode_attention.ATTENTIONS, attention, kernel)
    cache = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), cache_of(kept, 10)
    )  # six columns and a window of four
    q_BKMH = rng.standard_normal((ROWS, KV_HEADS, QUERIES, WIDTH)).astype(np.float32)
    lengths, step = np.array([5, 0, 2]), 2
    attend = jax.jit(functools.partial(kv_cache.attend, attention=attention, num_steps=4), static_argnums=2)
    mixed_BKMH = attend(q_BKMH, cache, 1, length_B=lengths, step=jnp.int32(step))
    for row, length in enumerate(lengths):
        read = [*range(length), 6, 7, 8]
        for head in range(KV_HEADS):
            k_SH, v_SH = cache.k[1][row, head].T[read], cache.v[1][row, head][read]
            weights_MS = np.exp(q_BKMH[row, head] @ k_SH.T / np.sqrt(WIDTH))
            expected_MH = weights_MS / weights_MS.sum(1, keepdims=True) @ v_SH
            # float32 sums of at most 8 terms of size 1
            np.testing.assert_allclose(mixed_BKMH[row, head], expected_MH, atol=1e-6)
