"""What the tests of learning share: meshes, a tiny model's parameters, learners compiled once, one rollout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder
from grpo_jax.structs import Completion, Rollout
from tests.learning import small_batches


@pytest.fixture(scope="session")
def meshes() -> dict[str, jax.sharding.Mesh]:
    one = np.array(jax.devices()[:1]).reshape(1, 1, 1)
    return {
        "one device": jax.sharding.Mesh(one, mesh_lib.AXES),
        "data 8": mesh_lib.create(data=8, fsdp=1, tensor=1),
        "fsdp 8": mesh_lib.create(data=1, fsdp=8, tensor=1),
        "tensor 2 x fsdp 4": mesh_lib.create(data=1, fsdp=4, tensor=2),
        "data 2 x fsdp 2 x tensor 2": mesh_lib.create(data=2, fsdp=2, tensor=2),
    }


@pytest.fixture(scope="session")
def shapes(tiny_model):
    return decoder.build(tiny_model.spec)[1]


@pytest.fixture(scope="session")
def host_params(tiny_params):
    return jax.device_get(tiny_params)


@pytest.fixture(scope="session")
def get_learner(tiny_model, shapes, meshes):
    """`get_learner(mesh_name, **loss)`: one that keeps the gradient; compiled once for all tests."""

    @functools.cache
    def get(mesh_name: str, **loss: Any):
        return small_batches.learner(tiny_model, shapes, mesh=meshes[mesh_name], **loss)

    return get


@pytest.fixture(scope="session")
def new_state(shapes, meshes, host_params):
    def new(mesh_name: str, tx=None):
        mesh = meshes[mesh_name]
        return small_batches.fresh_state(
            host_params, mesh_lib.parameter_shardings(mesh, shapes), mesh=mesh, tx=tx
        )

    return new


@pytest.fixture(scope="session")
def own_logprobs(tiny_model, host_params) -> Callable[..., np.ndarray]:
    """The policy's log-probabilities of one completion, by a plain softmax over all logits."""

    @functools.partial(jax.jit, static_argnames="temperature")
    def compute(params, tokens_1T, valid_1T, *, temperature=1.0):
        return small_batches.plain_logprobs(tiny_model, params, tokens_1T, valid_1T, temperature)[0]

    def of(prompt: tuple[int, ...], ids: np.ndarray, temperature: float = 1.0, params=None) -> np.ndarray:
        width, count = small_batches.PROMPT + small_batches.COMPLETION, len(prompt) + len(ids)
        tokens_1T, valid_1T = np.zeros((1, width), np.int32), np.arange(width)[None] < count
        tokens_1T[0, :count] = [*prompt, *ids]
        logprobs_1T = compute(params or host_params, tokens_1T, valid_1T, temperature=temperature)
        return np.asarray(logprobs_1T)[0, len(prompt) - 1 : count - 1]

    return of


@pytest.fixture(scope="session")
def off_policy(own_logprobs) -> tuple[Rollout, np.ndarray]:
    """A rollout by a policy near ours, so that some ratios are clipped on either side and some are not."""
    rollout, advantages_PG = small_batches.random_rollout(
        0, num_problems=small_batches.NUM_PROBLEMS, num_generations=small_batches.GENERATIONS
    )
    rng = np.random.default_rng(1)

    def moved(prompt, completion: Completion) -> Completion:
        noise = 0.3 * rng.standard_normal(completion.num_tokens).astype(np.float32)
        return dataclasses.replace(completion, sampler_logprobs=own_logprobs(prompt, completion.ids) + noise)

    completions = [
        [moved(problem.prompt_ids, completion) for completion in group]
        for problem, group in zip(rollout.problems, rollout.completions, strict=True)
    ]
    return dataclasses.replace(rollout, completions=completions), advantages_PG
