"""The safetensors files of a Hugging Face folder: found, opened, and checked by their headers; and written.

Enters: a folder. Leaves: tensors by name, one at a time, read from the mapped file when asked for. Only
safetensors is opened, never a pickle, and an index names files of its own folder only (which may be links, as
in the hub's cache). Every mismatch with `config.json` is found before a weight is read, and told with the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from grpo_jax import json_files
from grpo_jax.models import hf_table, registry
from grpo_jax.models.spec import ModelSpec

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # all of which float32 holds exactly
_MOST_NAMES = 8  # in one message
_MOST_CHARS = 200  # of one name


class WeightFiles:
    """A folder's weight files, opened once.

    Raises: FileNotFoundError where there are none; ValueError for a damaged file, an index that points
    out of the folder or says other than its files, or a tensor that two files hold.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.home: dict[str, Any] = {}  # tensor name -> the open file that holds it
        for path, named in _weight_paths(self.folder).items():
            file = _open(path)
            twice = sorted(set(file.keys()) & set(self.home))
            if twice:
                raise ValueError(f"{path} holds tensors that another shard holds too: {_listed(twice)}.")
            if named is not None:
                _check_shard(path, named, set(file.keys()))
            self.home.update(dict.fromkeys(file.keys(), file))

    def tensor(self, name: str) -> np.ndarray:
        """The tensor as float32, which changes no value of the dtypes read here.

        Raises: ValueError for one with values that are not finite: every update would be lost on it.
        """
        values = self.values(name)
        if values.size and not np.isfinite([values.min(), values.max()]).all():  # NaN passes through both
            bad = int(values.size - np.isfinite(values).sum())
            raise ValueError(
                f"{name} in {self.folder} has {bad} of {values.size} values that are NaN or infinite: "
                "the file is damaged, or its training had failed. Fetch it again, or take another one."
            )
        return values

    def values(self, name: str) -> np.ndarray:
        """As `tensor`, whatever the values are."""
        return self.home[name].get_tensor(name).astype(np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.home[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As the file's header spells it."""
        return self.home[name].get_slice(name).get_dtype()

    def common_dtype(self) -> str:
        """The one dtype of all tensors, as NumPy spells it; float32, which holds them all, where they differ."""
        found = {DTYPES.get(self.dtype(name), "float32") for name in self.home}
        return found.pop() if len(found) == 1 else "float32"

    def check(self, spec: ModelSpec) -> None:
        """Raises ValueError naming tensors that are missing, unexpected, wrongly shaped or of another dtype."""
        needed = hf_table.tensor_shapes(spec)
        both = [name for name in needed if name in self.home]
        findings = {
            "missing": [name for name in needed if name not in self.home],
            "unexpected": sorted(set(self.home) - set(needed) - self._repeated_head(spec)),
            "wrongly shaped": [
                f"{name} is {list(self.shape(name))}, needs {list(needed[name])}"
                for name in both
                if self.shape(name) != needed[name]
            ],
            f"of a dtype other than {sorted(DTYPES)}": [
                f"{name} is {self.dtype(name)}" for name in both if self.dtype(name) not in DTYPES
            ],
        }
        found = "; ".join(f"{what}: {_listed(names)}" for what, names in findings.items() if names)
        if found:
            raise ValueError(f"The weights in {self.folder} do not fit its config.json: {found}.")

    def _repeated_head(self, spec: ModelSpec) -> set[str]:
        """The head of a tied model that stores it too (Qwen3-0.6B does): fine while it is the embedding."""
        head, embedding = hf_table.HEAD, hf_table.EMBEDDING
        if not spec.tie_word_embeddings or not {head, embedding} <= set(self.home):
            return set()
        if self.shape(head) != self.shape(embedding):
            return set()
        return {head} if np.array_equal(self.tensor(head), self.tensor(embedding)) else set()


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes one file. Raises: OSError, naming it, where the disk does not take it."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}. Make room there and export again.") from error
    path.chmod(0o644)  # the library leaves it readable for its owner alone


def _weight_paths(folder: Path) -> dict[Path, set[str] | None]:
    """The files, each with the tensors that the index says are in it; None without an index."""
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.is_file():
        return dict(_shards(folder, index))
    if single.is_file():
        return {single: None}
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    hint = f" It has {pickled}, which are pickles and never opened: convert them first." if pickled else ""
    raise FileNotFoundError(f"{folder} has no {SINGLE_NAME} and no {INDEX_NAME}.{hint}")


def _shards(folder: Path, index: Path) -> dict[Path, set[str]]:
    weight_map = registry.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map from tensors to files.")
    named: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        named.setdefault(str(file), set()).add(tensor)
    names = sorted(named)
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise ValueError(f"{index} names {_listed(outside)}: no safetensors files of its own folder.")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{index} names shards that are not there: {_listed(absent)}.")
    return {folder / name: named[name] for name in names}


def _check_shard(path: Path, named: set[str], held: set[str]) -> None:
    """Raises ValueError where the index is not that of its shards: two downloads have met in a folder."""
    if missing := sorted(named - held):
        raise ValueError(
            f"{INDEX_NAME} says that {path} holds {_listed(missing)}, which it does not. Fetch both again."
        )
    if unnamed := sorted(held - named):
        raise ValueError(
            f"{path} holds {_listed(unnamed)}, which {INDEX_NAME} does not name. Fetch both again."
        )


def _open(path: Path) -> Any:
    json_files.check_no_pointer(path)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}. Fetch it again.") from None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(name[:_MOST_CHARS] for name in names[:_MOST_NAMES]) + more
