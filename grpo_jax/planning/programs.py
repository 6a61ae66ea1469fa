"""Compiles the programs of a step for a `Case`, and reads from them what they take and send.

The programs are those that a run compiles: the sampler's relayout of weights, its largest prefill and its
largest window, `Learner.score` and `Learner.update`. Leaves: a `Compiled` each.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax import building, policy
from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import train_state
from grpo_jax.learning.losses import Totals
from grpo_jax.planning import hlo
from grpo_jax.planning.case import Case, abstract_batch, batch_params, piece_shape
from grpo_jax.sampling.plan import GIB, NoRoom, Plan


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes that lie on one device for longer than a program."""

    params: int
    moments: int
    gradients: int  # accumulated; inside the update only
    reference: int
    sampling_copy: int
    cache: int  # keys and values of slots and waiting prompts, at their largest

    @property
    def state(self) -> int:
        """What is there all the time."""
        return self.params + self.moments + self.reference


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program on one device, bytes."""

    name: str
    arguments: int
    temporaries: int
    peak: int  # of the program: arguments, results that take no argument's place, temporaries
    step_peak: int  # with what else lies on the device meanwhile
    traffic: hlo.Traffic | None  # of one call; None where XLA cannot print the program
    cycles: float  # the compiler's estimate of one call; 0 where it has none
    compile_seconds: float


def compile_all(case: Case, tell: Callable[[str], None]) -> tuple[Held, Plan, list[Compiled]]:
    """All programs that the config runs, in the order of a step.

    Args:
        tell: called with a line before each compilation.

    Raises: NoRoom where the state, or not even one slot of the sampler, fits a device.
    """
    mesh, opened, s = case.mesh, case.policy, case.settings
    parts = policy.parts(opened, s.lora, seed=s.seed)
    tx = train_state.optimizer(s.scaled_optimizer, num_updates=s.num_updates)
    learner = building.make_learner(s, mesh, opened, parts, tx, s.loss)
    layout = train_state.shardings(tx, parts.trained, mesh=mesh, over_data=s.mesh.over_data)
    state = _placed(train_state.shapes(tx, parts.trained), layout)
    frozen = _placed(parts.frozen, mesh_lib.parameter_shardings(mesh, parts.frozen))
    reference = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, opened.dtype, sharding=x.sharding), state.params
    )
    weights = building.sampling_weights(s, mesh, opened, parts)
    held = Held(
        params=_bytes((state.params, frozen)),
        moments=_bytes(state.opt_state),
        gradients=_bytes(_placed(parts.trained, learner.gradient_shardings)),
        reference=_bytes(reference) if s.grpo.beta and frozen is None else 0,
        sampling_copy=weights.num_bytes,
        cache=0,
    )
    free_bytes = int(case.chip.memory_gib * GIB) - held.state
    if free_bytes <= 0:
        raise NoRoom(
            f"does not fit: parameters, optimizer and reference take {held.state / GIB:.2f} GiB of a device's "
            f"{case.chip.memory_gib:.2f}; set config.mesh.preset='zero3', a higher config.mesh.tensor, or more devices."
        )
    engine = policy.make_engine(
        opened,
        mesh=mesh,
        shape=building.engine_shape(s, s.data.max_prompt_length),
        weights=weights,
        filters=s.rollout.filters,
        attention=s.rollout.attention,
        free_bytes=free_bytes,
    )
    held = dataclasses.replace(held, cache=engine.plan.cache_bytes)
    makers = engine.programs.makers(_placed(weights.shapes, weights.formats))
    whole = max(i for i, rung in enumerate(engine.plan.rungs) if rung.slots == engine.plan.slots)
    store = engine.plan.places * engine.plan.prompt_columns[-1] * engine.plan.kv_token_bytes
    batch, scalar = abstract_batch(case), mesh_lib.replicated(mesh)
    count, number = (jax.ShapeDtypeStruct((), kind, sharding=scalar) for kind in (jnp.int32, jnp.float32))
    part = (batch, count, Totals(number, number, number))
    moments_and_ref = held.moments + held.reference
    jobs = [  # name, what compiles it, what else lies there meanwhile
        ("weights", lambda: weights.relayout.lower(state.params, frozen).compile(), moments_and_ref),
        ("prefill", makers["prefill", engine.plan.prompt_columns[-1]], held.state + held.cache - store),
        ("window", makers["window", whole], held.state + store),
        ("update", lambda: learner.update.lower(state, frozen, *part).compile(), held.reference),
    ]
    if score_passes(case):
        score = learner.score.lower
        jobs.insert(
            3, ("score", lambda: score(state.params, frozen, batch, count).compile(), moments_and_ref)
        )
    loops = {"update": full_microbatches(case), "score": full_microbatches(case)}
    compiled = []
    for job in jobs:
        tell(f"{case.where}: compiling {job[0]}")
        compiled.append(_measured(*job, unknown_trips=loops.get(job[0], 1)))
    return held, engine.plan, compiled


def score_passes(case: Case) -> int:
    """How often a minibatch is scored: by the policy before it moves, and by the reference."""
    grpo = case.settings.grpo
    loss = case.settings.loss
    by_old = grpo.num_minibatches * grpo.num_iterations > 1 or loss.top_entropy_quantile < 1
    return int(by_old) + int(grpo.beta > 0) + int(loss.penalises_reward)


def full_microbatches(case: Case) -> int:
    """Microbatches of an update when every completion is as long as allowed."""
    params, shape = batch_params(case), piece_shape(case)
    rows = case.settings.rows // case.settings.grpo.num_minibatches
    return math.ceil(rows / (shape.num_lines * max(params.packing, 1) * params.num_shards))


def _measured(name: str, make: Any, others: int, *, unknown_trips: int) -> Compiled:
    started = time.perf_counter()
    compiled = make()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    try:
        program = hlo.Program(compiled.as_text(), unknown_trips=unknown_trips)
    except jax.errors.JaxRuntimeError:
        program = None
    return Compiled(
        name=name,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=peak,
        step_peak=peak + others,
        traffic=program.traffic() if program else None,
        cycles=program.cycles() if program else 0.0,
        compile_seconds=seconds,
    )


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )


def _bytes(tree: Any) -> int:
    """On one device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )
