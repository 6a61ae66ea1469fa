"""The sampler against full forward passes, and against itself in other company."""

from __future__ import annotations

import dataclasses
import functools
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import decoder
from grpo_jax.sampling import decode
from grpo_jax.sampling.engine import Engine, EngineShape, SamplingWeights
from grpo_jax.sampling.token_choice import SamplingParams
from grpo_jax.structs import Completion, Problem

NUM_VALID = 90
END_IDS = (3, 7)


def make_problems(rng: np.random.Generator, lengths: list[int]) -> list[Problem]:
    return [
        Problem(
            index=10 * i, question="", answer="", prompt="", prompt_ids=tuple(rng.integers(8, 90, n).tolist())
        )
        for i, n in enumerate(lengths)
    ]


def make_engine(model, mesh, *, num_prompts=5, generations=3, sampling=None, end_ids=END_IDS, length=21):
    settings = decode.DecodeSettings(
        sampling=sampling or SamplingParams(),
        end_ids=end_ids,
        num_valid_ids=NUM_VALID,
        window=4,
        dtype=jnp.float32,
    )
    shape = EngineShape(num_prompts, generations, max_prompt_length=12, max_completion_length=length)
    return Engine(model, mesh=mesh, shape=shape, settings=settings)


@pytest.fixture(scope="module")
def sampling_params(tiny_model, tiny_params, mesh):
    return SamplingWeights(tiny_model, mesh=mesh, shapes=tiny_params, dtype=jnp.float32)(tiny_params)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(model, params, tokens, valid):
    return model.hidden_states(params, tokens, valid, dtype=jnp.float32)


def full_logprobs(model, params, problem: Problem, completion: Completion, temperature: float):
    """Log-probabilities of the completion by one plain forward pass, float64 softmax."""
    ids = np.zeros((1, 40), np.int32)  # one shape for all: right padding changes nothing before it
    count = len(problem.prompt_ids) + completion.num_tokens
    ids[0, :count] = [*problem.prompt_ids, *completion.ids]
    valid = np.arange(40)[None] < count
    hidden = _hidden(model, params, jnp.asarray(ids), jnp.asarray(valid))
    logits = np.einsum("btd,vd->btv", hidden, model.head(params)).astype(np.float64)[0, :count, :NUM_VALID]
    logits = logits[len(problem.prompt_ids) - 1 : -1] / (temperature or 1.0)
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= logits.max(-1, keepdims=True)
    return logits, logprobs[np.arange(len(completion.ids)), completion.ids]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.3),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.3, top_k=5, min_p=0.05),
    ],
)
def test_sampler_logprobs_equal_those_of_a_full_forward_pass(
    tiny_model, tiny_params, sampling_params, mesh, rng, sampling
):
    problems = make_problems(rng, [1, 12, 5, 7, 2])
    engine = make_engine(tiny_model, mesh, sampling=sampling)
    groups = engine.generate(sampling_params, problems, step_key=jax.random.key(0))
    for problem, group in zip(problems, groups, strict=True):
        for completion in group:
            _, expected = full_logprobs(tiny_model, tiny_params, problem, completion, sampling.temperature)
            # float32 through two layers: rounding only
            np.testing.assert_allclose(completion.sampler_logprobs, expected, atol=1e-4)


def test_greedy_tokens_are_the_likeliest_of_a_full_forward_pass(
    tiny_model, tiny_params, sampling_params, mesh, rng
):
    problems = make_problems(rng, [1, 12, 5, 7, 2])
    engine = make_engine(tiny_model, mesh, sampling=SamplingParams(temperature=0.0), generations=1)
    groups = engine.generate(sampling_params, problems, step_key=jax.random.key(0))
    for problem, (completion,) in zip(problems, groups, strict=True):
        logits, _ = full_logprobs(tiny_model, tiny_params, problem, completion, 0.0)
        np.testing.assert_array_equal(logits.argmax(-1), completion.ids)


def test_completions_stop_at_any_end_id_or_at_the_limit(tiny_model, sampling_params, mesh, rng):
    problems = make_problems(rng, [3] * 5)
    engine = make_engine(tiny_model, mesh, generations=8, sampling=SamplingParams(temperature=3.0))
    seen = []
    groups = engine.generate(
        sampling_params,
        problems,
        step_key=jax.random.key(1),
        on_finished=lambda p, g, completion: seen.append((p, g)),
    )
    reasons = set()
    for group in groups:
        for completion in group:
            assert not set(completion.ids[:-1].tolist()) & set(END_IDS)
            assert completion.ended == (int(completion.ids[-1]) in END_IDS)
            assert completion.ended or completion.num_tokens == 21
            assert (completion.ids < NUM_VALID).all()
            reasons.add((completion.ended, int(completion.ids[-1]) if completion.ended else -1))
    assert reasons == {(True, 3), (True, 7), (False, -1)}  # the case is not vacuous
    assert sorted(seen) == [(p, g) for p in range(5) for g in range(8)]  # each handed over once


def test_a_rows_tokens_do_not_depend_on_the_other_rows(tiny_model, sampling_params, mesh, rng):
    problems = make_problems(rng, [1, 12, 5, 7, 2])
    key = jax.random.key(5)
    together = make_engine(tiny_model, mesh).generate(sampling_params, problems, step_key=key)
    alone = make_engine(tiny_model, mesh, num_prompts=1)
    for i, problem in enumerate(problems):
        (group,) = alone.generate(sampling_params, [problem], step_key=key)
        for left, right in zip(group, together[i], strict=True):
            np.testing.assert_array_equal(left.ids, right.ids)


def test_tokens_change_with_step_problem_and_generation(tiny_model, sampling_params, mesh, rng):
    (problem,) = make_problems(rng, [6])
    twin = dataclasses.replace(problem, index=99)
    engine = make_engine(tiny_model, mesh, num_prompts=2)
    first = engine.generate(sampling_params, [problem, twin], step_key=jax.random.key(0))
    again = engine.generate(sampling_params, [problem, twin], step_key=jax.random.key(0))
    later = engine.generate(sampling_params, [problem, twin], step_key=jax.random.key(1))
    sampled = [tuple(c.ids.tolist()) for group in (*first, *later) for c in group]
    assert len(set(sampled)) == len(sampled)
    assert [tuple(c.ids.tolist()) for group in again for c in group] == sampled[:6]


def test_a_tighter_limit_cuts_the_same_tokens(tiny_model, sampling_params, mesh, rng):
    problems = make_problems(rng, [4, 9])
    engine = make_engine(tiny_model, mesh, num_prompts=2)
    whole = engine.generate(sampling_params, problems, step_key=jax.random.key(0))
    cut = engine.generate(sampling_params, problems, step_key=jax.random.key(0), max_completion_length=6)
    for left, right in zip(chain(*cut), chain(*whole), strict=True):
        np.testing.assert_array_equal(left.ids, right.ids[:6])


def test_nothing_compiles_after_the_first_call(tiny_model, sampling_params, mesh, rng):
    engine = make_engine(tiny_model, mesh)
    engine.generate(sampling_params, make_problems(rng, [3] * 5), step_key=jax.random.key(0))
    sizes = [f._cache_size() for f in (engine._prefill, engine._start, engine._grow, engine._window)]
    engine.generate(sampling_params, make_problems(rng, [1, 12, 5]), step_key=jax.random.key(1))
    assert sizes == [f._cache_size() for f in (engine._prefill, engine._start, engine._grow, engine._window)]


def test_sampling_layout_keeps_float32_norms(tiny_params):
    layout = jax.eval_shape(lambda p: decoder.unstack(p, num_layers=2, dtype=jnp.bfloat16), tiny_params)
    block = layout["layers"][1]
    assert block["attention_norm"]["scale"].dtype == jnp.float32
    assert block["attention"]["qkv"].dtype == jnp.bfloat16
    assert block["attention"]["qkv"].shape == (32, 2, 4, 16)
