"""A bare JAX loop that does a benchmark's `Work`: a bound for our sampler rather than a rival.

It knows nothing of our engine: one program from the first token to the last, without a look of the host
between. Shape letters are in `grpo_jax/structs.py`; C counts new tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import layers
from grpo_jax.models.decoder import Model, Params
from tools.peers import Work

BLOCK = 512  # ids that are summed before the running sum: a running sum over a whole vocabulary is slow


class _Cache(NamedTuple):
    """One layer's keys and values, with room for the whole row."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array


class BareLoop:
    """One jitted `scan` over all new tokens, rows cut over the mesh's row axes.

    Every row runs to the longest limit: with unequal limits this side does more than it is credited with.

    Args:
        params: the sampling layout, as our engine takes it.
        dtype: of activations and cache.

    Raises: ValueError if the prompts cannot be cut over the mesh.
    """

    def __init__(self, model: Model, params: Params, *, mesh: jax.sharding.Mesh, work: Work, dtype: Any):
        shards = mesh_lib.num_row_shards(mesh)
        if len(work.prompts_PT) % shards:
            raise ValueError(
                f"--against bare cuts prompts over {shards} devices; got {len(work.prompts_PT)} prompts. "
                f"Set --prompts to a multiple of {shards}."
            )
        self._params = params
        self._prompts_PT = mesh_lib.put_rows(mesh, work.prompts_PT)
        sample = partial(
            sample_rows,
            model,
            num_generations=work.num_generations,
            num_tokens=work.longest,
            temperature=work.temperature,
            dtype=dtype,
        )
        self._sample = jax.jit(sample, out_shardings=mesh_lib.rows(mesh))
        self.device = jax.devices()[0].device_kind

    def generate(self, seed: int) -> np.ndarray:
        tokens_BC, logprobs_BC = self._sample(self._params, self._prompts_PT, jax.random.key(seed))
        mesh_lib.local_rows(logprobs_BC)  # a trainer would want them too
        return mesh_lib.local_rows(tokens_BC)


def sample_rows(
    model: Model,
    params: Params,
    prompts_PT: jax.Array,
    key: jax.Array,
    *,
    num_generations: int,
    num_tokens: int,
    temperature: float,
    dtype: Any,
) -> tuple[jax.Array, jax.Array]:
    """Reads each prompt once, repeats it to its group, and samples `num_tokens` tokens a row.

    Returns: tokens int32 `[B, C]` and their log-probabilities float32 `[B, C]`.
    """
    caches, hidden_PD = _prefill(model, params, prompts_PT, room=num_tokens, dtype=dtype)
    caches, hidden_BD = jax.tree.map(lambda x: jnp.repeat(x, num_generations, axis=0), (caches, hidden_PD))
    uniform_CB = jax.random.uniform(key, (num_tokens, hidden_BD.shape[0]))
    first = _choose(model.logits(params, hidden_BD), uniform_CB[0], temperature)

    def step(carry, now):
        caches, token_B = carry
        column, uniform_B = now
        x_BTD = model.embed(params, token_B[:, None], dtype=dtype)
        positions_BT = jnp.full((token_B.shape[0], 1), column)
        attends = [partial(_attend_cached, cache, column) for cache in caches]
        hidden_BTD, caches = model.run_layers(params, x_BTD, positions_BT, attends)
        chosen = _choose(model.logits(params, hidden_BTD[:, 0]), uniform_B, temperature)
        return (caches, chosen[0]), chosen

    columns = prompts_PT.shape[1] + jnp.arange(num_tokens - 1)
    _, rest = jax.lax.scan(step, (caches, first[0]), (columns, uniform_CB[1:]))
    tokens_BC, logprobs_BC = (
        jnp.concatenate([one[None], more]).T for one, more in zip(first, rest, strict=True)
    )
    return tokens_BC, logprobs_BC


def first_logits(model: Model, params: Params, work: Work, *, dtype: Any) -> np.ndarray:
    """Our logits of the first new token of every prompt, float32 `[P, V]`, matmuls in full precision."""

    def run(params, prompts_PT):
        _, hidden_PD = _prefill(model, params, prompts_PT, room=0, dtype=dtype)
        return model.logits(params, hidden_PD)

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(run)(params, work.prompts_PT))


def _prefill(
    model: Model, params: Params, prompts_PT: jax.Array, *, room: int, dtype: Any
) -> tuple[list[_Cache], jax.Array]:
    """Caches of the prompts with `room` more columns, and hidden states `[P, D]` of their last tokens."""
    mask_PTS = layers.causal_mask(jnp.ones(prompts_PT.shape, bool))
    positions_PT = jnp.broadcast_to(jnp.arange(prompts_PT.shape[1]), prompts_PT.shape)

    def attend(q_PTKMH, k_PTKH, v_PTKH):
        k_PKHS = jnp.pad(k_PTKH.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), (0, room)))
        v_PKSH = jnp.pad(v_PTKH.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, room), (0, 0)))
        return layers.attend_row(mask_PTS, q_PTKMH, k_PTKH, v_PTKH), _Cache(k_PKHS, v_PKSH)

    x_PTD = model.embed(params, prompts_PT, dtype=dtype)
    hidden_PTD, caches = model.run_layers(params, x_PTD, positions_PT, [attend] * model.spec.num_layers)
    return caches, hidden_PTD[:, -1]


def _attend_cached(
    cache: _Cache, column: jax.Array, q_BTKMH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
) -> tuple[jax.Array, _Cache]:
    """Writes one token's key and value at `column` of all rows, and reads all columns up to it."""
    k_BKHS = jax.lax.dynamic_update_slice_in_dim(cache.k_BKHS, k_BTKH[:, 0, :, :, None], column, axis=3)
    v_BKSH = jax.lax.dynamic_update_slice_in_dim(cache.v_BKSH, v_BTKH[:, 0, :, None], column, axis=2)
    q_BKMH = q_BTKMH[:, 0] * q_BTKMH.shape[-1] ** -0.5
    scores_BKMS = jnp.einsum("BKMH,BKHS->BKMS", q_BKMH, k_BKHS, preferred_element_type=jnp.float32)
    written_S = jnp.arange(k_BKHS.shape[-1]) <= column
    scores_BKMS = jnp.where(written_S[None, None, None], scores_BKMS, layers.MASKED)
    weights_BKMS = jax.nn.softmax(scores_BKMS, axis=-1).astype(v_BKSH.dtype)
    mixed_BKMH = jnp.einsum("BKMS,BKSH->BKMH", weights_BKMS, v_BKSH)
    return mixed_BKMH[:, None], _Cache(k_BKHS, v_BKSH)


def _choose(logits_BV: jax.Array, uniform_B: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Tokens int32 `[B]` by inverse CDF (0: the likeliest), and their log-probabilities."""
    scaled_BV = logits_BV / (temperature or 1.0)
    scaled_BV = scaled_BV - scaled_BV.max(axis=-1, keepdims=True)
    weights_BV = jnp.exp(scaled_BV)
    total_B = weights_BV.sum(axis=-1)
    token_B = scaled_BV.argmax(axis=-1) if temperature == 0 else _inverse_cdf(weights_BV, uniform_B * total_B)
    chosen_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B.astype(jnp.int32), chosen_B - jnp.log(total_B)


def _inverse_cdf(weights_BV: jax.Array, target_B: jax.Array) -> jax.Array:
    """The first id at which the running sum of weights exceeds the target; the last id if none does."""
    vocab = weights_BV.shape[-1]
    blocks_BnX = jnp.pad(weights_BV, ((0, 0), (0, -vocab % BLOCK))).reshape(len(weights_BV), -1, BLOCK)
    running_Bn = jnp.cumsum(blocks_BnX.sum(axis=-1), axis=-1)
    block_B = jnp.minimum((running_Bn <= target_B[:, None]).sum(axis=-1), running_Bn.shape[-1] - 1)
    block_BX = jnp.take_along_axis(blocks_BnX, block_B[:, None, None], axis=1)[:, 0]
    upto_B = jnp.take_along_axis(running_Bn, block_B[:, None], axis=-1)[:, 0]
    inside_BX = jnp.cumsum(block_BX, axis=-1) + (upto_B - block_BX.sum(axis=-1))[:, None]
    offset_B = jnp.minimum((inside_BX <= target_B[:, None]).sum(axis=-1), BLOCK - 1)
    return jnp.minimum(block_B * BLOCK + offset_B, vocab - 1)
