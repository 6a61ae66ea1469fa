"""What the compiled programs contain: no traffic between devices, no array over positions and vocabulary."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import compilations
from grpo_jax import mesh as mesh_lib
from grpo_jax.sampling.weights import SamplingWeights
from tests.sampling.small_samplers import make_engine

COLLECTIVE = re.compile(r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")
ARRAY = re.compile(r"[a-z]+[0-9]+\[([0-9,]+)\]")
TOP = {"slots": 16, "window": 4, "rows": 64, "completion": 500}  # several sizes of cache, and of slots


@pytest.fixture(scope="module")
def compiled(tiny_model, tiny_params):
    """`compiled(mesh)`: every program of a sampler on it, by name."""

    def compile_all(mesh: jax.sharding.Mesh) -> dict:
        engine = make_engine(tiny_model, mesh, **TOP)
        host = jax.device_get(tiny_params)
        params = SamplingWeights(tiny_model, mesh=mesh, shapes=host, dtype=jnp.float32)(host)
        return {name: make() for name, make in engine.programs.makers(params).items()}

    return compile_all


def test_no_program_moves_anything_between_devices_that_share_rows_only(compiled, mesh):
    programs = compiled(mesh)
    assert {name[0] if isinstance(name, tuple) else name for name in programs} == {
        "empty", "store", "prefill", "arrive", "window", "grow_k", "grow_v",
    }  # fmt: skip
    found = {name: COLLECTIVE.findall(program.as_text()) for name, program in programs.items()}
    assert {name: traffic for name, traffic in found.items() if traffic} == {}


def test_slots_are_given_up_without_traffic(tiny_model, tiny_params):
    devices = np.array(jax.devices()[:2]).reshape(2, 1, 1)
    mesh = jax.sharding.Mesh(devices, mesh_lib.AXES)
    engine = make_engine(tiny_model, mesh, slots=32, rows=64)
    host = jax.device_get(tiny_params)
    params = SamplingWeights(tiny_model, mesh=mesh, shapes=host, dtype=jnp.float32)(host)
    makers = engine.programs.makers(params)
    moves = {name: make().as_text() for name, make in makers.items() if name[0] == "move"}
    assert len(moves) == 2  # 16 slots a shard, then 8, then 4
    assert not any(COLLECTIVE.search(text) for text in moves.values())


def test_with_heads_cut_only_sums_of_one_token_a_row_travel(compiled):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 2), mesh_lib.AXES)
    text = compiled(mesh)["window", 0].as_text()
    sizes = [
        np.prod([int(size) for size in array.split(",")])
        for line in text.splitlines()
        if COLLECTIVE.search(line)
        for array in ARRAY.findall(line.split("=")[1].split("(")[0])
    ]
    assert sizes  # the case is not vacuous
    assert max(sizes) <= 8 * 96  # rows of a shard x vocabulary; a cache of a layer would be 8 * 1 * 16 * 512


def test_no_array_spans_positions_and_vocabulary(compiled, mesh):
    for name, program in compiled(mesh).items():
        for array in ARRAY.findall(program.as_text()):
            sizes = [int(size) for size in array.split(",")]
            assert 96 not in sizes or len(sizes) <= 2, (name, sizes)


def test_twenty_calls_with_changing_prompts_compile_nothing_after_the_first(
    tiny_model, tiny_params, mesh, rng
):
    from tests.sampling.small_samplers import make_problems

    engine = make_engine(tiny_model, mesh, slots=8, window=4, prompt=300, completion=40)
    assert len(engine.plan.prompt_columns) == 2
    weights = SamplingWeights(tiny_model, mesh=mesh, shapes=tiny_params, dtype=jnp.float32)
    counter = compilations.Counter()
    totals = []
    for step in range(20):
        problems = make_problems(rng, rng.integers(1, [20, 150, 301][step % 3], 6).tolist())
        engine.generate(
            weights(tiny_params),
            problems,
            num_generations=2,
            temperature=1.0,
            step_key=jax.random.key(step),
        )
        totals.append(counter.total)
    assert totals[0] > 5
    assert totals[-1] == totals[0]
