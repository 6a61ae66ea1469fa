"""Mesh presets: what each holds on a device, and that none changes loss or gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import digests
from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import train_state
from grpo_jax.learning.learner import _summarised
from grpo_jax.learning.losses import Totals
from tests.learning.small_batches import ROWS, assert_same, kept_gradient, learner, pack


def build(model, shapes, host_params, preset: str, tx):
    """A mesh, a learner and a fresh state of a preset."""
    mesh = mesh_lib.create(data=-1, fsdp=1, tensor=1, preset=preset)
    over_data = mesh_lib.PRESETS[preset].over_data
    used = learner(model, shapes, mesh=mesh, tx=tx, over_data=over_data)
    params = jax.device_put(host_params, mesh_lib.parameter_shardings(mesh, shapes))
    return mesh, used, train_state.create(tx, params, mesh=mesh, over_data=over_data)


def update_arguments(mesh, rollout):
    """What an update takes besides the state; rows cut as the mesh says."""
    (minibatch,) = pack(*rollout, num_shards=mesh_lib.num_row_shards(mesh), rows_per_device=2)
    tokens = minibatch.batch.completion_mask_AUSC.sum()
    totals = Totals(*map(np.float32, (ROWS, tokens, tokens)))
    return None, mesh_lib.put_rows(mesh, minibatch.batch, leading=1), jnp.int32(minibatch.num_active), totals


def share(tree) -> float:
    """Bytes of one device over bytes of all, the same on every device."""
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    (bytes_of_one,) = set(held.values())
    return bytes_of_one / sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("preset", "of_params", "of_moments"),
    [("ddp", 1, 1), ("zero2", 1, 1 / 8), ("zero3", 1 / 8, 1 / 8)],
)
def test_each_device_holds_its_share_after_an_update(
    tiny_model, shapes, host_params, off_policy, preset, of_params, of_moments
):
    """Norm scales stay whole, hence the 10%; heads of so small a model do not divide for `tp`."""
    mesh, used, state = build(tiny_model, shapes, host_params, preset, optax.adam(1e-3))
    arguments = update_arguments(mesh, off_policy)
    compiled = used.update.lower(state, *arguments).compile()
    state, _ = used.update(state, *arguments)
    assert of_params <= share(state.params) <= 1.1 * of_params
    assert of_moments <= share(state.opt_state) <= 1.1 * of_moments
    gradients = jax.tree.leaves(
        jax.tree.map(lambda x, s: np.prod(s.shard_shape(x.shape)), shapes, used.gradient_shardings)
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert of_moments <= sum(gradients) / total <= 1.1 * of_moments
    # the compiler agrees: parameters, two moments and the batch are all that comes in
    held = 4 * total * (share(state.params) + 2 * share(state.opt_state))
    batch = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[1])) / mesh_lib.num_row_shards(mesh)
    found = compiled.memory_analysis().argument_size_in_bytes
    assert found == pytest.approx(held + batch, rel=0.02)


def test_loss_and_gradient_are_the_same_in_every_preset(tiny_model, shapes, host_params, off_policy):
    def compute(preset: str):
        mesh, used, state = build(tiny_model, shapes, host_params, preset, kept_gradient())
        state, metrics = used.update(state, *update_arguments(mesh, off_policy))
        return jax.device_get(metrics), jax.device_get(state.opt_state)

    plain = compute("ddp")
    assert np.abs(jax.tree.leaves(plain[1])[0]).max() > 1e-4  # there is a gradient to compare
    for preset in ("zero2", "zero3", "tp"):
        assert_same(compute(preset), plain, tolerance=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("preset", ["ddp", "zero2", "zero3", "tp"])
def test_digests_are_those_of_the_whole_gradient_and_parameters(
    tiny_model, shapes, host_params, off_policy, preset
):
    mesh, used, state = build(tiny_model, shapes, host_params, preset, kept_gradient())
    state, metrics = used.update(state, *update_arguments(mesh, off_policy))
    for name, tree in (("gradient", state.opt_state), ("params", state.params)):
        whole = jax.jit(digests.combined)(jax.tree.map(jnp.asarray, jax.device_get(tree)))  # on one device
        assert digests.as_text(metrics[f"digest/{name}"]) == digests.as_text(whole)


def test_digests_of_several_updates_are_joined_and_only_the_last_parameters_count():
    pairs = [np.array([i, i + 1], np.uint32) for i in (1, 2)]
    history = [
        {"loss": np.float32(i), "ratio/max": np.float32(i), "digest/gradient": pair, "digest/params": pair}
        for i, pair in enumerate(pairs)
    ]
    assert _summarised(history) == {
        "loss": 0.5,
        "ratio/max": 1.0,
        "digest/gradient": digests.joined(["0000000100000002", "0000000200000003"]),
        "digest/params": "0000000200000003",
    }
    assert _summarised(history[::-1])["digest/gradient"] != _summarised(history)["digest/gradient"]
