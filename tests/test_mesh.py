"""Where parameters and rows lie on eight devices."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import train_state
from grpo_jax.models import decoder, lora

QWEN2 = {"family": "qwen2", "qkv_bias": True, "qk_norm": False}
LAYOUTS = {
    "qwen3": {},
    "qwen3 tied": {"tie_word_embeddings": True},
    "qwen2": QWEN2,
    "qwen2 tied": {**QWEN2, "tie_word_embeddings": True},
}


def shapes_of(tiny_model, layout: str):
    return decoder.build(dataclasses.replace(tiny_model.spec, **LAYOUTS[layout]))[1]


def by_name(tree) -> dict:
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def bytes_per_device(tree) -> dict:
    """Bytes that really lie on each device."""
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return held


def total_bytes(shapes) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_parameter_of_every_family_has_a_rule_of_its_rank(tiny_model, mesh, layout):
    shapes = shapes_of(tiny_model, layout)
    shardings = mesh_lib.parameter_shardings(mesh, shapes)
    assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
    for name, shape in by_name(shapes).items():
        (axes,) = [axes for end, axes in mesh_lib.PARAMETER_RULES if name == end or name.endswith("/" + end)]
        assert len(axes) in (0, len(shape.shape)), name  # stacked layers lead with None
        if name.startswith("layers/") and len(axes):
            assert axes[0] is None, name  # layers are scanned over, never cut


@pytest.mark.parametrize("base_dtype", ["int8", "nf4"])
def test_every_adapter_and_every_part_of_a_quantised_base_has_a_rule_of_its_rank(tiny_model, base_dtype):
    params = lora.LoraParams(4, 8.0, 0.0, "all-linear", base_dtype, 10.0)
    adapters = by_name(jax.eval_shape(partial(lora.create, tiny_model.spec, params, seed=0)))
    frozen = lora.frozen_shapes(shapes_of(tiny_model, "qwen3"), base_dtype=base_dtype)
    parts = [  # the parts of an int8 weight have no names: they lie as the weight
        ("/".join(key.key for key in path if hasattr(key, "key")), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(frozen)
    ]
    for name, shape in [*adapters.items(), *parts]:
        (axes,) = [axes for end, axes in mesh_lib.PARAMETER_RULES if name == end or name.endswith("/" + end)]
        assert len(axes) in (0, len(shape.shape)), name


def test_every_rule_has_a_parameter(tiny_model):
    names = [name for layout in LAYOUTS for name in by_name(shapes_of(tiny_model, layout))]
    names.append("head_DV")  # of the sampling copy on a CPU
    spec, full = tiny_model.spec, shapes_of(tiny_model, "qwen3")
    params = lora.LoraParams(4, 8.0, 0.0, "all-linear", "nf4", 10.0)
    names += by_name(jax.eval_shape(partial(lora.create, spec, params, seed=0)))
    names += by_name(lora.frozen_shapes(full, base_dtype="nf4"))
    for ending, _ in mesh_lib.PARAMETER_RULES:
        assert any(name == ending or name.endswith("/" + ending) for name in names), ending


def test_a_parameter_without_a_rule_is_refused_by_name(mesh):
    shapes = {"layers": {"attention": {"rotor": jax.ShapeDtypeStruct((2, 4), np.float32)}}}
    with pytest.raises(ValueError, match=r"layers/attention/rotor; add a line to PARAMETER_RULES"):
        mesh_lib.parameter_shardings(mesh, shapes)


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ({"data": 8, "fsdp": 1, "tensor": 1}, 1.0),  # rows only: everything everywhere
        ({"data": 2, "fsdp": 4, "tensor": 1}, 1 / 4),
        ({"data": 1, "fsdp": 8, "tensor": 1}, 1 / 8),
        ({"data": 1, "fsdp": 4, "tensor": 2}, 1 / 8),
        ({"data": 4, "fsdp": 1, "tensor": 2}, 1 / 2),
    ],
)
def test_each_device_holds_its_share_of_parameters_and_moments(tiny_model, tiny_params, sizes, share):
    mesh = mesh_lib.create(**sizes)
    shapes = shapes_of(tiny_model, "qwen3")
    params = jax.device_put(tiny_params, mesh_lib.parameter_shardings(mesh, shapes))
    state = train_state.create(optax.adam(1e-3), params, mesh=mesh)
    scales = sum(leaf.nbytes for name, leaf in by_name(params).items() if name.endswith("scale"))
    expected = (total_bytes(shapes) - scales) * share + scales  # norms are whole everywhere
    assert set(bytes_per_device(params).values()) == {int(expected)}
    # two moments, laid out alike, and two int32 counters
    assert set(bytes_per_device(state).values()) == {int(3 * expected) + 8}
    for old, new in zip(jax.tree.leaves(tiny_params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(old, new)


def test_cuts_fall_where_the_rules_say(tiny_model):
    mesh = mesh_lib.create(data=1, fsdp=4, tensor=2)
    layout = {
        name: sharding.spec
        for name, sharding in by_name(
            mesh_lib.parameter_shardings(mesh, shapes_of(tiny_model, "qwen2"))
        ).items()
    }
    assert layout["layers/attention/qkv"] == P(None, "fsdp", "tensor", None, None)  # [L, D, K, J, H]
    assert layout["layers/attention/qkv_bias"] == P(None, "tensor", None, None)  # [L, K, J, H]
    assert layout["layers/attention/output"] == P(None, "tensor", None, None, "fsdp")  # [L, K, M, H, D]
    assert layout["layers/mlp/gate_up"] == P(None, "fsdp", None, "tensor")  # [L, D, 2, F]
    assert layout["layers/mlp/down"] == P(None, "tensor", "fsdp")  # [L, F, D]
    assert layout["embedding"] == layout["head"] == P("tensor", "fsdp")  # [V, D]
    assert layout["final_norm/scale"] == layout["layers/mlp_norm/scale"] == P()


def test_a_dimension_that_does_not_divide_is_held_whole(tiny_model):
    mesh = mesh_lib.create(data=1, fsdp=1, tensor=8)  # 2 key/value heads, 64 MLP columns, 96 ids
    shardings = by_name(mesh_lib.parameter_shardings(mesh, shapes_of(tiny_model, "qwen3")))
    assert shardings["layers/attention/qkv"].spec == P(None, "fsdp", None, None, None)
    assert shardings["layers/mlp/down"].spec == P(None, "tensor", "fsdp")
    assert shardings["embedding"].spec == P("tensor", "fsdp")


def test_the_sampling_copy_is_cut_by_the_tensor_axis_only(tiny_model, tiny_params):
    mesh = mesh_lib.create(data=1, fsdp=4, tensor=2)
    unstack = lambda p: decoder.unstack(p, num_layers=2, dtype=np.float32)  # noqa: E731
    shapes = jax.eval_shape(unstack, tiny_params)
    shardings = mesh_lib.sampling_shardings(mesh, shapes)
    block = shardings["layers"][1]
    assert block["attention"]["qkv"].spec == P(None, "tensor", None, None)  # [D, K, J, H]
    assert block["attention"]["output"].spec == P("tensor", None, None, None)
    assert block["mlp"]["gate_up"].spec == P(None, None, "tensor")
    assert block["mlp"]["down"].spec == P("tensor", None)
    assert block["mlp_norm"]["scale"].spec == P()
    assert shardings["embedding"].spec == P("tensor", None)
    copy = jax.jit(unstack, out_shardings=shardings)(jax.device_get(tiny_params))
    held = set(bytes_per_device(copy).values())
    assert max(held) < 0.51 * total_bytes(shapes)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_rows_come_back_in_order(rng, sizes):
    mesh = mesh_lib.create(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    shards = mesh_lib.num_row_shards(mesh)
    assert shards == sizes[0] * sizes[1]
    tree = {"ids": rng.integers(0, 9, (16, 3)), "flags": rng.random(16) > 0.5}
    placed = mesh_lib.put_rows(mesh, tree)
    for name, rows in tree.items():
        assert placed[name].shape == rows.shape
        assert {s.data.shape[0] for s in placed[name].addressable_shards} == {16 // shards}
        np.testing.assert_array_equal(mesh_lib.local_rows(placed[name]), rows)
        np.testing.assert_array_equal(placed[name], rows)


def test_the_axis_behind_the_leading_ones_is_cut(mesh, rng):
    array = rng.random((3, 16, 2))
    placed = mesh_lib.put_rows(mesh, array, leading=1)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 2, 2)}
    np.testing.assert_array_equal(placed, array.astype(np.float32))  # JAX keeps 32 bits
    assert placed.sharding == mesh_lib.rows(mesh, leading=1)


def test_a_replicated_array_lies_whole_on_every_device(mesh):
    placed = jax.device_put(np.arange(6.0), mesh_lib.replicated(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(6,)}
    assert len(placed.addressable_shards) == 8


def test_data_minus_one_takes_what_the_others_leave():
    assert dict(mesh_lib.create(data=-1, fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(mesh_lib.create(data=-1, fsdp=1, tensor=1).shape) == {"data": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor", "number"), [(3, 1, 1, 3), (-1, 3, 1, 6), (4, 4, 1, 16), (-1, 16, 1, 16)]
)
def test_sizes_that_do_not_make_the_number_of_devices_are_refused(data, fsdp, tensor, number):
    with pytest.raises(ValueError, match=f"has {number} devices; 8 are there. Set config.mesh.data=-1"):
        mesh_lib.create(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize(
    ("preset", "tensor", "sizes"),
    [
        ("ddp", 1, (8, 1, 1)),
        ("zero2", 2, (4, 1, 2)),
        ("zero3", 1, (1, 8, 1)),
        ("zero3", 2, (1, 4, 2)),
        ("tp", 1, (1, 1, 8)),
    ],
)
def test_a_preset_gives_one_axis_all_that_tensor_leaves(preset, tensor, sizes):
    mesh = mesh_lib.create(data=-1, fsdp=1, tensor=tensor, preset=preset)
    assert tuple(mesh.shape.values()) == sizes


@pytest.mark.parametrize(
    ("sizes", "preset", "message"),
    [
        ({}, "zero9", r"preset is 'zero9'; known are \['', 'ddp', 'tp', 'zero2', 'zero3'\]"),
        ({"data": 4}, "ddp", "'ddp' chooses the sizes itself; got data 4"),
        ({"fsdp": 4}, "zero2", "config.mesh.fsdp=1, or set config.mesh.preset=''"),
        ({"tensor": 2}, "tp", "tensor=1"),
        ({"tensor": 3}, "zero3", "tensor is 3, which does not divide the 8 devices"),
    ],
)
def test_a_preset_beside_sizes_it_chooses_is_refused(sizes, preset, message):
    with pytest.raises(ValueError, match=message):
        mesh_lib.create(**({"data": -1, "fsdp": 1, "tensor": 1} | sizes), preset=preset)


def test_moments_cut_over_data_take_the_width_or_else_the_widest_dimension_that_divides():
    mesh = mesh_lib.create(data=4, fsdp=1, tensor=2)

    def spec(name: str, *shape: int) -> P:
        tree = {"layers": {"mlp": {name: jax.ShapeDtypeStruct(shape, np.float32)}}}
        shardings = mesh_lib.optimizer_shardings(mesh, tree, over_data=True)
        return shardings["layers"]["mlp"][name].spec

    assert spec("gate_up", 6, 32, 2, 64) == P(None, mesh_lib.ROWS, None, "tensor")
    assert spec("gate_up", 8, 30, 2, 64) == P(mesh_lib.ROWS, None, None, "tensor")  # 30 is no multiple of 4
    assert spec("gate_up", 6, 30, 2, 62) == P(None, "fsdp", None, "tensor")  # none divides: as its parameter
    assert spec("scale", 8, 32) == P()  # no rule cuts it
