"""The learning step: score a batch where that is needed, then one jitted, donated update a minibatch.

A minibatch is A microbatches of B rows. One jitted loop takes the gradient of each in turn and adds them
up; the optimizer runs once at its end. Microbatches are ordered so that those without any signal come
last, and the loop stops before them: its length is an argument, not a shape. The loss and its gradient do
not depend on the cut, because token weights are computed for the whole minibatch first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grpo_jax import distributed
from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import losses, train_state
from grpo_jax.learning.batches import Minibatch
from grpo_jax.learning.token_logprobs import TILE_TOKENS, token_logprobs
from grpo_jax.learning.train_state import TrainState
from grpo_jax.models.decoder import Model, Params
from grpo_jax.structs import TrainBatch


@dataclasses.dataclass(frozen=True)
class LossParams:
    """The objective. Names and meanings as in TRL."""

    loss_type: str  # key of `losses.TOKEN_WEIGHTS`
    epsilon: float  # the ratio is clipped below 1 - epsilon
    epsilon_high: float  # and above 1 + epsilon_high
    beta: float  # weight of the KL to the reference; 0: there is no reference
    temperature: float  # of the log-probabilities; that of sampling
    max_completion_length: int  # tokens; the constant of dr_grpo


@dataclasses.dataclass(frozen=True)
class ComputeParams:
    """How the computation is done, which changes no result beyond rounding."""

    dtype: Any  # of activations and of weights in matmuls
    remat: str  # key of `decoder.REMAT_POLICIES`
    num_valid_ids: int  # ids from here on have probability 0


COMPILER_OPTIONS: dict[str, dict[str, str]] = {  # by platform
    # A TPU's XLA would multiply by the pieces of a weight as they come round from the other devices: with
    # layers' widths over 16 devices, 224 columns at a time, at half the speed (docs/benchmarks.md).
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


class Learner:
    """The jitted programs of learning, compiled once a batch shape, and the order in which they run."""

    def __init__(
        self,
        model: Model,
        *,
        mesh: jax.sharding.Mesh,
        tx: optax.GradientTransformation,
        shapes: Any,
        loss: LossParams,
        compute: ComputeParams,
        over_data: bool = False,
    ):
        self.mesh, self.beta = mesh, loss.beta
        model = dataclasses.replace(model, rows=mesh_lib.rows(mesh))
        state = train_state.shardings(tx, shapes, mesh=mesh, over_data=over_data)
        self.gradient_shardings = mesh_lib.optimizer_shardings(mesh, shapes, over_data=over_data)
        score = partial(score_batch, model, loss=loss, compute=compute)
        options = COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)
        self.score = jax.jit(score, out_shardings=mesh_lib.rows(mesh, leading=1), compiler_options=options)
        update = partial(
            update_state, model, tx, loss=loss, compute=compute, gradient_shardings=self.gradient_shardings
        )
        self.update = jax.jit(
            update,
            donate_argnums=0,
            out_shardings=(state, mesh_lib.replicated(mesh)),
            compiler_options=options,
        )

    def learn(
        self, state: TrainState, minibatches: Sequence[Minibatch], *, ref_params: Params, num_iterations: int
    ) -> tuple[TrainState, dict[str, float]]:
        """All updates of one rollout: `num_iterations` passes over its minibatches.

        Old log-probabilities are computed only if the policy moves before the rollout is used up; with
        one update they are the update's own. Reference ones only if `beta` asks for them.

        Returns: the new state; metrics, averaged over updates (the gap's largest, where it says max).
        """
        tokens = sum(float(part.batch.completion_mask_ABC.sum()) for part in minibatches)
        all_tokens = float(distributed.gather(np.array([tokens], np.float64)).sum())
        counts = [jnp.int32(n) for n in distributed.largest([part.num_active for part in minibatches])]
        on_mesh = [mesh_lib.put_rows(self.mesh, part.batch, leading=1) for part in minibatches]
        if len(minibatches) * num_iterations > 1:
            on_mesh = [b._replace(old_logprobs_ABC=self.score(state.params, b)) for b in on_mesh]
        if self.beta:
            on_mesh = [b._replace(ref_logprobs_ABC=self.score(ref_params, b)) for b in on_mesh]
        history = []
        for _ in range(num_iterations):
            for batch, count in zip(on_mesh, counts, strict=True):
                state, metrics = self.update(state, batch, count, jnp.float32(all_tokens / len(on_mesh)))
                history.append(metrics)
        return state, _averaged(jax.device_get(history))


def score_batch(
    model: Model, params: Params, batch: TrainBatch, *, loss: LossParams, compute: ComputeParams
) -> jax.Array:
    """Log-probabilities float32 `[A, B, C]` of a batch's completion tokens, without gradients."""

    def score_microbatch(microbatch: TrainBatch) -> jax.Array:
        return completion_logprobs(model, params, microbatch, loss=loss, compute=compute)[0]

    return jax.lax.map(score_microbatch, batch)


def update_state(
    model: Model,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: TrainBatch,
    num_active: jax.Array,
    rollout_tokens: jax.Array,
    *,
    loss: LossParams,
    compute: ComputeParams,
    gradient_shardings: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update on one minibatch.

    Args:
        num_active: int32; only the first so many microbatches can have a gradient.
        rollout_tokens: float32; trained tokens of the step over the number of minibatches.
        gradient_shardings: where the accumulated gradient lies.

    Returns: the new state and float32 scalars: `loss`, `entropy`, `clip_ratio/region_mean`, `grad_norm`, the
        gap between the sampler's log-probabilities and the trainer's, and `kl` where there is a reference.
    """
    weights_ABC = _token_weights(batch.completion_mask_ABC, loss, rollout_tokens)
    loss_and_grad = jax.value_and_grad(
        partial(microbatch_loss, model, loss=loss, compute=compute), has_aux=True
    )

    def accumulate(i, carry):
        gradients, sums, largest = carry
        microbatch, weights_BC = jax.tree.map(lambda x: x[i], (batch, weights_ABC))
        (value, (new_sums, new_largest)), new = loss_and_grad(state.params, microbatch, weights_BC)
        new_sums["loss"] = value
        add = partial(jax.tree.map, jnp.add)
        new = jax.lax.with_sharding_constraint(new, gradient_shardings)
        return add(gradients, new), add(sums, new_sums), jax.tree.map(jnp.maximum, largest, new_largest)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    zeros = jax.lax.with_sharding_constraint(zeros, gradient_shardings)
    zero = jnp.float32(0)
    sums = dict.fromkeys(("loss", "tokens", "kl", "entropy", "clipped", "gap"), zero)
    carry = (zeros, sums, {"gap": zero, "ratio": zero})
    gradients, sums, largest = jax.lax.fori_loop(0, num_active, accumulate, carry)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    per_token = lambda name: sums[name] / jnp.maximum(sums["tokens"], 1.0)  # noqa: E731
    metrics = {
        "loss": sums["loss"],
        "entropy": per_token("entropy"),
        "clip_ratio/region_mean": per_token("clipped"),
        "grad_norm": optax.global_norm(gradients),
        "sampling/sampling_logp_difference/mean": per_token("gap"),
        "sampling/sampling_logp_difference/max": largest["gap"],
        "ratio/max": largest["ratio"],
    }
    if loss.beta:
        metrics["kl"] = per_token("kl")
    return TrainState(params, opt_state, state.num_updates + 1), metrics


def microbatch_loss(
    model: Model,
    params: Params,
    batch: TrainBatch,
    weights_BC: jax.Array,
    *,
    loss: LossParams,
    compute: ComputeParams,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """The loss of one microbatch (arrays without the A axis) and sums and maxima for the metrics."""
    mask_BC = batch.completion_mask_ABC
    logprobs_BC, entropy_BC = completion_logprobs(model, params, batch, loss=loss, compute=compute)
    # Masked positions hold anything; made equal to the policy's own they drop out of every ratio.
    own_BC = jax.lax.stop_gradient(logprobs_BC)
    fill = lambda x_BC: own_BC if x_BC is None else jnp.where(mask_BC > 0, x_BC, own_BC)  # noqa: E731
    old_BC = fill(batch.old_logprobs_ABC)
    token_loss_BC, clipped_BC = losses.clipped_policy_loss(
        logprobs_BC,
        old_BC,
        batch.advantages_AB,
        epsilon=loss.epsilon,
        epsilon_high=loss.epsilon_high,
    )
    kl_BC = jnp.zeros_like(token_loss_BC)
    if loss.beta:
        kl_BC = losses.kl_k3(logprobs_BC, fill(batch.ref_logprobs_ABC))
        token_loss_BC = token_loss_BC + loss.beta * kl_BC
    gap_BC = jnp.abs(fill(batch.sampler_logprobs_ABC) - old_BC)
    sums = {
        "tokens": mask_BC.sum(),
        "kl": (kl_BC * mask_BC).sum(),
        "entropy": (entropy_BC * mask_BC).sum(),
        "clipped": (clipped_BC * mask_BC).sum(),
        "gap": (gap_BC * mask_BC).sum(),
    }
    largest = {"gap": (gap_BC * mask_BC).max(), "ratio": (jnp.exp(own_BC - old_BC) * mask_BC).max()}
    return (token_loss_BC * weights_BC).sum(), jax.lax.stop_gradient((sums, largest))


def completion_logprobs(
    model: Model, params: Params, batch: TrainBatch, *, loss: LossParams, compute: ComputeParams
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies float32 `[B, C]` of one microbatch's completion columns.

    Only the C positions that predict completion tokens pass through the head.
    """
    tokens_BT, num_columns = batch.tokens_ABT, batch.completion_mask_ABC.shape[-1]
    hidden_BTD = model.hidden_states(
        params, tokens_BT, batch.valid_ABT, dtype=compute.dtype, remat=compute.remat
    )
    return token_logprobs(
        hidden_BTD[:, -num_columns - 1 : -1],
        model.head(params),
        tokens_BT[:, -num_columns:],
        loss.temperature,
        compute.num_valid_ids,
        TILE_TOKENS * (mesh_lib.num_row_shards(model.rows.mesh) if model.rows else 1),
    )


def _averaged(history: list[dict[str, np.ndarray]]) -> dict[str, float]:
    return {
        name: float((np.max if name.endswith("/max") else np.mean)([metrics[name] for metrics in history]))
        for name in history[0]
    }


def _token_weights(mask_ABC: jax.Array, loss: LossParams, rollout_tokens: jax.Array) -> jax.Array:
    flat_NC = mask_ABC.reshape(-1, mask_ABC.shape[-1])
    weights_NC = losses.TOKEN_WEIGHTS[loss.loss_type](
        flat_NC, max_completion_length=loss.max_completion_length, rollout_tokens=rollout_tokens
    )
    return weights_NC.reshape(mask_ABC.shape)
