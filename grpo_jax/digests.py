"""Digests of arrays: 64 bits that change when any bit of an array does, the same on every mesh.

Made where the arrays are, in one pass over them: sums modulo 2^32 are exact in any order, so devices may cut
them as they like. What was saved, replayed or resumed is compared by these. They find accidents, not forgeries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # bytes of a value -> what its bits are read as
_SALTS = (0x9E3779B9, 0x7F4A7C15)  # two sums of 32 bits each


def of_array(array: jax.Array) -> jax.Array:
    """uint32 `[2]`: two sums over the array's values, each mixed with its place. Traceable.

    A value's bits are mixed by a one-to-one function (the finaliser of MurmurHash3), so a change of one value
    always changes both sums.
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    places = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        places = places * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    words = tuple(_mixed(bits ^ _mixed(places + jnp.uint32(salt))) for salt in _SALTS)
    # One reduction for both sums: XLA would write the words of a plain sum to memory on a CPU.
    zeros, axes = (jnp.uint32(0),) * len(words), range(array.ndim)
    sums = jax.lax.reduce(words, zeros, lambda a, b: tuple(map(jnp.add, a, b)), axes)
    return jnp.stack(sums)


def of_tree(tree: Any) -> dict[str, str]:
    """Each leaf's digest as 16 hexadecimal digits, by the leaf's path (`params/layers/mlp`)."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    sums = jax.device_get(_of_leaves([leaf for _, leaf in leaves]))
    return {name: as_text(pair) for name, pair in zip(names, sums, strict=True)}


def combined(tree: Any) -> jax.Array:
    """uint32 `[2]`: one digest of a whole tree. Traceable."""
    total = jnp.zeros(2, jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        total = _mixed(total + jnp.uint32(1)) + of_array(leaf)
    return total


def as_text(pair: Any) -> str:
    """16 hexadecimal digits of the two sums."""
    return "".join(f"{int(part):08x}" for part in pair)


def of_bytes(content: bytes) -> str:
    """16 hexadecimal digits of what lies on the host."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def joined(texts: Iterable[str]) -> str:
    """One digest of several, in this order."""
    return of_bytes(" ".join(texts).encode())


@jax.jit
def _of_leaves(leaves: list[jax.Array]) -> list[jax.Array]:
    return [of_array(leaf) for leaf in leaves]


def _mixed(words: jax.Array) -> jax.Array:
    """Every bit of the result depends on every bit of the word; one-to-one."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
