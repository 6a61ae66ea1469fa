"""Model folders that are broken, hostile or of another kind: told before weights are read, and nothing of them is run.

Each row is `configs/tiny_qwen`, copied and then spoilt in one way.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.mistakes.harness import ROOT, Mistake, check, ours

TINY = ROOT / "configs" / "tiny_qwen"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
NORM = "model.norm.weight"  # a small tensor of it


def spoilt(name: str, spoil: Callable[[Path], object], *words: str) -> Mistake:
    """A run with a copy of the tiny model that `spoil` has changed."""

    def prepare(own: Path) -> Sequence[str]:
        folder = own / "model"
        shutil.copytree(TINY, folder)
        spoil(folder)
        return ours(f"model.path={folder}")

    return Mistake(name, prepare, words)


def config(**changes: Any) -> Callable[[Path], object]:
    """Other values in config.json; None removes one."""
    return lambda folder: edit(folder / "config.json", changes)


def edit(path: Path, changes: dict[str, Any]) -> None:
    content = {k: v for k, v in {**json.loads(path.read_text()), **changes}.items() if v is not None}
    path.write_text(json.dumps(content))


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    """A file with other content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def index(weight_map: Any) -> Callable[[Path], object]:
    """An index beside the one file, as `weight_map` has it: a value, or made of the tensors' names."""

    def write(folder: Path) -> None:
        names = load_file(folder / SINGLE)
        content = weight_map(list(names)) if callable(weight_map) else weight_map
        (folder / INDEX).write_text(json.dumps({"weight_map": content}))

    return write


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        found = load_file(folder / SINGLE)
        change(found)
        save_file(found, folder / SINGLE)

    return write


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The safetensors header rewritten, its data as it was."""

    def write(folder: Path) -> None:
        data = (folder / SINGLE).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + size])
        change(content)
        new = json.dumps(content).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])

    return write


def endless(name: str) -> Callable[[Path], object]:
    """A file whose size says that it is no configuration; a hole, so that it takes no room here."""

    def write(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, 257 * 2**20)

    return write


def cut(num_bytes: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / SINGLE, num_bytes)


class Canary:
    """What a pickle does to who opens it: it makes a file beside itself."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "canary"),)


def only_a_pickle(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(folder)))


def remote_code(**changes: Any) -> Callable[[Path], object]:
    """Python files that make a folder when they are run, and a config that names them."""

    def write(folder: Path) -> None:
        for name in ("modeling_mine", "configuration_mine", "tokenization_mine"):
            (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(folder / 'canary')!r})\n")
        theirs = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Mine"}
        edit(folder / "config.json", {"auto_map": theirs} | changes)

    return write


def their_tokenizer(folder: Path) -> None:
    remote_code()(folder)
    mine = {
        "tokenizer_class": "MineTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]},
    }
    edit(folder / "tokenizer_config.json", mine)


def template(source: str | None) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "tokenizer_config.json", {"chat_template": source})


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return write


def more_words(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["beyond"] = 5000


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 988097824\n"
DEEP = "[" * 100_000 + "]" * 100_000

CONFIG_ROWS = (
    spoilt("no_config_json", gone("config.json"), "config.json is missing"),
    spoilt("config_json_is_no_json", text("config.json", "{'model_type': 'qwen2'"), "config.json is no JSON"),
    spoilt("config_json_is_binary", text("config.json", b"\xff\xfe\x00\x01" * 9), "config.json is no JSON"),
    spoilt("config_json_is_a_list", text("config.json", "[1, 2]"), "config.json holds a list"),
    spoilt("config_json_is_endlessly_deep", text("config.json", DEEP), "config.json is no JSON"),
    spoilt("config_json_is_a_pointer", text("config.json", LFS), "config.json", "git lfs pull"),
    spoilt("another_family", config(model_type="llama"), "'llama'", "qwen2", "qwen3"),
    spoilt("a_mixture_of_experts", config(model_type="qwen3_moe"), "'qwen3_moe'"),
    spoilt("no_family", config(model_type=None), "model_type None"),
    spoilt("family_is_a_list", config(model_type=["qwen2"]), "model_type ['qwen2']"),
    spoilt("remote_code", remote_code(model_type="mine"), "'mine'", "never run"),
    spoilt(
        "quantised",
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantization_config",
        "gptq",
        "not quantised",
    ),
    spoilt("unknown_setting", config(logit_softcap=30), "logit_softcap"),
    spoilt("sliding_window", config(use_sliding_window=True, sliding_window=64), "use_sliding_window"),
    spoilt("long_rope", config(rope_scaling={"type": "longrope", "factor": 4}), "'longrope'", "yarn"),
    spoilt("rope_is_text", config(rope_scaling="yarn"), "rope_scaling", "'yarn'"),
    spoilt("rope_factor_is_text", config(rope_scaling={"type": "yarn", "factor": "x"}), "factor", "'x'"),
    spoilt("heads_do_not_divide", config(num_key_value_heads=3), "4 attention heads", "3 key/value heads"),
    spoilt("no_layers", config(num_hidden_layers=0), "num_hidden_layers is 0"),
    spoilt("negative_width", config(hidden_size=-128), "hidden_size is -128"),
    spoilt("width_is_text", config(hidden_size="wide"), "hidden_size is 'wide'"),
    spoilt("width_is_a_list", config(hidden_size=[128]), "hidden_size is [128]"),
    spoilt("width_is_broken", config(hidden_size=128.5), "hidden_size is 128.5"),
    spoilt("width_is_true", config(hidden_size=True), "hidden_size is True"),
    spoilt("a_billion_layers", config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    spoilt("a_vocabulary_beyond_all", config(vocab_size=10**30), "vocab_size is 1000000000000"),
    spoilt("odd_heads", config(head_dim=33), "head_dim is 33"),
    spoilt("epsilon_is_text", config(rms_norm_eps="small"), "rms_norm_eps is 'small'"),
    spoilt("theta_is_zero", config(rope_theta=0), "rope_theta is 0"),
    spoilt(
        "other_sizes_than_the_weights",
        config(intermediate_size=64),
        "do not fit its config.json",
        "[384, 128]",
    ),
    spoilt("more_layers_than_the_weights", config(num_hidden_layers=4), "missing: model.layers.3."),
    spoilt("smaller_vocabulary_than_the_tokenizer", config(vocab_size=100), "ids up to", "embeds 100"),
    spoilt("end_is_text", text("generation_config.json", '{"eos_token_id": "end"}'), "eos_token_id", "'end'"),
    spoilt(
        "end_beyond_all", text("generation_config.json", '{"eos_token_id": 99999}'), "99999", "eos_token_id"
    ),
    spoilt(
        "generation_config_is_cut",
        text("generation_config.json", '{"eos'),
        "generation_config.json is no JSON",
    ),
)

WEIGHT_ROWS = (
    spoilt("no_weights", gone(SINGLE), "has no model.safetensors"),
    spoilt("only_a_pickle", only_a_pickle, "pytorch_model.bin", "never opened"),
    spoilt("weights_are_a_pointer", text(SINGLE, LFS), SINGLE, "git lfs pull"),
    spoilt("weights_are_empty", text(SINGLE, b""), SINGLE, "no whole safetensors file"),
    spoilt("weights_are_cut", cut(200_000), SINGLE, "no whole safetensors file"),
    spoilt("header_is_cut", cut(100), SINGLE, "no whole safetensors file"),
    spoilt(
        "header_length_lies",
        text(SINGLE, struct.pack("<Q", 2**63) + b"{}"),
        SINGLE,
        "no whole safetensors file",
    ),
    spoilt(
        "weights_are_a_page",
        text(SINGLE, "<!DOCTYPE html><html>Sign in</html>"),
        SINGLE,
        "no whole safetensors file",
    ),
    spoilt(
        "offsets_overlap",
        header(lambda found: found[NORM].update(data_offsets=[0, 256])),
        SINGLE,
        "no whole safetensors file",
    ),
    spoilt("unknown_dtype", header(lambda found: found[NORM].update(dtype="F13")), SINGLE, "no whole"),
    spoilt(
        "dtype_of_another_width", tensors(lambda t: t.update({NORM: t[NORM].astype(np.int8)})), NORM, "I8"
    ),
    spoilt("a_tensor_is_missing", tensors(lambda t: t.pop(NORM)), f"missing: {NORM}"),
    spoilt(
        "a_tensor_too_many", tensors(lambda t: t.update(extra=np.ones(3, np.float32))), "unexpected: extra"
    ),
    spoilt(
        "index_leads_out", index(lambda names: dict.fromkeys(names, f"../model/{SINGLE}")), INDEX, "../model"
    ),
    spoilt(
        "index_is_absolute", index(lambda names: dict.fromkeys(names, "/etc/x.safetensors")), INDEX, "/etc/x"
    ),
    spoilt("index_has_no_map", text(INDEX, "{}"), INDEX, "weight_map"),
    spoilt("index_is_a_list", index(["a"]), INDEX, "weight_map"),
    spoilt("index_has_numbers", index(lambda names: dict.fromkeys(names, 7)), INDEX, "no safetensors files"),
    spoilt(
        "index_has_lists",
        index(lambda names: {name: [SINGLE] for name in names}),
        INDEX,
        "no safetensors files",
    ),
    spoilt(
        "index_names_what_is_not_there",
        index(lambda names: dict.fromkeys(names, "b.safetensors")),
        "b.safetensors",
    ),
    spoilt("index_names_half", index(lambda names: dict.fromkeys(names[:5], SINGLE)), INDEX, "does not name"),
    spoilt(
        "index_names_a_tensor_the_shard_has_not",
        index(lambda names: dict.fromkeys([*names, "lm_head.weight"], SINGLE)),
        INDEX,
        "lm_head.weight",
    ),
    spoilt(
        "index_names_a_tensor_twice",
        text(INDEX, f'{{"weight_map": {{"{NORM}": "{SINGLE}", "{NORM}": "other.safetensors"}}}}'),
        f"it names '{NORM}' twice",
    ),
    spoilt("index_is_without_end", endless(INDEX), INDEX, "257 MiB"),
    spoilt("index_is_cut", text(INDEX, '{"weight_map": {"a"'), f"{INDEX} is no JSON"),
)

TOKENIZER_ROWS = (
    spoilt("no_tokenizer", gone("tokenizer.json"), "no tokenizer in", "tokenizer.json"),
    spoilt("tokenizer_is_cut", text("tokenizer.json", '{"version": "1.0", "mod'), "tokenizer.json"),
    spoilt("tokenizer_is_a_list", text("tokenizer.json", "[]"), "tokenizer.json"),
    spoilt("tokenizer_is_a_pointer", text("tokenizer.json", LFS), "tokenizer.json", "git lfs pull"),
    spoilt("tokenizer_without_a_model", tokenizer(lambda t: t.pop("model")), "tokenizer.json"),
    spoilt("tokenizer_config_is_cut", text("tokenizer_config.json", '{"a'), "tokenizer_config.json"),
    spoilt("tokenizer_config_is_a_list", text("tokenizer_config.json", "[]"), "tokenizer_config.json"),
    spoilt("their_tokenizer", their_tokenizer, "MineTokenizer", "never run"),
    spoilt(
        "a_tokenizer_that_is_none",
        text("tokenizer_config.json", '{"tokenizer_class": "Trainer"}'),
        "'Trainer'",
    ),
    spoilt("words_beyond_the_embedding", tokenizer(more_words), "5000", "embeds 432"),
    spoilt(
        "template_is_broken", template("{% for m in messages %}"), "chat template", "tokenizer_config.json"
    ),
    spoilt("template_raises", template("{{ raise_exception('not today') }}"), "chat template", "not today"),
    spoilt("template_divides_by_zero", template("{{ 1 / 0 }}"), "chat template", "division by zero"),
    spoilt(
        "template_reaches_out", template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "chat template"
    ),
    spoilt(
        "template_opens_files",
        template("{{ cycler.__init__.__globals__.os.mkdir('canary') }}"),
        "chat template",
    ),
    spoilt("template_without_end", template("{% for i in range(10**9) %}{% endfor %}"), "chat template"),
    spoilt(
        "template_nests_without_end",
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "chat template",
        "s",
    ),
    spoilt("template_grows_without_end", template("{{ 'x' * 10**12 }}"), "chat template"),
    spoilt("template_is_a_number", template(7), "chat template"),  # type: ignore[arg-type]
)


@pytest.mark.parametrize(
    "mistake", (*CONFIG_ROWS, *WEIGHT_ROWS, *TOKENIZER_ROWS), ids=lambda mistake: mistake.name
)
def test_it_is_told_in_one_line_and_nothing_of_it_is_run(mistake, run, tmp_path):
    check(mistake, run, tmp_path)  # a canary would be a file that was not there
