"""A step of a run computed again from the checkpoint before it, and compared with what the run told.

    python tools/replay.py --run RUN --step N [--output STEP.jsonl] [--after CHECKPOINT]

Prints a table of digests: samples, rewards, gradient and parameters of each step from the newest checkpoint
before N up to N, as the run told them and as they are now. Nothing is written into RUN, which may be running.
`--output` writes what step N was made of: prompts, completions, rewards, advantages, log-probabilities of sampler
and trainer.

Exit status: 0 all that was told is the same, 5 something differs (what first, and what may be the cause, is
said), 2 a mistake, in one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_jax import command_line, endings
from grpo_jax.replaying import replay

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # packages that tasks and rewards name


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, replays, prints."""
    options = parse(arguments)
    result = replay.replay(
        Path(options.run),
        options.step,
        after=options.after,
        output=Path(options.output) if options.output else None,
    )
    print("\n".join(replay.describe(result)), flush=True)
    if options.output:
        print(f"what step {options.step} was made of is in {options.output}", flush=True)
    if result.first_difference:
        command_line.leave(endings.REPLAY_DIFFERS)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--run", required=True, help="the run's folder")
    parser.add_argument("--step", required=True, type=int, help="the step to compute again, 1 or more")
    parser.add_argument("--output", default="", help="new .jsonl file for what the step was made of")
    parser.add_argument(
        "--after", default=-1, type=int, help="begin with this checkpoint, 0: the beginning; -1: the newest"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command_line.run_program(main)
