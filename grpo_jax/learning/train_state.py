"""What training changes: master weights, optimizer moments, and how many updates were made.

All of it is float32, but for first moments on request, and lies on the mesh as `mesh.PARAMETER_RULES` say; moments lie where their parameter
does, or cut over `data` as well. The optimizer is AdamW after clipping by global norm, with a warm-up and one of three schedules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from grpo_jax import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class OptimizerParams:
    """AdamW and its schedule. Names as in TRL (transformers' TrainingArguments)."""

    learning_rate: float  # at the end of the warm-up
    lr_scheduler_type: str  # key of `SCHEDULES`
    warmup_steps: int  # updates of linear warm-up from 0
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    weight_decay: float  # on matrices; norms and biases have none
    max_grad_norm: float  # gradients are scaled down to this global norm; 0: never
    mu_dtype: str  # key of `MU_DTYPES`: what the first moments are kept in; the second ones stay float32


class TrainState(NamedTuple):
    """Donated to every update."""

    params: Any  # float32, stacked layers
    opt_state: Any
    num_updates: jax.Array  # int32 scalar


MU_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""A second moment changes by a thousandth an update, less than bfloat16 can tell: it would stand still."""

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, max(steps, 1)),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1)),
}
"""What follows the warm-up: (peak rate, updates left) -> rate by update; linear and cosine end at 0."""


def schedule(params: OptimizerParams, *, num_updates: int) -> optax.Schedule:
    """Learning rate by update: linear from 0 during the warm-up, then the named schedule."""
    if params.lr_scheduler_type not in SCHEDULES:
        raise ValueError(
            f"config.optimizer.lr_scheduler_type is {params.lr_scheduler_type!r}; known are {sorted(SCHEDULES)}."
        )
    after = SCHEDULES[params.lr_scheduler_type](params.learning_rate, num_updates - params.warmup_steps)
    if not params.warmup_steps:
        return after
    # The first update has a rate above 0: update i of w has (i + 1) / (w + 1) of the peak.
    first = params.learning_rate / (params.warmup_steps + 1)
    warmup = optax.linear_schedule(first, params.learning_rate, params.warmup_steps)
    return optax.join_schedules([warmup, after], [params.warmup_steps])


def optimizer(params: OptimizerParams, *, num_updates: int) -> optax.GradientTransformation:
    """The whole gradient transformation for a run of `num_updates` updates."""
    clip = optax.clip_by_global_norm(params.max_grad_norm) if params.max_grad_norm else optax.identity()
    adamw = optax.adamw(
        schedule(params, num_updates=num_updates),
        b1=params.adam_beta1,
        b2=params.adam_beta2,
        eps=params.adam_epsilon,
        mu_dtype=MU_DTYPES[params.mu_dtype],
        weight_decay=params.weight_decay,
        mask=_is_decayed,
    )
    return optax.chain(clip, adamw)


def shapes(tx: optax.GradientTransformation, params: Any) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s, from parameters or their shapes."""
    return jax.eval_shape(lambda p: _create(tx, p), params)


def shardings(
    tx: optax.GradientTransformation, params: Any, *, mesh: jax.sharding.Mesh, over_data: bool = False
) -> TrainState:
    """Where each array of the state lies; for `over_data` see `mesh.optimizer_shardings`."""
    state = shapes(tx, params)
    moments = mesh_lib.optimizer_shardings(mesh, state.opt_state, over_data=over_data)
    whole: Any = mesh_lib.replicated(mesh)
    return TrainState(mesh_lib.parameter_shardings(mesh, params), moments, whole)


def create(
    tx: optax.GradientTransformation, params: Any, *, mesh: jax.sharding.Mesh, over_data: bool = False
) -> TrainState:
    """A fresh state around parameters, which it takes over; moments are made where they belong."""
    make_moments = jax.jit(
        tx.init, out_shardings=shardings(tx, params, mesh=mesh, over_data=over_data).opt_state
    )
    num_updates = jax.device_put(jnp.int32(0), mesh_lib.replicated(mesh))
    return TrainState(params, make_moments(params), num_updates)


def frozen_copy(params: Any, *, dtype: Any) -> Any:
    """Parameters that no update changes, in `dtype`, each where its original lies."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    copy = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: jnp.copy(leaf.astype(dtype)), tree), out_shardings=shardings
    )
    return copy(params)


def reference_mixer(reference: Any, *, alpha: float) -> Any:
    """The compiled `(reference, params) -> alpha * params + (1 - alpha) * reference`; the reference is donated.

    Sums are float32; the result has the reference's dtype and lies where it lay.

    Args:
        reference: as `frozen_copy` made it.
        alpha: share of the parameters, in (0, 1]; TRL's `ref_model_mixup_alpha`.

    Source: Gorbatovski et al. 2024, "Learn your reference model", TR-DPO.
    """

    def mix(reference: Any, params: Any) -> Any:
        return jax.tree.map(
            lambda old, new: (alpha * new + (1.0 - alpha) * old.astype(new.dtype)).astype(old.dtype),
            reference,
            params,
        )

    shardings = jax.tree.map(lambda leaf: leaf.sharding, reference)
    return jax.jit(mix, donate_argnums=0, out_shardings=shardings)


def _create(tx: optax.GradientTransformation, params: Any) -> TrainState:
    return TrainState(params, tx.init(params), jnp.int32(0))


def _is_decayed(params: Any) -> Any:
    """True for matrices: a stacked norm scale or bias has more axes than it has as one layer's."""
    names = {"scale", "qkv_bias"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in names, params)
