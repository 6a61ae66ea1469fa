"""Which Hugging Face tensors make which leaf of our parameter tree, and how, in both directions.

One visible table for every family here: `table(spec)`. Loading, exporting and checking walk it; nothing
else knows a tensor's name. Functions on single NumPy arrays only: no file and no device is touched.

Shape letters are in `grpo_jax/structs.py`. J is M + 2: a key/value head's queries, its key, its value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from grpo_jax.models.spec import ModelSpec

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_LAYER = "model.layers.{i}."
_ATTENTION = _LAYER + "self_attn."
_MLP = _LAYER + "mlp."
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


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
        """Whether the leaf has a leading layer axis."""
        return self.path[0] == "layers"

    @property
    def num_values(self) -> int:
        """Numbers in the tensors of one layer."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def tensor_names(self, layer: int) -> tuple[str, ...]:
        return tuple(name.format(i=layer) for name in self.names)


def table(spec: ModelSpec) -> list[Row]:
    """The whole correspondence for one model, in the order in which tensors are read and written."""
    rows = [
        _plain(("embedding",), EMBEDDING, (spec.vocab_size, spec.hidden_size)),
        *_layer_rows(spec),
        _plain(("final_norm", "scale"), "model.norm.weight", (spec.hidden_size,)),
    ]
    if not spec.tie_word_embeddings:
        rows.append(_plain(("head",), HEAD, (spec.vocab_size, spec.hidden_size)))
    return rows


def cells(rows: list[Row], *, num_layers: int) -> Iterator[tuple[Row, int]]:
    """Every row with every layer it has; rows that belong to no layer come once, with layer 0."""
    for row in rows:
        for layer in range(num_layers if row.stacked else 1):
            yield row, layer


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a folder of this model must hold, by name."""
    return {
        name: shape
        for row, layer in cells(table(spec), num_layers=spec.num_layers)
        for name, shape in zip(row.tensor_names(layer), row.shapes, strict=True)
    }


def _layer_rows(spec: ModelSpec) -> list[Row]:
    d, f = spec.hidden_size, spec.intermediate_size
    rows = [
        _plain(("layers", "attention_norm", "scale"), _LAYER + "input_layernorm.weight", (d,)),
        *_attention_rows(spec),
        _plain(("layers", "mlp_norm", "scale"), _LAYER + "post_attention_layernorm.weight", (d,)),
        Row(
            ("layers", "mlp", "gate_up"),  # [D, 2, F]
            (_MLP + "gate_proj.weight", _MLP + "up_proj.weight"),
            ((f, d), (f, d)),
            lambda parts: np.stack(parts).transpose(2, 0, 1),
            lambda leaf: [leaf[:, 0].T, leaf[:, 1].T],
        ),
        Row(
            ("layers", "mlp", "down"),  # [F, D]
            (_MLP + "down_proj.weight",),
            ((d, f),),
            lambda parts: parts[0].T,
            lambda leaf: [leaf.T],
        ),
    ]
    return rows


def _attention_rows(spec: ModelSpec) -> list[Row]:
    d, n, k, h = spec.hidden_size, spec.num_heads, spec.num_kv_heads, spec.head_dim
    join, split = partial(_join_heads, spec=spec), partial(_split_heads, spec=spec)
    rows = [
        Row(
            ("layers", "attention", "qkv"),  # [D, K, J, H]
            tuple(f"{_ATTENTION}{name}.weight" for name in _PROJECTIONS),
            ((n * h, d), (k * h, d), (k * h, d)),
            lambda parts: join(parts).transpose(3, 0, 1, 2),
            lambda leaf: split(leaf.transpose(1, 2, 3, 0)),
        ),
        Row(
            ("layers", "attention", "output"),  # [K, M, H, D]
            (_ATTENTION + "o_proj.weight",),
            ((d, n * h),),
            lambda parts: parts[0].T.reshape(k, n // k, h, d),
            lambda leaf: [leaf.reshape(n * h, d).T],
        ),
    ]
    if spec.qkv_bias:
        names = tuple(f"{_ATTENTION}{name}.bias" for name in _PROJECTIONS)
        shapes = ((n * h,), (k * h,), (k * h,))
        rows.append(Row(("layers", "attention", "qkv_bias"), names, shapes, join, split))  # [K, J, H]
    if spec.qk_norm:
        for name in ("q_norm", "k_norm"):
            path = ("layers", "attention", name, "scale")
            rows.append(_plain(path, f"{_ATTENTION}{name}.weight", (h,)))
    return rows


def _plain(path: tuple[str, ...], name: str, shape: tuple[int, ...]) -> Row:
    return Row(path, (name,), (shape,), lambda parts: parts[0], lambda leaf: [leaf])


def _join_heads(parts: list[np.ndarray], *, spec: ModelSpec) -> np.ndarray:
    """q `[N*H, ...]`, k and v `[K*H, ...]` -> `[K, J, H, ...]`."""
    k, m, h = spec.num_kv_heads, spec.queries_per_kv, spec.head_dim
    heads = [part.reshape(k, j, h, *part.shape[1:]) for part, j in zip(parts, (m, 1, 1), strict=True)]
    return np.concatenate(heads, axis=1)


def _split_heads(joined: np.ndarray, *, spec: ModelSpec) -> list[np.ndarray]:
    """The inverse of `_join_heads`."""
    m, rest = spec.queries_per_kv, joined.shape[3:]
    return [part.reshape(-1, *rest) for part in np.split(joined, [m, m + 1], axis=1)]
