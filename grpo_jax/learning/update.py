"""The learning step: score a batch where that is needed, then one jitted, donated update a minibatch.

A minibatch is A microbatches of U pieces, one a row shard. One jitted loop takes the gradient of each in turn
and adds them up; the optimizer runs once at its end. The loop stops where microbatches are empty: its length is
an argument, not a shape. The loss and its gradient do not depend on the cut, because what they are divided by
is known for the whole minibatch first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
from grpo_jax.learning.losses import Totals
from grpo_jax.learning.token_logprobs import token_logprobs
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
    attention: str = "xla"  # key of `packed_attention.LINE_ATTENTIONS`
    mesh: Any = None  # over whose devices its kernels run; None: one device
    tile_tokens: int = 0  # whose logits one device holds at once; 0: by `token_logprobs.TILE_BYTES`


Assemble = Callable[[Any, Any, jax.Array | None], Params]
"""`assemble(trained, frozen, key) -> params` of the model; key: of dropout, None without. LoRA brings its own."""


def all_trained(trained: Any, frozen: Any, key: jax.Array | None) -> Params:
    """Full fine-tuning: what is trained is the model."""
    return trained


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
        assemble: Assemble = all_trained,
    ):
        self.mesh, self.beta = mesh, loss.beta
        state = mesh_lib.parameter_shardings(mesh, train_state.shapes(tx, shapes))
        score = partial(score_batch, model, assemble, loss=loss, compute=compute)
        self.score = jax.jit(score, out_shardings=mesh_lib.rows(mesh, leading=1))
        update = partial(update_state, model, tx, assemble, loss=loss, compute=compute)
        self.update = jax.jit(update, donate_argnums=0, out_shardings=(state, mesh_lib.replicated(mesh)))

    def learn(
        self,
        state: TrainState,
        minibatches: Sequence[Minibatch],
        *,
        ref_params: Params,
        num_iterations: int,
        frozen: Any = None,
    ) -> tuple[TrainState, dict[str, float]]:
        """All updates of one rollout: `num_iterations` passes over its minibatches.

        Old log-probabilities are computed only if the policy moves before the rollout is used up; with
        one update they are the update's own. Reference ones only if `beta` asks for them.

        Returns: the new state; metrics, averaged over updates (the gap's largest, where it says max).
        """
        totals = self.totals(minibatches)
        counts = [jnp.int32(n) for n in distributed.largest([part.num_active for part in minibatches])]
        on_mesh = [mesh_lib.put_rows(self.mesh, part.batch, leading=1) for part in minibatches]
        parts = list(zip(on_mesh, counts, totals, strict=True))
        if len(parts) * num_iterations > 1:
            parts = [
                (b._replace(old_logprobs_AUSC=self.score(state.params, frozen, b, n)), n, t)
                for b, n, t in parts
            ]
        if self.beta:
            ref = (None, frozen) if ref_params is None else (ref_params, None)
            parts = [(b._replace(ref_logprobs_AUSC=self.score(*ref, b, n)), n, t) for b, n, t in parts]
        history = []
        for _ in range(num_iterations):
            for part in parts:
                state, metrics = self.update(state, frozen, *part)
                history.append(metrics)
        return state, _averaged(jax.device_get(history))

    def totals(self, minibatches: Sequence[Minibatch]) -> list[Totals]:
        """What a minibatch's loss is divided by, over all processes."""
        local = [[float(part.batch.completion_mask_AUSC.sum()), part.num_rows] for part in minibatches]
        sums = distributed.gather(np.array([local], np.float64)).sum(axis=0)
        of_rollout = sums[:, 0].sum() / len(minibatches)
        return [Totals(*map(np.float32, (rows, tokens, of_rollout))) for tokens, rows in sums]


def score_batch(
    model: Model,
    assemble: Assemble,
    trained: Any,
    frozen: Any,
    batch: TrainBatch,
    num_active: jax.Array,
    *,
    loss: LossParams,
    compute: ComputeParams,
) -> jax.Array:
    """Log-probabilities float32 `[A, U, S, C]` of a batch's completion tokens, without gradients."""
    params = assemble(trained, frozen, None)

    def score_microbatch(i, scored_AUSC):
        microbatch = jax.tree.map(lambda x: x[i], batch)
        logprobs_USC, _ = completion_logprobs(model, params, microbatch, loss=loss, compute=compute)
        return scored_AUSC.at[i].set(logprobs_USC)

    return jax.lax.fori_loop(0, num_active, score_microbatch, jnp.zeros_like(batch.completion_mask_AUSC))


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
    loss: LossParams,
    compute: ComputeParams,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update on one minibatch.

    Args:
        frozen: what `assemble` wants beside the trained parameters.
        num_active: int32; only the first so many microbatches hold anything.
        totals: what the loss is divided by.

    Returns: the new state and float32 scalars: `loss`, `entropy`, `clip_ratio/region_mean`, `grad_norm`, the
        gap between the sampler's log-probabilities and the trainer's, and `kl` where there is a reference.
    """

    def microbatch_objective(trained, microbatch, key):
        params = assemble(trained, frozen, key)
        return microbatch_loss(model, params, microbatch, totals, loss=loss, compute=compute)

    loss_and_grad = jax.value_and_grad(microbatch_objective, has_aux=True)
    update_key = jax.random.fold_in(jax.random.key(0), state.num_updates)

    def accumulate(i, carry):
        gradients, sums, largest = carry
        microbatch = jax.tree.map(lambda x: x[i], batch)
        key = jax.random.fold_in(update_key, i)
        (value, (new_sums, new_largest)), new = loss_and_grad(state.params, microbatch, key)
        new_sums["loss"] = value
        add = partial(jax.tree.map, jnp.add)
        return add(gradients, new), add(sums, new_sums), jax.tree.map(jnp.maximum, largest, new_largest)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
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
    totals: Totals,
    *,
    loss: LossParams,
    compute: ComputeParams,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """The loss of one microbatch (arrays without the A axis) and sums and maxima for the metrics."""
    flat = lambda x: None if x is None else x.reshape(-1, *x.shape[2:])  # noqa: E731
    logprobs_BC, entropy_BC = map(flat, completion_logprobs(model, params, batch, loss=loss, compute=compute))
    mask_BC = flat(batch.completion_mask_AUSC)
    weights_BC = losses.TOKEN_WEIGHTS[loss.loss_type](
        mask_BC, max_completion_length=loss.max_completion_length, totals=totals
    )
    # Masked positions hold anything; made equal to the policy's own they drop out of every ratio.
    own_BC = jax.lax.stop_gradient(logprobs_BC)
    fill = lambda x: own_BC if x is None else jnp.where(mask_BC > 0, flat(x), own_BC)  # noqa: E731
    old_BC = fill(batch.old_logprobs_AUSC)
    token_loss_BC, clipped_BC = losses.clipped_policy_loss(
        logprobs_BC,
        old_BC,
        flat(batch.advantages_AUS),
        epsilon=loss.epsilon,
        epsilon_high=loss.epsilon_high,
    )
    kl_BC = jnp.zeros_like(token_loss_BC)
    if loss.beta:
        kl_BC = losses.kl_k3(logprobs_BC, fill(batch.ref_logprobs_AUSC))
        token_loss_BC = token_loss_BC + loss.beta * kl_BC
    gap_BC = jnp.abs(fill(batch.sampler_logprobs_AUSC) - old_BC)
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
    """Log-probabilities and entropies float32 `[U, S, C]` of one microbatch's completions.

    Only the Q places that hold completion tokens pass through the head.
    """
    hidden_UTD = model.packed_hidden_states(
        params,
        batch.packed,
        dtype=compute.dtype,
        remat=compute.remat,
        attention=compute.attention,
        mesh=compute.mesh,
    )
    scored_UQ = token_logprobs(
        jnp.take_along_axis(hidden_UTD, batch.source_AUQ[..., None], axis=1),
        model.head(params),
        batch.targets_AUQ,
        temperature=loss.temperature,
        num_valid_ids=compute.num_valid_ids,
        tile_columns=compute.tile_tokens,
    )
    num_columns, num_places = batch.completion_mask_AUSC.shape[-1], batch.targets_AUQ.shape[-1]
    place_USC = jnp.minimum(batch.start_AUS[..., None] + jnp.arange(num_columns)[None, None], num_places - 1)

    def by_completion(x_UQ: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_UQ[:, None], place_USC, axis=2)

    return by_completion(scored_UQ[0]), by_completion(scored_UQ[1])


def _averaged(history: list[dict[str, np.ndarray]]) -> dict[str, float]:
    return {
        name: float((np.max if name.endswith("/max") else np.mean)([metrics[name] for metrics in history]))
        for name in history[0]
    }
