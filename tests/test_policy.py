"""A model folder is opened without its weights, and every mistake in it shows then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from grpo_jax import policy, tiny_tokenizer
from grpo_jax.policy import ModelParams

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as far as opening reads it: no weights."""
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer.save_tiny_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def params(path: Path | str, **changes: str) -> ModelParams:
    return ModelParams(**{"path": str(path), "compute_dtype": "auto", "remat": "none"} | changes)


def rewrite(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def test_a_folder_opens_without_weights(folder):
    opened = policy.open_policy(params(folder))
    assert opened.model.spec.hidden_size == 32
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(opened.shapes))
    assert opened.num_valid_ids == len(opened.tokenizer) < opened.model.spec.vocab_size
    assert opened.tokenizer.eos_token_id in opened.end_ids


def test_every_end_id_of_the_generation_config_ends_a_completion(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert {5, 7} <= set(policy.open_policy(params(folder)).end_ids)


def test_a_tokenizer_with_more_ids_than_the_model_embeds_is_refused_with_both_numbers(folder):
    largest = policy.open_policy(params(folder)).num_valid_ids - 1
    rewrite(folder, vocab_size=largest)
    with pytest.raises(ValueError, match=f"ids up to {largest}, the model embeds {largest};"):
        policy.open_policy(params(folder))
    rewrite(folder, vocab_size=largest + 1)
    policy.open_policy(params(folder))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"compute_dtype": "float8"}, r"config\.model\.compute_dtype is 'float8'; known are \['auto', "),
        ({"remat": "some"}, r"config\.model\.remat is 'some'; known are"),
    ],
)
def test_an_unknown_way_to_compute_is_refused_with_the_known_ones(folder, changes, told):
    with pytest.raises(ValueError, match=told):
        policy.open_policy(params(folder, **changes))


@pytest.mark.parametrize("path", ["", "nowhere", "./no/folder", "/no/folder", "~/no", "no/such/folder"])
def test_a_folder_that_is_not_there_is_told_with_the_field_that_names_it(path):
    with pytest.raises(FileNotFoundError, match=r"is no folder; set config\.model\.path"):
        policy.open_policy(params(path))


def test_a_hub_id_that_cannot_be_reached_is_told_in_one_line():
    with pytest.raises(FileNotFoundError, match=r"'nobody/nothing' is no folder here and could not") as error:
        policy.open_policy(params("nobody/nothing"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json"])
def test_a_folder_without_what_opening_reads_is_told(folder, missing):
    (folder / missing).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=missing):
        policy.open_policy(params(folder))


def test_another_family_of_models_is_refused_with_the_known_ones(folder):
    rewrite(folder, model_type="mamba")
    with pytest.raises(ValueError, match=r"'mamba'; known are \['qwen2', 'qwen3'\]"):
        policy.open_policy(params(folder))


@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", jnp.float32), ("gpu", jnp.bfloat16), ("tpu", jnp.bfloat16)]
)
def test_auto_computes_in_bfloat16_where_that_pays(monkeypatch, backend, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert policy.compute_dtype("auto") == dtype
    assert policy.compute_dtype("float32") == jnp.float32
    assert policy.compute_dtype("bfloat16") == jnp.bfloat16
