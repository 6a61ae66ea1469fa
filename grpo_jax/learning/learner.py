"""The learner: what is scored, in which order updates run, and what of it is compiled.

Enters: a train state and a rollout's minibatches on the host. Leaves: the new state and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grpo_jax import digests, distributed
from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import kl, train_state
from grpo_jax.learning.batches import Minibatch
from grpo_jax.learning.corrections import entropy_threshold
from grpo_jax.learning.objective import LossParams, Totals
from grpo_jax.learning.scoring import ComputeParams, score_batch
from grpo_jax.learning.train_state import TrainState
from grpo_jax.learning.update import update_state
from grpo_jax.models.decoder import Model, Params
from grpo_jax.models.lora import Assemble, whole
from grpo_jax.structs import TrainBatch


class Part(NamedTuple):
    """A minibatch on the mesh."""

    batch: TrainBatch
    num_active: jax.Array  # int32: microbatches that hold anything, of the process that has most
    totals: Totals


COMPILER_OPTIONS: dict[str, dict[str, str]] = {  # by platform
    # A TPU's XLA would multiply by the pieces of a weight as they come round from the other devices: with
    # layers' widths over 16 devices, 224 columns at a time, at half the speed (docs/benchmarks.md).
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


class Learner:
    """The jitted programs of learning, compiled once a batch shape, and the order in which they run.

    Args:
        shapes: of what is trained.
        assemble: makes the model's parameters of what is trained and what is frozen, inside the programs.
        over_data: moments and accumulated gradients are cut over `data` too.
    """

    def __init__(
        self,
        model: Model,
        *,
        mesh: jax.sharding.Mesh,
        tx: optax.GradientTransformation,
        shapes: Any,
        loss: LossParams,
        compute: ComputeParams,
        assemble: Assemble = whole,
        over_data: bool = False,
    ):
        self.mesh, self.loss = mesh, loss
        apart = mesh_lib.only_rows_are_cut(mesh) and not over_data
        model = model.for_training(mesh, rows=None if apart else mesh_lib.rows(mesh))
        options = COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)
        how = {"mesh": mesh, "compute": compute, "apart": apart}
        score = partial(score_batch, model, assemble, temperature=loss.temperature, **how)
        self.score = jax.jit(score, out_shardings=mesh_lib.rows(mesh, leading=1), compiler_options=options)
        state = train_state.shardings(tx, shapes, mesh=mesh, over_data=over_data)
        self.gradient_shardings = mesh_lib.optimizer_shardings(mesh, shapes, over_data=over_data)
        how["gradient_shardings"] = self.gradient_shardings
        update = partial(update_state, model, tx, assemble, loss=loss, **how)
        self.update = jax.jit(
            update,
            donate_argnums=0,
            out_shardings=(state, mesh_lib.replicated(mesh)),
            compiler_options=options,
        )
        self._compiled: set[Any] = set()  # shapes that the update is compiled for
        self._row_kl = jax.jit(partial(_row_kl, loss=loss), out_shardings=mesh_lib.rows(mesh))

    def learn(
        self,
        state: TrainState,
        minibatches: Sequence[Minibatch],
        *,
        ref_params: Params,
        num_iterations: int,
        frozen: Any = None,
        before_change: Callable[[], None] = lambda: None,
    ) -> tuple[TrainState, dict[str, Any]]:
        """All updates of one rollout: `num_iterations` passes over its minibatches.

        Old log-probabilities are computed only if the policy moves before the rollout is used up; with
        one update they are the update's own. Reference ones only if the loss has a KL.

        Args:
            ref_params: trained part of the reference policy; None beside frozen weights: they alone.
            frozen: what no update changes; None in full fine-tuning.
            before_change: called when all is compiled and scored: the next thing is that `state` is gone.

        Returns: the new state; metrics, averaged over updates (the gap's largest, where it says max); digests as
            text: of all updates' gradients in order, and of the parameters after the last.
        """
        parts = self.put(minibatches)
        only_tokens_of_high_entropy = self.loss.top_entropy_quantile < 1
        if len(parts) * num_iterations > 1 or only_tokens_of_high_entropy:
            parts = [self._with_old(state.params, frozen, part) for part in parts]
        if self.loss.penalises_loss:
            scored = [self.score(ref_params, frozen, part.batch, part.num_active) for part in parts]
            parts = [
                part._replace(batch=part.batch._replace(ref_logprobs_AUSC=ref.logprobs_AUSC))
                for part, ref in zip(parts, scored, strict=True)
            ]
        for part in parts:
            self._compile_update(state, frozen, part)
        before_change()
        history = []
        for _ in range(num_iterations):
            for part in parts:
                state, metrics = self.update(state, frozen, *part)
                history.append(metrics)
        return state, _summarised(jax.device_get(history))

    def rollout_kl(
        self,
        params: Any,
        minibatches: Sequence[Minibatch],
        *,
        ref_params: Params,
        shape: tuple[int, int],
        frozen: Any = None,
    ) -> np.ndarray:
        """Each completion's KL to the reference, summed over its tokens, where that is part of the reward.

        Args:
            minibatches: of all completions, whatever their advantage.
            shape: problems and completions a problem of this process.

        Returns: float32 `[P, G]` of this process.
        """
        kl_PG = np.zeros(shape, np.float32)
        for part, minibatch in zip(self.put(minibatches), minibatches, strict=True):
            old, ref = (self.score(p, frozen, part.batch, part.num_active) for p in (params, ref_params))
            kl_UAS = mesh_lib.local_rows(
                self._row_kl(part.batch.completion_mask_AUSC, old.logprobs_AUSC, ref.logprobs_AUSC)
            )
            for i, places in enumerate(minibatch.places):
                a, u = divmod(i, len(kl_UAS))
                for s, place in enumerate(places):
                    kl_PG[place] = kl_UAS[u, a, s]
        return kl_PG

    def rollout_logprobs(
        self, params: Any, minibatches: Sequence[Minibatch], *, frozen: Any = None
    ) -> dict[tuple[int, int], np.ndarray]:
        """What the trainer makes of each completion, by its place (problem, generation of this process).

        Args:
            minibatches: of all completions, whatever their advantage.

        Returns: float32 `[C]` each, natural logarithms; a completion's own tokens are the first.
        """
        found = {}
        for part, minibatch in zip(self.put(minibatches), minibatches, strict=True):
            scored = self.score(params, frozen, part.batch, part.num_active)
            logprobs_UASC = mesh_lib.local_rows(jnp.swapaxes(scored.logprobs_AUSC, 0, 1))
            for i, places in enumerate(minibatch.places):
                a, u = divmod(i, len(logprobs_UASC))
                found |= {place: logprobs_UASC[u, a, s] for s, place in enumerate(places)}
        return found

    def put(self, minibatches: Sequence[Minibatch]) -> list[Part]:
        """Minibatches on the mesh, with what is known of all processes."""
        local = [[float(part.batch.completion_mask_AUSC.sum()), part.num_rows] for part in minibatches]
        sums = distributed.gather(np.array([local], np.float64)).sum(axis=0)
        of_rollout = sums[:, 0].sum() / len(minibatches)
        counts = distributed.largest([part.num_active for part in minibatches])
        return [
            Part(
                mesh_lib.put_rows(self.mesh, part.batch, leading=1),
                jnp.int32(count),
                Totals(*map(np.float32, (rows, tokens, of_rollout))),
            )
            for part, count, (tokens, rows) in zip(minibatches, counts, sums, strict=True)
        ]

    def _compile_update(self, state: TrainState, frozen: Any, part: Part) -> None:
        """Makes the update's program for a minibatch of a new shape; the update then finds it."""
        leaves, structure = jax.tree.flatten(part)
        shapes = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if shapes not in self._compiled:
            self._compiled.add(shapes)
            self.update.lower(state, frozen, *part).compile()

    def _with_old(self, params: Any, frozen: Any, part: Part) -> Part:
        """Log-probabilities of the policy as it is, and which tokens have entropy enough."""
        scored = self.score(params, frozen, part.batch, part.num_active)
        batch = part.batch._replace(old_logprobs_AUSC=scored.logprobs_AUSC)
        if self.loss.top_entropy_quantile < 1:
            mask_UASC, entropy_UASC = (
                mesh_lib.local_rows(jnp.swapaxes(x, 0, 1))
                for x in (batch.completion_mask_AUSC, scored.entropy_AUSC)
            )
            of_all = distributed.gather(entropy_UASC[mask_UASC > 0])
            least = entropy_threshold(of_all, np.ones_like(of_all), self.loss.top_entropy_quantile)
            kept_AUSC = (scored.entropy_AUSC >= least).astype(jnp.float32) * batch.completion_mask_AUSC
            batch = batch._replace(entropy_mask_AUSC=kept_AUSC)
        return part._replace(batch=batch)


def _row_kl(mask_AUSC: jax.Array, old_AUSC: jax.Array, ref_AUSC: jax.Array, *, loss: LossParams) -> jax.Array:
    """float32 `[U, A, S]`."""
    swapped = [jnp.swapaxes(x, 0, 1) for x in (old_AUSC, ref_AUSC, mask_AUSC)]
    of_rows = partial(kl.of_rows, estimator=loss.kl_estimator, clamp=loss.log_ratio_clamp)
    kl_B = of_rows(*(x.reshape(-1, x.shape[-1]) for x in swapped))
    return kl_B.reshape(swapped[0].shape[:-1])


def _summarised(history: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    return {name: _summary(name, [metrics[name] for metrics in history]) for name in history[0]}


def _summary(name: str, values: list[np.ndarray]) -> float | str:
    """Of a rollout's updates: a mean, the largest, or a digest."""
    if name.startswith("digest/"):
        texts = [digests.as_text(pair) for pair in values]
        return texts[-1] if name == "digest/params" else digests.joined(texts)
    return float((np.max if name.endswith("/max") else np.mean)(values))
