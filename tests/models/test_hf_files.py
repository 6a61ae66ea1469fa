"""Weight files that do not fit, are damaged or lead elsewhere: refused before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grpo_jax.models import hf_files, registry
from tests.models import small_models
from tests.models.small_models import CONFIGS


def check(folder: Path) -> None:
    """What loading does first."""
    hf_files.WeightFiles(folder).check(registry.read_spec(folder))


def test_everything_that_does_not_fit_is_listed_in_one_message(tmp_path):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.k_proj.bias"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].T.copy()
    last = "model.layers.1.mlp.up_proj.weight"
    tensors[last] = tensors[last].astype(np.int8)
    small_models.save_shards(source, tensors)
    with pytest.raises(ValueError) as caught:
        check(source)
    message = str(caught.value)
    assert "missing: model.layers.1.self_attn.k_proj.bias, model.norm.weight;" in message
    assert "unexpected: model.layers.0.self_attn.q_norm.weight;" in message
    assert "wrongly shaped: model.layers.0.mlp.up_proj.weight is [32, 48], needs [48, 32];" in message
    assert message.endswith("model.layers.1.mlp.up_proj.weight is I8.")
    assert str(source) in message


def test_a_long_list_of_names_is_cut_and_counted(tmp_path):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    tensors = small_models.random_tensors(CONFIGS["qwen2"])
    small_models.save_shards(source, {"lm_head.weight": tensors["lm_head.weight"]})
    with pytest.raises(ValueError, match=r"missing: model\.embed_tokens\.weight, .* and 18 more\.$"):
        check(source)  # 2 + 2 layers x 12 tensors, 8 of which are named


def test_a_tied_model_without_its_embedding_is_told_so(tmp_path):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen3"])
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    small_models.save_shards(source, tensors)
    with pytest.raises(
        ValueError, match=r"missing: model\.embed_tokens\.weight; unexpected: lm_head\.weight"
    ):
        check(source)


def write_index(folder: Path, content: object) -> None:
    (folder / hf_files.INDEX_NAME).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/outside.safetensors", "a/b.safetensors", "w.bin"]
)
def test_an_index_that_names_no_weight_file_of_its_folder_is_refused(tmp_path, name):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    tensors = small_models.random_tensors(CONFIGS["qwen2"])
    save_file(tensors, tmp_path / "outside.safetensors")  # it is there, and still not read
    write_index(source, {"weight_map": dict.fromkeys(tensors, name)})
    with pytest.raises(ValueError, match="no safetensors files of its own folder"):
        check(source)


def test_shards_that_are_not_there_are_named(tmp_path):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"], num_shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not there: model-00002-of-00003\.safetensors"):
        check(source)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["a.safetensors"]}])
def test_an_index_without_a_map_is_told(tmp_path, content):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    write_index(source, content)
    with pytest.raises(ValueError, match="has no weight_map"):
        check(source)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"], num_shards=2)
    save_file(small_models.random_tensors(CONFIGS["qwen2"]), source / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"00002\.safetensors holds tensors that another shard holds too"):
        check(source)


def test_a_folder_with_pickles_only_is_told_that_they_are_never_opened(tmp_path):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    (source / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors and no .*index\.json\.$"):
        check(source)
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin.*pickles and never opened"):
        check(source)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_file_that_was_cut_off_is_told(tmp_path, kept):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is no whole safetensors file"):
        check(source)


def test_an_index_that_is_not_that_of_its_shards_is_refused(tmp_path):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"], num_shards=2)
    index = json.loads((source / hf_files.INDEX_NAME).read_text())
    first, second = sorted(set(index["weight_map"].values()))
    moved = {
        name: first if name == "model.norm.weight" else file for name, file in index["weight_map"].items()
    }
    swapped = {
        name: second if name == "model.norm.weight" else file for name, file in index["weight_map"].items()
    }
    write_index(source, {"weight_map": moved if moved != index["weight_map"] else swapped})
    with pytest.raises(ValueError, match=r"holds model\.norm\.weight, which .* Fetch both again"):
        check(source)


def test_links_are_followed_as_the_hubs_cache_needs_it(tmp_path):
    """The cache keeps files in blobs/ and links them from snapshots/COMMIT/."""
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"], num_shards=2)
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "0123", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    check(snapshot)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named_where_it_is_read(tmp_path, value):
    source = small_models.write_folder(tmp_path / "in", CONFIGS["qwen2"])
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = value
    save_file(tensors, source / "model.safetensors")
    files = hf_files.WeightFiles(source)
    files.check(registry.read_spec(source))  # headers say nothing of it
    with pytest.raises(ValueError, match=rf"{name} in .* has 1 of {tensors[name].size} values that are NaN"):
        files.tensor(name)
    assert np.array_equal(files.tensor("model.norm.weight"), tensors["model.norm.weight"])
