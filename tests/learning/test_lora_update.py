"""Learning with adapters: only they move, the base is the reference, and the sampler agrees with the trainer."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import train_state
from grpo_jax.models import lora
from grpo_jax.models.lora import LoraParams
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.structs import Problem, Rollout
from tests.learning import small_batches
from tests.sampling.small_samplers import make_engine

PARAMS = LoraParams(4, 8.0, 0.0, "all-linear", "nf4", 10.0)
PROBLEMS, GENERATIONS = 4, 6


@dataclasses.dataclass
class Setting:
    """One mesh with a frozen base, adapters that do something, and what learns them."""

    mesh: jax.sharding.Mesh
    frozen: Any
    adapters: Any  # on the host
    assemble: lora.Assemble
    shapes: Any
    model: Any

    def learner(self, **changes: Any):
        return small_batches.learner(
            self.model, self.shapes, mesh=self.mesh, assemble=self.assemble, **changes
        )

    def state(self, tx=None):
        shardings = mesh_lib.parameter_shardings(self.mesh, self.shapes)
        return small_batches.fresh_state(self.adapters, shardings, mesh=self.mesh, tx=tx)


@pytest.fixture(scope="module")
def setting(tiny_model, shapes, host_params, meshes):
    """`setting(mesh_name, params, fresh)`."""

    def make(mesh_name: str, params: LoraParams = PARAMS, *, fresh: bool = False) -> Setting:
        mesh = meshes[mesh_name]
        base = lora.frozen_shapes(shapes, base_dtype=params.base_dtype)

        def freeze(path, leaf):
            names = tuple(key.key for key in path)
            keep = partial(lora.freeze, names, base_dtype=params.base_dtype)
            return jax.vmap(keep)(leaf) if names[0] == "layers" else keep(leaf)

        make_frozen = jax.jit(
            lambda tree: jax.tree_util.tree_map_with_path(freeze, tree),
            out_shardings=mesh_lib.parameter_shardings(mesh, base),
        )
        adapters = jax.device_get(jax.jit(partial(lora.create, tiny_model.spec, params, seed=0))())
        if not fresh:
            rng = np.random.default_rng(1)
            adapters = jax.tree.map(
                lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), adapters
            )
        assemble = partial(lora.assemble, params=params, seed=0)
        return Setting(
            mesh, make_frozen(host_params), adapters, assemble, jax.eval_shape(lambda: adapters), tiny_model
        )

    return make


@pytest.fixture(scope="module")
def minibatches(off_policy):
    rollout, advantages_PG = off_policy
    return small_batches.pack(rollout, advantages_PG)


def test_only_adapters_move_and_only_they_have_moments(setting, minibatches):
    here = setting("one device", fresh=True)
    state = here.state(tx=optax.adam(1e-2))
    assert jax.tree.structure(state.opt_state[0].mu) == jax.tree.structure(here.adapters)
    before = jax.device_get(here.frozen)
    learner = here.learner(tx=optax.adam(1e-2))
    for _ in range(2):  # B first: while it is 0, A has no gradient
        state, metrics = learner.learn(
            state, minibatches, ref_params=None, num_iterations=1, frozen=here.frozen
        )
    assert metrics["grad_norm"] > 0
    for old, new in zip(jax.tree.leaves(here.adapters), jax.tree.leaves(state.params), strict=True):
        assert np.abs(old - new).max() > 1e-3
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(here.frozen), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_reference_is_the_base(setting, minibatches):
    kl = {}
    for fresh in (True, False):
        here = setting("one device", fresh=fresh)
        _, metrics = here.learner(beta=0.1).learn(
            here.state(), minibatches, ref_params=None, num_iterations=1, frozen=here.frozen
        )
        kl[fresh] = metrics["kl"]
    assert kl[True] == pytest.approx(0, abs=1e-9)  # adapters that change nothing yet
    assert kl[False] > 0.01


@pytest.mark.parametrize("base_dtype", ["float32", "int8", "nf4"])
def test_the_gradient_does_not_depend_on_the_mesh(setting, off_policy, base_dtype):
    found = []
    for mesh_name, num_shards in (("one device", 1), ("tensor 2 x fsdp 4", 4)):
        minibatches = small_batches.pack(*off_policy, num_shards=num_shards)
        here = setting(mesh_name, dataclasses.replace(PARAMS, base_dtype=base_dtype))
        state, metrics = here.learner().learn(
            here.state(), minibatches, ref_params=None, num_iterations=1, frozen=here.frozen
        )
        found.append((metrics, jax.device_get(state.opt_state)))
    small_batches.assert_same(*found, tolerance=2e-5)  # float32 sums in another order


@pytest.mark.parametrize(("dropout", "differ"), [(0.0, False), (0.3, True)])
def test_every_update_drops_other_inputs(setting, minibatches, dropout, differ):
    here = setting("one device", dataclasses.replace(PARAMS, lora_dropout=dropout))
    learner, state = here.learner(), here.state()
    norms = []
    for _ in range(2):  # nothing moves: only the count of updates does
        state, metrics = learner.learn(
            state, minibatches, ref_params=None, num_iterations=1, frozen=here.frozen
        )
        norms.append(metrics["grad_norm"])
    assert (norms[0] != norms[1]) == differ


@pytest.mark.parametrize("base_dtype", ["float32", "int8", "nf4"])
def test_sampler_and_learner_agree_on_every_tokens_log_probability(setting, base_dtype):
    here = setting("one device", dataclasses.replace(PARAMS, base_dtype=base_dtype))
    state = here.state()
    weights = SamplingWeights(
        here.model,
        mesh=here.mesh,
        shapes=here.shapes,
        dtype=jnp.float32,
        frozen_shapes=jax.eval_shape(lambda: here.frozen),
        assemble=here.assemble,
    )
    engine = make_engine(
        here.model,
        here.mesh,
        slots=7,
        window=5,
        generations=GENERATIONS,
        prompt=small_batches.PROMPT,
        completion=small_batches.COMPLETION,
        num_valid_ids=small_batches.NUM_VALID,
    )
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(8, 90, length).tolist()) for length in (1, 6, 3, 5)]
    problems = [Problem(i, "", "", "", prompt) for i, prompt in enumerate(prompts)]
    sampled = engine.generate(
        weights(state.params, here.frozen),
        problems,
        num_generations=GENERATIONS,
        temperature=1.0,
        step_key=jax.random.key(0),
    )
    shape = (PROBLEMS, GENERATIONS)
    rollout = Rollout(problems, sampled.completions, [], [], np.zeros(shape), {})
    packed = small_batches.pack(rollout, np.ones(shape, np.float32), rows_per_device=PROBLEMS * GENERATIONS)
    _, metrics = here.learner().learn(state, packed, ref_params=None, num_iterations=1, frozen=here.frozen)
    assert 0 < metrics["sampling/sampling_logp_difference/max"] < 1e-4  # float32, two programs


@pytest.mark.parametrize("base_dtype", ["float32", "int8", "nf4"])
def test_adapters_moments_and_base_are_cut_over_all_devices(setting, base_dtype):
    """Widths over fsdp (4), and over tensor (2) too where a projection has heads or MLP columns."""
    here = setting("tensor 2 x fsdp 4", dataclasses.replace(PARAMS, base_dtype=base_dtype))
    state = train_state.create(
        optax.adam(1e-3),
        jax.device_put(here.adapters, mesh_lib.parameter_shardings(here.mesh, here.shapes)),
        mesh=here.mesh,
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state[0].mu)):
        share = leaf.addressable_shards[0].data.size / leaf.size
        assert share in (1 / 4, 1 / 8), path
    for name in ("qkv", "output"):
        main = jax.tree.leaves(here.frozen["layers"]["attention"][name])[0]
        assert main.addressable_shards[0].data.size / main.size == 1 / 8
