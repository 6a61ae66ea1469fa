"""Output folders that are not this run's: refused before anything in them is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import command_line
from tests.mistakes.harness import ROOT, Mistake, check, ours

SFT = "tools/sft.py"


def begin(own: Path, *, supervised: bool = False) -> Path:
    """A run folder as it is after a step of the tiny run, without checkpoints."""
    run = own / "run"
    run.mkdir()
    arguments = [text.replace("{folder}", str(own)) for text in ours()]
    arguments[0] = f"--config={ROOT / 'configs/tiny.py'}"
    config = command_line.read_config(arguments, program=SFT if supervised else "grpo_jax.train")
    (run / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "seconds": 9.5, "reward": 0.25}\n')
    if supervised:
        (run / "sft.json").write_text('{"digest": "0123"}\n')
    return run


def other(
    name: str,
    spoil: Callable[[Path], object],
    *words: str,
    overrides: Sequence[str] = (),
    program: str = "grpo_jax.train",
    supervised: bool = False,
) -> Mistake:
    """The tiny run in a folder where one has begun, which `spoil` has changed."""

    def prepare(own: Path) -> Sequence[str]:
        spoil(begin(own, supervised=supervised))
        out = (f"sft.output_dir={own}/run",) if program == SFT else ()
        return ours(*out, *overrides)

    return Mistake(name, prepare, words, program=program)


def nothing(run: Path) -> None: ...


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda run: (run / name).write_bytes(data)


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(run: Path) -> None:
        content = json.loads((run / "config.json").read_text())
        change(content)
        (run / "config.json").write_text(json.dumps(content))

    return write


def foreign(run: Path) -> None:
    for path in run.iterdir():
        path.unlink()
    (run / "thesis.tex").write_text("years of work")


def a_file(run: Path) -> None:
    foreign(run)
    (run / "thesis.tex").unlink()
    run.rmdir()
    run.write_text("a file")


def dangling(run: Path) -> None:
    a_file(run)
    run.unlink()
    os.symlink("nowhere/at/all", run)


ROWS = (
    other(
        "another_seed",
        nothing,
        "another config",
        "seed was 0, is 1",
        "config.output_dir",
        overrides=("seed=1",),
    ),
    other(
        "another_rate",
        nothing,
        "optimizer.learning_rate was 3e-05, is 0.001",
        overrides=("optimizer.learning_rate=1e-3",),
    ),
    other(
        "another_model_by_name",
        config(lambda c: c["model"].update(path="else/where")),
        "model.path was 'else/where'",
    ),
    other("a_grpo_run_for_sft", nothing, "holds a GRPO run", "config.sft.output_dir", program=SFT),
    other("an_sft_run_for_grpo", nothing, "holds a supervised run", "config.output_dir", supervised=True),
    other("foreign_files", foreign, "it is no run's folder", "config.output_dir"),
    other("foreign_files_for_sft", foreign, "it is no run's folder", "config.sft.output_dir", program=SFT),
    other("a_file_in_its_place", a_file, "run", "config.output_dir"),
    other("a_link_to_nowhere", dangling, "run", "config.output_dir"),
    other(
        "config_is_cut",
        text("config.json", '{"seed": 0, "mod'),
        "config.json is no JSON",
        "config.output_dir",
    ),
    other("config_is_a_list", text("config.json", "[]"), "config.json holds a list"),
    other("config_is_empty", text("config.json", ""), "config.json is no JSON"),
    other("config_is_binary", text("config.json", bytes(range(256))), "config.json is no JSON"),
    other(
        "config_of_an_older_version",
        config(lambda c: c["grpo"].pop("delta")),
        "another config",
        "grpo.delta was None, is 0.0",
    ),
    other(
        "config_of_a_newer_version", config(lambda c: c["grpo"].update(magic=3)), "grpo.magic was 3, is None"
    ),
    other("config_section_is_a_number", config(lambda c: c.update(grpo=3)), "another config", "grpo"),
    other("checkpoints_is_a_file", text("checkpoints", "a file"), "checkpoints"),
    other(
        "metrics_is_a_folder",
        lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()),
        "metrics.jsonl",
    ),
)


@pytest.mark.parametrize("mistake", ROWS, ids=lambda mistake: mistake.name)
def test_it_is_told_in_one_line_and_the_folder_stays_as_it_is(mistake, run, tmp_path):
    check(mistake, run, tmp_path)
