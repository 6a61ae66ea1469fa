"""Which families of models there are, by the `model_type` of their `config.json`.

To add a family: a reader in a file of its own and one line here; a new weight layout also needs its
lines in `hf_table.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from grpo_jax import json_files
from grpo_jax.models import qwen
from grpo_jax.models.spec import ModelSpec

FAMILIES: dict[str, Callable[[dict], ModelSpec]] = {
    "qwen2": qwen.read_qwen2,
    "qwen3": qwen.read_qwen3,
}


def read_spec(folder: str | Path) -> ModelSpec:
    """Reads `config.json` of a Hugging Face folder.

    Raises: FileNotFoundError without that file; ValueError for a family or a setting not known here.
    """
    config = read_json(Path(folder) / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        brings = " The code that it brings along is never run." if config.get("auto_map") else ""
        raise ValueError(
            f"{folder}/config.json says model_type {family!r}; known are {sorted(FAMILIES)}.{brings} "
            "Set config.model.path to a dense Qwen2, Qwen2.5 or Qwen3 folder."
        )
    try:
        return FAMILIES[family](config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def read_json(path: Path) -> dict:
    """The JSON object in a file of a model folder; one-line errors that name the file."""
    return json_files.read(path, whose="a Hugging Face model folder has one")
