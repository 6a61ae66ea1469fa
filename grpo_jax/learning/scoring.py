"""Log-probabilities and entropies of a batch's completions: the forward pass that scoring and updating share."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax import mesh as mesh_lib
from grpo_jax.learning.token_logprobs import default_tile, token_logprobs
from grpo_jax.models.decoder import Model, Params
from grpo_jax.models.lora import Assemble
from grpo_jax.structs import TrainBatch


@dataclasses.dataclass(frozen=True)
class ComputeParams:
    """How the computation is done, which changes no result beyond rounding."""

    dtype: Any  # of activations and of weights in matmuls
    remat: str  # key of `decoder.REMAT_POLICIES`
    num_valid_ids: int  # ids from here on have probability 0
    attention: str = "xla"  # key of `packed_attention.LINE_ATTENTIONS`
    tile_tokens: int = 0  # whose logits one device holds at once; 0: by `token_logprobs.TILE_BYTES`


class Scored(NamedTuple):
    """float32, natural logarithms, at the places of `TrainBatch.completion_mask_AUSC`."""

    logprobs_AUSC: jax.Array
    entropy_AUSC: jax.Array


def score_batch(
    model: Model,
    assemble: Assemble,
    trained: Any,
    frozen: Any,
    batch: TrainBatch,
    num_active: jax.Array,
    *,
    mesh: jax.sharding.Mesh,
    temperature: float,
    compute: ComputeParams,
    apart: bool,
) -> Scored:
    """Scores the first `num_active` (int32) microbatches without gradients or dropout; 0 behind them.

    Args:
        apart: only rows are cut: devices work apart, as in the update.
    """

    def local(trained, frozen, batch, num_active):
        params = assemble(trained, frozen, None)

        def score_microbatch(i: jax.Array, scored: Scored) -> Scored:
            microbatch = jax.tree.map(lambda x: x[i], batch)
            new = completion_logprobs(
                model, params, microbatch, mesh=mesh, temperature=temperature, compute=compute
            )
            return Scored(*(old.at[i].set(one) for old, one in zip(scored, new, strict=True)))

        zeros = jnp.zeros_like(batch.completion_mask_AUSC)
        return jax.lax.fori_loop(0, num_active, score_microbatch, Scored(zeros, zeros))

    if apart:
        local = mesh_lib.on_each_device(local, mesh, rows=(None, None, 1, None), out_rows=1)
    return local(trained, frozen, batch, num_active)


def completion_logprobs(
    model: Model,
    params: Params,
    batch: TrainBatch,
    *,
    mesh: jax.sharding.Mesh,
    temperature: float,
    compute: ComputeParams,
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies float32 `[U, S, C]` of one microbatch's completions (no A axis).

    Only the Q places that hold completion tokens pass through the head.
    """
    hidden_UTD = model.packed_hidden_states(
        params,
        batch.packed,
        dtype=compute.dtype,
        remat=compute.remat,
        attention=compute.attention,
        mesh=mesh,
    )
    platform = mesh.devices.flat[0].platform
    logprobs_UQ, entropy_UQ = token_logprobs(
        jnp.take_along_axis(hidden_UTD, batch.source_AUQ[..., None], axis=1),
        model.head(params),
        batch.targets_AUQ,
        temperature=temperature,
        num_valid_ids=compute.num_valid_ids,
        tile_columns=compute.tile_tokens or default_tile(model.spec.vocab_size, platform),
        entropy_gradient=entropy_gradient,
    )
    num_columns, num_places = batch.completion_mask_AUSC.shape[-1], batch.targets_AUQ.shape[-1]
    place_USC = batch.start_AUS[..., None] + jnp.arange(num_columns)[None, None]
    place_USC = jnp.minimum(place_USC, num_places - 1)

    def by_completion(x_UQ: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_UQ[:, None], place_USC, axis=2)

    return by_completion(logprobs_UQ), by_completion(entropy_UQ)
