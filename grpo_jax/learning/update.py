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
from grpo_jax.learning import objective, train_state
from grpo_jax.learning.batches import Minibatch
from grpo_jax.learning.objective import LossParams, Rows, Totals
from grpo_jax.learning.token_logprobs import token_logprobs
from grpo_jax.learning.train_state import TrainState
from grpo_jax.models.decoder import Model, Params
from grpo_jax.structs import TrainBatch


@dataclasses.dataclass(frozen=True)
class ComputeParams:
    """How the computation is done, which changes no result beyond rounding."""

    dtype: Any  # of activations and of weights in matmuls
    remat: str  # key of `decoder.REMAT_POLICIES`
    num_valid_ids: int  # ids from here on have probability 0


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
    ):
        self.mesh, self.needs_reference = mesh, loss.penalises_loss
        state = mesh_lib.parameter_shardings(mesh, train_state.shapes(tx, shapes))
        score = partial(score_batch, model, loss=loss, compute=compute)
        self.score = jax.jit(score, out_shardings=mesh_lib.rows(mesh, leading=1))
        update = partial(update_state, model, tx, loss=loss, compute=compute)
        self.update = jax.jit(update, donate_argnums=0, out_shardings=(state, mesh_lib.replicated(mesh)))

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
        if self.needs_reference:
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
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update on one minibatch.

    Args:
        num_active: int32; only the first so many microbatches can have a gradient.
        rollout_tokens: float32; trained tokens of the step over the number of minibatches.

    Returns: the new state and float32 scalars: `loss`, `entropy`, `clip_ratio/region_mean`, `grad_norm`, the
        gap between the sampler's log-probabilities and the trainer's, and `kl` where there is a reference.
    """
    num_rows = batch.advantages_AB.size
    totals = Totals(jnp.float32(num_rows), batch.completion_mask_ABC.sum(), rollout_tokens)
    loss_and_grad = jax.value_and_grad(
        partial(microbatch_loss, model, loss=loss, compute=compute), has_aux=True
    )

    def accumulate(i, carry):
        gradients, sums, largest = carry
        microbatch = jax.tree.map(lambda x: x[i], batch)
        (value, (new_sums, new_largest)), new = loss_and_grad(state.params, microbatch, totals)
        new_sums["loss"] = value
        add = partial(jax.tree.map, jnp.add)
        return add(gradients, new), add(sums, new_sums), jax.tree.map(jnp.maximum, largest, new_largest)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    sums, largest = objective.no_sums()
    carry = (zeros, sums | {"loss": jnp.float32(0)}, largest)
    gradients, sums, largest = jax.lax.fori_loop(0, num_active, accumulate, carry)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": sums["loss"], "grad_norm": optax.global_norm(gradients)}
    metrics |= objective.metrics_of(sums, largest, loss)
    return TrainState(params, opt_state, state.num_updates + 1), metrics


def microbatch_loss(
    model: Model,
    params: Params,
    batch: TrainBatch,
    totals: Totals,
    *,
    loss: LossParams,
    compute: ComputeParams,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """The loss of one microbatch (arrays without the A axis) and sums and maxima for the metrics."""
    logprobs_BC, entropy_BC = completion_logprobs(model, params, batch, loss=loss, compute=compute)
    rows = Rows(
        mask_BC=batch.completion_mask_ABC,
        advantages_B=batch.advantages_AB,
        sampler_logprobs_BC=batch.sampler_logprobs_ABC,
        old_logprobs_BC=batch.old_logprobs_ABC,
        ref_logprobs_BC=batch.ref_logprobs_ABC,
    )
    return objective.microbatch_loss(logprobs_BC, entropy_BC, rows, totals, loss)


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
    )


def _averaged(history: list[dict[str, np.ndarray]]) -> dict[str, float]:
    return {
        name: float((np.max if name.endswith("/max") else np.mean)([metrics[name] for metrics in history]))
        for name in history[0]
    }
