"""Mistakes on the command line are told in one line that says how to mend them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax import command_line, other_names

ROOT = Path(__file__).resolve().parent.parent
TINY = "--config=configs/tiny.py"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def read(*arguments: str) -> dict:
    return command_line.read_config(arguments, program="grpo_jax.train")


def message(*arguments: str) -> str:
    with pytest.raises(ValueError) as error:
        read(*arguments)
    return str(error.value)


def config_file(folder: Path, *lines: str) -> str:
    """The argument that names a config file with these lines in its `get_config`."""
    path = folder / "mine.py"
    body = "".join(f"    {line}\n" for line in ("config = base.get_config()", *lines, "return config"))
    path.write_text(f"from configs import base\n\n\ndef get_config():\n{body}")
    return f"--config={path}"


def test_overrides_change_their_field_and_no_other():
    plain, changed = read(TINY), read(TINY, "--config.optimizer.learning_rate=5e-6", "--config.max_steps=3")
    assert changed["optimizer"]["learning_rate"] == 5e-6
    assert changed["max_steps"] == 3
    changed["max_steps"] = plain["max_steps"]
    changed["optimizer"]["learning_rate"] = plain["optimizer"]["learning_rate"]
    assert changed == plain


def test_a_config_of_ones_own_may_stand_anywhere(tmp_path):
    assert read(config_file(tmp_path, "config.grpo.beta = 0.5"))["grpo"]["beta"] == 0.5


def test_without_a_config_the_configs_there_are_are_named():
    told = message()
    assert "python -m grpo_jax.train --config FILE" in told
    for path in (ROOT / "configs").glob("*.py"):
        assert (f"configs/{path.name}" in told) == (path.stem not in ("__init__", "base"))


def test_a_config_that_is_not_there_is_told_with_those_that_are():
    told = message("--config=configs/tinny.py")
    assert "configs/tinny.py" in told
    assert "'configs/tiny.py'" in told


def test_an_unknown_field_is_refused_with_the_near_one():
    told = message(TINY, "--config.optimizer.learning_rat=1")
    assert told.startswith("the config has no field 'optimizer.learning_rat'; ")
    assert "--config.optimizer.learning_rate?" in told


def test_an_unknown_field_without_a_near_one_is_refused():
    assert (
        message(TINY, "--config.zzz.x=1")
        == "the config has no field 'zzz.x'; configs/base.py has every field"
    )


def test_an_unknown_field_in_a_config_file_is_refused_with_the_near_one(tmp_path):
    told = message(config_file(tmp_path, "config.grpo.num_iteration = 2"))
    assert "mine.py, line 6: the config has no field 'num_iteration'; " in told
    assert "'num_iterations'" in told


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_steps", "2.5"),
        ("max_steps", "many"),
        ("grpo.beta", "much"),
        ("telling.tensorboard", "maybe"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_field(field, value):
    told = message(TINY, f"--config.{field}={value}")
    assert f"--config.{field}={value}" in told


def test_a_wrong_type_in_a_config_file_is_refused(tmp_path):
    assert "max_steps" in message(config_file(tmp_path, "config.max_steps = 'many'"))


def test_a_whole_number_will_do_for_a_real_one():
    assert read(TINY, "--config.grpo.beta=1")["grpo"]["beta"] == 1.0


def test_what_is_no_override_is_refused():
    told = message(TINY, "max_steps=3")
    assert told.startswith("do not know what to do with 'max_steps=3': did you mean --config.max_steps?")
    assert "'--max_steps=3'" in message(TINY, "--max_steps=3")
    assert "config.data is a section" in message(TINY, "--config.data=3")


@pytest.mark.parametrize(
    ("argument", "ours"),
    [
        ("--config.learning_rate=1", "did you mean --config.optimizer.learning_rate?"),
        ("--learning_rate=1", "did you mean --config.optimizer.learning_rate?"),
        ("--config.grpo.use_vllm=True", "here that is nothing: the sampler is part of this program"),
        ("actor_rollout_ref.rollout.n=8", "here that is config.rollout.num_generations"),
        ("--config.gconfig.max_new_tokens=8", "here that is config.rollout.max_completion_length"),
        ("--config.grpo.num_train_epochs=3", "here that is config.max_steps"),
    ],
)
def test_another_trainers_name_is_answered_with_ours(argument, ours):
    assert ours in message(TINY, argument)


def test_every_name_of_ours_in_the_table_is_a_field():
    config, named = read(TINY), re.findall(r"config\.([\w.]+\w)", " ".join(other_names.OURS.values()))
    assert len(named) > 50
    for name in named:
        section, _, field = name.partition(".")
        assert section in config and (not field or field in config[section]), name


def test_no_field_of_ours_is_in_the_table():
    """It would never be found there: a field of the same name comes first."""
    config = read(TINY)
    fields = {name for section in config.values() if isinstance(section, dict) for name in section}
    assert set(other_names.OURS) & (fields - set(config["sft"])) == set()


def test_of_a_field_that_is_named_twice_the_last_value_counts():
    assert read(TINY, "--config.max_steps=3", "--config.max_steps", "4")["max_steps"] == 4


@pytest.mark.parametrize(
    "text", ["def get_config(:\n", "x = nothing\n", "def get_config():\n    return nothing\n"]
)
def test_a_config_file_that_cannot_be_run_is_told_in_one_line_with_its_line(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    told = message(f"--config={tmp_path / 'mine.py'}")
    assert re.match(r"the config file \S+mine\.py, line [12]: (Syntax|Name)Error: ", told)
    assert "\n" not in told and "Traceback" not in told


def test_the_usage_is_printed_on_demand(capsys):
    with pytest.raises(SystemExit) as stopped:
        read("--help")
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert "python -m grpo_jax.train --config FILE" in told
    assert "configs/tiny.py" in told


def run(*arguments: str, program: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", program] if "\n" in program else [sys.executable, "-m", program]
    return subprocess.run([*start, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


RAISING = """
import sys
from grpo_jax import command_line

def main(arguments):
    print(arguments)
    raise {error}

command_line.run_program(main)
"""


def test_the_program_ends_a_mistake_in_one_line_and_status_2():
    done = run(TINY, "--config.max_stepps=3", program="grpo_jax.train")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the config has no field 'max_stepps'; ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_rule_that_crosses_fields_is_told_before_anything_is_loaded(tmp_path):
    done = run(
        TINY,
        "--config.model.path=no/such/model",
        "--config.mesh.cpu_devices=2",
        "--config.rollout.num_prompts=3",
        "--config.rollout.num_generations=3",
        "--config.grpo.num_minibatches=2",
        f"--config.output_dir={tmp_path / 'run'}",
        program="grpo_jax.train",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: 3 prompts x 3 generations = 9 rows do not divide")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", ["ValueError('two\\n  lines')", "FileNotFoundError('two lines')"])
def test_an_error_that_a_user_can_mend_is_one_line(error):
    done = run("a", program=RAISING.format(error=error))
    assert (done.returncode, done.stderr, done.stdout) == (2, "error: two lines\n", "['a']\n")


def test_debug_shows_where_an_error_comes_from_and_is_not_handed_on():
    done = run("a", "--debug", "b", program=RAISING.format(error="ValueError('lost')"))
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: lost\n")
    assert done.stdout == "['a', 'b']\n"


def test_our_own_mistakes_are_not_dressed_up():
    done = run(program=RAISING.format(error="AssertionError('ours')"))
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


def test_a_reader_that_ends_early_ends_the_program_quietly():
    """As `... | head -1`."""
    program = RAISING.replace("    raise {error}", "    while True: print('more', flush=True)")
    done = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert done.stdout is not None and done.stderr is not None
    assert done.stdout.readline() == "[]\n"
    done.stdout.close()
    assert (done.wait(timeout=60), done.stderr.read()) == (command_line.NOBODY_READS, "")


def test_another_pipe_that_breaks_is_told():
    done = run("a", program=RAISING.format(error="BrokenPipeError('a worker is gone')"))
    assert (done.returncode, done.stderr) == (2, "error: a worker is gone\n")


def test_an_interrupt_says_how_to_go_on():
    done = run(program=RAISING.format(error="KeyboardInterrupt"))
    assert done.returncode == 130
    assert done.stderr == "stopped by SIGINT; the same command goes on or begins again\n"
