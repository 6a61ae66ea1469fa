"""Hugging Face safetensors <-> our parameter tree, along the table in `hf_table.py`, in both directions.

Loading reads one layer's tensors of a kind at a time and puts them straight onto the mesh; names, shapes
and dtypes of the whole folder are checked from the file headers first (`hf_files.py`). Exporting fetches
as little at a time and fills shards of bounded size. Both keep every value: master weights are float32,
which holds bfloat16 and float16 exactly. In a run of several processes each reads for its own devices,
and process 0 writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax import whole_files
from grpo_jax.models import hf_files, hf_table, registry
from grpo_jax.models.hf_table import Row
from grpo_jax.models.spec import ModelSpec

EXPORT_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

Keep = Callable[[tuple[str, ...], jax.Array], Any]
"""`keep(path, leaf)` -> what is kept of a leaf; of one layer where layers are stacked."""

_Plan = list[tuple[str, list[tuple[Row, int]]]]
"""File names, and the table's rows (with the layer) that go into each."""


def load(
    folder: str | Path,
    spec: ModelSpec,
    *,
    shapes: Any,
    shardings: Any,
    keep: Keep | None = None,
    kept_shardings: Any = None,
) -> Any:
    """Reads a folder's weights onto the mesh: as float32, or as `keep` makes them, a layer at a time.

    Args:
        folder: holds `model.safetensors`, or the index and the shards it names.
        shapes: the parameter tree as `jax.ShapeDtypeStruct`s (`decoder.build`).
        shardings: the same tree with a `jax.sharding.NamedSharding` a leaf.
        keep: what each leaf becomes, such as a quantised weight; no float32 copy of the whole is ever there.
        kept_shardings: with `keep`: where the parts of what it returns lie, stacked.

    Raises: FileNotFoundError without weight files; ValueError naming tensors that are missing, unexpected,
    wrongly shaped or of another dtype.
    """
    files = hf_files.WeightFiles(folder)
    files.check(spec)
    params: dict = {}
    for row in hf_table.table(spec):

        def read(layer: int, row: Row = row) -> np.ndarray:
            return row.join([files.tensor(name) for name in row.tensor_names(layer)])

        sharding = _at(shardings, row.path)
        convert = partial(keep, row.path) if keep else _as_it_is
        kept = _at(kept_shardings, row.path) if keep else sharding
        if row.stacked:
            leaf = _load_stacked(read, _at(shapes, row.path), sharding, convert=convert, kept=kept)
        else:
            leaf = _place(read(0), sharding)
            leaf = jax.jit(convert, out_shardings=kept)(leaf) if keep else leaf
        _put(params, row.path, leaf)
    return params


def save(
    params: Any,
    spec: ModelSpec,
    *,
    source: str | Path,
    folder: str | Path,
    dtype: str,
    shard_bytes: int,
    write_more: Callable[[Path], object],
) -> Path:
    """Writes a Hugging Face folder that `transformers` loads: config, generation config and weights.

    The folder appears under its name only when it is whole. In a run of several processes all must call;
    process 0 writes.

    Args:
        params: the stacked parameter tree; adapters in it are merged, a layer at a time.
        source: folder whose `config.json` and `generation_config.json` describe the model.
        folder: to create; must not exist.
        dtype: key of `EXPORT_DTYPES`.
        shard_bytes: of tensors in one file at most, unless one layer's tensors of a kind are larger.
        write_more: puts other files (the tokenizer's) into the folder before it gets its name.

    Raises: FileExistsError if `folder` exists; ValueError for an unknown dtype.
    """
    folder = Path(folder)
    if dtype not in EXPORT_DTYPES:
        raise ValueError(f"The export dtype is {dtype!r}; known are {sorted(EXPORT_DTYPES)}.")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder for the export.")
    writer = jax.process_index() == 0
    unfinished = folder.with_name(folder.name + ".unfinished")
    if writer:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _write_configs(Path(source), unfinished, dtype)
    plan = _plan_shards(spec, EXPORT_DTYPES[dtype], shard_bytes)
    for file_name, cells in plan:
        tensors = _fetch_tensors(params, cells, EXPORT_DTYPES[dtype])
        if writer:
            hf_files.write(unfinished / file_name, tensors)
    if writer:
        if len(plan) > 1:
            _write_index(unfinished, plan, EXPORT_DTYPES[dtype])
        write_more(unfinished)
        whole_files.publish(unfinished, folder)
    return folder


def stored_dtype(folder: str | Path) -> str:
    """The dtype of a folder's tensors, as a key of `EXPORT_DTYPES`; float32 where they differ."""
    return hf_files.WeightFiles(folder).common_dtype()


def _as_it_is(leaf: jax.Array) -> jax.Array:
    return leaf


def _load_stacked(
    read: Callable[[int], np.ndarray],
    shape: Any,
    sharding: NamedSharding,
    *,
    convert: Callable[[jax.Array], Any],
    kept: Any,
) -> Any:
    """Fills `[L, ...]` arrays layer by layer on the devices; the host holds one layer at a time."""
    layer_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    shapes = jax.eval_shape(jax.vmap(convert), shape)
    zeros = partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    stacked = jax.jit(zeros, out_shardings=kept)()

    def write(whole: Any, layer: jax.Array, i: jax.Array) -> Any:
        put = partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return jax.tree.map(put, whole, convert(layer))

    write = jax.jit(write, donate_argnums=0, out_shardings=kept)
    for i in range(shape.shape[0]):
        stacked = write(stacked, _place(read(i), layer_sharding), jnp.int32(i))
    return stacked


def _place(host: np.ndarray, sharding: NamedSharding) -> jax.Array:
    host = np.ascontiguousarray(host, np.float32)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _plan_shards(spec: ModelSpec, dtype: Any, shard_bytes: int) -> _Plan:
    """Fills files greedily, in the table's order."""
    groups: list[list[tuple[Row, int]]] = [[]]
    filled = 0
    for row, layer in hf_table.cells(hf_table.table(spec), num_layers=spec.num_layers):
        size = row.num_values * np.dtype(dtype).itemsize
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((row, layer))
        filled += size
    if len(groups) == 1:
        return [(hf_files.SINGLE_NAME, groups[0])]
    count = len(groups)
    return [(f"model-{i + 1:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(groups)]


def _fetch_tensors(params: Any, cells: list[tuple[Row, int]], dtype: Any) -> dict[str, np.ndarray]:
    """One file's tensors on the host, by name."""
    tensors = {}
    for row, layer in cells:
        leaf = _fetch(_at(params, row.path), layer if row.stacked else None)
        for name, part in zip(row.tensor_names(layer), row.split(leaf), strict=True):
            tensors[name] = np.ascontiguousarray(part.astype(dtype))
    return tensors


def _fetch(leaf: Any, layer: int | None) -> np.ndarray:
    """float32 of an array, or of what stands for one."""
    part = leaf.astype(jnp.float32) if layer is None else _layer_of(leaf, jnp.int32(layer))
    if not part.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(part, tiled=True))
    return np.asarray(jax.device_get(part))


@jax.jit
def _layer_of(leaf: Any, layer: jax.Array) -> jax.Array:
    """The layer is an argument, so one program a leaf serves all layers."""
    take = partial(jax.lax.dynamic_index_in_dim, index=layer, axis=0, keepdims=False)
    return jax.tree.map(take, leaf).astype(jnp.float32)


def _write_index(folder: Path, plan: _Plan, dtype: Any) -> None:
    weight_map = {
        name: file_name
        for file_name, cells in plan
        for row, layer in cells
        for name in row.tensor_names(layer)
    }
    num_values = sum(row.num_values for _, cells in plan for row, _ in cells)
    index = {"metadata": {"total_size": num_values * np.dtype(dtype).itemsize}, "weight_map": weight_map}
    (folder / hf_files.INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_configs(source: Path, folder: Path, dtype: str) -> None:
    config = registry.read_json(source / "config.json")
    # readers before transformers 4.56 know the older spelling only: keep what the folder had
    spellings = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    config.update(dict.fromkeys(spellings, dtype))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: dict, path: tuple[str, ...], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
