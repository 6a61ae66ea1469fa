"""Adapters in PEFT's layout: names and shapes, and the same logits as `peft` on `transformers`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder, hf_weights, lora, peft_files, registry
from grpo_jax.models.lora import LoraParams
from tests.models import small_models

TOKENS = np.random.default_rng(0).integers(3, 290, (2, 9))
TOLERANCE = 1e-4  # that of test_parity: float32 rounding through two layers, logits of size 1 to 4


def lora_params(target_modules: str = "all-linear") -> LoraParams:
    return LoraParams(4, 10.0, 0.0, target_modules, "float32", 10.0)


def adapters_of(spec, params: LoraParams):
    """Adapters of which no B is 0."""
    fresh = jax.eval_shape(partial(lora.create, spec, params, seed=0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), fresh)


@pytest.fixture(scope="module")
def one_device() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh_lib.AXES)


def opened(folder: Path, mesh) -> tuple[decoder.Model, decoder.Params]:
    spec = registry.read_spec(folder)
    model, shapes = decoder.build(spec)
    shardings = mesh_lib.parameter_shardings(mesh, shapes)
    return model, hf_weights.load(folder, spec, shapes=shapes, shardings=shardings)


def our_logits(model: decoder.Model, params) -> np.ndarray:
    tokens_BT = jnp.asarray(TOKENS, jnp.int32)
    hidden_BTD = model.hidden_states(params, tokens_BT, jnp.ones_like(tokens_BT, bool), dtype=jnp.float32)
    return np.asarray(jnp.einsum("BTD,VD->BTV", hidden_BTD, model.head(params)))


def test_every_module_has_the_tensors_that_peft_has(tmp_path):
    folder = small_models.write_folder(tmp_path / "base", small_models.CONFIGS["qwen3"])
    spec, params = registry.read_spec(folder), lora_params("q_proj,o_proj,down_proj")
    saved = peft_files.save(adapters_of(spec, params), spec, params, base="some/base", folder=tmp_path / "a")
    found = {name: array.shape for name, array in load_file(saved / "adapter_model.safetensors").items()}
    layer = "base_model.model.model.layers.{}."
    one = {  # width 32, 4 heads of 16, MLP width 48
        "self_attn.q_proj.lora_A.weight": (4, 32),
        "self_attn.q_proj.lora_B.weight": (64, 4),
        "self_attn.o_proj.lora_A.weight": (4, 64),
        "self_attn.o_proj.lora_B.weight": (32, 4),
        "mlp.down_proj.lora_A.weight": (4, 48),
        "mlp.down_proj.lora_B.weight": (32, 4),
    }
    assert found == {layer.format(i) + name: shape for i in range(2) for name, shape in one.items()}
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 10.0, "some/base")
    assert config["target_modules"] == ["q_proj", "o_proj", "down_proj"]


def test_an_existing_folder_is_left_alone(tmp_path):
    folder = small_models.write_folder(tmp_path / "base", small_models.CONFIGS["qwen3"])
    spec, params = registry.read_spec(folder), lora_params()
    with pytest.raises(FileExistsError, match="name a new folder"):
        peft_files.save(adapters_of(spec, params), spec, params, base="x", folder=folder)


@pytest.mark.parametrize(
    ("family", "targets"),
    [("qwen2", "all-linear"), ("qwen2.5-tied", "q_proj,v_proj"), ("qwen3", "all-linear")],
)
def test_peft_on_transformers_gives_our_logits(tmp_path, one_device, family, targets):
    torch = pytest.importorskip("torch", reason="peft runs on torch")
    peft = pytest.importorskip("peft", reason="the comparison is with peft itself")
    from transformers import AutoModelForCausalLM

    folder = small_models.write_folder(tmp_path / "base", small_models.CONFIGS[family])
    model, base = opened(folder, one_device)
    params = lora_params(targets)
    adapters = adapters_of(model.spec, params)
    saved = peft_files.save(adapters, model.spec, params, base=str(folder), folder=tmp_path / "adapter")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        plain = reference(torch.tensor(TOKENS)).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(reference, saved)(torch.tensor(TOKENS)).logits.numpy()
    assert np.abs(adapted - plain).max() > 0.1  # the adapters do something there
    together = lora.assemble(adapters, base, None, params=params, seed=0)
    np.testing.assert_allclose(our_logits(model, together), adapted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("base_dtype", ["float32", "nf4"])
def test_the_merged_export_gives_the_unmerged_logits(tmp_path, one_device, base_dtype):
    """The base is read straight into its frozen form, and what is written is that form with the adapters in it."""
    folder = small_models.write_folder(tmp_path / "base", small_models.CONFIGS["qwen3"])
    spec = registry.read_spec(folder)
    model, shapes = decoder.build(spec)
    frozen_shapes = lora.frozen_shapes(shapes, base_dtype=base_dtype)
    frozen = hf_weights.load(
        folder,
        spec,
        shapes=shapes,
        shardings=mesh_lib.parameter_shardings(one_device, shapes),
        keep=partial(lora.freeze, base_dtype=base_dtype),
        kept_shardings=mesh_lib.parameter_shardings(one_device, frozen_shapes),
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), frozen) == jax.tree.map(
        lambda x: (x.shape, x.dtype), frozen_shapes
    )
    params = lora.assemble(adapters_of(spec, lora_params()), frozen, None, params=lora_params(), seed=0)
    merged = hf_weights.save(
        params,
        spec,
        source=folder,
        folder=tmp_path / "merged",
        dtype="float32",
        shard_bytes=10**9,
        write_more=lambda unfinished: None,
    )
    _, exported = opened(merged, one_device)
    unmerged = our_logits(model, params)
    scale = np.abs(unmerged).max()
    np.testing.assert_allclose(our_logits(model, exported), unmerged, atol=1e-5 * scale, rtol=0)
