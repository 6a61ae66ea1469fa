"""From logits to a token and its log-probability.

The log-probability returned is that of the whole distribution at the row's temperature, over the ids that
the tokenizer has: the number that the loss differentiates. Top-k, top-p, min-p, bans and the least length
decide which tokens may be chosen and leave it as it is, so it equals the trainer's whatever is on.

A token is found by one uniform number a row: the first id at which the running sum of probabilities
exceeds it. The sum runs over blocks of ids first and inside one block then, so the vocabulary is read
twice in all: for its largest logit, and for the sums of the blocks, which give the log-probability too
(twice more where some ids are barred). Top-k and top-p find the smallest logit to keep by halving an
interval, with 32 sums over the vocabulary; nothing is sorted (`docs/benchmarks.md`). No step looks across
rows, and logits cut over devices along the vocabulary stay where they are.

Shape letters are in `grpo_jax/structs.py`; besides, n blocks of W ids, n * W = V.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NEVER = -jnp.inf
MOST_VOCABULARY_SHARDS = 16  # devices that one row's logits are cut over, at most; a power of two


@dataclasses.dataclass(frozen=True)
class TokenFilters:
    """Which tokens may be chosen. Static: it decides what is compiled. Names as in TRL and transformers."""

    top_k: int = 0  # keep the k likeliest, and what ties with the last of them; 0 keeps all
    top_p: float = 1.0  # keep the likeliest that together reach this probability, and ties; (0, 1]
    min_p: float = 0.0  # keep what is at least this fraction of the likeliest; [0, 1]
    min_completion_length: int = 0  # no end id is chosen before so many tokens
    banned_ids: tuple[int, ...] = ()  # never chosen

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more; got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1]; got {self.top_p}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1]; got {self.min_p}.")
        if self.min_completion_length < 0:
            raise ValueError(f"min_completion_length must be 0 or more; got {self.min_completion_length}.")
        if not isinstance(self.banned_ids, tuple) or any(index < 0 for index in self.banned_ids):
            raise ValueError(f"banned_ids must be a tuple of ids of 0 or more; got {self.banned_ids!r}.")


NO_FILTERS = TokenFilters()


def check_temperature(temperature: float) -> None:
    """Raises: ValueError if it is negative or not finite."""
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be 0 (the likeliest token) or more, finite; got {temperature}.")


def check_filters(filters: TokenFilters, *, end_ids: tuple[int, ...], num_valid_ids: int) -> None:
    """Raises: ValueError if no id is left to choose from. Top-k, top-p and min-p always leave one."""
    early_ids = end_ids if filters.min_completion_length else ()
    if {*filters.banned_ids, *early_ids}.issuperset(range(num_valid_ids)):
        raise ValueError(
            f"banned_ids (and, where min_completion_length is set, the end ids) must leave an id to choose; "
            f"they bar all {num_valid_ids} ids. Ban fewer."
        )


def choose(
    logits_BV: jax.Array,
    uniform_B: jax.Array,
    *,
    temperature_B: jax.Array,
    num_tokens_B: jax.Array,
    filters: TokenFilters,
    end_ids: tuple[int, ...],
    num_valid_ids: int,
) -> tuple[jax.Array, jax.Array]:
    """Chooses one token a row.

    Args:
        logits_BV: as the head gives them, any float dtype; computed with in float32.
        uniform_B: float32 in [0, 1).
        temperature_B: float32; more than 0 divides the logits; 0 takes the likeliest token that may be
            chosen (the first of equals) and counts its log-probability at temperature 1.
        num_tokens_B: int32, completion tokens sampled so far.
        end_ids: what ends a completion: not chosen before `filters.min_completion_length` tokens.
        num_valid_ids: ids from here on are padding of the embedding: never chosen, of probability 0.

    Returns: tokens int32 `[B]`; their log-probabilities float32 `[B]`, at most 0, in the whole
        distribution at the row's temperature: what may not be chosen keeps its probability. A row with
        NaN or plus infinity among its logits, or minus infinity for all it may choose, gets some token
        and a log-probability that is not finite.

    Raises: ValueError, while it is traced, if bans and end ids leave nothing to choose.
    """
    check_filters(filters, end_ids=end_ids, num_valid_ids=num_valid_ids)
    valid_BnW = _valid_blocks(logits_BV, num_valid_ids)
    blocks_BnW = _unbarred(valid_BnW, num_tokens_B, filters, end_ids)
    # Without the barriers XLA takes a maximum of maxima, a sum of sums from all logits: two more passes.
    block_max_Bn = jax.lax.optimization_barrier(blocks_BnW.max(axis=-1))
    rows = _Rows(
        top_B=block_max_Bn.max(axis=-1),
        divisor_B=jnp.where(temperature_B > 0, temperature_B, 1.0),
        is_greedy_B=temperature_B <= 0,
    )
    sums_Bn = kept_sums_Bn = jax.lax.optimization_barrier(jnp.exp(_scaled(blocks_BnW, rows)).sum(axis=-1))
    rows = jax.lax.optimization_barrier(rows)  # else a CPU writes out what several passes broadcast
    if filters.top_k or filters.top_p < 1 or filters.min_p:
        blocks_BnW = _filtered(blocks_BnW, rows, filters)
        kept_sums_Bn = jnp.exp(_scaled(blocks_BnW, rows)).sum(axis=-1)
    token_B, logit_B = _search(blocks_BnW, kept_sums_Bn, block_max_Bn, uniform_B, rows)

    log_sum_B = jnp.log(sums_Bn.sum(axis=-1))
    if filters.banned_ids or filters.min_completion_length:
        log_sum_B = jax.nn.logsumexp(_scaled(valid_BnW, rows), axis=(1, 2))
    return token_B, jnp.minimum(_scaled(logit_B, rows) - log_sum_B, 0.0)


def num_blocks(vocab: int) -> int:
    """Into how many blocks of equal width the ids are cut: about the square root of their number.

    It is a multiple of each power of two up to `MOST_VOCABULARY_SHARDS` that divides the vocabulary. So
    logits cut over that many devices are cut between blocks, and reshaping moves nothing; padding them,
    or another number of blocks, would collect all logits on every device.
    """
    step = math.gcd(vocab, MOST_VOCABULARY_SHARDS)
    counts = [count for count in range(step, vocab + 1, step) if vocab % count == 0]
    return min(counts, key=lambda count: abs(math.log(count**2 / vocab)))


def _valid_blocks(logits_BV: jax.Array, num_valid_ids: int) -> jax.Array:
    """The logits in blocks `[B, n, W]`, float32, minus infinity on ids that the tokenizer does not have."""
    num_rows, vocab = logits_BV.shape
    valid_BV = jnp.where(np.arange(vocab)[None] < num_valid_ids, logits_BV.astype(jnp.float32), NEVER)
    return valid_BV.reshape(num_rows, num_blocks(vocab), -1)


def _unbarred(
    blocks_BnW: jax.Array, num_tokens_B: jax.Array, filters: TokenFilters, end_ids: tuple[int, ...]
) -> jax.Array:
    """Minus infinity on banned ids, and on end ids in rows that are too short to end."""
    ids_1nW = np.arange(math.prod(blocks_BnW.shape[1:])).reshape(1, *blocks_BnW.shape[1:])
    if filters.banned_ids:
        blocks_BnW = jnp.where(np.isin(ids_1nW, filters.banned_ids), NEVER, blocks_BnW)
    if filters.min_completion_length:
        is_early_B11 = (num_tokens_B < filters.min_completion_length)[:, None, None]
        blocks_BnW = jnp.where(np.isin(ids_1nW, end_ids) & is_early_B11, NEVER, blocks_BnW)
    return blocks_BnW


class _Rows(NamedTuple):
    """What the steps of a choice need to know of each row."""

    top_B: jax.Array  # float32: the largest logit that may be chosen
    divisor_B: jax.Array  # float32: the temperature; 1 for greedy rows
    is_greedy_B: jax.Array  # bool


def _scaled(logits: jax.Array, rows: _Rows) -> jax.Array:
    """Logits `[B, ...]` at their row's temperature, such that the largest to choose from is 0."""
    ones = (1,) * (logits.ndim - 1)
    return (logits - rows.top_B.reshape(-1, *ones)) / rows.divisor_B.reshape(-1, *ones)


def _search(
    blocks_BnW: jax.Array, sums_Bn: jax.Array, block_max_Bn: jax.Array, uniform_B: jax.Array, rows: _Rows
) -> tuple[jax.Array, jax.Array]:
    """The first id whose running share exceeds the uniform number, and its logit.

    Greedy rows give all weight to what equals the largest logit, and take the first of it.
    """

    def weights(sampled, logits):
        is_top = (logits == rows.top_B[:, None]).astype(jnp.float32)
        return jnp.where(rows.is_greedy_B[:, None], is_top, sampled)

    uniform_B = jnp.where(rows.is_greedy_B, 0.0, uniform_B)
    block_B, uniform_B = _first_exceeding(weights(sums_Bn, block_max_Bn), uniform_B)
    inside_BW = jnp.take_along_axis(blocks_BnW, block_B[:, None, None], axis=1)[:, 0]
    of_block = rows._replace(top_B=inside_BW.max(axis=-1))  # so that an id of the block has weight 1
    offset_B, _ = _first_exceeding(weights(jnp.exp(_scaled(inside_BW, of_block)), inside_BW), uniform_B)
    logit_B = jnp.take_along_axis(inside_BW, offset_B[:, None], axis=1)[:, 0]
    return block_B * blocks_BnW.shape[2] + offset_B, logit_B


def _first_exceeding(weights_BX: jax.Array, uniform_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index (int32) whose running share of the weights exceeds the uniform number in [0, 1].

    An index without weight is never taken: XLA's running sums of floats do rise and fall by a rounding
    where the weight is 0, and the number may reach the last of them, which gives the last with weight.
    Returned too: where in its own share the uniform number lies, in [0, 1] again.
    """
    index_BX = jax.lax.broadcasted_iota(jnp.int32, weights_BX.shape, 1)
    running_BX = jnp.cumsum(weights_BX, axis=-1)
    target_B = uniform_B * running_BX[:, -1]
    last_B = jnp.where(weights_BX > 0, index_BX, 0).max(axis=-1)
    exceeds_BX = (weights_BX > 0) & (running_BX > target_B[:, None])
    first_B = jnp.where(exceeds_BX, index_BX, last_B[:, None]).min(axis=-1)
    is_first_BX = index_BX == first_B[:, None]
    own_B = jnp.where(is_first_BX, weights_BX, 0.0).sum(axis=-1)
    before_B = jnp.where(is_first_BX, running_BX - weights_BX, 0.0).sum(axis=-1)
    return first_B, jnp.clip((target_B - before_B) / own_B, 0.0, 1.0)


def _filtered(blocks_BnW: jax.Array, rows: _Rows, filters: TokenFilters) -> jax.Array:
    """Minus infinity on what top-k, then top-p among those left, then min-p leave out."""

    def keep(least_B: jax.Array) -> jax.Array:
        return jnp.where(blocks_BnW >= least_B[:, None, None], blocks_BnW, NEVER)

    def above(weights: jax.Array | float, least_B: jax.Array) -> jax.Array:
        return jnp.where(blocks_BnW > least_B[:, None, None], weights, 0.0).sum(axis=(1, 2))

    if filters.top_k:  # kept: what fewer than k logits exceed; counts below 2**24 are exact in float32
        blocks_BnW = keep(_smallest(lambda v_B: above(1.0, v_B) < filters.top_k, rows.top_B))
    if filters.top_p < 1:  # kept: what tokens of less than that probability together exceed
        weights_BnW = jnp.exp(_scaled(blocks_BnW, rows))
        enough_B = filters.top_p * weights_BnW.sum(axis=(1, 2))
        blocks_BnW = keep(_smallest(lambda v_B: above(weights_BnW, v_B) < enough_B, rows.top_B))
    if filters.min_p:
        blocks_BnW = keep(rows.top_B + rows.divisor_B * math.log(filters.min_p))
    return blocks_BnW


def _smallest(holds: Callable[[jax.Array], jax.Array], top_B: jax.Array) -> jax.Array:
    """The smallest float32 a row for which a condition holds that holds at `top_B` and for all between."""

    def halve(_, bounds):
        fails_B, holds_B = bounds
        middle_B = (fails_B & holds_B) + ((fails_B ^ holds_B) >> 1)  # their mean, without overflow
        held_B = holds(_from_rank(middle_B))
        return jnp.where(held_B, fails_B, middle_B), jnp.where(held_B, middle_B, holds_B)

    lowest_B = jnp.full_like(top_B, -jnp.inf)
    return _from_rank(jax.lax.fori_loop(0, 32, halve, (_rank(lowest_B), _rank(top_B)))[1])


def _rank(floats: jax.Array) -> jax.Array:
    """int32 that are ordered as the floats: their bits, those of negative numbers turned round."""
    bits = jax.lax.bitcast_convert_type(floats, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _from_rank(ranks: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(ranks ^ ((ranks >> 31) & 0x7FFFFFFF), jnp.float32)
