"""Our side of the sampling benchmark: a model of random or given weights, and our engine set to the work."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from grpo_jax import mesh as mesh_lib
from grpo_jax import policy
from grpo_jax.models import decoder, hf_weights, registry
from grpo_jax.models.shapes import SHAPES
from grpo_jax.sampling.counters import Counters
from grpo_jax.sampling.plan import EngineShape
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.structs import Problem
from tools import peers


def open_model(options: argparse.Namespace) -> policy.Policy:
    """The model without weights, and without a tokenizer: prompts are ids, and no id ends a completion."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(options.model or folder)
        if options.shape:
            (source / "config.json").write_text(json.dumps(SHAPES[options.shape]))
        model, shapes = decoder.build(registry.read_spec(source))
    dtype = policy.compute_dtype(options.dtype)
    return policy.Policy(source, model, shapes, None, (), model.spec.vocab_size, dtype)


def plan_work(options: argparse.Namespace, opened: policy.Policy) -> peers.Work:
    """Raises: ValueError where a row would be longer than the model's positions."""
    spec, length = opened.model.spec, options.prompt_length + options.new_tokens
    if length > spec.max_position_embeddings:
        raise ValueError(
            f"The model has {spec.max_position_embeddings} positions; prompt and completion take {length}. "
            "Lower --prompt-length or --new-tokens."
        )
    rng = np.random.default_rng(options.seed)
    prompts_PT = rng.integers(0, spec.vocab_size, (options.prompts, options.prompt_length), np.int32)
    shape = (options.prompts, options.generations)
    limits_PG = peers.planned_lengths(options.lengths, shape, options.new_tokens, seed=options.seed)
    return peers.Work(prompts_PT, limits_PG, options.temperature)


def make_params(
    options: argparse.Namespace, opened: policy.Policy, mesh: jax.sharding.Mesh
) -> decoder.Params:
    """The master weights, float32: those of the folder, or random ones."""
    if options.model:
        return policy.load_weights(opened, mesh=mesh)
    shardings = mesh_lib.parameter_shardings(mesh, opened.shapes)
    return decoder.initialise(opened.model.spec, seed=options.seed, shardings=shardings)


class Sampler:
    """Our engine, set to the work.

    Raises: ValueError where slots are not refilled and a prompt's completions do not fit into them.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        opened: policy.Policy,
        params: decoder.Params,
        *,
        mesh: jax.sharding.Mesh,
        work: peers.Work,
    ):
        self.work, self.device = work, jax.devices()[0].device_kind
        weights = SamplingWeights(
            opened.model, mesh=mesh, shapes=opened.shapes, dtype=opened.dtype, form=options.weights
        )
        jax.block_until_ready(weights(params))  # compiles; its copy is let go
        started = time.perf_counter()
        self.params = jax.block_until_ready(weights(params))
        self.weights_seconds = time.perf_counter() - started
        shape = EngineShape(
            num_rows=work.limits_PG.size,
            num_generations=work.num_generations,
            max_prompt_length=work.prompts_PT.shape[1],
            max_completion_length=work.longest,
            num_slots=options.slots,
            window=options.window,
            halvings=0 if options.no_refill else EngineShape.halvings,
        )
        self._engine = policy.make_engine(
            opened, mesh=mesh, shape=shape, weights=weights, attention=options.attention
        )
        print(self._engine.plan.describe(), flush=True)
        self._problems = [
            Problem(i, "", "", "", tuple(ids)) for i, ids in enumerate(work.prompts_PT.tolist())
        ]
        groups = self._engine.plan.num_slots // work.num_generations if options.no_refill else options.prompts
        if not groups:
            raise ValueError(
                f"--no-refill needs a slot for each of a prompt's {work.num_generations} completions; "
                "set --slots higher or --generations lower."
            )
        self._waves = [slice(start, start + groups) for start in range(0, options.prompts, groups)]
        self._counters: list[Counters] = []

    def generate(self, seed: int) -> np.ndarray:
        """Raises: RuntimeError if a completion does not have its planned length."""
        work, rows = self.work, []
        self._counters = []
        for wave in self._waves:
            sampled = self._engine.generate(
                self.params,
                self._problems[wave],
                num_generations=work.num_generations,
                temperature=work.temperature,
                step_key=jax.random.key(seed),
                limits_PG=work.limits_PG[wave],
            )
            self._counters.append(sampled.counters)
            rows += [row for group in sampled.completions for row in group]
        tokens_BC = np.zeros((len(rows), work.longest), np.int32)
        for row, tokens_C, limit in zip(rows, tokens_BC, work.limits_PG.reshape(-1), strict=True):
            if row.num_tokens != limit:
                raise RuntimeError(f"A completion of ours has {row.num_tokens} tokens, planned were {limit}.")
            tokens_C[:limit] = row.ids
        return tokens_BC

    def facts(self, seconds: float) -> dict[str, float]:
        """What the engine counted in its last call, as if that had taken the given seconds."""
        names = ("num_tokens", "num_steps", "num_slot_steps", "kv_bytes")
        sums = {name: sum(getattr(counters, name) for counters in self._counters) for name in names}
        counters = dataclasses.replace(self._counters[0], seconds=seconds, **sums)
        return {name.removeprefix("sampling/"): value for name, value in counters.metrics().items()}


def export(shape: str, opened: policy.Policy, params: decoder.Params, folder: Path, dtype: str) -> None:
    """Random weights as a Hugging Face folder, without a tokenizer."""
    with tempfile.TemporaryDirectory() as source:
        (Path(source) / "config.json").write_text(json.dumps(SHAPES[shape]))
        hf_weights.save(
            params,
            opened.model.spec,
            source=source,
            folder=folder,
            dtype=dtype,
            shard_bytes=4 * 10**9,
            write_more=lambda unfinished: None,
        )
