"""Adapters beside frozen weights: what they add, where gradients go, and what is kept for them."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import adapted, decoder, lora
from grpo_jax.models.lora import LoraParams

PARAMS = LoraParams(
    r=4,
    lora_alpha=12.0,
    lora_dropout=0.0,
    target_modules="all-linear",
    base_dtype="float32",
    learning_rate_ratio=10.0,
)
BASES = ("float32", "bfloat16", "int8", "nf4")


@pytest.fixture(scope="module")
def tokens() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(8, 90, (2, 7)), jnp.int32), jnp.ones((2, 7), bool)


@pytest.fixture(scope="module")
def host(tiny_params):
    return jax.tree.map(jnp.asarray, jax.device_get(tiny_params))


def freeze(host, base_dtype: str):
    def keep(path, leaf):
        names = tuple(key.key for key in path)
        one = partial(lora.freeze, names, base_dtype=base_dtype)
        return jax.jit(jax.vmap(one) if names[0] == "layers" else one)(leaf)

    return jax.tree_util.tree_map_with_path(keep, host)


def moved(spec, params=PARAMS):
    """Adapters whose B is no longer 0, of a size that shows."""
    adapters = jax.jit(partial(lora.create, spec, params, seed=0))()
    leaves, structure = jax.tree.flatten(adapters)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        structure, [jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    )


def merge(tree):
    """Stacked dense kernels in place of adapted ones."""
    is_leaf = lambda leaf: isinstance(leaf, adapted.Adapted)  # noqa: E731
    dense = jax.jit(jax.vmap(lambda weight: weight.astype(jnp.float32)))
    return jax.tree.map(lambda leaf: dense(leaf) if is_leaf(leaf) else leaf, tree, is_leaf=is_leaf)


def logits_of(model, params, tokens):
    hidden_BTD = model.hidden_states(params, *tokens, dtype=jnp.float32)
    return jnp.einsum("BTD,VD->BTV", hidden_BTD, model.head(params).astype(jnp.float32))


def test_fresh_adapters_change_no_bit(tiny_model, host, tokens):
    adapters = jax.jit(partial(lora.create, tiny_model.spec, PARAMS, seed=0))()
    assert all(np.abs(leaf).max() > 0 for leaf in named(adapters, "lora_A"))
    logits = jax.jit(partial(logits_of, tiny_model))
    params = lora.assemble(adapters, host, None, params=PARAMS, seed=0)
    reference = lora.assemble(None, host, None, params=PARAMS, seed=0)
    np.testing.assert_array_equal(logits(params, tokens), logits(host, tokens))
    np.testing.assert_array_equal(logits(reference, tokens), logits(host, tokens))


def named(tree, name: str) -> list[jax.Array]:
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if path[-1].key == name]


@pytest.mark.parametrize("base", BASES)
def test_merged_weights_give_the_same_logits(tiny_model, host, tokens, base):
    params = lora.assemble(moved(tiny_model.spec), freeze(host, base), None, params=PARAMS, seed=0)
    logits = jax.jit(partial(logits_of, tiny_model))
    apart, merged = logits(params, tokens), logits(merge(params), tokens)
    scale = float(jnp.abs(apart).max())
    np.testing.assert_allclose(merged, apart, atol=1e-5 * scale, rtol=0)  # float32, summed in another order
    assert np.abs(apart - logits(host, tokens)).max() > 0.05 * scale  # adapters that do nothing would pass


@pytest.mark.parametrize("base", ["float32", "nf4"])
def test_gradients_follow_from_those_of_the_merged_kernels_by_the_chain_rule(tiny_model, host, tokens, base):
    """d loss / dA = scale * G B^T and d loss / dB = scale * A^T G, with G that of the projection's own slice."""
    adapters, frozen = moved(tiny_model.spec), freeze(host, base)
    target = jnp.asarray(np.random.default_rng(2).standard_normal((2, 7, 96)), jnp.float32)
    loss_of = lambda params: (logits_of(tiny_model, params, tokens) * target).sum()  # noqa: E731
    both = partial(lora.assemble, params=PARAMS, seed=0)
    ours = jax.jit(jax.grad(lambda trained: loss_of(both(trained, frozen, None))))(adapters)
    whole = jax.device_get(jax.jit(jax.grad(loss_of))(merge(both(adapters, frozen, None))))["layers"]
    qkv, gate_up = whole["attention"]["qkv"], whole["mlp"]["gate_up"]
    slices = {
        "q_proj": (qkv[:, :, :, :-2], 1),  # [L, D, K, M, H], one axis of inputs
        "k_proj": (qkv[:, :, :, -2], 1),
        "v_proj": (qkv[:, :, :, -1], 1),
        "o_proj": (whole["attention"]["output"], 3),
        "gate_proj": (gate_up[:, :, 0], 1),
        "up_proj": (gate_up[:, :, 1], 1),
        "down_proj": (whole["mlp"]["down"], 1),
    }
    for part in ("attention", "mlp"):
        for name, pair in adapters["layers"][part].items():
            gradient, num_inputs = slices[name]
            num_layers, inputs = gradient.shape[0], int(np.prod(gradient.shape[1 : 1 + num_inputs]))
            g_LXY = gradient.reshape(num_layers, inputs, -1).astype(np.float64)
            a_LXR = np.asarray(pair["lora_A"], np.float64).reshape(num_layers, inputs, 4)
            b_LRY = np.asarray(pair["lora_B"], np.float64).reshape(num_layers, 4, -1)
            found = ours["layers"][part][name]
            expected = {
                "lora_A": 3 * g_LXY @ b_LRY.swapaxes(1, 2),
                "lora_B": 3 * a_LXR.swapaxes(1, 2) @ g_LXY,
            }
            for letter, want in expected.items():
                assert np.abs(want).max() > 1e-3
                np.testing.assert_allclose(
                    np.asarray(found[letter]).reshape(want.shape),
                    want,
                    atol=1e-5 * np.abs(want).max(),
                    rtol=0,
                    err_msg=f"{name} {letter}",
                )


@pytest.mark.parametrize("remat", ["none", "full", "matmuls"])
@pytest.mark.parametrize("base", ["float32", "nf4"])
def test_no_layers_kernel_is_kept_for_the_backward_pass(tiny_model, host, tokens, base, remat):
    """Neither dense nor copied as it is: at bfloat16 either would show among what the layers' loop returns."""
    frozen = jax.eval_shape(lambda: freeze(host, base))
    adapters = jax.eval_shape(partial(lora.create, tiny_model.spec, PARAMS, seed=0))

    def loss(trained, frozen):
        params = lora.assemble(trained, frozen, None, params=PARAMS, seed=0)
        return model.hidden_states(params, *tokens, dtype=jnp.bfloat16, remat=remat).astype(jnp.float32).sum()

    model = tiny_model
    traced = jax.jit(jax.grad(loss)).trace(adapters, frozen).jaxpr
    returned = {shape for jaxpr in inner(traced.jaxpr) for shape in scan_outputs(jaxpr)}
    kernels = {leaf.shape for leaf in jax.tree.leaves(frozen["layers"]) if leaf.ndim > 2}
    dense = {leaf.shape for leaf in jax.tree.leaves(host["layers"]) if leaf.ndim > 2}
    assert returned & {(2, 2, 7, 32), (2, 32, 4)}  # hidden states, or a gradient: loops are seen at all
    assert not returned & (kernels | dense)


def inner(jaxpr):
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for found in value if isinstance(value, tuple | list) else (value,):
                found = getattr(found, "jaxpr", found)
                if hasattr(found, "eqns"):
                    yield from inner(found)


def scan_outputs(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield from (variable.aval.shape for variable in equation.outvars)


def test_dropout_leaves_out_its_share_and_scales_the_rest(rng):
    """Adapters that pass their input through show what was dropped."""
    eye = jnp.eye(64)
    weight = adapted.Adapted(
        base=jnp.zeros((64, 64)),
        adapters={"down_proj": {"lora_A": eye, "lora_B": eye}},
        key=jax.random.key(3),
        name="down",
        scale=1.0,
        dropout=0.25,
    )
    x_BTF = jnp.asarray(1 + rng.random((4, 16, 64)), jnp.float32)
    kept_BTD = np.asarray(adapted.contract("BTF,FD->BTD", x_BTF, weight))
    dropped = kept_BTD == 0
    np.testing.assert_allclose(kept_BTD[~dropped], (x_BTF / 0.75)[~dropped], rtol=1e-6)
    assert dropped.mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / dropped.size) ** 0.5)
    sure = dataclasses.replace(weight, key=None)
    np.testing.assert_allclose(adapted.contract("BTF,FD->BTD", x_BTF, sure), x_BTF, rtol=1e-6)


def test_projections_layers_and_passes_drop_different_inputs(tiny_model, host):
    params = dataclasses.replace(PARAMS, lora_dropout=0.5)
    adapters = moved(tiny_model.spec, params)

    def mlp_keys(key):
        tree = lora.assemble(adapters, host, key, params=params, seed=0)
        keys = [tree["layers"]["mlp"][name].key for name in ("gate_up", "down")]
        return {tuple(np.asarray(word)) for each in keys for word in jax.random.key_data(each)}

    first, second = mlp_keys(jax.random.key(0)), mlp_keys(jax.random.key(1))
    assert len(first) == len(second) == 4  # two kernels of two layers
    assert not first & second
    assert lora.assemble(adapters, host, None, params=params, seed=0)["layers"]["mlp"]["down"].key is None
    ones = {"lora_A": jnp.ones((32, 4)), "lora_B": jnp.ones((4, 64))}
    both = adapted.Adapted(
        jnp.zeros((32, 2, 64)),
        {"gate_proj": ones, "up_proj": ones},
        jax.random.key(0),
        name="gate_up",
        scale=1.0,
        dropout=0.5,
    )
    gate_up_BTcF = both.adapter_outputs(jnp.ones((1, 8, 32)))
    assert (gate_up_BTcF[:, :, 0] != gate_up_BTcF[:, :, 1]).any()


def test_projections_that_are_no_target_are_the_bases(tiny_model, host):
    params = dataclasses.replace(PARAMS, target_modules="v_proj, q_proj,up_proj")
    assert params.targets == ("q_proj", "v_proj", "up_proj")
    adapters = moved(tiny_model.spec, params)
    assert {part: set(found) for part, found in adapters["layers"].items()} == {
        "attention": {"q_proj", "v_proj"},
        "mlp": {"up_proj"},
    }
    merged = merge(lora.assemble(adapters, host, None, params=params, seed=0))["layers"]
    change = jax.tree.map(lambda new, old: np.abs(np.asarray(new - old)), merged, host["layers"])
    qkv_LDKJH, gate_up_LDcF = change["attention"]["qkv"], change["mlp"]["gate_up"]
    assert qkv_LDKJH[:, :, :, -2].max() == gate_up_LDcF[:, :, 0].max() == 0
    assert change["attention"]["output"].max() == change["mlp"]["down"].max() == 0
    assert min(x.max() for x in (qkv_LDKJH[:, :, :, :-2], qkv_LDKJH[:, :, :, -1], gate_up_LDcF[:, :, 1])) > 0


def test_a_projection_that_is_not_there_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'q_proj,lm_head'; known are 'all-linear' and.*'down_proj'"):
        _ = dataclasses.replace(PARAMS, target_modules="q_proj,lm_head").targets


def test_the_sampling_layout_merges_adapters(tiny_model, host):
    params = lora.assemble(moved(tiny_model.spec), freeze(host, "nf4"), None, params=PARAMS, seed=0)
    make = jax.jit(partial(decoder.unstack, num_layers=2, dtype=jnp.float32))
    merged = merge(params)
    for index, layer in enumerate(make(params)["layers"]):
        for found, want in zip(jax.tree.leaves(layer), jax.tree.leaves(merged["layers"]), strict=True):
            np.testing.assert_allclose(found, want[index], atol=1e-6, rtol=0)
