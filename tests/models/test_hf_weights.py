"""Hugging Face folders in and out: every bit kept, every mismatch told by name."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder, hf_weights, registry
from tests.models import small_models
from tests.models.small_models import CONFIGS
from tests.test_failed_saves import files_at_most


@pytest.fixture(scope="module")
def cut_mesh() -> jax.sharding.Mesh:
    return mesh_lib.create(data=2, fsdp=2, tensor=2)


def load(folder: Path, mesh):
    spec = registry.read_spec(folder)
    _, shapes = decoder.build(spec)
    shardings = mesh_lib.parameter_shardings(mesh, shapes)
    return hf_weights.load(folder, spec, shapes=shapes, shardings=shardings), spec, shardings


def export(folder: Path, target: Path, mesh, *, dtype: str, shard_bytes: int = 10**9) -> Path:
    params, spec, _ = load(folder, mesh)
    return hf_weights.save(
        params,
        spec,
        source=folder,
        folder=target,
        dtype=dtype,
        shard_bytes=shard_bytes,
        write_more=lambda unfinished: (unfinished / "tokenizer.json").write_text("{}"),
    )


def all_tensors(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def assert_same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert tensor.shape == right[name].shape
        assert tensor.tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize(
    ("name", "dtype", "num_shards", "shard_bytes"),
    [
        ("qwen2", "float32", 1, 10**9),
        ("qwen2.5-tied", "bfloat16", 3, 10**9),
        ("qwen2.5-untied", "float16", 2, 20_000),
        ("qwen3", "bfloat16", 1, 20_000),
        ("qwen3", "float16", 1, 10**9),
        ("qwen3-yarn", "float32", 4, 40_000),
    ],
)
def test_loading_and_exporting_returns_every_tensor_bit_for_bit(
    tmp_path, cut_mesh, name, dtype, num_shards, shard_bytes
):
    source = small_models.write_folder(tmp_path / "in", CONFIGS[name], dtype=dtype, num_shards=num_shards)
    assert hf_weights.stored_dtype(source) == dtype
    target = export(source, tmp_path / "out", cut_mesh, dtype=dtype, shard_bytes=shard_bytes)
    assert_same_bits(all_tensors(source), all_tensors(target))
    sizes = [sum(x.nbytes for x in load_file(path).values()) for path in target.glob("*.safetensors")]
    assert max(sizes) <= shard_bytes
    assert (len(sizes) > 1) == (shard_bytes < 10**9)
    assert (target / "tokenizer.json").is_file()  # what the caller adds is inside
    config = json.loads((source / "config.json").read_text())
    assert json.loads((target / "config.json").read_text()) == {**config, "dtype": dtype}
    assert (target / "generation_config.json").read_text() == (source / "generation_config.json").read_text()


def test_signs_of_zero_and_the_smallest_numbers_survive(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen3"], dtype="bfloat16")
    tensors = all_tensors(source)
    special = np.array([-0.0, 0.0, 1e-40, -1e-40, 3e38, -3e38, 2**-126, 1.0])
    for tensor in tensors.values():
        tensor.reshape(-1)[:8] = special.astype(tensor.dtype)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert_same_bits(tensors, all_tensors(export(source, tmp_path / "out", cut_mesh, dtype="bfloat16")))


def test_a_tensor_larger_than_a_shard_gets_a_file_of_its_own(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen3"])
    target = export(source, tmp_path / "out", cut_mesh, dtype="float32", shard_bytes=30_000)
    (home,) = [p for p in target.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(p)]
    assert set(load_file(home)) == {"model.embed_tokens.weight"}  # 300 x 32 x 4 bytes = 38,400
    assert_same_bits(all_tensors(source), all_tensors(target))


def test_an_export_has_an_index_that_names_every_tensor_once(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    target = export(source, tmp_path / "out", cut_mesh, dtype="float32", shard_bytes=30_000)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    held = {p.name: set(load_file(p)) for p in target.glob("*.safetensors")}
    assert {(tensor, file) for tensor, file in index["weight_map"].items()} == {
        (tensor, file) for file, tensors in held.items() for tensor in tensors
    }
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in all_tensors(source).values())
    names = sorted(held)
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    with safe_open(target / names[0], framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file


@pytest.mark.parametrize(
    ("name", "dtype", "shard_bytes"),
    [("qwen2.5-tied", "bfloat16", 10**9), ("qwen3-yarn", "float32", 30_000), ("qwen2", "float16", 10**9)],
)
def test_transformers_loads_the_export(tmp_path, cut_mesh, name, dtype, shard_bytes):
    torch = pytest.importorskip("torch", reason="transformers loads models with torch only")
    import transformers

    source = small_models.write_folder(tmp_path / "in", CONFIGS[name], dtype=dtype)
    target = export(source, tmp_path / "out", cut_mesh, dtype=dtype, shard_bytes=shard_bytes)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        target, dtype="auto", output_loading_info=True
    )
    assert not any(told.values()), told  # nothing missing, unexpected or mismatched
    assert model.dtype == getattr(torch, dtype)
    state = model.state_dict()
    for key, tensor in all_tensors(source).items():
        assert state[key].view(torch.uint8).numpy().tobytes() == tensor.tobytes(), key
    assert model.generation_config.eos_token_id == [1, 2]


def test_a_folder_saved_by_transformers_loads(tmp_path, cut_mesh):
    torch = pytest.importorskip("torch", reason="transformers saves models with torch only")
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "in")
    target = export(tmp_path / "in", tmp_path / "out", cut_mesh, dtype="bfloat16")
    assert_same_bits(all_tensors(tmp_path / "in"), all_tensors(target))


def test_weights_lie_as_the_shardings_say(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    params, _, shardings = load(source, cut_mesh)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    kernel = params["layers"]["attention"]["qkv"]  # [L, D, K, J, H]: D over fsdp, K over tensor
    assert kernel.addressable_shards[0].data.shape == (2, 16, 1, 4, 8)


def test_a_tied_model_may_store_its_head_if_it_is_the_embedding(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen3"], dtype="bfloat16")
    tensors = all_tensors(source)
    twice = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    small_models.save_shards(source, twice)
    params, _, _ = load(source, cut_mesh)
    assert "head" not in params
    assert_same_bits(tensors, all_tensors(export(source, tmp_path / "out", cut_mesh, dtype="bfloat16")))

    twice["lm_head.weight"][5, 5] += 1
    small_models.save_shards(source, twice)
    with pytest.raises(ValueError, match=r"unexpected: lm_head\.weight"):
        load(source, cut_mesh)


def test_an_export_never_writes_over_a_folder_and_knows_its_dtypes(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    with pytest.raises(FileExistsError, match="name a new folder"):
        export(source, source, cut_mesh, dtype="float32")
    with pytest.raises(ValueError, match=r"'int8'; known are \['bfloat16', 'float16', 'float32'\]"):
        export(source, tmp_path / "out", cut_mesh, dtype="int8")


def test_an_export_that_fails_leaves_no_folder_of_that_name_and_can_be_repeated(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    params, spec, _ = load(source, cut_mesh)

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    save = lambda write_more: hf_weights.save(  # noqa: E731
        params,
        spec,
        source=source,
        folder=tmp_path / "out",
        dtype="float32",
        shard_bytes=10**9,
        write_more=write_more,
    )
    with pytest.raises(OSError, match="disk full"):
        save(fail)
    assert not (tmp_path / "out").exists()
    save(lambda folder: None)
    assert_same_bits(all_tensors(source), all_tensors(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_export_that_the_disk_does_not_take_names_the_file_and_leaves_no_folder(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    with (
        files_at_most(8192),
        pytest.raises(
            OSError, match=r"out\.unfinished/model\.safetensors could not be written: .*File too large"
        ),
    ):
        export(source, tmp_path / "out", cut_mesh, dtype="float32")
    assert not (tmp_path / "out").exists()
    export(source, tmp_path / "out", cut_mesh, dtype="float32")
    assert_same_bits(all_tensors(source), all_tensors(tmp_path / "out"))


def test_the_older_spelling_of_the_dtype_is_kept(tmp_path, cut_mesh):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen3"])
    config = json.loads((source / "config.json").read_text())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    target = export(source, tmp_path / "out", cut_mesh, dtype="bfloat16")
    written = json.loads((target / "config.json").read_text())
    assert written["torch_dtype"] == "bfloat16"
    assert "dtype" not in written


def test_the_stored_dtype_is_that_of_the_tensors_and_float32_where_they_differ(tmp_path):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen3"], dtype="bfloat16")
    (source / "config.json").write_text(json.dumps({**CONFIGS["qwen3"], "dtype": "float16"}))
    assert hf_weights.stored_dtype(source) == "bfloat16"
    tensors = all_tensors(source)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    small_models.save_shards(source, tensors)
    assert hf_weights.stored_dtype(source) == "float32"
