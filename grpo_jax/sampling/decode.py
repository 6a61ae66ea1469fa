"""The jitted programs of sampling: prefill, arrival of rows in slots, one window of decode steps.

All shapes are static and all state is donated. A slot is a place for one row; rows come and go between
windows. Nothing here moves data between devices: every slot, and every prompt that its rows read, lives on
one shard of the mesh's row axes, and indices count inside a shard. The prompt's last token is fed by the
first decode step, so that the head runs in one place only.

Shape letters are in `grpo_jax/structs.py`. Here B are slots, Q places for prompts, W steps in a window.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models import kv_cache, layers, quantised
from grpo_jax.models.decoder import Model, Params
from grpo_jax.sampling import token_choice
from grpo_jax.sampling.token_choice import NO_FILTERS, TokenFilters

KEEP, STOP = -1, -2  # `Arrivals.source_B`: the slot goes on as it is; its row ends here


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """What a compiled window depends on besides its shapes."""

    end_ids: tuple[int, ...]  # any of them ends a completion
    num_valid_ids: int  # ids from here on are never sampled
    dtype: Any  # of activations and cache
    filters: TokenFilters = NO_FILTERS
    attention: str = "xla"  # key of `decode_attention.ATTENTIONS`


class DecodeState(NamedTuple):
    """What changes from window to window; all arrays are cut over slots."""

    cache: kv_cache.Cache
    length_B: jax.Array  # int32: columns of the cache that are filled; 0 where done
    last_token_B: jax.Array  # int32: sampled (or the prompt's last), not yet read by the model
    key_B2: jax.Array  # uint32: random key of the row, made from seed, step, problem and generation
    num_tokens_B: jax.Array  # int32: completion tokens so far
    limit_B: jax.Array  # int32: completion tokens at most
    temperature_B: jax.Array  # float32; 0: the likeliest token
    done_B: jax.Array  # bool; also where no row is


class Arrivals(NamedTuple):
    """What the host tells the slots between two windows; int32, one each."""

    source_B: Any  # place of the arriving row's prompt in the shard's store; or KEEP, or STOP
    prompt_length_B: Any
    last_token_B: Any  # of the prompt
    problem_B: Any  # `Problem.index`
    generation_B: Any
    limit_B: Any


class WindowOutput(NamedTuple):
    """What the host reads after a window."""

    tokens_BW: Any  # int32; -1 where the row was done already
    logprobs_BW: Any  # float32
    done_B: Any  # bool


def empty_state(model: Model, *, num_slots: int, num_positions: int, dtype: Any) -> DecodeState:
    """Slots without rows."""
    zeros = jnp.zeros((num_slots,), jnp.int32)
    return DecodeState(
        cache=empty_cache(model, num_rows=num_slots, num_positions=num_positions, dtype=dtype),
        length_B=zeros,
        last_token_B=zeros,
        key_B2=jnp.zeros((num_slots, 2), jnp.uint32),
        num_tokens_B=zeros,
        limit_B=zeros,
        temperature_B=jnp.zeros((num_slots,), jnp.float32),
        done_B=jnp.ones((num_slots,), bool),
    )


def empty_cache(model: Model, *, num_rows: int, num_positions: int, dtype: Any) -> kv_cache.Cache:
    spec = model.spec
    return kv_cache.empty(
        spec.num_layers,
        (num_rows, spec.num_kv_heads, spec.head_dim),
        num_positions=num_positions,
        dtype=dtype,
    )


def prefill(
    model: Model,
    params: Params,
    store: kv_cache.Cache,
    tokens_PT: jax.Array,
    length_P: jax.Array,
    place_P: jax.Array,
    *,
    num_shards: int,
    dtype: Any,
) -> kv_cache.Cache:
    """Reads right-padded prompts, all but their last token, into their places of the store.

    Args:
        store: keys and values of Q prompts; its columns may be more than T.
        length_P: int32; 0 for a row that only fills the shape.
        place_P: int32, inside the shard.
    """
    positions_PT = jnp.broadcast_to(jnp.arange(tokens_PT.shape[1]), tokens_PT.shape)
    mask_PTS = layers.causal_mask(positions_PT < length_P[:, None] - 1)

    def attend(q_BTKMH, k_BTKH, v_BTKH):
        return layers.attend_row(mask_PTS, q_BTKMH, k_BTKH, v_BTKH), (k_BTKH, v_BTKH)

    x_PTD = model.embed(params, tokens_PT, dtype=dtype)
    _, kept = model.run_layers(params, x_PTD, positions_PT, [attend] * model.spec.num_layers)
    # who fills which place: an index of this call's prompts for each of the Q places, or none
    place_of_Q = jnp.arange(_per_shard(store.k[0], num_shards).shape[1])
    place_DP = _per_shard(jnp.where(length_P > 0, place_P, -1), num_shards)
    fills_DQP = place_DP[:, None, :] == place_of_Q[None, :, None]
    source_Q = jnp.where(fills_DQP.any(-1), fills_DQP.argmax(-1), -1).reshape(-1)
    return _arrive(store, kv_cache.from_rows(kept), source_Q, num_shards)


def arrive(
    state: DecodeState,
    store: kv_cache.Cache,
    arrivals: Arrivals,
    temperature: jax.Array,
    step_key: jax.Array,
    *,
    num_shards: int,
) -> DecodeState:
    """Puts rows into slots: their prompt's keys and values, their own random key; ends others.

    Args:
        temperature: float32 scalar, of all that arrive now.
    """
    source_B = arrivals.source_B
    arrives_B = source_B >= 0
    new_key_B2 = jax.vmap(_row_key, in_axes=(None, 0, 0))(step_key, arrivals.problem_B, arrivals.generation_B)
    ended_B = jnp.where(source_B == STOP, True, state.done_B)
    return DecodeState(
        cache=_arrive(state.cache, store, source_B, num_shards),
        length_B=jnp.where(arrives_B, arrivals.prompt_length_B - 1, jnp.where(ended_B, 0, state.length_B)),
        last_token_B=jnp.where(arrives_B, arrivals.last_token_B, state.last_token_B),
        key_B2=jnp.where(arrives_B[:, None], new_key_B2, state.key_B2),
        num_tokens_B=jnp.where(arrives_B, 0, state.num_tokens_B),
        limit_B=jnp.where(arrives_B, arrivals.limit_B, state.limit_B),
        temperature_B=jnp.where(arrives_B, temperature, state.temperature_B),
        done_B=jnp.where(arrives_B, arrivals.limit_B <= 0, ended_B),
    )


def move(state: DecodeState, slot_B: jax.Array, *, num_shards: int) -> DecodeState:
    """The state of fewer slots: each shard's rows of the slots `slot_B` names (inside the shard)."""
    return jax.tree.map(lambda x: _take(x, slot_B, num_shards), state)


def decode_window(
    model: Model,
    params: Params,
    state: DecodeState,
    *,
    num_steps: int,
    settings: DecodeSettings,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[DecodeState, WindowOutput]:
    """Samples up to W = `num_steps` tokens for every row that is not done.

    The number of steps is fixed: a test whether all rows are done would be a reduction over rows, hence
    over devices, at every step. A row that goes on after the window needs W free columns in the cache; one
    that reaches its limit in it does not, since nothing reads its keys again. The cache's last W columns are the
    window's own.
    """

    def step(carry, now):
        at, uniform_B = now
        cache, last_token_B, num_tokens_B, done_B = carry
        weights = quantised.read_in_loop(params, at)
        cache, hidden_BD = _read_token(
            model, weights, cache, state.length_B, last_token_B, at, num_steps, settings, mesh
        )
        token_B, logprob_B = token_choice.choose(
            model.logits(weights, hidden_BD),
            uniform_B,
            temperature_B=state.temperature_B,
            num_tokens_B=num_tokens_B,
            filters=settings.filters,
            end_ids=settings.end_ids,
            num_valid_ids=settings.num_valid_ids,
        )
        emitted = (jnp.where(done_B, -1, token_B), jnp.where(done_B, 0.0, logprob_B))
        num_tokens_B = num_tokens_B + ~done_B
        ended_B = jnp.isin(token_B, jnp.array(settings.end_ids, jnp.int32))
        last_token_B = jnp.where(done_B, last_token_B, token_B)
        done_B = done_B | ended_B | (num_tokens_B >= state.limit_B)
        return (cache, last_token_B, num_tokens_B, done_B), emitted

    steps = jnp.arange(num_steps)
    # a row that is not done has sampled one token a step, so all its numbers can be drawn beforehand
    uniform_WB = jax.vmap(jax.vmap(_uniform), (None, 0))(
        state.key_B2, steps[:, None] + state.num_tokens_B[None]
    )
    carry = (state.cache, state.last_token_B, state.num_tokens_B, state.done_B)
    carry, (tokens_WB, logprobs_WB) = jax.lax.scan(step, carry, (steps, uniform_WB))
    cache, last_token_B, num_tokens_B, done_B = carry
    length_B = state.length_B + (num_tokens_B - state.num_tokens_B)
    after = state._replace(
        cache=kv_cache.append_window(cache, state.length_B, num_steps=num_steps),
        length_B=jnp.where(done_B, 0, length_B),
        last_token_B=last_token_B,
        num_tokens_B=num_tokens_B,
        done_B=done_B,
    )
    return after, WindowOutput(tokens_WB.T, logprobs_WB.T, done_B)


def _read_token(
    model: Model,
    params: Params,
    cache: kv_cache.Cache,
    length_B: jax.Array,
    token_B: jax.Array,
    step: jax.Array,
    num_steps: int,
    settings: DecodeSettings,
    mesh: jax.sharding.Mesh | None,
) -> tuple[kv_cache.Cache, jax.Array]:
    """Feeds one token a row; returns the cache with its keys and values, and hidden states `[B, D]`."""
    held = [cache]
    column = cache.num_positions - num_steps + step

    def attend_layer(layer: int) -> layers.Attend:
        def attend(q_BTKMH, k_BTKH, v_BTKH):
            held[0] = kv_cache.write_column(held[0], layer, k_BTKH[:, 0], v_BTKH[:, 0], column)
            mixed_BKMH = kv_cache.attend(
                q_BTKMH[:, 0],
                held[0],
                layer,
                length_B=length_B,
                step=step,
                num_steps=num_steps,
                attention=settings.attention,
                mesh=mesh,
            )
            return mixed_BKMH[:, None], None

        return attend

    x_BTD = model.embed(params, token_B[:, None], dtype=settings.dtype)
    attends = [attend_layer(layer) for layer in range(model.spec.num_layers)]
    hidden_BTD, _ = model.run_layers(params, x_BTD, (length_B + step)[:, None], attends)
    return held[0], hidden_BTD[:, 0]


def _arrive(into: kv_cache.Cache, source: kv_cache.Cache, source_B: jax.Array, num_shards: int):
    """Overwrites the first columns of the rows of `into` whose `source_B` is no less than 0.

    Array by array: else the compiler may take all layers' rows out of `source` before it writes the first.
    """
    written: list[jax.Array] = []
    old_leaves, structure = jax.tree.flatten(into)
    for old, new in zip(old_leaves, jax.tree.leaves(source), strict=True):
        if written:
            source_B, _ = jax.lax.optimization_barrier((source_B, written[-1][0, 0, 0, 0]))
        taken = _take(new, source_B, num_shards)
        columns = tuple(slice(size) for size in taken.shape)
        kept = jnp.where((source_B >= 0)[:, None, None, None], taken, old[columns])
        written.append(old.at[columns].set(kept))
    return jax.tree.unflatten(structure, written)


def _take(x: jax.Array, index_B: jax.Array, num_shards: int) -> jax.Array:
    """Rows of `x`, by indices that count inside each shard: no device reads another's rows."""
    take = jax.vmap(lambda rows, index: jnp.take(rows, index, axis=0, mode="clip"))
    taken = take(_per_shard(x, num_shards), _per_shard(index_B, num_shards))
    return taken.reshape(index_B.shape[0], *x.shape[1:])


def _per_shard(x: jax.Array, num_shards: int) -> jax.Array:
    return x.reshape(num_shards, -1, *x.shape[1:])


def _row_key(step_key: jax.Array, problem: jax.Array, generation: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(step_key, problem), generation)
    return jax.random.key_data(key)


def _uniform(key_2: jax.Array, position: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.wrap_key_data(key_2), position)
    return jax.random.uniform(key, (), jnp.float32)
