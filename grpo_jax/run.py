"""Builds the rooms of one run from its settings, cheapest checks first, and finds where to begin.

Enters: `Settings` and the config they came from. Leaves: a `Run`. Order: sizes that must fit each other,
whether the output folder may be used, the model's headers and tokenizer, the data; then the folder is made,
and only then come weights, checkpoint and the jitted programs (which compile when they first run). So a run
that is refused leaves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax import (
    alarms,
    building,
    checkpoints,
    distributed,
    metrics,
    opening,
    policy,
    problem_loading,
    resuming,
    run_folder,
    settings_checks,
    starts,
    stopping,
)
from grpo_jax import mesh as mesh_lib
from grpo_jax.data import dealing, problems, streams
from grpo_jax.learning import batches, train_state
from grpo_jax.learning.learner import Learner
from grpo_jax.rewards import registry
from grpo_jax.rewards.pool import Judge, check_settings
from grpo_jax.rollout import Collector
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class Whole:
    """A step of which nothing is missing: with `Run.state` and `Run.ref_params`, all that is needed to go on."""

    step: int  # 0: none yet
    data: dict[str, Any]  # position of the problems after it
    looked: bool  # nothing is owed of the evaluation after it
    alarms: dict[str, Any] = dataclasses.field(default_factory=dict)  # `Alarms.state` after it
    roll_backs: int = 0  # how often the run has gone back before it; see `roll_backs.py`


@dataclasses.dataclass
class Run:
    """The rooms of one run; `state`, `whole`, `evaluated` and, where the reference follows, `ref_params` are replaced."""

    settings: Settings
    folder: Path
    policy: policy.Policy
    parts: policy.Parts
    judge: Judge
    teller: opening.Teller
    keeper: checkpoints.Checkpoints
    problem_batches: dealing.ProblemBatches | streams.StreamedBatches
    held_out: list[problems.ProblemSet]  # evaluated, never trained on; one a task
    weights: SamplingWeights
    collector: Collector
    evaluator: Collector
    packing: batches.BatchParams
    learner: Learner
    state: train_state.TrainState
    frozen: Any  # weights that no update changes; None with full fine-tuning
    ref_params: Any  # None without a KL term, and with LoRA, where the frozen weights are the reference
    mix_reference: Any  # (ref_params, params) -> ref_params; None where the reference stays as it is
    start: resuming.Start  # where this program began
    alarms: alarms.Alarms
    whole: Whole  # the last whole step: what a run that is stopped now would keep
    stopper: stopping.Stopper  # hears what stops the run, and is told when no step is whole
    # numbers of the evaluation after the last whole step, and the names of all that evaluations have told
    evaluated: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluated_names: set[str] = dataclasses.field(default_factory=set)

    @property
    def began_after(self) -> int:
        """The step that this program goes on after, 0 for a new run."""
        return self.start.step


def prepare(
    s: Settings,
    config: dict[str, Any],
    *,
    started_at: float,
    stopper: stopping.Stopper,
    teller: opening.Teller | None = None,
) -> Run:
    """Builds everything. Call once, after `distributed.start`.

    Args:
        stopper: is told what to close, and gives the folder back, when the run ends.
        teller: who hears of it; None: the folder's, which is opened.

    Raises: ValueError, FileNotFoundError, FileExistsError for what the user can mend.
    """
    mesh, specs = checked(s)
    settings_checks.check_best(s, saving="checkpoint", evaluating="evaluation")
    folder = Path(s.output_dir)
    changes = resuming.check(folder, config, s)
    opened = policy.open_policy(s.model)
    settings_checks.check_model(s, opened.model.spec, tensor=mesh.shape["tensor"])
    settings_checks.check_sampling(s, opened, platform=mesh.devices.flat[0].platform)
    policy.check_weights(opened)
    judge, said = make_judge(s, specs), metrics.EarlyTeller(silent=not distributed.is_first())
    if teller:
        said.hand_on(teller)
    said.tell_message(
        f"devices: {len(jax.devices())} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}"
    )
    for note in settings_checks.notes(s):
        said.tell_message(f"note: {note}")
    problem_batches, held_out, longest = problem_loading.load_problems(
        s, opened, said, accept=lambda found: problem_loading.golds_read(judge, found)
    )
    use_compilation_cache(s.compilation_cache)
    keeper, start = opening.open_folder(folder, s, config, changes, stopper=stopper)
    teller = teller or opening.open_teller(folder, s, config, start, started_at=started_at)
    opening.stoppable(stopper, teller)
    said.hand_on(teller)
    prompt_columns = min(building.rounded_up(longest), s.data.max_prompt_length)
    parts = policy.parts(opened, s.lora, seed=s.seed)
    weights = building.sampling_weights(s, mesh, opened, parts)
    state, frozen, ref_params, learner = make_learning(s, mesh, opened, parts, teller)
    collector, evaluator = building.make_collectors(
        s, mesh, opened, weights, judge, prompt_columns, stop=lambda: stopper.asked
    )
    teller.tell_message(collector.engine.plan.describe())
    run = Run(
        settings=s,
        folder=folder,
        policy=opened,
        parts=parts,
        judge=judge,
        teller=teller,
        keeper=keeper,
        problem_batches=problem_batches,
        held_out=held_out,
        weights=weights,
        collector=collector,
        evaluator=evaluator,
        packing=building.packing(s, mesh, prompt_columns, attention=opened.attention),
        learner=learner,
        state=state,
        frozen=frozen,
        ref_params=ref_params,
        mix_reference=train_state.reference_mixer(ref_params, alpha=s.grpo.ref_model_mixup_alpha)
        if s.grpo.ref_model_sync_steps
        else None,
        start=start,
        alarms=alarms.Alarms(limits_of_alarms(s, opened)),
        whole=Whole(0, problem_batches.get_state(), looked=False),
        stopper=stopper,
    )
    judge.self_test()
    if distributed.is_first():
        starts.record(folder, starts.present(mesh, config), after=start.step)
    return run


def checked(s: Settings) -> tuple[jax.sharding.Mesh, tuple[registry.RewardSpec, ...]]:
    """The mesh and the rewards, after every check that needs no file. Raises: ValueError, FileNotFoundError."""
    mesh = mesh_lib.create(data=s.mesh.data, fsdp=s.mesh.fsdp, tensor=s.mesh.tensor, preset=s.mesh.preset)
    settings_checks.check(s, num_processes=jax.process_count())
    problem_loading.check(s)
    specs = registry.resolve(*s.rewards, max_completion_length=s.rollout.max_completion_length)
    settings_checks.check_weights(specs)
    check_settings(s.reward.num_workers, s.reward.timeout_s, s.reward.memory_mb)
    registry.check(specs, timeout_s=s.reward.timeout_s)
    metrics.check_trackers(s.telling)
    run_folder.check_place(s.output_dir, "config.output_dir")
    if s.compilation_cache:
        run_folder.check_place(s.compilation_cache, "config.compilation_cache")
    return mesh, specs


def make_judge(s: Settings, specs: Sequence[registry.RewardSpec]) -> Judge:
    return Judge(
        specs, num_workers=s.reward.num_workers, timeout_s=s.reward.timeout_s, memory_mb=s.reward.memory_mb
    )


def limits_of_alarms(s: Settings, opened: policy.Policy) -> alarms.AlarmParams:
    """The config's, and what follows from how the run computes and compares rewards."""
    limits = s.alarms
    if limits.gap_limit < 0:
        exact = jax.default_backend() == "cpu" and opened.dtype == jnp.float32
        exact = exact and s.rollout.sampling_weights == "compute" and not (s.lora.r and s.lora.lora_dropout)
        limits = dataclasses.replace(limits, gap_limit=alarms.EXACT_GAP if exact else alarms.ROUNDED_GAP)
    if s.advantages.advantage_estimator in ("batch_mean", "none"):  # groups of equal rewards teach too
        limits = dataclasses.replace(limits, no_signal_steps=0)
    return limits


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs between runs; only those that took long enough to be worth reading back."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def make_learning(
    s: Settings, mesh: jax.sharding.Mesh, opened: policy.Policy, parts: policy.Parts, teller: opening.Teller
) -> tuple[train_state.TrainState, Any, Any, Learner]:
    """The fresh train state, what is frozen, the reference if the loss needs one, and the jitted updates."""
    size, num_trained = building.num_values(opened.shapes), building.num_values(parts.trained)
    teller.tell_message(f"model: {opened.folder}, {size:,} parameters; reading its weights")
    if parts.frozen is not None:
        teller.tell_message(f"LoRA: {num_trained:,} parameters are trained; the base is {parts.base_dtype}")
    frozen = policy.load_frozen(opened, parts, mesh=mesh)
    trained = policy.fresh_trained(opened, parts, s.lora, mesh=mesh, seed=s.seed)
    needs_copy = s.grpo.beta and frozen is None
    ref_params = train_state.frozen_copy(trained, dtype=opened.dtype) if needs_copy else None
    tx = train_state.optimizer(s.scaled_optimizer, num_updates=s.num_updates)
    state = train_state.create(tx, trained, mesh=mesh, over_data=s.mesh.over_data)
    return state, frozen, ref_params, building.make_learner(s, mesh, opened, parts, tx, s.loss)
