"""What each way of teaching gives on a task: base, SFT, GRPO, SFT then GRPO, over several seeds.

    python tools/stages.py --config configs/tiny.py --seeds 0,1,2 --output runs/stages

Every stage is a run of its own with the same config (`--config.section.field=value` goes to all of them), so a
killed one goes on where it stopped, and a finished one is not run again. Writes `stages.md` and `stages.json`:
means over seeds with their standard errors. The base is GRPO's evaluation before its first step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax import command_line, report, run_folder, settings, sft_run, told_files
from grpo_jax.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # configs are found beside tools/

TRAIN, SFT = "grpo_jax.train", "grpo_jax.sft"
STAGES = {"base": "base", "sft": "SFT", "grpo": "GRPO", "sft_grpo": "SFT then GRPO"}
"""Name in files -> in the table, in its order."""
COLUMNS = {"accuracy": 100.0, "format_rate": 100.0, "mean_length": 1.0, "seconds": 1.0}
"""Measured value -> what it is multiplied by in the table."""
OURS = ("seed", "output_dir", "sft.output_dir")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of one seed."""

    program: str  # TRAIN or SFT
    folder: Path
    arguments: list[str]

    @property
    def config(self) -> dict[str, Any]:
        return command_line.read_config(self.arguments, program="tools.stages")


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, runs what is not there yet, writes the table after each seed."""
    options, rest = parse(arguments)
    s = settings.read(command_line.read_config(["--config", options.config, *rest], program="tools.stages"))
    if not s.evaluation.task and not s.evaluation.dataset:
        raise ValueError(
            "the config evaluates nothing; set config.evaluation.task, so that stages can be compared."
        )
    output, found = Path(options.output), {}
    for seed in options.seeds:
        stages = stages_of(seed, output, ["--config", options.config, *rest])
        for name, stage in stages.items():
            finish(stage, f"seed {seed}, {STAGES[name]}")
        found[seed] = measured(stages)
        write(output, found, caption(s, stages["sft"].folder))


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this tool, and overrides of the config."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--config", required=True, help="the config of every stage")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--output", default="runs/stages", help="folder of the runs and the table")
    options, rest = parser.parse_known_args(arguments)
    if not re.fullmatch(r"\d+(,\d+)*", options.seeds):
        raise ValueError(f"--seeds must be numbers such as 0,1,2; got {options.seeds!r}.")
    options.seeds = list(dict.fromkeys(map(int, options.seeds.split(","))))
    taken = [word for word in rest if re.split("[= ]", word)[0] in [f"--config.{name}" for name in OURS]]
    if taken:
        raise ValueError(f"{taken[0]} is set by this tool for each run; use --seeds and --output.")
    return options, rest


def stages_of(seed: int, output: Path, config: list[str]) -> dict[str, Stage]:
    """The runs of a seed, in the order in which they need each other."""
    folder = output / f"seed_{seed}"
    places = {name: folder / name for name in ("grpo", "sft", "sft_grpo")}

    def arguments(place: Path, *more: str) -> list[str]:
        return [
            *config,
            f"--config.seed={seed}",
            f"--config.output_dir={place}",
            f"--config.sft.output_dir={places['sft']}",
            *more,
        ]

    learnt = f"--config.model.path={places['sft'] / 'final'}"
    return {
        "grpo": Stage(TRAIN, places["grpo"], arguments(places["grpo"])),
        "sft": Stage(SFT, places["sft"], arguments(places["sft"])),
        "sft_grpo": Stage(TRAIN, places["sft_grpo"], arguments(places["sft_grpo"], learnt)),
    }


def finish(stage: Stage, told: str) -> None:
    """Runs a stage unless it is done.

    Raises: ValueError if the folder holds another run; RuntimeError, with its last line, if it fails.
    """
    log = stage.folder.with_suffix(".log")
    if is_finished(stage):
        print(f"{told}: done before, in {stage.folder}", flush=True)
        return
    print(f"{told}: running, told in {log}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as lines:
        command = [sys.executable, "-m", stage.program, *stage.arguments]
        status = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT).returncode
    if status:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{told} ended with status {status}: {' '.join(last)} (all of it: {log})")


def is_finished(stage: Stage) -> bool:
    """Whether this very run has been through: its config, its last evaluation, its model."""
    config = stage.config
    s = settings.read(config)
    is_sft = stage.program == SFT
    free = sft_run.may_change(s) if is_sft else None
    run_folder.check_folder(stage.folder, config, free=free, supervised=is_sft)
    if not (stage.folder / "final" / "config.json").is_file():
        return False
    last = (
        json.loads((stage.folder / run_folder.SUPERVISED_FILE).read_text())["updates"]
        if is_sft
        else s.max_steps
    )
    return any(row["step"] >= last and is_evaluation(row) for row in rows_of(stage.folder))


def measured(stages: Mapping[str, Stage]) -> dict[str, dict[str, dict[str, float]]]:
    """Stage -> held-out task ("" for all) -> value by name of COLUMNS."""
    looks = {
        name: [row for row in rows_of(stage.folder) if is_evaluation(row)] for name, stage in stages.items()
    }
    seconds = {name: report.total_seconds(list(rows_of(stage.folder))) for name, stage in stages.items()}
    rows = {
        "base": (looks["grpo"][0], None),
        "sft": (looks["sft"][-1], seconds["sft"]),
        "grpo": (looks["grpo"][-1], seconds["grpo"]),
        "sft_grpo": (looks["sft_grpo"][-1], seconds["sft"] + seconds["sft_grpo"]),
    }
    assert looks["grpo"][0]["step"] == 0, looks["grpo"][0]
    return {name: values_of(row, took) for name, (row, took) in rows.items()}


def values_of(row: Mapping[str, Any], seconds: float | None) -> dict[str, dict[str, float]]:
    """What one evaluation says of each held-out task."""
    found = {}
    for name in row:
        if match := re.fullmatch(r"eval/(?:(.+)/)?accuracy", name):
            before = name.removesuffix("accuracy")
            values = {column: row.get(f"{before}{column}") for column in COLUMNS} | {"seconds": seconds}
            found[match[1] or ""] = {key: value for key, value in values.items() if value is not None}
    return found


def is_evaluation(row: Mapping[str, Any]) -> bool:
    return any(re.fullmatch(r"eval/(.+/)?accuracy", name) for name in row)


def rows_of(folder: Path) -> Iterable[dict[str, Any]]:
    return told_files.read(folder / told_files.METRICS_FILE)


def caption(s: Settings, sft_folder: Path) -> str:
    """How much each stage learns from, so that the table can be judged."""
    updates = json.loads((sft_folder / run_folder.SUPERVISED_FILE).read_text())["updates"]
    prompts, generations = s.rollout.num_prompts, s.rollout.num_generations
    problems, answers = s.max_steps * prompts, updates * s.sft.num_rows
    looked = s.evaluation
    how = "greedy" if looked.temperature == 0 else f"temperature {looked.temperature:g}"
    return (
        f"GRPO: {s.max_steps} steps of {prompts} problems x {generations} completions, {problems:,} problems and "
        f"{problems * generations:,} completions, rate {s.optimizer.learning_rate:g}. SFT: {updates} updates of "
        f"{s.sft.num_rows}, {answers:,} worked answers, rate {s.sft.learning_rate:g}. SFT is shown how each "
        f"problem is worked, GRPO only its answer. Held-out problems, {how}; "
        "means over seeds with the standard error of the mean; seconds are whole programs, start and evaluations "
        "included."
    )


def summarised(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error where there are two or more values."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.fmean(values), error


def table(found: Mapping[int, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> list[dict[str, Any]]:
    """A row a held-out task and stage: for each column the mean, its standard error, and the seeds' values."""
    tasks = next(iter(found.values()))["base"]
    made = []
    for task in tasks:
        for stage in STAGES:
            row: dict[str, Any] = {"task": task, "stage": stage}
            for column in COLUMNS:
                values = [
                    by_stage[stage][task][column]
                    for by_stage in found.values()
                    if column in by_stage[stage][task]
                ]
                if values:
                    mean, error = summarised(values)
                    row[column] = {"mean": mean, "stderr": error, "seeds": values}
            made.append(row)
    return made


def write(output: Path, found: Mapping[int, Any], told: str) -> None:
    """The table as JSON and as Markdown; the latter is printed too."""
    rows = table(found)
    record = {"caption": told, "seeds": list(found), "rows": rows}
    (output / "stages.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    text = f"{markdown(rows)}\n\n{len(found)} seed{'s' * (len(found) > 1)}. {told}\n"
    (output / "stages.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {output}", flush=True)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    named = any(row["task"] for row in rows)  # a suite has several
    heads = [*(["task"] if named else []), "stage", "correct (%)", "well formed (%)", "tokens", "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = [row["task"] or "mean"] if named else []
        cells += [STAGES[row["stage"]], *(cell(row.get(column), by) for column, by in COLUMNS.items())]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(value: Mapping[str, Any] | None, by: float) -> str:
    if value is None:
        return "-"
    error = "" if value["stderr"] is None else f" ± {by * value['stderr']:.1f}"
    return f"{by * value['mean']:.1f}{error}"


if __name__ == "__main__":
    command_line.run_program(main)
