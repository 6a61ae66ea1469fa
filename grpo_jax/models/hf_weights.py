"""Hugging Face safetensors <-> our parameter tree, by one visible table, in both directions.

Loading reads one layer's tensors at a time and puts them straight onto the mesh; names and shapes of the
whole folder are checked from the file headers first. Exporting fetches one tensor at a time and fills
shards of bounded size. Both keep every value: master weights are float32, which holds bfloat16 and float16
exactly. Only safetensors is opened, never a pickle, and no file outside the folder.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from grpo_jax.models import registry
from grpo_jax.models.spec import ModelSpec

EXPORT_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_TIED_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf of our tree (of one layer, where layers are stacked) and the tensors that make it."""

    path: tuple[str, ...]  # in our tree
    names: tuple[str, ...]  # in the file; "{i}" stands for the layer
    shapes: tuple[tuple[int, ...], ...]  # of the file's tensors
    join: Callable[[list[np.ndarray]], np.ndarray]  # file -> ours
    split: Callable[[np.ndarray], list[np.ndarray]]  # ours -> file

    @property
    def stacked(self) -> bool:
        return self.path[0] == "layers"


def table(spec: ModelSpec) -> list[Row]:
    """The whole correspondence for one model, in the order in which tensors are read and written."""
    d, f, v = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    n, k, h = spec.num_heads, spec.num_kv_heads, spec.head_dim
    layer, attention, mlp = "model.layers.{i}.", "model.layers.{i}.self_attn.", "model.layers.{i}.mlp."
    projections = ("q_proj", "k_proj", "v_proj")
    rows = [
        _plain(("embedding",), "model.embed_tokens.weight", (v, d)),
        _plain(("layers", "attention_norm", "scale"), layer + "input_layernorm.weight", (d,)),
        Row(
            ("layers", "attention", "qkv"),
            tuple(f"{attention}{name}.weight" for name in projections),
            ((n * h, d), (k * h, d), (k * h, d)),
            lambda parts: _join_heads(parts, spec).transpose(3, 0, 1, 2),
            lambda leaf: _split_heads(leaf.transpose(1, 2, 3, 0), spec),
        ),
        Row(
            ("layers", "attention", "output"),
            (attention + "o_proj.weight",),
            ((d, n * h),),
            lambda parts: parts[0].T.reshape(k, n // k, h, d),
            lambda leaf: [leaf.reshape(n * h, d).T],
        ),
        _plain(("layers", "mlp_norm", "scale"), layer + "post_attention_layernorm.weight", (d,)),
        Row(
            ("layers", "mlp", "gate_up"),
            (mlp + "gate_proj.weight", mlp + "up_proj.weight"),
            ((f, d), (f, d)),
            lambda parts: np.stack(parts).transpose(2, 0, 1),
            lambda leaf: [leaf[:, 0].T, leaf[:, 1].T],
        ),
        Row(
            ("layers", "mlp", "down"),
            (mlp + "down_proj.weight",),
            ((d, f),),
            lambda parts: parts[0].T,
            lambda leaf: [leaf.T],
        ),
        _plain(("final_norm", "scale"), "model.norm.weight", (d,)),
    ]
    if spec.qkv_bias:
        rows.append(
            Row(
                ("layers", "attention", "qkv_bias"),
                tuple(f"{attention}{name}.bias" for name in projections),
                ((n * h,), (k * h,), (k * h,)),
                lambda parts: _join_heads(parts, spec),
                lambda leaf: _split_heads(leaf, spec),
            )
        )
    if spec.qk_norm:
        for name in ("q_norm", "k_norm"):
            path = ("layers", "attention", name, "scale")
            rows.append(_plain(path, f"{attention}{name}.weight", (h,)))
    if not spec.tie_word_embeddings:
        rows.append(_plain(("head",), _TIED_HEAD, (v, d)))
    return rows


def load(folder: str | Path, spec: ModelSpec, *, shapes: Any, shardings: Any) -> Any:
    """Reads a folder's weights as float32 onto the mesh.

    Args:
        folder: holds `model.safetensors`, or the index and the shards it names.
        shapes: the parameter tree as `jax.ShapeDtypeStruct`s (`decoder.build`).
        shardings: the same tree with a `jax.sharding.NamedSharding` a leaf.

    Raises: FileNotFoundError, ValueError listing missing, unexpected or wrongly shaped tensors.
    """
    files = _Files(Path(folder))
    files.check(table(spec), spec)
    params: dict = {}
    for row in table(spec):
        shape, sharding = _at(shapes, row.path), _at(shardings, row.path)
        read = lambda i, row=row: row.join([files.tensor(name.format(i=i)) for name in row.names])  # noqa: E731
        leaf = _load_stacked(read, shape, sharding) if row.stacked else _place(read(0), sharding)
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
        params: the stacked parameter tree.
        source: folder whose `config.json` and `generation_config.json` describe the model.
        folder: to create; must not exist.
        dtype: key of `EXPORT_DTYPES`.
        shard_bytes: upper bound of one file, unless a single tensor is larger.
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
    for file_name, group in plan:
        tensors = {}
        for row, layer in group:
            leaf = _fetch(_at(params, row.path), layer if row.stacked else None)
            for name, part in zip(row.names, row.split(leaf), strict=True):
                tensors[name.format(i=layer)] = np.ascontiguousarray(part.astype(EXPORT_DTYPES[dtype]))
        if writer:
            save_file(tensors, unfinished / file_name, metadata={"format": "pt"})
    if writer:
        if len(plan) > 1:
            _write_index(unfinished, plan)
        write_more(unfinished)
        unfinished.rename(folder)
    return folder


def stored_dtype(folder: str | Path) -> str:
    """The dtype that a folder's `config.json` names for its weights; float32 where it names none."""
    config = registry.read_json(Path(folder) / "config.json")
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return name if name in EXPORT_DTYPES else "float32"


class _Files:
    """The safetensors files of a folder, opened once, with every tensor's shape from the headers."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.handles: dict[str, Any] = {}
        self.home: dict[str, Any] = {}
        for path in _weight_files(folder):
            try:
                handle = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is no whole safetensors file: {error}. Fetch it again.") from None
            self.home.update(dict.fromkeys(handle.keys(), handle))

    def tensor(self, name: str) -> np.ndarray:
        return self.home[name].get_tensor(name).astype(np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.home[name].get_slice(name).get_shape())

    def check(self, rows: list[Row], spec: ModelSpec) -> None:
        expected = dict(_tensors(rows, spec.num_layers))
        unexpected = set(self.home) - set(expected)
        # Some tied models store their head too (Qwen3-0.6B): fine as long as it is the embedding.
        if spec.tie_word_embeddings and _TIED_HEAD in unexpected and self._head_is_embedding():
            unexpected.discard(_TIED_HEAD)
        problems = [
            _listed("missing", sorted(set(expected) - set(self.home))),
            _listed("unexpected", sorted(unexpected)),
            _listed(
                "wrongly shaped",
                [
                    f"{name} is {list(self.shape(name))}, needs {list(shape)}"
                    for name, shape in expected.items()
                    if name in self.home and self.shape(name) != shape
                ],
            ),
        ]
        if any(problems):
            raise ValueError(
                f"The weights in {self.folder} do not fit its config.json: "
                + "; ".join(problem for problem in problems if problem)
                + "."
            )

    def _head_is_embedding(self) -> bool:
        head, embedding = self.home[_TIED_HEAD], self.home["model.embed_tokens.weight"]
        return np.array_equal(
            head.get_tensor(_TIED_HEAD), embedding.get_tensor("model.embed_tokens.weight")
        )


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX_NAME).is_file():
        weight_map = registry.read_json(folder / INDEX_NAME).get("weight_map", {})
        names = sorted(set(map(str, weight_map.values())))
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if outside:
            raise ValueError(f"{folder / INDEX_NAME} names {outside[:3]}, which are no shards of its folder.")
        absent = [name for name in names if not (folder / name).is_file()]
        if absent or not names:
            raise FileNotFoundError(f"{folder / INDEX_NAME} names shards that are not there: {absent}.")
        return [folder / name for name in names]
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME]
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    hint = f" It has {pickled}, which are pickles and never opened: convert them first." if pickled else ""
    raise FileNotFoundError(f"{folder} has no {SINGLE_NAME} and no {INDEX_NAME}.{hint}")


def _tensors(rows: list[Row], num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for row in rows:
        for i in range(num_layers if row.stacked else 1):
            for name, shape in zip(row.names, row.shapes, strict=True):
                yield name.format(i=i), shape


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{what}: {', '.join(names[:8])}{more}" if names else ""


def _plain(path: tuple[str, ...], name: str, shape: tuple[int, ...]) -> Row:
    return Row(path, (name,), (shape,), lambda parts: parts[0], lambda leaf: [leaf])


def _join_heads(parts: list[np.ndarray], spec: ModelSpec) -> np.ndarray:
    """q `[N*H, ...]`, k and v `[K*H, ...]` -> `[K, M + 2, H, ...]`."""
    k, m, h = spec.num_kv_heads, spec.queries_per_kv, spec.head_dim
    counts = (m, 1, 1)
    heads = [p.reshape(k, j, h, *p.shape[1:]) for p, j in zip(parts, counts, strict=True)]
    return np.concatenate(heads, axis=1)


def _split_heads(joined: np.ndarray, spec: ModelSpec) -> list[np.ndarray]:
    """The inverse of `_join_heads`."""
    m, rest = spec.queries_per_kv, joined.shape[3:]
    return [part.reshape(-1, *rest) for part in np.split(joined, [m, m + 1], axis=1)]


def _load_stacked(read: Callable[[int], np.ndarray], shape: Any, sharding: Any) -> jax.Array:
    """Fills a `[L, ...]` array layer by layer on the devices; the host holds one layer at a time."""
    layer_sharding = jax.sharding.NamedSharding(
        sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:])
    )
    stacked = jax.jit(lambda: jnp.zeros(shape.shape, shape.dtype), out_shardings=sharding)()
    write = jax.jit(
        lambda whole, layer, i: jax.lax.dynamic_update_index_in_dim(whole, layer, i, 0),
        donate_argnums=0,
        out_shardings=sharding,
    )
    for i in range(shape.shape[0]):
        stacked = write(stacked, _place(read(i), layer_sharding), jnp.int32(i))
    return stacked


def _place(host: np.ndarray, sharding: Any) -> jax.Array:
    host = np.ascontiguousarray(host, np.float32)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _fetch(leaf: jax.Array, layer: int | None) -> np.ndarray:
    part = leaf if layer is None else leaf[layer]
    if not part.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(part, tiled=True))
    return np.asarray(jax.device_get(part))


def _plan_shards(
    spec: ModelSpec, dtype: Any, shard_bytes: int
) -> list[tuple[str, list[tuple[Row, int]]]]:
    """File names and the rows that go into each, greedily, in the table's order."""
    groups: list[list[tuple[Row, int]]] = [[]]
    filled = 0
    for row in table(spec):
        size = sum(int(np.prod(shape)) for shape in row.shapes) * np.dtype(dtype).itemsize
        for layer in range(spec.num_layers if row.stacked else 1):
            if groups[-1] and filled + size > shard_bytes:
                groups.append([])
                filled = 0
            groups[-1].append((row, layer))
            filled += size
    if len(groups) == 1:
        return [(SINGLE_NAME, groups[0])]
    count = len(groups)
    return [(f"model-{i + 1:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(groups)]


def _write_index(folder: Path, plan: list[tuple[str, list[tuple[Row, int]]]]) -> None:
    weight_map = {
        name.format(i=layer): file_name
        for file_name, group in plan
        for row, layer in group
        for name in row.names
    }
    total = sum((folder / file_name).stat().st_size for file_name, _ in plan)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_configs(source: Path, folder: Path, dtype: str) -> None:
    config = registry.read_json(source / "config.json")
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
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
