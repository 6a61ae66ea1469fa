"""The sampler's log-probabilities are those that the learner differentiates."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.sampling.token_choice import NO_FILTERS, TokenFilters
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.structs import Problem, Rollout
from tests.learning import small_batches
from tests.sampling.small_samplers import make_engine

PROBLEMS, GENERATIONS = 4, 6


@pytest.fixture(scope="module")
def sample(tiny_model, host_params, meshes):
    """`sample(temperature, filters)`: what the engine says to four prompts, as a rollout."""
    return functools.partial(_sample, tiny_model, host_params, meshes["one device"])


def _sample(model, params, mesh, temperature: float, filters: TokenFilters = NO_FILTERS) -> Rollout:
    engine = make_engine(
        model,
        mesh,
        slots=7,
        window=5,
        generations=GENERATIONS,
        prompt=small_batches.PROMPT,
        completion=small_batches.COMPLETION,
        num_valid_ids=small_batches.NUM_VALID,
        filters=filters,
    )
    weights = SamplingWeights(model, mesh=mesh, shapes=params, dtype=jnp.float32)(params)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(8, 90, length).tolist()) for length in (1, 6, 3, 5)]
    problems = [Problem(i, "", "", "", prompt) for i, prompt in enumerate(prompts)]
    sampled = engine.generate(
        weights,
        problems,
        num_generations=GENERATIONS,
        temperature=temperature,
        step_key=jax.random.key(0),
    )
    return Rollout(problems, sampled.completions, [], [], np.zeros((PROBLEMS, GENERATIONS)), {})


@pytest.fixture(scope="module")
def learned(get_learner, new_state):
    """`learned(rollout, temperature)`: the metrics of one update on it."""

    def learn(rollout: Rollout, temperature: float) -> dict[str, float]:
        learner = get_learner("one device", temperature=temperature)
        advantages_PG = np.ones((PROBLEMS, GENERATIONS), np.float32)
        minibatches = small_batches.pack(rollout, advantages_PG, rows_per_device=PROBLEMS * GENERATIONS)
        return learner.learn(new_state("one device"), minibatches, ref_params=None, num_iterations=1)[1]

    return learn


@pytest.mark.parametrize(
    ("temperature", "filters"),
    [(0.7, TokenFilters()), (1.0, TokenFilters()), (1.3, TokenFilters()), (1.0, TokenFilters(top_p=0.9))],
)
def test_sampler_and_learner_agree_on_every_tokens_log_probability(sample, learned, temperature, filters):
    rollout = sample(temperature, filters)
    metrics = learned(rollout, temperature)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4  # float32, two programs
    assert metrics["sampling/sampling_logp_difference/mean"] < 1e-5
    lowest = min(completion.sampler_logprobs.min() for group in rollout.completions for completion in group)
    assert lowest < -1  # the numbers compared are not all 0


def test_a_learner_at_another_temperature_shows_the_gap(sample, learned):
    metrics = learned(sample(1.0), 1.3)
    assert metrics["sampling/sampling_logp_difference/max"] > 0.05
