"""Properties of the decoder that no reference implementation is needed for."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder, layers

LENGTH = 12


@functools.partial(jax.jit, static_argnames=("model", "dtype", "remat"))
def hidden(model, params, tokens_BT, valid_BT, *, dtype=jnp.float32, remat="none"):
    return model.hidden_states(params, tokens_BT, valid_BT, dtype=dtype, remat=remat)


@functools.partial(jax.jit, static_argnames=("model", "remat"))
def embedding_gradient(model, params, tokens_BT, valid_BT, weights_BT, *, remat="none"):
    """Gradient of a random direction of the weighted hidden states with respect to all parameters."""
    direction_D = jax.random.normal(jax.random.key(0), (model.spec.hidden_size,))

    def value(params):
        hidden_BTD = model.hidden_states(params, tokens_BT, valid_BT, dtype=jnp.float32, remat=remat)
        return jnp.einsum("BTD,D,BT->", hidden_BTD, direction_D, weights_BT)

    return jax.grad(value)(params)


@pytest.fixture(scope="module")
def params(tiny_params):
    return jax.device_get(tiny_params)  # on one device: what is here needs no mesh


@pytest.fixture
def tokens_BT(rng):
    return rng.permutation(np.arange(1, 90))[None, :LENGTH].astype(
        np.int32
    )  # each id once: it names its position


@pytest.mark.parametrize("position", [0, 5, LENGTH - 1])
def test_a_position_depends_on_itself_and_all_before_it_and_on_nothing_after(
    tiny_model, params, tokens_BT, position
):
    valid_BT = np.ones((1, LENGTH), bool)
    one_BT = np.eye(LENGTH, dtype=np.float32)[position][None]
    gradient_VD = embedding_gradient(tiny_model, params, tokens_BT, valid_BT, one_BT)["embedding"]
    reached = np.abs(np.asarray(gradient_VD))[tokens_BT[0]].max(axis=1)
    assert (reached[: position + 1] > 1e-4).all()
    np.testing.assert_array_equal(reached[position + 1 :], 0)


def test_padding_is_never_read_wherever_it_stands(tiny_model, params, tokens_BT):
    valid_BT = np.ones((1, LENGTH), bool)
    valid_BT[0, [0, 1, 6, 11]] = False  # left, between and right
    gradient_VD = embedding_gradient(tiny_model, params, tokens_BT, valid_BT, valid_BT.astype(np.float32))[
        "embedding"
    ]
    reached = np.abs(np.asarray(gradient_VD))[tokens_BT[0]].max(axis=1)
    np.testing.assert_array_equal(reached > 0, valid_BT[0])


def test_padding_changes_no_hidden_state(tiny_model, params, tokens_BT, rng):
    whole_TD = np.asarray(hidden(tiny_model, params, tokens_BT, np.ones((1, LENGTH), bool)))[0]
    places = {
        "left": np.arange(LENGTH) + 7,
        "right": np.arange(LENGTH),
        "between": np.sort(rng.permutation(LENGTH + 7)[:LENGTH]),
    }
    padded, valid = rng.integers(0, 90, (3, LENGTH + 7)).astype(np.int32), np.zeros((3, LENGTH + 7), bool)
    for row, columns in enumerate(places.values()):
        padded[row, columns], valid[row, columns] = tokens_BT[0], True
    states_BTD = np.asarray(hidden(tiny_model, params, padded, valid))
    assert np.isfinite(states_BTD).all()  # padding positions too: a NaN there would spoil gradients
    for row, (side, columns) in enumerate(places.items()):
        # states of size 1; other shapes sum in another order
        np.testing.assert_allclose(states_BTD[row, columns], whole_TD, atol=2e-5, err_msg=side)


def test_a_row_of_nothing_but_padding_gives_finite_numbers(tiny_model, params):
    nothing = np.zeros((1, LENGTH), bool)
    gradients = embedding_gradient(
        tiny_model, params, np.zeros((1, LENGTH), np.int32), nothing, nothing.astype(np.float32)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_positions_count_valid_tokens_only():
    valid_BT = jnp.array([[0, 0, 1, 1, 1], [1, 1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(decoder.positions(valid_BT), [[0, 0, 0, 1, 2], [0, 1, 1, 2, 2]])


@pytest.mark.parametrize("remat", ["full", "matmuls"])
def test_recomputing_changes_no_gradient(tiny_model, params, tokens_BT, remat):
    ones_BT = np.ones((1, LENGTH), np.float32)
    plain, again = (
        embedding_gradient(tiny_model, params, tokens_BT, ones_BT > 0, ones_BT, remat=name)
        for name in ("none", remat)
    )
    for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        scale = np.abs(left).max()
        np.testing.assert_allclose(left, right, atol=1e-5 * scale)  # the compiler may fuse in another order


def test_unstacked_layers_compute_what_stacked_ones_do(tiny_model, params, tokens_BT):
    valid_BT = np.ones((1, LENGTH), bool)

    @jax.jit
    def unstacked(params):
        params = decoder.unstack(params, num_layers=2, dtype=jnp.float32)
        mask_BTS = layers.causal_mask(jnp.asarray(valid_BT))
        attend = lambda q, k, v: (layers.attend_row(mask_BTS, q, k, v), None)  # noqa: E731
        x_BTD = tiny_model.embed(params, tokens_BT, dtype=jnp.float32)
        return tiny_model.run_layers(params, x_BTD, jnp.arange(LENGTH)[None], [attend] * 2)[0]

    stacked_BTD = hidden(tiny_model, params, tokens_BT, valid_BT)
    np.testing.assert_allclose(unstacked(params), stacked_BTD, atol=1e-5)


def test_bfloat16_stays_near_float32(tiny_model, params, tokens_BT):
    valid_BT = np.ones((1, LENGTH), bool)
    exact_BTD = np.asarray(hidden(tiny_model, params, tokens_BT, valid_BT))
    rough_BTD = hidden(tiny_model, params, tokens_BT, valid_BT, dtype=jnp.bfloat16)
    assert rough_BTD.dtype == jnp.bfloat16
    # 8 bits of mantissa through two layers: a few parts in a hundred of the states' size
    difference = np.abs(np.asarray(rough_BTD, np.float32) - exact_BTD)
    assert difference.mean() < 0.02 * np.abs(exact_BTD).mean()


def test_norm_divides_by_the_root_of_the_mean_square():
    norm = layers.RMSNorm(2, eps=0.0)
    # sqrt((9 + 16) / 2) = 3.5355; 3 / 3.5355 = 0.84853, 4 / 3.5355 = 1.13137
    np.testing.assert_allclose(norm(jnp.array([[3.0, 4.0]])), [[0.84853, 1.13137]], atol=1e-5)


def test_random_weights_have_the_configured_spread_and_depend_on_the_seed(tiny_model, tiny_params, mesh):
    _, shapes = decoder.build(tiny_model.spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), tiny_params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    kernel = np.asarray(tiny_params["layers"]["attention"]["qkv"])
    assert kernel.std() == pytest.approx(0.3, rel=0.05)
    assert not np.array_equal(kernel[0], kernel[1])  # each layer draws its own
    shardings = mesh_lib.parameter_shardings(mesh, shapes)
    other = decoder.initialise(tiny_model.spec, seed=1, shardings=shardings)
    assert not np.array_equal(other["embedding"], tiny_params["embedding"])
    np.testing.assert_array_equal(tiny_params["final_norm"]["scale"], 1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("int8", [True, False])
def test_a_turned_head_embeds_and_gives_logits_as_the_upright_one(tiny_model, tied, int8, rng):
    spec = dataclasses.replace(tiny_model.spec, tie_word_embeddings=tied)
    model, params = decoder.build(spec)[0], decoder.initialise(spec, seed=0)
    upright, turned = (
        decoder.unstack(params, num_layers=2, dtype=jnp.float32, int8=int8, turn_head=turn)
        for turn in (False, True)
    )
    assert ("embedding" in turned) == (not tied) and "head" not in turned
    tokens_BT = jnp.asarray(rng.integers(0, spec.vocab_size, (3, 4)), jnp.int32)
    embedded = [model.embed(p, tokens_BT, dtype=jnp.float32) for p in (upright, turned)]
    np.testing.assert_array_equal(*embedded)
    hidden_BD = jnp.asarray(rng.standard_normal((3, spec.hidden_size)), jnp.float32)
    np.testing.assert_allclose(model.logits(turned, hidden_BD), model.logits(upright, hidden_BD), atol=1e-5)


@pytest.mark.parametrize("form", [layers.rotate, layers._rotate_halves, layers._rotate_swapped])
def test_rotation_turns_pairs_as_complex_numbers_do_and_its_gradient_turns_back(form, rng):
    x = rng.standard_normal((2, 3, 8)).astype(np.float32)
    angles = rng.standard_normal((2, 3, 4)).astype(np.float32)
    turn = lambda x, sign: (x[..., :4] + 1j * x[..., 4:]) * np.exp(sign * 1j * angles.astype(float))  # noqa: E731
    apart = lambda z: np.concatenate([z.real, z.imag], axis=-1)  # noqa: E731
    turned, back = jax.vjp(lambda x: form(x, jnp.cos(angles), jnp.sin(angles)), x)
    np.testing.assert_allclose(turned, apart(turn(x, 1)), atol=1e-6)  # float32 beside float64
    np.testing.assert_allclose(back(jnp.asarray(x))[0], apart(turn(x, -1)), atol=1e-6)
