"""The cache against plain NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import kv_cache

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
    cache = jax.jit(kv_cache.from_rows, static_argnames="num_positions")(kept, num_positions=7)
    assert cache.num_positions == 7
    assert cache.k[0].shape == (ROWS, KV_HEADS, WIDTH, 7)
    assert cache.v[0].shape == (ROWS, KV_HEADS, 7, WIDTH)
    rows = [k for k, _ in kept] + [v for _, v in kept]
    for columns_BKHS, row_BTKH in zip(positions_last(cache), rows, strict=True):
        np.testing.assert_array_equal(columns_BKHS[..., :5], row_BTKH.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(columns_BKHS[..., 5:], 0)


def test_one_token_a_row_is_written_into_one_column_of_one_layer(kept, rng):
    cache = kv_cache.from_rows(kept, num_positions=5)
    k_BKH, v_BKH = rng.standard_normal((2, ROWS, KV_HEADS, WIDTH)).astype(np.float32)
    written = jax.jit(kv_cache.write_column, static_argnums=1)(cache, 1, k_BKH, v_BKH, jnp.int32(3))
    expected = [x.copy() for x in positions_last(cache)]
    expected[1][..., 3], expected[3][..., 3] = k_BKH, v_BKH  # keys 0, keys 1, values 0, values 1
    for left, right in zip(positions_last(written), expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_window_is_appended_behind_each_rows_own_length(kept, rng):
    cache = kv_cache.from_rows(kept, num_positions=8)
    window = kv_cache.window_like(cache, 3)
    assert window.num_positions == 3
    assert not any(x.any() for x in positions_last(window))
    window = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), window)
    lengths = np.array([5, 0, 2])
    after = jax.jit(kv_cache.append_window)(cache, window, lengths)
    for new, old, added in zip(*map(positions_last, (after, cache, window)), strict=True):
        expected = old.copy()
        for row, length in enumerate(lengths):
            expected[row, ..., length : length + 3] = added[row]
        np.testing.assert_array_equal(new, expected)


def test_growing_adds_empty_columns_and_moves_nothing(kept):
    cache = kv_cache.from_rows(kept, num_positions=5)
    grown = jax.jit(kv_cache.grow, static_argnums=1)(cache, 9)
    for new, old in zip(positions_last(grown), positions_last(cache), strict=True):
        np.testing.assert_array_equal(new[..., :5], old)
        np.testing.assert_array_equal(new[..., 5:], np.zeros((ROWS, KV_HEADS, WIDTH, 4)))


def test_a_prompts_cache_is_repeated_to_its_group(kept):
    cache = kv_cache.from_rows(kept, num_positions=5)
    repeated = jax.jit(kv_cache.repeat_rows, static_argnums=1)(cache, 2)
    for new, old in zip(positions_last(repeated), positions_last(cache), strict=True):
        for row in range(2 * ROWS):
            np.testing.assert_array_equal(new[row], old[row // 2])


def test_a_query_attends_to_its_cached_columns_and_the_window_so_far(kept, rng):
    cache = kv_cache.from_rows(kept, num_positions=6)
    window = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), kv_cache.window_like(cache, 4)
    )
    q_BKMH = rng.standard_normal((ROWS, KV_HEADS, QUERIES, WIDTH)).astype(np.float32)
    lengths, column = np.array([5, 0, 2]), 2
    attend = jax.jit(kv_cache.attend, static_argnums=3)
    mixed_BKMH = attend(q_BKMH, cache, window, 1, length_B=lengths, column=jnp.int32(column))
    for row, length in enumerate(lengths):
        for head in range(KV_HEADS):
            k_SH = np.concatenate(
                [cache.k[1][row, head, :, :length].T, window.k[1][row, head, :, : column + 1].T]
            )
            v_SH = np.concatenate([cache.v[1][row, head, :length], window.v[1][row, head, : column + 1]])
            weights_MS = np.exp(q_BKMH[row, head] @ k_SH.T / np.sqrt(WIDTH))
            expected_MH = weights_MS / weights_MS.sum(1, keepdims=True) @ v_SH
            # float32 sums of at most 8 terms of size 1
            np.testing.assert_allclose(mixed_BKMH[row, head], expected_MH, atol=1e-6)
