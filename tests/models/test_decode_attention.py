"""Each attention over the cache against NumPy in float64; kernels run by their interpreter."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decode_attention, layers

KERNELS = ("pallas_tpu", "pallas_gpu")
S = 1100  # two blocks of 512 and a part of one
LENGTHS = np.array([0, 1, 511, 512, 513, 600, 1024, S], np.int32)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Kernels run here as plain XLA programs, block by block; what a block has past S is NaN."""
    for name in KERNELS:
        kernel = functools.partial(getattr(decode_attention, name), interpret=True)
        monkeypatch.setitem(decode_attention.ATTENTIONS, name, kernel)


def make(rng, *, queries: int = 2, width: int = 32, heads: int = 2, dtype=jnp.float32) -> list[jax.Array]:
    """Queries, keys and values for one row a length."""
    rows = len(LENGTHS)
    shapes = [(rows, heads, queries, width), (rows, heads, width, S), (rows, heads, S, width)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def poisoned(k_BKHS: jax.Array, v_BKSH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """NaN in every column behind the length."""
    behind_BS = np.arange(S)[None] >= LENGTHS[:, None]
    nan = jnp.full((1, 1, 1, 1), jnp.nan, k_BKHS.dtype)
    return jnp.where(behind_BS[:, None, None], nan, k_BKHS), jnp.where(
        behind_BS[:, None, :, None], nan, v_BKSH
    )


def expected(q_BKMH, k_BKHS, v_BKSH, lengths) -> tuple[np.ndarray, np.ndarray]:
    """Mix and log-sum-exp in float64; 0 and MASKED for length 0."""
    q_BKMH, k_BKHS, v_BKSH = (np.asarray(x, np.float64) for x in (q_BKMH, k_BKHS, v_BKSH))
    mixed_BKMH, lse_BKM = np.zeros(q_BKMH.shape), np.full(q_BKMH.shape[:3], layers.MASKED)
    for row, n in enumerate(lengths):
        if n:
            scores_KMS = q_BKMH[row] @ k_BKHS[row, :, :, :n] / np.sqrt(q_BKMH.shape[-1])
            lse_BKM[row] = np.log(np.exp(scores_KMS).sum(-1))
            mixed_BKMH[row] = np.exp(scores_KMS - lse_BKM[row][..., None]) @ v_BKSH[row, :, :n]
    return mixed_BKMH, lse_BKM


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("queries", "width"), [(1, 32), (2, 128), (7, 64)])
@pytest.mark.parametrize("name", decode_attention.ATTENTIONS)
def test_mixes_the_filled_columns_as_numpy_does(rng, name, queries, width, dtype):
    q_BKMH, k_BKHS, v_BKSH = make(rng, queries=queries, width=width, dtype=dtype)
    attend = jax.jit(functools.partial(decode_attention.over_cache, name))
    mixed_BKMH, lse_BKM = attend(q_BKMH, k_BKHS, v_BKSH, LENGTHS)
    assert mixed_BKMH.dtype == lse_BKM.dtype == jnp.float32
    expected_BKMH, expected_BKM = expected(q_BKMH, k_BKHS, v_BKSH, LENGTHS)
    # float32: scores and sums of up to 1100 terms, some ulps of numbers below 8
    np.testing.assert_allclose(lse_BKM, expected_BKM, atol=4e-6, rtol=1e-6)
    bound_BKMH = np.full(mixed_BKMH.shape, 2e-6)
    if dtype == jnp.bfloat16:  # each weight is rounded by at most 2**-9 of itself
        bound_BKMH += 2**-9 * expected(q_BKMH, k_BKHS, jnp.abs(v_BKSH), LENGTHS)[0]
    np.testing.assert_array_less(np.abs(mixed_BKMH - expected_BKMH)[1:], bound_BKMH[1:])


@pytest.mark.parametrize("name", decode_attention.ATTENTIONS)
def test_a_row_without_columns_weighs_nothing_in_a_join(rng, name):
    q_BKMH, k_BKHS, v_BKSH = make(rng)
    empty = decode_attention.over_cache(name, q_BKMH, k_BKHS, v_BKSH, jnp.zeros_like(LENGTHS))
    assert all(np.isfinite(x).all() for x in empty)
    other = decode_attention.xla(q_BKMH, k_BKHS, v_BKSH, jnp.ones_like(LENGTHS))
    for joined, alone in zip(decode_attention.join([empty, other]), other, strict=True):
        np.testing.assert_array_equal(joined, alone)


@pytest.mark.parametrize("name", KERNELS)
def test_what_stands_behind_the_length_is_not_read(rng, name):
    q_BKMH, k_BKHS, v_BKSH = make(rng)
    attend = jax.jit(functools.partial(decode_attention.over_cache, name))
    clean = attend(q_BKMH, k_BKHS, v_BKSH, LENGTHS)
    for left, right in zip(attend(q_BKMH, *poisoned(k_BKHS, v_BKSH), LENGTHS), clean, strict=True):
        assert np.isfinite(left).all()
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("length", "blocks"), [(0, 1), (1, 1), (512, 1), (513, 2), (1024, 2), (1025, 3)])
def test_a_tpu_fetches_as_many_blocks_as_the_length_has(length, blocks):
    held = [int(decode_attention.tpu_block(jnp.int32(step), jnp.int32(length), 512)) for step in range(4)]
    assert held == [min(step, blocks - 1) for step in range(4)]  # a block that stays is not fetched again


def test_joined_parts_are_one_softmax(rng):
    q_BKMH, k_BKHS, v_BKSH = make(rng, queries=3)
    k_BKHS = k_BKHS * 5  # parts of very different weight
    cuts = [0, 1, 400, S]
    parts = [
        decode_attention.xla(q_BKMH, k_BKHS[..., a:b], v_BKSH[:, :, a:b], jnp.full_like(LENGTHS, b - a))
        for a, b in itertools.pairwise(cuts)
    ]
    wanted = expected(q_BKMH, k_BKHS, v_BKSH, np.full_like(LENGTHS, S))
    for order in (parts, parts[::-1]):
        for joined, one in zip(decode_attention.join(order), wanted, strict=True):
            # scores reach 20, where float32 steps by 2e-6; so much is a weight off, and the mix
            np.testing.assert_allclose(joined, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("axes", [(2, 2, 2), (2, 1, 4)])  # 4 does not divide the two heads
def test_over_a_mesh_each_device_reads_what_it_holds(rng, name, axes):
    mesh = mesh_lib.create(**dict(zip(mesh_lib.AXES, axes, strict=True)))
    arrays = [jax.device_put(x, mesh_lib.cache_rows(mesh, 2)) for x in make(rng)]
    lengths = jax.device_put(LENGTHS, mesh_lib.rows(mesh))
    attend = jax.jit(functools.partial(decode_attention.over_cache, name, mesh=mesh))
    compiled = attend.lower(*arrays, lengths).compile()
    program = str(compiled.as_text())
    assert not [word for word in ("all-gather", "all-reduce", "permute") if word in program]
    alone = jax.jit(functools.partial(decode_attention.over_cache, name))(*map(np.asarray, arrays), LENGTHS)
    for left, right in zip(compiled(*arrays, lengths), alone, strict=True):
        np.testing.assert_array_equal(left, right)


def test_names_are_checked_against_the_platform():
    for platform in ("cpu", "gpu", "tpu"):
        decode_attention.check("xla", platform)
        decode_attention.check(decode_attention.default_attention(platform), platform)
    decode_attention.check("pallas_tpu", "tpu")
    decode_attention.check("pallas_gpu", "gpu")
    for name, platform in (("pallas_tpu", "cpu"), ("pallas_tpu", "gpu"), ("pallas_gpu", "tpu")):
        with pytest.raises(ValueError, match=f"'{name}' runs on .* only, not on {platform}"):
            decode_attention.check(name, platform)
    with pytest.raises(ValueError, match="No decode attention is called 'flash'; choose one of xla, "):
        decode_attention.check("flash", "gpu")


def test_the_tables_name_what_there_is():
    names = set(decode_attention.ATTENTIONS)
    assert set(decode_attention.COLUMNS_MULTIPLE) == names
    assert set(decode_attention.NEEDS) | set(decode_attention.AUTOMATIC.values()) <= names
