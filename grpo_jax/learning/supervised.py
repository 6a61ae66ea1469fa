"""Supervised fine-tuning: the same state, batch and forward pass as GRPO, with another loss.

Loss: the mean negative log-probability of completion tokens; prompts are read and not trained on.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import train_state
from grpo_jax.learning.scoring import ComputeParams, completion_logprobs
from grpo_jax.learning.train_state import TrainState
from grpo_jax.models.decoder import Model
from grpo_jax.structs import TrainBatch


def jitted_update(
    model: Model,
    *,
    mesh: jax.sharding.Mesh,
    tx: optax.GradientTransformation,
    shapes: Any,
    compute: ComputeParams,
) -> Any:
    """The compiled `(state, batch) -> (state, metrics)`; the state is donated."""
    state = train_state.shardings(tx, shapes, mesh=mesh)
    model = model.for_training(mesh, rows=mesh_lib.rows(mesh))
    return jax.jit(
        partial(supervised_update, model, tx, mesh=mesh, compute=compute),
        donate_argnums=0,
        out_shardings=(state, mesh_lib.replicated(mesh)),
    )


def supervised_update(
    model: Model,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: TrainBatch,
    *,
    mesh: jax.sharding.Mesh,
    compute: ComputeParams,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update on one microbatch (arrays without the A axis).

    Returns: the new state and float32 scalars `loss` (nats a token) and `grad_norm`.
    """

    def loss(params: Any) -> jax.Array:
        logprobs_USC, _ = completion_logprobs(
            model, params, batch, mesh=mesh, temperature=1.0, compute=compute
        )
        mask_USC = batch.completion_mask_AUSC
        return -(logprobs_USC * mask_USC).sum() / jnp.maximum(mask_USC.sum(), 1.0)

    value, gradients = jax.value_and_grad(loss)(state.params)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "grad_norm": optax.global_norm(gradients)}
    return TrainState(params, opt_state, state.num_updates + 1), metrics
