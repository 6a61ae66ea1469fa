"""Mistakes in what is typed: arguments, overrides, the config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mistakes.harness import Mistake, Prepare, check, ours

TINY = "--config=configs/tiny.py"
FROM_BASE = "from configs import base\n\n\ndef get_config():\n    config = base.get_config()\n    {line}\n    return config\n"


def config_file(text: str) -> Prepare:
    """A config file of the user's own."""

    def prepare(folder: Path) -> tuple[str, ...]:
        (folder / "mine.py").write_text(text)
        return (f"--config={folder}/mine.py", f"--config.output_dir={folder}/run")

    return prepare


def with_line(line: str) -> Prepare:
    return config_file(FROM_BASE.format(line=line))


def binary_file(folder: Path) -> tuple[str, ...]:
    (folder / "mine.py").write_bytes(b"\xff\xfe\x00\x01")
    return (f"--config={folder}/mine.py",)


FILES = (
    Mistake("no_config", (), ("name a config", "--config FILE", "configs/tiny.py")),
    Mistake("config_without_a_file", ("--config",), ("name a config", "--config FILE")),
    Mistake("config_empty", ("--config=",), ("name a config", "--config FILE")),
    Mistake(
        "config_missing",
        ("--config=configs/tinny.py",),
        ("'configs/tinny.py' is not there", "'configs/tiny.py'"),
    ),
    Mistake("config_is_a_folder", ("--config=configs",), ("'configs' is a folder",)),
    Mistake(
        "config_is_json", ("--config=configs/tiny_qwen/config.json",), ("config.json", "must end in .py")
    ),
    Mistake(
        "config_twice", (TINY, "--config=configs/other.py"), ("--config names 2 files", "configs/other.py")
    ),
    Mistake(
        "config_with_a_variant", ("--config=configs/tiny.py:debug",), ("configs/tiny.py", "variant 'debug'")
    ),
    Mistake("config_is_binary", binary_file, ("mine.py", "null bytes")),
    Mistake(
        "syntax_error", config_file("def get_config():\n    return [\n"), ("mine.py, line 2: SyntaxError",)
    ),
    Mistake("config_raises", with_line("config.seed = 1 // 0"), ("mine.py, line 6: ZeroDivisionError",)),
    Mistake(
        "config_exits", with_line("raise SystemExit('enough')"), ("mine.py, line 6: SystemExit: enough",)
    ),
    Mistake("config_imports_nothing", config_file("import nowhere\n"), ("mine.py, line 1", "'nowhere'")),
    Mistake("no_get_config", config_file("config = 1\n"), ("mine.py", "no function get_config()")),
    Mistake(
        "returns_none",
        config_file("def get_config():\n    pass\n"),
        ("get_config() returned NoneType", "return config"),
    ),
    Mistake("returns_a_dict", config_file("def get_config():\n    return {'seed': 1}\n"), ("returned dict",)),
    Mistake(
        "begins_from_nothing",
        config_file(
            "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'seed': 1})\n"
        ),
        ("has no output_dir", "config = base.get_config()"),
    ),
    Mistake(
        "file_misspells",
        with_line("config.grpo.num_iteration = 2"),
        ("mine.py, line 6", "'num_iteration'", "'num_iterations'"),
    ),
    Mistake(
        "file_gives_text_for_a_number",
        with_line("config.max_steps = 'many'"),
        ("mine.py, line 6", "max_steps"),
    ),
    Mistake(
        "file_adds_a_field",
        with_line("config.unlock(); config.grpo.bta = 0.1"),
        ("config.grpo has no field 'bta'",),
    ),
    Mistake(
        "file_adds_a_section", with_line("config.unlock(); config.vllm = 1"), ("config has no field 'vllm'",)
    ),
    Mistake(
        "file_takes_a_section_out",
        with_line("config.unlock(); del config.telling"),
        ("config lacks the field 'telling'",),
    ),
    Mistake(
        "file_replaces_a_section",
        with_line("config.unlock(); config.grpo = 3"),
        ("mine.py, line 6", "'grpo'"),
    ),
)

OVERRIDES = (
    Mistake("misspelt_section", ours("grop.beta=1"), ("no field 'grop.beta'", "--config.grpo.beta?")),
    Mistake(
        "misspelt_field",
        ours("grpo.num_iteration=2"),
        ("'grpo.num_iteration'", "--config.grpo.num_iterations?"),
    ),
    Mistake("misspelt_at_the_top", ours("max_step=2"), ("'max_step'", "--config.max_steps?")),
    Mistake("nothing_is_near", ours("zzz.x=2"), ("no field 'zzz.x'", "configs/base.py")),
    Mistake("wrong_section", ours("grpo.learning_rate=1e-6"), ("--config.optimizer.learning_rate?",)),
    Mistake("field_of_a_field", ours("grpo.beta.x=3"), ("'grpo.beta.x'", "config.grpo.beta is a number")),
    Mistake("section_as_a_field", ours("grpo=3"), ("config.grpo is a section", "'loss_type'")),
    Mistake("text_for_a_number", ours("max_steps=many"), ("--config.max_steps=many", "a whole number", "20")),
    Mistake("part_of_a_whole_number", ours("max_steps=2.5"), ("--config.max_steps=2.5", "a whole number")),
    Mistake(
        "exponent_for_a_whole_number", ours("max_steps=1e3"), ("--config.max_steps=1e3", "a whole number")
    ),
    Mistake("a_comma_too_many", ours("optimizer.learning_rate=1e-6,"), ("learning_rate=1e-6,", "a number")),
    Mistake(
        "text_for_a_truth_value", ours("telling.tensorboard=maybe"), ("tensorboard=maybe", "True or False")
    ),
    Mistake(
        "no_value", (TINY, "--config.max_steps"), ("--config.max_steps has no value", "--config.max_steps=20")
    ),
    Mistake("empty_value", ours("max_steps="), ("--config.max_steps=", "a whole number")),
    Mistake(
        "words_in_a_tuple_of_ids",
        ours("rollout.banned_ids=(3,'x')"),
        ("config.rollout.banned_ids", "whole numbers", "(3, 7)"),
    ),
    Mistake(
        "numbers_in_a_tuple_of_texts",
        ours("rollout.stop_strings=(3,)"),
        ("config.rollout.stop_strings", "texts"),
    ),
    Mistake("unknown_flag", (TINY, "--fast"), ("'--fast'", "--config.max_steps=10")),
    Mistake(
        "left_out_config", (TINY, "--max_steps=3"), ("'--max_steps=3'", "did you mean --config.max_steps?")
    ),
    Mistake("left_out_dashes", (TINY, "max_steps=3"), ("'max_steps=3'", "did you mean --config.max_steps?")),
    Mistake("only_a_file", ("configs/tiny.py",), ("name a config", "--config FILE")),
    Mistake("name_of_trl", ours("grpo.use_vllm=True"), ("'grpo.use_vllm'", "part of this program")),
    Mistake(
        "flag_of_trl", (TINY, "--model_name_or_path", "x"), ("--model_name_or_path", "config.model.path")
    ),
    Mistake("name_of_verl", (TINY, "actor_rollout_ref.rollout.n=8"), ("config.rollout.num_generations",)),
    Mistake("name_of_areal", ours("gconfig.max_new_tokens=8"), ("config.rollout.max_completion_length",)),
)


@pytest.mark.parametrize("mistake", (*FILES, *OVERRIDES), ids=lambda mistake: mistake.name)
def test_it_is_told_in_one_line(mistake, run, tmp_path):
    check(mistake, run, tmp_path)


def test_with_debug_the_same_mistake_shows_its_traceback_and_ends_alike(run, tmp_path):
    arguments = ["--config=configs/tiny.py", "--debug", "--config.grpo.num_iteration=2"]
    ended = run("grpo_jax.train", arguments, folder=tmp_path, limit_s=15)
    lines = ended.stderr.splitlines()
    assert ended.status == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("ValueError: the config has no field 'grpo.num_iteration'")
