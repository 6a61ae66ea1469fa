"""The device mesh, and where every parameter lies on it.

Axes: `data` (rows only), `fsdp` (rows, and parameters cut along one of their wide dimensions), `tensor`
(heads, MLP width, vocabulary). Where a parameter lies is a visible table from its path to mesh axes, kept
apart from the model's code; optimizer moments follow their parameter, or are cut over `data` as well. Row
arrays are cut over `data` and `fsdp` together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that rows are cut over
MOST_CPU_DEVICES = 256  # fake ones; each has threads and buffers of its own


class Preset(NamedTuple):
    """A named way to use all devices; `tensor` keeps its size unless the preset gives it all of them."""

    axis: str  # that takes the devices which the other axes leave
    over_data: bool  # moments and accumulated gradients are cut over `data` too


PRESETS: dict[str, Preset] = {  # config.mesh.preset
    "": Preset("data", False),  # the sizes as they are given
    "ddp": Preset("data", False),  # everything whole on every device; only rows are cut
    "zero2": Preset("data", True),  # parameters whole; moments and gradients cut over all devices of rows
    "zero3": Preset("fsdp", False),  # parameters too
    "tp": Preset("tensor", False),  # heads, MLP and vocabulary over all devices; every device has all rows
}

PARAMETER_RULES: tuple[tuple[str, P], ...] = (  # path ends with -> axes; stacked layers lead with None
    ("embedding", P("tensor", "fsdp")),
    ("head", P("tensor", "fsdp")),
    ("head_DV", P("fsdp", "tensor")),
    ("attention/qkv", P(None, "fsdp", "tensor", None, None)),
    ("attention/qkv_bias", P(None, "tensor", None, None)),
    ("attention/output", P(None, "tensor", None, None, "fsdp")),
    ("mlp/gate_up", P(None, "fsdp", None, "tensor")),
    ("mlp/down", P(None, "tensor", "fsdp")),
    ("scale", P()),
    # adapters of LoRA, each where its projection lies; the rank is cut over fsdp where no width is left for it
    ("q_proj/lora_A", P(None, "fsdp", None)),
    ("k_proj/lora_A", P(None, "fsdp", None)),
    ("v_proj/lora_A", P(None, "fsdp", None)),
    ("q_proj/lora_B", P(None, "fsdp", "tensor", None, None)),
    ("k_proj/lora_B", P(None, "fsdp", "tensor", None)),
    ("v_proj/lora_B", P(None, "fsdp", "tensor", None)),
    ("o_proj/lora_A", P(None, "tensor", None, None, "fsdp")),
    ("o_proj/lora_B", P(None, None, "fsdp")),
    ("gate_proj/lora_A", P(None, "fsdp", None)),
    ("up_proj/lora_A", P(None, "fsdp", None)),
    ("gate_proj/lora_B", P(None, "fsdp", "tensor")),
    ("up_proj/lora_B", P(None, "fsdp", "tensor")),
    ("down_proj/lora_A", P(None, "tensor", "fsdp")),
    ("down_proj/lora_B", P(None, None, "fsdp")),
    # 4-bit weights: cut as their weight is, between blocks; `int8` ones have their weight's own line
    ("qkv/codes", P(None, "fsdp", "tensor", None, None)),
    ("qkv/scales", P(None, "fsdp", "tensor", None)),
    ("output/codes", P(None, "tensor", None, None, "fsdp")),
    ("output/scales", P(None, "tensor", None, "fsdp")),
    ("gate_up/codes", P(None, "fsdp", None, "tensor", None)),
    ("gate_up/scales", P(None, "fsdp", None, "tensor")),
    ("down/codes", P(None, "tensor", None, "fsdp")),
    ("down/scales", P(None, "tensor", "fsdp")),
    ("lows", P()),  # of the scales' groups, which run across all cuts: a thousandth of the codes' bytes
    ("steps", P()),
)


def use_cpu_devices(count: int) -> None:
    """Splits the CPU into `count` devices (0: one a core); call before anything touches a device.

    XLA gains almost nothing from a second thread in decoding; rows split over one device a core about
    double it. No effect where an accelerator is the default backend.

    Raises: ValueError for a number that no run needs.
    """
    if not 0 <= count <= MOST_CPU_DEVICES:
        raise ValueError(
            f"config.mesh.cpu_devices is {count}; a CPU is cut into 1 to {MOST_CPU_DEVICES} devices, and 0 is one a "
            "core or one, by the model's size."
        )
    jax.config.update("jax_num_cpu_devices", count or (os.cpu_count() or 1))


def create(
    *, data: int, fsdp: int, tensor: int, preset: str = "", devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices of all processes.

    Args:
        data: size of the data axis; -1 takes what the other two leave.
        preset: key of `PRESETS`. Any but "" chooses data and fsdp itself, and `tp` tensor too.
        devices: other devices than those of this machine, such as a topology's.

    Raises: ValueError for an unknown preset, for sizes beside a preset that chooses them, and if the sizes
        do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if preset:
        data, fsdp, tensor = _preset_sizes(preset, data, fsdp, tensor, num_devices=len(devices))
    if fsdp < 1 or tensor < 1 or (data < 1 and data != -1):
        raise ValueError(
            f"config.mesh.fsdp and config.mesh.tensor must be at least 1, and config.mesh.data too, or -1 for what the "
            f"others leave; got data {data}, fsdp {fsdp}, tensor {tensor}."
        )
    if data == -1:
        data = max(len(devices) // (fsdp * tensor), 1)
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"The mesh data {data} x fsdp {fsdp} x tensor {tensor} has {data * fsdp * tensor} devices; "
            f"{len(devices)} are there. Set config.mesh.data=-1 and sizes that divide {len(devices)}."
        )
    return Mesh(np.array(devices).reshape(data, fsdp, tensor), AXES)


def num_row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Over how many devices rows are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def num_head_shards(mesh: Mesh, num_kv_heads: int) -> int:
    """Into how many parts key/value heads are cut: as `tensor` says, or not at all where it does not divide."""
    return mesh.shape["tensor"] if num_kv_heads % mesh.shape["tensor"] == 0 else 1


def cache_rows(mesh: Mesh, num_kv_heads: int) -> NamedSharding:
    """For arrays `[rows, key/value heads, ...]`: rows cut over the row axes, heads over `tensor`."""
    return NamedSharding(mesh, P(ROWS, "tensor" if num_head_shards(mesh, num_kv_heads) > 1 else None))


def parameter_shardings(mesh: Mesh, shapes: Any) -> Any:
    """The tree of `NamedSharding`s for stacked parameters, or any tree that repeats their paths.

    Optimizer states do; their scalars (counts of updates) are held whole.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        axes = _rule(path) if leaf.ndim else P()
        return NamedSharding(mesh, _fitting(axes, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def optimizer_shardings(mesh: Mesh, shapes: Any, *, over_data: bool) -> Any:
    """For optimizer moments and accumulated gradients, or any tree that repeats parameters' paths.

    Args:
        over_data: cut over `data` and `fsdp` together where the parameter is cut over `fsdp`, or else along
            the widest other dimension that divides; what no rule cuts over `fsdp` lies as its parameter does.
            False: all lie as their parameters do.
    """
    of_parameters = parameter_shardings(mesh, shapes)
    if not over_data:
        return of_parameters

    def sharding(path: tuple, leaf: Any, of_parameter: NamedSharding) -> NamedSharding:
        if not leaf.ndim or "fsdp" not in (rule := _rule(path)):
            return of_parameter
        axes = [None if axis == "fsdp" else axis for axis in of_parameter.spec]
        axes += [None] * (leaf.ndim - len(axes))
        preferred = tuple(rule).index("fsdp")
        free = [i for i in range(leaf.ndim) if axes[i] is None and leaf.shape[i] % num_row_shards(mesh) == 0]
        if not free:
            return of_parameter
        axes[max(free, key=lambda i: (i == preferred, leaf.shape[i]))] = ROWS
        return NamedSharding(mesh, P(*axes))

    return jax.tree_util.tree_map_with_path(sharding, shapes, of_parameters)


def sampling_shardings(mesh: Mesh, shapes: Any) -> Any:
    """For the unstacked sampling copy: whole on every device but for the tensor axis."""

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        axes = _rule(path)
        unstacked = axes[1:] if path[0].key == "layers" and len(axes) else axes
        kept = P(*(axis if axis == "tensor" else None for axis in unstacked))
        return NamedSharding(mesh, _fitting(kept, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Cuts the axis after `leading` whole ones over the row axes."""
    return NamedSharding(mesh, P(*(None,) * leading, ROWS))


def put_rows(mesh: Mesh, tree: Any, *, leading: int = 0) -> Any:
    """This process's rows (NumPy, any tree) -> one global array each, cut over the row axes."""
    sharding = rows(mesh, leading=leading)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def only_rows_are_cut(mesh: Mesh) -> bool:
    """Several devices, and every one holds all of every parameter."""
    return mesh.shape["data"] == mesh.size > 1


def on_each_device(
    function: Callable[..., Any], mesh: Mesh, *, rows: Sequence[int | None], out_rows: int | None = None
) -> Callable[..., Any]:
    """`function` as each device runs it on its own rows, without talking to the others but by its own sums.

    Where only rows are cut. (Beside `fsdp` and `tensor`, left to XLA, its partitioner fails on a program that
    is cut by hand along `data` alone: jaxlib 0.10.2.)

    Args:
        rows: for each argument the axis of its arrays that holds rows, None: the same on all devices.
        out_rows: of the results.
    """

    def spec(axis: int | None) -> P:
        return P() if axis is None else P(*(None,) * axis, "data")

    # without the check: the gradient of what is the same on all devices shall stay each device's own
    return jax.shard_map(
        function, mesh=mesh, in_specs=tuple(map(spec, rows)), out_specs=spec(out_rows), check_vma=False
    )


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows (axis 0) of a row-cut global array that live on this process, in order."""
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)], axis=0)


def _preset_sizes(
    preset: str, data: int, fsdp: int, tensor: int, *, num_devices: int
) -> tuple[int, int, int]:
    """Sizes of the axes, where the preset leaves them open as `configs/base.py` does."""
    if preset not in PRESETS:
        raise ValueError(f"config.mesh.preset is {preset!r}; known are {sorted(PRESETS)}.")
    axis = PRESETS[preset].axis
    if data != -1 or fsdp != 1 or (axis == "tensor" and tensor != 1):
        raise ValueError(
            f"config.mesh.preset {preset!r} chooses the sizes itself; got data {data}, fsdp {fsdp}, tensor {tensor}. "
            f"Leave config.mesh.data=-1 and config.mesh.fsdp=1{' and tensor=1' if axis == 'tensor' else ''}, "
            "or set config.mesh.preset='' to use these sizes."
        )
    if num_devices % tensor:
        raise ValueError(f"config.mesh.tensor is {tensor}, which does not divide the {num_devices} devices.")
    sizes = dict.fromkeys(AXES, 1) | {"tensor": tensor}
    sizes[axis] = num_devices // tensor
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def _rule(path: tuple) -> P:
    name = "/".join(str(key.key) for key in path if hasattr(key, "key"))
    for ending, axes in PARAMETER_RULES:
        if name == ending or name.endswith("/" + ending):
            return axes
    raise ValueError(f"No sharding rule for the parameter {name}; add a line to PARAMETER_RULES.")


def _fitting(axes: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Drops an axis whose size does not divide the dimension: that parameter is then held whole."""
    sizes = [1 if axis is None else mesh.shape[axis] for axis in axes]
    return P(
        *(a if shape[i] % size == 0 else None for i, (a, size) in enumerate(zip(axes, sizes, strict=True)))
    )
