"""The picture of the README: held-out accuracy of the tiny run with three seeds, and of its control.

    python tools/curves.py --runs runs/curves --output docs/tiny_curves.svg

Runs what is not there yet (`configs/tiny.py` with seeds 0, 1, 2, then seed 0 with shuffled rewards) and draws
`eval/accuracy` from each `metrics.jsonl`. Prints a table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_jax import charts, command_line, told_files

CONTROL = "rewards shuffled"
RUNS = {
    "seed 0": ("--config.seed=0",),
    "seed 1": ("--config.seed=1",),
    "seed 2": ("--config.seed=2",),
    CONTROL: ("--config.seed=0", "--config.reward.shuffle_rewards=True"),
}


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, runs, draws."""
    options = parse(arguments)
    if not Path(options.output).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder for {options.output}; name another picture with --output."
        )
    series = {}
    for name, overrides in RUNS.items():
        folder = Path(options.runs) / name.replace(" ", "_")
        command = [sys.executable, "-m", "grpo_jax.train", "--config", options.config, *overrides]
        subprocess.run([*command, f"--config.output_dir={folder}"], check=True, stdout=subprocess.DEVNULL)
        series[name] = describe(name, folder)
    picture = charts.line_chart(
        series,
        title="Held-out accuracy, greedy, 500 problems",
        x_label="step",
        y_label="correct (%)",
        dashed=(CONTROL,),
    )
    Path(options.output).write_text(picture, encoding="utf-8")
    print(f"drawn in {options.output}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--runs", default="runs/curves", help="folder of the runs")
    parser.add_argument("--output", default="docs/tiny_curves.svg", help="the picture")
    parser.add_argument("--config", default="configs/tiny.py")
    return parser.parse_args(arguments)


def describe(name: str, folder: Path) -> list[tuple[float, float]]:
    """Accuracy by step of one run; prints its line of the table."""
    rows = list(told_files.read(folder / told_files.METRICS_FILE))
    points = [(row["step"], 100 * row["eval/accuracy"]) for row in rows if "eval/accuracy" in row]
    first = next(row["seconds"] for row in rows if "reward" in row)
    print(
        f"{name:>17}: {points[0][1]:.1f}% -> {points[-1][1]:.1f}% | first reward line {first:.0f} s | "
        f"last evaluation {rows[-1]['seconds']:.0f} s"
    )
    return points


if __name__ == "__main__":
    command_line.run_program(main)
