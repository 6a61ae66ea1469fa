"""One jitted, donated update: gradients of all microbatches added up, then the optimizer.

A minibatch is A microbatches of U pieces, one a row shard. One loop takes the gradient of each in turn; it
stops where microbatches are empty: its length is an argument, not a shape. The loss and its gradient do not
depend on the cut, because what they are divided by is known for the whole minibatch first.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grpo_jax import digests
from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import objective
from grpo_jax.learning.objective import LossParams, Rows, Totals
from grpo_jax.learning.scoring import ComputeParams, completion_logprobs
from grpo_jax.learning.train_state import TrainState
from grpo_jax.models.decoder import Model
from grpo_jax.models.lora import Assemble
from grpo_jax.structs import TrainBatch


def update_state(
    model: Model,
    tx: optax.GradientTransformation,
    assemble: Assemble,
    state: TrainState,
    frozen: Any,
    batch: TrainBatch,
    num_active: jax.Array,
    totals: Totals,
    *,
    mesh: jax.sharding.Mesh,
    loss: LossParams,
    compute: ComputeParams,
    gradient_shardings: Any,
    apart: bool,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update on one minibatch.

    Args:
        frozen: what `assemble` wants beside the trained parameters; the gradient does not go to it.
        num_active: int32; only the first so many microbatches hold anything.
        totals: what the loss is divided by.
        gradient_shardings: where the accumulated gradient lies.
        apart: only rows are cut, and each device adds up its own gradient.

    Returns: the new state; float32 scalars: `loss`, `grad_norm` and what `objective.metrics_of` gives; uint32
        `[2]`: `digest/gradient` of the whole gradient before it is clipped, `digest/params` of the parameters after.
    """
    microbatch_loss = partial(_microbatch_loss, model, assemble, mesh=mesh, loss=loss, compute=compute)
    accumulate = partial(_accumulate, microbatch_loss, None if apart else gradient_shardings)
    if apart:
        accumulate = _summed_over_devices(accumulate, mesh)
    key = jax.random.fold_in(jax.random.key(0), state.num_updates)  # of dropout
    gradients, sums, largest = accumulate(state.params, frozen, batch, num_active, totals, key)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": sums["loss"], "grad_norm": optax.global_norm(gradients)}
    metrics |= objective.metrics_of(sums, largest, loss)
    metrics |= {"digest/gradient": digests.combined(gradients), "digest/params": digests.combined(params)}
    return TrainState(params, opt_state, state.num_updates + 1), metrics


def _accumulate(microbatch_loss, shardings, trained, frozen, batch, num_active, totals, key):
    """Gradients and sums over all microbatches, and maxima."""
    loss_and_grad = jax.value_and_grad(microbatch_loss, has_aux=True)
    add = partial(jax.tree.map, jnp.add)

    def placed(gradients):
        return gradients if shardings is None else jax.lax.with_sharding_constraint(gradients, shardings)

    def one(i, carry):
        gradients, sums, largest = carry
        # Of a single microbatch XLA would move parts out of the loop; on a CPU two of its sums over devices
        # can then wait for each other for ever.
        i, whole_batch = jax.lax.optimization_barrier((i, batch))
        microbatch = jax.tree.map(lambda x: x[i], whole_batch)
        (value, (new_sums, new_largest)), new = loss_and_grad(
            trained, frozen, microbatch, totals, jax.random.fold_in(key, i)
        )
        return (
            add(gradients, placed(new)),
            add(sums, new_sums | {"loss": value}),
            jax.tree.map(jnp.maximum, largest, new_largest),
        )

    sums, largest = objective.no_sums()
    zeros = placed(jax.tree.map(jnp.zeros_like, trained))
    return jax.lax.fori_loop(0, num_active, one, (zeros, sums | {"loss": jnp.float32(0)}, largest))


def _summed_over_devices(accumulate, mesh: jax.sharding.Mesh):
    """Each device adds up its own microbatches; they meet once, at the end.

    XLA would sum the gradient over devices after every microbatch.
    """

    def local(trained, frozen, batch, num_active, totals, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        gradients, sums, largest = accumulate(trained, frozen, batch, num_active, totals, key)
        gradients, sums = jax.lax.psum((gradients, sums), "data")
        return gradients, sums, jax.lax.pmax(largest, "data")

    return mesh_lib.on_each_device(local, mesh, rows=(None, None, 1, None, None, None))


def _microbatch_loss(
    model: Model,
    assemble: Assemble,
    trained: Any,
    frozen: Any,
    batch: TrainBatch,
    totals: Totals,
    key: jax.Array,
    *,
    mesh: jax.sharding.Mesh,
    loss: LossParams,
    compute: ComputeParams,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """The loss of one microbatch (arrays without the A axis) and sums and maxima for the metrics."""
    logprobs_USC, entropy_USC = completion_logprobs(
        model,
        assemble(trained, frozen, key),
        batch,
        mesh=mesh,
        temperature=loss.temperature,
        compute=compute,
        entropy_gradient=loss.entropy_coef != 0,
    )

    def flat(x: Any) -> Any:
        return None if x is None else x.reshape(-1, *x.shape[2:])

    rows = Rows(
        mask_BC=flat(batch.completion_mask_AUSC),
        advantages_B=flat(batch.advantages_AUS),
        sampler_logprobs_BC=flat(batch.sampler_logprobs_AUSC),
        old_logprobs_BC=flat(batch.old_logprobs_AUSC),
        ref_logprobs_BC=flat(batch.ref_logprobs_AUSC),
        entropy_mask_BC=flat(batch.entropy_mask_AUSC),
    )
    return objective.microbatch_loss(flat(logprobs_USC), flat(entropy_USC), rows, totals, loss)
