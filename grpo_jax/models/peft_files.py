"""Adapters as PEFT keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Every projection here is one of PEFT's modules, so tensors only change their shape: `lora_A` is `[R, inputs]`
there and `lora_B` `[outputs, R]`, heads in the order of the Hugging Face weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax import whole_files
from grpo_jax.models import adapted, hf_files
from grpo_jax.models.lora import LoraParams
from grpo_jax.models.spec import ModelSpec

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PARTS = {"attention": "self_attn", "mlp": "mlp"}  # of a layer: ours -> theirs


def save(adapters: Any, spec: ModelSpec, params: LoraParams, *, base: str, folder: str | Path) -> Path:
    """Writes a folder that `peft.PeftModel.from_pretrained` loads on top of the base model.

    The folder appears under its name only when it is whole. In a run of several processes all must call;
    process 0 writes.

    Args:
        adapters: as `lora.create` makes them, float32, stacked.
        base: folder or hub id of the model that they belong to, for those who read the config.
        folder: to create; must not exist.

    Raises: FileExistsError if `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder for the adapters.")
    found = tensors(adapters, spec)
    if jax.process_index() == 0:
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        (unfinished / CONFIG_NAME).write_text(json.dumps(config(params, base=base), indent=2) + "\n")
        hf_files.write(unfinished / WEIGHTS_NAME, found)
        whole_files.publish(unfinished, folder)
    return folder


def config(params: LoraParams, *, base: str) -> dict[str, Any]:
    """The content of `adapter_config.json`; what it does not say, PEFT takes as its default."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": params.r,
        "lora_alpha": params.lora_alpha,
        "lora_dropout": params.lora_dropout,
        "target_modules": list(params.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def tensors(adapters: Any, spec: ModelSpec) -> dict[str, np.ndarray]:
    """All adapters on the host by PEFT's names, float32."""
    found = {}
    for part, projections in adapters["layers"].items():
        for projection, pair in projections.items():
            num_inputs = len(adapted.PROJECTIONS[projection].inputs)
            a_LXR, b_LRY = _fetch(pair["lora_A"]), _fetch(pair["lora_B"])
            for i in range(spec.num_layers):
                name = f"base_model.model.model.layers.{i}.{_PARTS[part]}.{projection}"
                a_XR = a_LXR[i].reshape(int(np.prod(a_LXR[i].shape[:num_inputs])), -1)
                b_RY = b_LRY[i].reshape(b_LRY.shape[1], -1)
                found[f"{name}.lora_A.weight"] = np.ascontiguousarray(a_XR.T)
                found[f"{name}.lora_B.weight"] = np.ascontiguousarray(b_RY.T)
    return found


def _fetch(leaf: jax.Array) -> np.ndarray:
    if not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(jax.device_get(leaf))
