"""The tokenizer is loaded as what its folder says, keeps text as it is, and is exported unchanged."""

from __future__ import annotations

import json
import random
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grpo_jax import end_ids, text, tiny_tokenizer
from grpo_jax.data import word_problems

HARD_TEXT = "He\u2019s got\t 1,234.5 é 漢字 😀  \n\n <think>\nx_1 = \\frac{1}{2}\n</think>  "


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer inside a model folder that says it is a Qwen2."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_tokenizer.save_tiny_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path):
    return text.load_tokenizer(tiny_folder)


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def real_folder(request: pytest.FixtureRequest, data_folder: Path) -> Path:
    return data_folder / "tokenizers" / request.param


def altered(folder: Path, target: Path, **changes: object) -> Path:
    """A copy of a tokenizer folder with other entries in its tokenizer_config.json."""
    shutil.copytree(folder, target)
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_any_text_comes_back_from_the_tiny_tokenizer(tiny):
    rng = random.Random(0)
    texts = ["".join(rng.choices(string.printable, k=80)) for _ in range(500)]
    text.check_round_trip(tiny, [*texts, HARD_TEXT, string.printable])


def test_every_loader_of_transformers_reads_the_tiny_folder_alike(tiny_folder, tiny):
    import transformers

    texts = [row["question"] for row in word_problems.problems("train", num=200)]
    texts += [row["completion"] for row in word_problems.demonstrations(200)]
    expected = text.encode(tiny, [*texts, HARD_TEXT])
    for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        other = loader.from_pretrained(tiny_folder)
        assert text.encode(other, [*texts, HARD_TEXT]) == expected
        assert other.eos_token_id == tiny.eos_token_id
        assert text.render_chats(other, CHAT) == text.render_chats(tiny, CHAT)


CHAT = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]]


def test_the_tiny_chat_template_is_the_one_of_qwen_in_short(tiny):
    assert text.render_chats(tiny, CHAT) == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    ]


def test_words_digits_and_tags_of_the_task_are_single_tokens(tiny):
    pieces = ["Tom", " has", " ", "4", "7", " apples", ".", " He", " gives", " away", " ", "1", "8"]
    (ids,) = text.encode(tiny, ["".join(pieces)])
    assert [tiny.decode([index]) for index in ids] == pieces
    for tag in tiny_tokenizer.TAGS:
        assert len(text.encode(tiny, [tag])[0]) == 1


def test_lengths_of_the_embedded_task_stay_small(tiny):
    questions = [row["question"] for row in word_problems.problems("train", num=2_000)]
    prompts = text.render_chats(tiny, [[{"role": "user", "content": q}] for q in questions])
    careful = [r["completion"] for r in word_problems.demonstrations(2_000, mixture={"careful": 1})]
    assert max(map(len, text.encode(tiny, prompts))) <= 40
    assert max(map(len, text.encode(tiny, careful))) <= 58


def test_building_the_tiny_tokenizer_twice_writes_the_same_bytes(tiny_folder, tmp_path):
    tiny_tokenizer.save_tiny_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (tiny_folder / name).read_bytes()


def test_completions_lose_special_tokens_and_keep_their_tags(tiny):
    answer = "<think>\n1+2\n</think>\n<answer>\n3\n</answer>"
    (ids,) = text.encode(tiny, [answer + "<|im_end|>"])
    assert ids[-1] == tiny.eos_token_id
    arrays = [np.asarray(ids, np.int32), np.asarray(ids[:3], np.int32)]
    assert text.decode_completions(tiny, arrays) == [answer, "<think>\n1"]
    assert text.decode_completions(tiny, []) == []


def test_a_pre_tokenizer_that_the_class_would_replace_is_noticed(tiny_folder, tmp_path):
    """Qwen2Tokenizer builds its own pre-tokenizer; a vocabulary made for another one loses text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: index for index, letter in enumerate(string.printable)}
    letters |= {word: 100 + index for index, word in enumerate(("<|im_start|>", "<|im_end|>"))}
    letters["<|endoftext|>"] = 102
    own = Tokenizer(models.BPE(vocab=letters, merges=[]))
    own.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    own.decoder = decoders.Fuse()
    folder = altered(tiny_folder, tmp_path / "own", tokenizer_class="PreTrainedTokenizerFast")
    own.save(str(folder / "tokenizer.json"))
    assert text.encode(text.load_tokenizer(folder), ["a b"]) == [[letters[c] for c in "a b"]]
    wrong = altered(folder, tmp_path / "wrong", tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(ValueError, match=r"changes text.*Qwen2Tokenizer.*tokenizer_class"):
        text.load_tokenizer(wrong)


def test_a_class_that_transformers_lacks_is_refused(tiny_folder, tmp_path):
    for name in ("NoSuchTokenizer", "pipeline", "AutoModel"):
        folder = altered(tiny_folder, tmp_path / name, tokenizer_class=name)
        with pytest.raises(ValueError, match=name):
            text.load_tokenizer(folder)


def test_code_beside_a_tokenizer_is_not_run(tiny_folder, tmp_path):
    auto_map = {"AutoTokenizer": [None, "harm.Harm"]}
    folder = altered(tiny_folder, tmp_path / "harm", auto_map=auto_map)
    (folder / "harm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Harm: pass\n")
    assert len(text.load_tokenizer(folder)) > 256
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_tokenizer_and_an_unknown_name_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        text.load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no-such/tokenizer"):
        text.load_tokenizer("no-such/tokenizer")


def test_a_tokenizer_without_a_chat_template_is_named(tiny_folder, tmp_path):
    folder = altered(tiny_folder, tmp_path / "bare", chat_template=None)
    bare = text.load_tokenizer(folder)
    with pytest.raises(ValueError, match="no chat template"):
        text.render_chats(bare, CHAT)


def test_a_template_that_refuses_a_role_says_what_to_do(tiny_folder, tmp_path):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    refusing = text.load_tokenizer(altered(tiny_folder, tmp_path / "refusing", chat_template=template))
    with pytest.raises(ValueError, match=r"no system role.*config\.data\.prompt_template"):
        text.render_chats(refusing, CHAT)


def test_all_end_ids_are_found_once_and_in_order(tiny):
    own = tiny.eos_token_id
    assert end_ids.find(tiny, {"eos_token_id": [7, 9]}, {"eos_token_id": 5}) == (7, 9, own)
    assert end_ids.find(tiny, {"eos_token_id": own}, {}) == (own,)
    assert end_ids.find(tiny, {}, {"eos_token_id": 5}) == (5, own)
    assert end_ids.find(tiny, {}, {}) == (own,)
    with pytest.raises(ValueError, match="eos_token_id"):
        end_ids.find(tiny, {"eos_token_id": ["<|im_end|>"]}, {})


def test_what_a_template_puts_behind_an_answer_ends_a_completion(tiny_folder, tmp_path):
    template = text.load_tokenizer(tiny_folder).chat_template
    base = text.load_tokenizer(altered(tiny_folder, tmp_path / "base", eos_token="<|endoftext|>"))
    own, turn = base.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert end_ids.find(base, {"eos_token_id": own}, {}) == (own, turn)
    for other in ("{{ messages[0].content }}", "{{ 1 / 0 }}", template.replace("<|im_end|>", " over"), None):
        base.chat_template = other
        assert end_ids.find(base, {"eos_token_id": own}, {}) == (own,)


def test_export_copies_the_files_bit_for_bit(tiny_folder, tmp_path):
    (tiny_folder / "model.safetensors").write_bytes(b"not for here")
    names = text.save_tokenizer(tiny_folder, tmp_path / "final")
    assert names == ["tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / "final" / name).read_bytes() == (tiny_folder / name).read_bytes()
    assert text.save_tokenizer(tmp_path / "final", tmp_path / "final") == names


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys; from grpo_jax import data, text; "
        "print({'transformers', 'datasets', 'grain', 'jax'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_loading_prints_nothing_about_pytorch(tiny_folder):
    code = (
        "import sys; sys.modules['torch'] = None; from grpo_jax import end_ids, text; "
        f"text.load_tokenizer({str(tiny_folder)!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


def test_real_qwen_tokenizers_keep_text_and_give_the_ids_of_their_files(real_folder):
    from tokenizers import Tokenizer

    loaded = text.load_tokenizer(real_folder)
    text.check_round_trip(loaded, [HARD_TEXT, string.printable])
    raw = Tokenizer.from_file(str(real_folder / "tokenizer.json"))
    texts = [HARD_TEXT, *(row["question"] for row in word_problems.problems("test", num=50))]
    assert text.encode(loaded, texts) == [raw.encode(item, add_special_tokens=False).ids for item in texts]
    generation_config = {"eos_token_id": [151645, 151643]}
    assert end_ids.find(loaded, generation_config, {}) == (151645, 151643)
    (prompt,) = text.render_chats(loaded, CHAT)
    assert prompt.endswith("<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n")
