"""The sampler against one row at a time without a cache, and against itself in other company."""

from __future__ import annotations

import dataclasses
import functools
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import compilations
from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder
from grpo_jax.sampling import token_choice
from grpo_jax.sampling.engine import Engine
from grpo_jax.sampling.token_choice import TokenFilters
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.structs import Completion, Problem
from tests.sampling.small_samplers import END_IDS, NUM_VALID, make_engine, make_problems

LENGTHS = [1, 12, 5, 7, 2]  # of prompts
GENERATIONS, LONGEST = 3, 21
KEY = 5


@pytest.fixture(scope="module")
def meshes(mesh) -> dict[str, jax.sharding.Mesh]:
    devices = np.array(jax.devices())
    return {
        "8 devices": mesh,
        "1 device": jax.sharding.Mesh(devices[:1].reshape(1, 1, 1), mesh_lib.AXES),
        "2 x tensor 2": jax.sharding.Mesh(devices[:4].reshape(1, 2, 2), mesh_lib.AXES),
    }


@pytest.fixture(scope="module")
def weights(tiny_model, tiny_params, meshes):
    """The sampling copy on each mesh."""
    host = jax.device_get(tiny_params)
    return {
        name: SamplingWeights(tiny_model, mesh=mesh, shapes=host, dtype=jnp.float32)(host)
        for name, mesh in meshes.items()
    }


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return make_problems(np.random.default_rng(0), LENGTHS)


@functools.partial(jax.jit, static_argnums=0)
def _next_token(model, params, tokens, count, key, temperature):
    """The choice after `count` tokens, by a full pass over the whole row; the key as the docs define it."""
    valid = jnp.arange(tokens.shape[1])[None] < count
    hidden = model.hidden_states(params, tokens, valid, dtype=jnp.float32)
    return token_choice.choose(
        model.logits(params, hidden[0, count - 1][None]),
        jax.random.uniform(key, (1,), jnp.float32),
        temperature_B=temperature[None],
        num_tokens_B=jnp.zeros(1, jnp.int32),
        filters=TokenFilters(),
        end_ids=END_IDS,
        num_valid_ids=NUM_VALID,
    )


def one_row(model, params, problem: Problem, generation: int, temperature: float) -> Completion:
    """One completion alone, every token by a full pass."""
    row_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(KEY), problem.index), generation)
    ids, logprobs = list(problem.prompt_ids), []
    while len(logprobs) < LONGEST:
        tokens = np.zeros((1, 40), np.int32)  # one shape for all: right padding changes nothing before it
        tokens[0, : len(ids)] = ids
        key = jax.random.fold_in(row_key, len(logprobs))
        token, logprob = _next_token(model, params, tokens, len(ids), key, jnp.float32(temperature))
        ids.append(int(token[0]))
        logprobs.append(float(logprob[0]))
        if ids[-1] in END_IDS:
            break
    return Completion(np.array(ids[len(problem.prompt_ids) :]), np.array(logprobs), ids[-1] in END_IDS)


@pytest.fixture(scope="module")
def alone(tiny_model, tiny_params, problems) -> list[list[Completion]]:
    """Every completion, sampled alone."""
    params = jax.device_get(tiny_params)
    return [
        [one_row(tiny_model, params, problem, g, 1.0) for g in range(GENERATIONS)] for problem in problems
    ]


def sample(engine: Engine, weights, problems, *, temperature: float = 1.0, **more) -> list[list[Completion]]:
    return engine.generate(
        weights,
        problems,
        **{"num_generations": GENERATIONS, "step_key": jax.random.key(KEY)} | more,
        temperature=temperature,
    ).completions


def assert_same(sampled, expected, limits_PG=None) -> None:
    """Token for token, as far as the limits let it go."""
    for p, group in enumerate(sampled):
        for g, completion in enumerate(group):
            limit = LONGEST if limits_PG is None else limits_PG[p, g]
            whole = expected[p][g]
            np.testing.assert_array_equal(completion.ids, whole.ids[:limit])
            # float32 through two layers, summed in another order: rounding only
            np.testing.assert_allclose(completion.sampler_logprobs, whole.sampler_logprobs[:limit], atol=1e-4)
            assert completion.ended == (whole.ended and limit >= whole.num_tokens)


@pytest.mark.parametrize(
    ("where", "slots", "window"),
    [
        ("1 device", 1, 5),
        ("1 device", 2, 1),
        ("1 device", 4, 4),
        ("1 device", 7, 3),
        ("1 device", 15, 32),
        ("8 devices", 8, 4),
        ("8 devices", 40, 8),
        ("2 x tensor 2", 6, 4),
    ],
)
def test_any_slots_window_and_mesh_give_the_tokens_of_one_row_at_a_time(
    tiny_model, meshes, weights, problems, alone, where, slots, window
):
    engine = make_engine(tiny_model, meshes[where], slots=slots, window=window)
    assert_same(sample(engine, weights[where], problems), alone)
    for seed in range(2):  # every row with a limit of its own; the order in which slots free is another
        limits_PG = np.random.default_rng(seed).integers(1, LONGEST + 1, (len(problems), GENERATIONS))
        assert_same(sample(engine, weights[where], problems, limits_PG=limits_PG), alone, limits_PG)


def test_the_reference_is_not_vacuous(alone):
    completions = [*chain(*alone)]
    assert {completion.ended for completion in completions} == {True, False}
    assert len({completion.num_tokens for completion in completions}) > 3
    assert min(completion.sampler_logprobs.min() for completion in completions) < -3


def test_a_rows_tokens_do_not_depend_on_the_other_rows(tiny_model, meshes, weights, problems, alone):
    engine = make_engine(tiny_model, meshes["1 device"], slots=4)
    for i in (1, 3):
        (group,) = sample(engine, weights["1 device"], [problems[i]])
        assert_same([group], [alone[i]])


def test_greedy_sampling_takes_the_likeliest_tokens_with_the_same_programs(
    tiny_model, tiny_params, meshes, weights, problems
):
    engine = make_engine(tiny_model, meshes["1 device"], slots=4)
    sample(engine, weights["1 device"], problems)
    counter = compilations.Counter()
    greedy = sample(engine, weights["1 device"], problems, temperature=0.0, num_generations=1)
    assert counter.total == 0
    params = jax.device_get(tiny_params)
    for problem, (completion,) in zip(problems, greedy, strict=True):
        np.testing.assert_array_equal(completion.ids, one_row(tiny_model, params, problem, 0, 0.0).ids)


@pytest.mark.parametrize(
    ("temperature", "filters"),
    [(0.7, TokenFilters()), (1.3, TokenFilters()), (1.3, TokenFilters(top_k=5, top_p=0.8, min_p=0.05))],
)
def test_sampler_logprobs_are_those_of_a_full_pass_at_the_temperature(
    tiny_model, tiny_params, meshes, weights, problems, temperature, filters
):
    engine = make_engine(tiny_model, meshes["1 device"], slots=6, filters=filters)
    params = jax.device_get(tiny_params)
    hidden_states = jax.jit(functools.partial(tiny_model.hidden_states, dtype=jnp.float32))
    groups = sample(engine, weights["1 device"], problems, temperature=temperature)
    for problem, group in zip(problems, groups, strict=True):
        for completion in group:
            ids = np.zeros((1, 40), np.int32)
            count = len(problem.prompt_ids) + completion.num_tokens
            ids[0, :count] = [*problem.prompt_ids, *completion.ids]
            hidden = hidden_states(params, ids, np.arange(40)[None] < count)
            logits = np.einsum("td,vd->tv", hidden[0], tiny_model.head(params)).astype(np.float64)
            logits = logits[len(problem.prompt_ids) - 1 : count - 1, :NUM_VALID] / temperature
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected = logprobs[np.arange(completion.num_tokens), completion.ids]
            np.testing.assert_allclose(completion.sampler_logprobs, expected, atol=1e-4)


def test_every_completion_is_handed_over_once_when_it_ends(tiny_model, meshes, weights, problems):
    engine = make_engine(tiny_model, meshes["1 device"], slots=4)
    seen = []
    groups = sample(
        engine,
        weights["1 device"],
        problems,
        on_finished=lambda p, g, completion: seen.append((p, g, completion.num_tokens)),
    )
    assert sorted(seen) == [
        (p, g, groups[p][g].num_tokens) for p in range(len(problems)) for g in range(GENERATIONS)
    ]


def test_tokens_change_with_step_problem_and_generation(tiny_model, meshes, weights, problems):
    twin = dataclasses.replace(problems[2], index=99)
    engine = make_engine(tiny_model, meshes["1 device"], slots=6)
    run = lambda seed: sample(  # noqa: E731
        engine, weights["1 device"], [problems[2], twin], step_key=jax.random.key(seed)
    )
    sampled = [tuple(c.ids.tolist()) for group in (*run(0), *run(1)) for c in group]
    assert len(set(sampled)) == len(sampled)
    assert [tuple(c.ids.tolist()) for group in run(0) for c in group] == sampled[:6]


def test_where_a_completion_stops_on_its_text_does_not_depend_on_the_window(
    tiny_model, meshes, weights, problems, alone
):
    def find_stop(ids: np.ndarray, start: int) -> int | None:
        """After the second token below 40."""
        low = np.flatnonzero(ids < 40)
        assert len(np.flatnonzero(ids[:start] < 40)) < 2  # never asked again once found
        return int(low[1]) + 1 if len(low) > 1 else None

    stopped = 0
    for slots, window in ((3, 2), (15, 9)):
        engine = make_engine(tiny_model, meshes["1 device"], slots=slots, window=window, find_stop=find_stop)
        for group, whole in zip(sample(engine, weights["1 device"], problems), alone, strict=True):
            for completion, expected in zip(group, whole, strict=True):
                cut = find_stop(expected.ids, 0)
                np.testing.assert_array_equal(completion.ids, expected.ids[:cut])
                assert completion.ended == (expected.ended or cut is not None)
                stopped += cut is not None and cut < expected.num_tokens
    assert stopped > 5  # the case is not vacuous


def test_more_problems_and_other_groups_than_planned_need_no_new_program(tiny_model, meshes, weights, rng):
    engine = make_engine(tiny_model, meshes["8 devices"], slots=16)
    sample(engine, weights["8 devices"], make_problems(rng, [3] * 5))
    counter = compilations.Counter()
    for lengths, generations in (([1, 12, 5], 2), ([4] * 30, 1), ([9], 7), ([2, 3], 4)):
        groups = sample(
            engine, weights["8 devices"], make_problems(rng, lengths), num_generations=generations
        )
        assert [len(group) for group in groups] == [generations] * len(lengths)
    assert counter.total == 0


def test_counters_add_up(tiny_model, meshes, weights, problems):
    engine = make_engine(tiny_model, meshes["1 device"], slots=4, window=4, end_ids=())
    limits_PG = np.array([[8, 4, 2]] * 5)
    sampled = engine.generate(
        weights["1 device"],
        problems,
        num_generations=GENERATIONS,
        temperature=1.0,
        step_key=jax.random.key(0),
        limits_PG=limits_PG,
    )
    assert sampled.counters.num_tokens == 70
    # a row of 8 takes two windows, the others one each: 20 windows of a slot; 4 slots a window
    assert sampled.counters.num_slot_steps >= 20 * 4
    assert 0 < sampled.counters.occupancy <= 70 / 80
    read = sum(
        len(problem.prompt_ids) - 1 + token + 1
        for problem in problems
        for limit in (8, 4, 2)
        for token in range(limit)
    )
    assert sampled.counters.kv_bytes == read * engine.plan.kv_token_bytes


@pytest.mark.parametrize("limit", [0, LONGEST + 1])
def test_a_limit_that_does_not_fit_is_refused(tiny_model, meshes, weights, problems, limit):
    engine = make_engine(tiny_model, meshes["1 device"])
    with pytest.raises(ValueError, match=f"1 to {LONGEST} tokens.*{limit}"):
        sample(engine, weights["1 device"], problems, limits_PG=np.array(limit))


def test_a_prompt_that_does_not_fit_is_refused(tiny_model, meshes, weights, rng):
    engine = make_engine(tiny_model, meshes["1 device"])
    with pytest.raises(ValueError, match=r"13 prompt tokens.*1 to 12"):
        sample(engine, weights["1 device"], make_problems(rng, [13]))


def test_sampling_layout_keeps_float32_norms(tiny_params):
    layout = jax.eval_shape(lambda p: decoder.unstack(p, num_layers=2, dtype=jnp.bfloat16), tiny_params)
    block = layout["layers"][1]
    assert block["attention_norm"]["scale"].dtype == jnp.float32
    assert block["attention"]["qkv"].dtype == jnp.bfloat16
    assert block["attention"]["qkv"].shape == (32, 2, 4, 16)
