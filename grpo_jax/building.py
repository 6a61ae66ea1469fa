"""The rooms that sample and learn, built from settings: devices, collectors, learner, layout of rows.

Enters: `Settings` and an opened policy. Leaves: rooms that `run.py`, supervised learning, the planner and the doctor
share, so that what is planned and examined is what a run does. Nothing here reads weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from grpo_jax import mesh as mesh_lib
from grpo_jax import policy
from grpo_jax.learning import batches
from grpo_jax.learning.learner import Learner
from grpo_jax.learning.objective import LossParams
from grpo_jax.learning.scoring import ComputeParams
from grpo_jax.models import packed_attention
from grpo_jax.models import registry as registry_of_models
from grpo_jax.rewards.pool import Judge
from grpo_jax.rollout import Collector
from grpo_jax.sampling.plan import EngineShape
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.settings import Settings
from grpo_jax.structs import AskedToStop

SMALL_MODEL = 20_000_000  # weights


def cpu_devices(s: Settings) -> int:
    """Into how many devices a CPU is cut, 0: one a core; call it before anything touches a device.

    One a core samples a small model about twice as fast. Of a larger one each device would hold its own
    copies, which costs more memory than its speed is worth: 57 million weights sampled 1.25 times as fast.
    """
    mesh, folder = s.mesh, Path(s.model.path)
    if mesh.cpu_devices or mesh.preset or mesh.data > 1 or mesh.fsdp * mesh.tensor > 1:
        return mesh.cpu_devices
    here = s.model.path and (folder / "config.json").is_file()
    return 0 if here and registry_of_models.read_spec(folder).num_weights <= SMALL_MODEL else 1


def rounded_up(length: int) -> int:
    """To columns that are quick to read."""
    return -(-length // 16) * 16


def make_collectors(
    s: Settings,
    mesh: jax.sharding.Mesh,
    opened: policy.Policy,
    weights: SamplingWeights,
    judge: Judge,
    prompt_columns: int,
    *,
    stop: AskedToStop,
) -> tuple[Collector, Collector]:
    """One of training and one of evaluation; they share the sampler, its programs and the judge.

    Call it when all that stays on the device is there: the sampler takes what memory is left.
    """
    rollout, looking = s.rollout, s.evaluation
    engine = policy.make_engine(
        opened,
        mesh=mesh,
        shape=engine_shape(s, prompt_columns),
        weights=weights,
        filters=rollout.filters,
        attention=rollout.attention,
        stop_strings=rollout.stop_strings,
    )
    decode_text = policy.judged_text(
        opened, stop_strings=rollout.stop_strings, keep=rollout.keep_stop_strings
    )

    def collector(num_generations: int, temperature: float) -> Collector:
        return Collector(
            engine,
            judge=judge,
            decode_text=decode_text,
            num_generations=num_generations,
            temperature=temperature,
            shaping=s.advantages.shaping,
            stop=stop,
        )

    return (
        collector(rollout.num_generations, rollout.temperature),
        collector(looking.num_generations, looking.temperature),
    )


def sampling_weights(
    s: Settings, mesh: jax.sharding.Mesh, opened: policy.Policy, parts: policy.Parts
) -> SamplingWeights:
    return SamplingWeights(
        opened.model,
        mesh=mesh,
        shapes=parts.trained,
        dtype=opened.dtype,
        form=s.rollout.sampling_weights,
        frozen_shapes=parts.frozen,
        assemble=parts.assemble,
    )


def engine_shape(s: Settings, prompt_columns: int) -> EngineShape:
    return EngineShape(
        num_rows=s.rows,
        num_generations=s.rollout.num_generations,
        max_prompt_length=prompt_columns,
        max_completion_length=s.rollout.max_completion_length,
        num_slots=s.rollout.num_slots,
        window=s.rollout.window,
    )


def make_learner(
    s: Settings,
    mesh: jax.sharding.Mesh,
    opened: policy.Policy,
    parts: policy.Parts,
    tx: Any,
    loss: LossParams,
) -> Learner:
    """The jitted updates by one loss."""
    return Learner(
        opened.model,
        mesh=mesh,
        tx=tx,
        shapes=parts.trained,
        assemble=parts.assemble,
        loss=loss,
        compute=ComputeParams(opened.dtype, s.model.remat, opened.num_valid_ids, opened.attention),
        over_data=s.mesh.over_data,
    )


def num_values(shapes: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def packing(
    s: Settings, mesh: jax.sharding.Mesh, prompt_columns: int, *, attention: str
) -> batches.BatchParams:
    """How completions are laid out; the attention has a word in it."""
    a_line, share_prompts = packed_attention.lines_of(
        attention, packing=s.grpo.packing, share_prompts=s.grpo.share_prompts
    )
    return batches.BatchParams(
        max_prompt_length=prompt_columns,
        max_completion_length=s.rollout.max_completion_length,
        num_generations=s.rollout.num_generations,
        num_rows=s.rows // jax.process_count(),
        num_minibatches=s.grpo.num_minibatches,
        num_shards=mesh_lib.num_row_shards(mesh) // jax.process_count(),
        rows_per_device=s.grpo.per_device_train_batch_size,
        max_tokens_per_microbatch=s.grpo.max_tokens_per_microbatch,
        packing=a_line,
        share_prompts=share_prompts,
        mask_truncated_completions=s.grpo.mask_truncated_completions,
        keep_rows_without_signal=s.loss.learns_without_advantage,
    )
