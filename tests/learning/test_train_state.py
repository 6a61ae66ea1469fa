"""Schedules, AdamW, decay and clipping by hand; where the state lies."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import train_state
from grpo_jax.learning.train_state import OptimizerParams
from grpo_jax.models import decoder

PARAMS = OptimizerParams(
    learning_rate=1.0,
    lr_scheduler_type="constant",
    warmup_steps=0,
    adam_beta1=0.9,
    adam_beta2=0.99,
    adam_epsilon=1e-8,
    weight_decay=0.0,
    max_grad_norm=0.0,
    mu_dtype="float32",
)


def rates(*, num_updates: int, **changes) -> list[float]:
    schedule = train_state.schedule(dataclasses.replace(PARAMS, **changes), num_updates=num_updates)
    return [float(schedule(i)) for i in range(num_updates + 2)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # warm-up of 3: update i has (i + 1) / 4 of the peak; then 4 updates down to 0, and 0 ever after
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        # (1 + cos(pi i / 4)) / 2: 1, 0.853553, 0.5, 0.146447, 0
        ("cosine", [0.25, 0.5, 0.75, 1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0]),
    ],
)
def test_schedules_by_hand(kind, expected):
    result = rates(num_updates=7, lr_scheduler_type=kind, warmup_steps=3)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_schedules_without_warm_up_start_at_the_peak():
    np.testing.assert_allclose(
        rates(num_updates=2, lr_scheduler_type="linear", learning_rate=0.5), [0.5, 0.25, 0, 0]
    )
    np.testing.assert_allclose(rates(num_updates=2, learning_rate=0.5), [0.5] * 4)


def test_a_run_no_longer_than_its_warm_up_has_a_rate_all_the_same():
    np.testing.assert_allclose(
        rates(num_updates=2, lr_scheduler_type="cosine", warmup_steps=3), [0.25, 0.5, 0.75, 1.0]
    )


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"lr_scheduler_type is 'step'; known are \['constant', 'cosine', 'linear'\]"
    ):
        train_state.schedule(dataclasses.replace(PARAMS, lr_scheduler_type="step"), num_updates=5)


TREE = {
    "final_norm": {"scale": jnp.array([1.0])},
    "head": jnp.array([[2.0, 4.0]]),
    "qkv_bias": jnp.array([3.0]),
}


def updated(tree, gradients: list, **changes):
    tx = train_state.optimizer(dataclasses.replace(PARAMS, **changes), num_updates=10)

    @jax.jit
    def run(tree):
        state = tx.init(tree)
        for gradient in gradients:
            updates, state = tx.update(gradient, state, tree)
            tree = optax.apply_updates(tree, updates)
        return tree

    return run(tree)


def test_weight_decay_pulls_matrices_only():
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    moved = updated(TREE, [zeros], weight_decay=0.1, learning_rate=0.5)
    # decoupled: value - rate * decay * value = 0.95 * value
    np.testing.assert_allclose(moved["head"], [[1.9, 3.8]], rtol=1e-6)
    np.testing.assert_array_equal(moved["final_norm"]["scale"], [1.0])
    np.testing.assert_array_equal(moved["qkv_bias"], [3.0])


def test_exactly_norms_and_biases_of_a_real_tree_are_not_decayed(tiny_model):
    spec = dataclasses.replace(tiny_model.spec, qkv_bias=True)
    _, shapes = decoder.build(spec)
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    moved = updated(ones, [jax.tree.map(np.zeros_like, ones)], weight_decay=0.1)
    flat = jax.tree_util.tree_leaves_with_path(moved)
    still = {"/".join(key.key for key in path) for path, leaf in flat if (leaf == 1).all()}
    assert still == {
        "final_norm/scale",
        "layers/attention/k_norm/scale",
        "layers/attention/q_norm/scale",
        "layers/attention/qkv_bias",
        "layers/attention_norm/scale",
        "layers/mlp_norm/scale",
    }


def test_adam_by_hand():
    tree, gradient = {"head": jnp.array([[0.0, 0.0]])}, {"head": jnp.array([[2.0, -3.0]])}
    # the first step is rate * g / (|g| + eps), whatever the size of g
    np.testing.assert_allclose(updated(tree, [gradient])["head"], [[-1.0, 1.0]], rtol=1e-6)
    # then g = 0: m = 0.9 * 0.1 * 2 = 0.18, over 1 - 0.81: 0.947368; v = 0.99 * 0.01 * 4 = 0.0396, over
    # 1 - 0.9801: 1.98995, root 1.410656; their ratio 0.671580
    twice = updated(tree, [gradient, jax.tree.map(jnp.zeros_like, gradient)])
    np.testing.assert_allclose(twice["head"], [[-1.671580, 1.671580]], rtol=1e-5)


def test_gradients_are_scaled_down_to_the_norm_and_never_up():
    tree, gradient = {"head": jnp.array([[0.0, 0.0]])}, {"head": jnp.array([[6.0, 8.0]])}
    # with epsilon 1 the first step is g / (|g| + 1). Norm 10, at most 1: g = 0.6, 0.8
    step = lambda limit: updated(tree, [gradient], adam_epsilon=1.0, max_grad_norm=limit)["head"]  # noqa: E731
    np.testing.assert_allclose(step(1.0), [[-0.6 / 1.6, -0.8 / 1.8]], rtol=1e-5)
    np.testing.assert_allclose(step(20.0), [[-6 / 7, -8 / 9]], rtol=1e-5)
    np.testing.assert_allclose(step(0.0), [[-6 / 7, -8 / 9]], rtol=1e-5)  # 0: never


def test_moments_lie_where_their_parameter_lies(tiny_model, tiny_params):
    mesh = mesh_lib.create(data=1, fsdp=4, tensor=2)
    _, shapes = decoder.build(tiny_model.spec)
    params = jax.device_put(tiny_params, mesh_lib.parameter_shardings(mesh, shapes))
    tx = train_state.optimizer(dataclasses.replace(PARAMS, max_grad_norm=1.0), num_updates=5)
    state = train_state.create(tx, params, mesh=mesh)
    assert state.params is params
    assert int(state.num_updates) == 0
    layout = jax.tree.map(lambda x: x.sharding, params)
    (adam,) = [part for part in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(part)]
    for moments in (adam.mu, adam.nu):
        assert jax.tree.map(lambda x: x.sharding, moments) == layout
        assert {x.dtype for x in jax.tree.leaves(moments)} == {np.dtype(np.float32)}
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(moments))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), train_state.shapes(tx, shapes)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def _is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def test_a_frozen_copy_outlives_its_original_and_lies_beside_it(tiny_params):
    original = jax.tree.map(lambda x: x + 0, tiny_params)
    copy = train_state.frozen_copy(original, dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(original):
        leaf.delete()
    assert {x.dtype for x in jax.tree.leaves(copy)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(lambda x: x.sharding, copy) == jax.tree.map(lambda x: x.sharding, tiny_params)
    expected = np.asarray(tiny_params["embedding"].astype(jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(np.asarray(copy["embedding"], np.float32), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_reference_moves_by_its_share_towards_the_policy_and_stays_where_it_lies(tiny_params, dtype):
    params = jax.tree.map(lambda leaf: leaf + 1.0, tiny_params)
    reference = train_state.frozen_copy(tiny_params, dtype=dtype)
    places = jax.tree.map(lambda leaf: leaf.sharding, reference)
    before = jax.device_get(train_state.frozen_copy(tiny_params, dtype=dtype))  # a look at ours would keep it
    moved = train_state.reference_mixer(reference, alpha=0.25)(reference, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, moved) == places
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(reference))  # it was donated

    def check(moved, old, new):
        assert moved.dtype == dtype
        expected = 0.25 * np.asarray(new, np.float64) + 0.75 * old.astype(np.float64)
        # the last bit of either type
        np.testing.assert_allclose(
            np.asarray(moved, np.float64), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-6
        )

    jax.tree.map(check, jax.device_get(moved), before, jax.device_get(params))


def test_first_moments_may_take_half_the_room():
    params = {"down": jnp.linspace(-1, 1, 64).reshape(8, 8)}
    moved = {}
    for name in train_state.MU_DTYPES:
        tx = train_state.optimizer(dataclasses.replace(PARAMS, mu_dtype=name), num_updates=10)
        state = tx.init(params)
        for scale in (1.0, 0.5, 0.25):
            updates, state = tx.update(jax.tree.map(lambda x: scale * x + 0.1, params), state, params)  # noqa: B023
        moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert sorted(str(leaf.dtype) for leaf in moments) == sorted([name, "float32"])
        moved[name] = updates["down"]
    # a first moment below 1 is rounded to 8 bits three times, and the update is proportional to it
    np.testing.assert_allclose(moved["bfloat16"], moved["float32"], atol=3 * 2**-8)
