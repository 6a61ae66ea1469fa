"""The sampler's log-probabilities are those that the learner differentiates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder
from grpo_jax.sampling import decode
from grpo_jax.sampling.engine import Engine, EngineShape, SamplingWeights
from grpo_jax.sampling.token_choice import SamplingParams
from grpo_jax.structs import Problem, Rollout
from tests.learning import small_batches

PROBLEMS, GENERATIONS = 4, 6


@pytest.fixture(scope="module")
def setting(tiny_model, tiny_params):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh_lib.AXES)
    _, shapes = decoder.build(tiny_model.spec)
    return mesh, shapes, jax.device_get(tiny_params), mesh_lib.parameter_shardings(mesh, shapes)


@pytest.fixture(scope="module")
def learners(tiny_model, setting):
    mesh, shapes, *_ = setting
    return {t: small_batches.learner(tiny_model, shapes, mesh=mesh, temperature=t) for t in (0.7, 1.0, 1.3)}


def sampled(model, setting, sampling: SamplingParams) -> Rollout:
    mesh, _, host_params, shardings = setting
    settings = decode.DecodeSettings(
        sampling=sampling, end_ids=(3, 7), num_valid_ids=small_batches.NUM_VALID, window=5, dtype=jnp.float32
    )
    shape = EngineShape(PROBLEMS, GENERATIONS, small_batches.PROMPT, small_batches.COMPLETION)
    engine = Engine(model, mesh=mesh, shape=shape, settings=settings)
    params = jax.device_put(host_params, shardings)
    weights = SamplingWeights(model, mesh=mesh, shapes=params, dtype=jnp.float32)(params)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(8, 90, length).tolist()) for length in (1, 6, 3, 5)]
    problems = [Problem(i, "", "", "", prompt) for i, prompt in enumerate(prompts)]
    completions = engine.generate(weights, problems, step_key=jax.random.key(0))
    return Rollout(problems, completions, [], [], np.zeros((PROBLEMS, GENERATIONS)), {})


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.3),
        SamplingParams(temperature=1.0, top_p=0.9),
    ],
)
def test_sampler_and_learner_agree_on_every_tokens_log_probability(tiny_model, setting, learners, sampling):
    mesh, _, host_params, shardings = setting
    rollout = sampled(tiny_model, setting, sampling)
    advantages_PG = np.ones((PROBLEMS, GENERATIONS), np.float32)
    minibatches = small_batches.pack(rollout, advantages_PG, microbatch_rows=24)
    state = small_batches.fresh_state(host_params, shardings, mesh=mesh)
    learner = learners[sampling.temperature]
    _, metrics = learner.learn(state, minibatches, ref_params=None, num_iterations=1)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4  # float32, two programs
    assert metrics["sampling/sampling_logp_difference/mean"] < 1e-5
    lowest = min(completion.sampler_logprobs.min() for group in rollout.completions for completion in group)
    assert lowest < -1  # the numbers compared are not all 0


def test_a_learner_at_another_temperature_shows_the_gap(tiny_model, setting, learners):
    mesh, _, host_params, shardings = setting
    rollout = sampled(tiny_model, setting, SamplingParams(temperature=1.0))
    minibatches = small_batches.pack(
        rollout, np.ones((PROBLEMS, GENERATIONS), np.float32), microbatch_rows=24
    )
    state = small_batches.fresh_state(host_params, shardings, mesh=mesh)
    _, metrics = learners[1.3].learn(state, minibatches, ref_params=None, num_iterations=1)
    assert metrics["sampling/sampling_logp_difference/max"] > 0.05
