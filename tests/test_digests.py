"""Digests of arrays: every flipped bit is seen, and no mesh matters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax import digests
from grpo_jax import mesh as mesh_lib


def by_hand(array: np.ndarray) -> str:
    """The same sums, one value after the other, in Python's integers."""

    def mixed(word: int) -> int:
        word = ((word ^ word >> 16) * 0x85EBCA6B) % 2**32
        word = ((word ^ word >> 13) * 0xC2B2AE35) % 2**32
        return word ^ word >> 16

    words = array.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]).tolist()
    sums = [
        sum(mixed(word ^ mixed((place + salt) % 2**32)) for place, word in enumerate(words)) % 2**32
        for salt in (0x9E3779B9, 0x7F4A7C15)
    ]
    return "".join(f"{part:08x}" for part in sums)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8"])
def test_a_digest_is_the_sum_worked_by_hand(rng, dtype):
    array = jnp.asarray(rng.normal(size=(3, 4, 5)) * 50, dtype)
    assert digests.of_tree({"a": array}) == {"a": by_hand(np.asarray(array))}


def test_every_flipped_bit_changes_both_halves(rng):
    array = rng.normal(size=(2, 3)).astype(np.float32)
    before = digests.of_tree(array)[""]
    for place in range(6):
        for bit in range(32):
            flipped = array.copy()
            flipped.view(np.uint32).flat[place] ^= np.uint32(1) << np.uint32(bit)
            after = digests.of_tree(flipped)[""]
            assert after[:8] != before[:8] and after[8:] != before[8:]


def test_values_that_change_places_are_seen():
    assert digests.of_tree(jnp.array([1.0, 2.0])) != digests.of_tree(jnp.array([2.0, 1.0]))
    assert digests.of_tree(jnp.array([0.0, -0.0])) != digests.of_tree(jnp.array([0.0, 0.0]))


def test_any_mesh_makes_the_same_digest(rng):
    array = rng.normal(size=(16, 8)).astype(np.float32)
    found = set()
    for sizes, spec in (((8, 1, 1), P("data")), ((2, 4, 1), P("fsdp", "data")), ((2, 2, 2), P("tensor"))):
        mesh = mesh_lib.create(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
        found.add(digests.of_tree(jax.device_put(array, NamedSharding(mesh, spec)))[""])
    assert found == {by_hand(array)}


def test_a_digest_takes_no_memory_of_the_size_of_what_it_reads():
    mesh = mesh_lib.create(data=1, fsdp=8, tensor=1)
    shape = jax.ShapeDtypeStruct((64, 4096), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    memory = digests._of_leaves.lower([shape]).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096 < memory.argument_size_in_bytes


def test_a_tree_has_one_digest_that_knows_order_and_keys(rng):
    a, b = jnp.asarray(rng.normal(size=3), jnp.float32), jnp.asarray(rng.normal(size=3), jnp.float32)
    one, other = (digests.as_text(digests.combined(tree)) for tree in ([a, b], [b, a]))
    assert one != other and len(one) == 16
    keys = [digests.of_tree(jax.random.key(i)) for i in (0, 1)]
    assert keys[0] != keys[1]
