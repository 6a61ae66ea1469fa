"""The jitted programs of sampling: relayout of the weights, prefill, one window of decode steps.

All shapes are static and all state is donated. Inside a window nothing reduces over rows: every row lives
on its own device slice and a finished row only idles. A prompt is read once; its cache is repeated to its
group. The prompt's last token is fed by the first decode step, so the head runs in one place only.

Shape letters are in `grpo_jax/structs.py`; W is the number of steps in a window.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models import kv_cache, layers
from grpo_jax.models.decoder import Model, Params
from grpo_jax.sampling import token_choice
from grpo_jax.sampling.token_choice import SamplingParams


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """What a compiled window depends on besides its shapes."""

    sampling: SamplingParams
    end_ids: tuple[int, ...]  # any of them ends a completion
    num_valid_ids: int  # ids from here on are never sampled
    window: int  # decode steps a call, W
    dtype: Any  # of activations and cache


class DecodeState(NamedTuple):
    """What changes from window to window; all arrays are cut over rows."""

    cache: kv_cache.Cache
    length_B: jax.Array  # int32: columns of the cache that are filled
    last_token_B: jax.Array  # int32: sampled (or the prompt's last), not yet read by the model
    key_B2: jax.Array  # uint32: random key of the row, made from seed, step, problem and generation
    num_tokens_B: jax.Array  # int32: completion tokens so far
    limit_B: jax.Array  # int32: completion tokens at most; 0 for rows that only fill the shape
    done_B: jax.Array  # bool


class WindowOutput(NamedTuple):
    """What the host reads after a window."""

    tokens_BW: Any  # int32; -1 where the row was done already
    logprobs_BW: Any  # float32
    done_B: Any  # bool
    all_done: Any  # bool, over all rows of all processes


def prefill(
    model: Model,
    params: Params,
    tokens_PT: jax.Array,
    length_P: jax.Array,
    *,
    num_positions: int,
    settings: DecodeSettings,
) -> kv_cache.Cache:
    """Reads right-padded prompts, all but their last token, into a cache of `num_positions` columns."""
    positions_PT = jnp.broadcast_to(jnp.arange(tokens_PT.shape[1]), tokens_PT.shape)
    mask_PTS = layers.causal_mask(positions_PT < length_P[:, None] - 1)

    def attend(q_BTKMH, k_BTKH, v_BTKH):
        return layers.attend_row(mask_PTS, q_BTKMH, k_BTKH, v_BTKH), (k_BTKH, v_BTKH)

    x_PTD = model.embed(params, tokens_PT, dtype=settings.dtype)
    _, kept = model.run_layers(params, x_PTD, positions_PT, [attend] * model.spec.num_layers)
    return kv_cache.from_rows(kept, num_positions=num_positions)


def start(
    cache: kv_cache.Cache,
    length_P: jax.Array,
    last_token_P: jax.Array,
    problem_P: jax.Array,
    limit_P: jax.Array,
    step_key: jax.Array,
    *,
    num_generations: int,
) -> DecodeState:
    """Repeats each prompt to its group and gives every row its own random key."""
    repeat = lambda x: jnp.repeat(x, num_generations, axis=0)  # noqa: E731
    generation_B = jnp.tile(jnp.arange(num_generations), problem_P.shape[0])
    limit_B = repeat(limit_P)
    return DecodeState(
        cache=kv_cache.repeat_rows(cache, num_generations),
        length_B=repeat(length_P) - 1,
        last_token_B=repeat(last_token_P),
        key_B2=jax.vmap(_row_key, in_axes=(None, 0, 0))(step_key, repeat(problem_P), generation_B),
        num_tokens_B=jnp.zeros_like(limit_B),
        limit_B=limit_B,
        done_B=limit_B <= 0,
    )


def decode_window(
    model: Model, params: Params, state: DecodeState, *, settings: DecodeSettings
) -> tuple[DecodeState, WindowOutput]:
    """Samples up to W tokens for every row that is not done.

    The number of steps is fixed: a test whether all rows are done would be a reduction over rows, hence
    over devices, at every step.
    """

    def step(carry, column):
        window, last_token_B, num_tokens_B, done_B = carry
        window, hidden_BD = _read_token(model, params, state, window, last_token_B, column, settings)
        logits_BV = jnp.einsum("BD,VD->BV", hidden_BD, model.head(params), preferred_element_type=jnp.float32)
        uniform_B = jax.vmap(_uniform)(state.key_B2, num_tokens_B)
        token_B, logprob_B = token_choice.choose(
            logits_BV, uniform_B, settings.sampling, num_valid_ids=settings.num_valid_ids
        )
        emitted = (jnp.where(done_B, -1, token_B), jnp.where(done_B, 0.0, logprob_B))
        num_tokens_B = num_tokens_B + ~done_B
        ended_B = jnp.isin(token_B, jnp.array(settings.end_ids, jnp.int32))
        last_token_B = jnp.where(done_B, last_token_B, token_B)
        done_B = done_B | ended_B | (num_tokens_B >= state.limit_B)
        return (window, last_token_B, num_tokens_B, done_B), emitted

    window = kv_cache.window_like(state.cache, settings.window)
    carry = (window, state.last_token_B, state.num_tokens_B, state.done_B)
    carry, (tokens_WB, logprobs_WB) = jax.lax.scan(step, carry, jnp.arange(settings.window))
    window, last_token_B, num_tokens_B, done_B = carry
    after = state._replace(
        cache=kv_cache.append_window(state.cache, window, state.length_B),
        length_B=state.length_B + (num_tokens_B - state.num_tokens_B),
        last_token_B=last_token_B,
        num_tokens_B=num_tokens_B,
        done_B=done_B,
    )
    return after, WindowOutput(tokens_WB.T, logprobs_WB.T, done_B, done_B.all())


def _read_token(
    model: Model,
    params: Params,
    state: DecodeState,
    window: kv_cache.Cache,
    token_B: jax.Array,
    column: jax.Array,
    settings: DecodeSettings,
) -> tuple[kv_cache.Cache, jax.Array]:
    """Feeds one token a row; returns the window with its keys and values, and hidden states `[B, D]`."""
    held = [window]

    def attend_layer(layer):
        def attend(q_BTKMH, k_BTKH, v_BTKH):
            held[0] = kv_cache.write_column(held[0], layer, k_BTKH[:, 0], v_BTKH[:, 0], column)
            mixed_BKMH = kv_cache.attend(
                q_BTKMH[:, 0], state.cache, held[0], layer, length_B=state.length_B, column=column
            )
            return mixed_BKMH[:, None], None

        return attend

    x_BTD = model.embed(params, token_B[:, None], dtype=settings.dtype)
    positions_BT = (state.length_B + column)[:, None]
    attends = [attend_layer(layer) for layer in range(model.spec.num_layers)]
    hidden_BTD, _ = model.run_layers(params, x_BTD, positions_BT, attends)
    return held[0], hidden_BTD[:, 0]


def _row_key(step_key: jax.Array, problem: jax.Array, generation: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(step_key, problem), generation)
    return jax.random.key_data(key)


def _uniform(key_2: jax.Array, position: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.wrap_key_data(key_2), position)
    return jax.random.uniform(key, (), jnp.float32)
