"""How fast this machine samples and trains, beside others that do the same work in the same run.

    python tools/bench.py rollout --shape qwen2.5-1.5b --prompts 8 --generations 8 --new-tokens 256
    python tools/bench.py rollout --model DIR --lengths skewed --against transformers,bare
    python tools/bench.py step --shape bench-tiny --new-tokens 64 --beta 0.001 --against trl
    python tools/bench.py judge --data gsm8k/test.jsonl

Sampling and training have random prompts, and nothing ends early: every completion has its planned length, on
all sides. After a warm-up the sides take turns; medians count. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is there

from grpo_jax import command_line, policy
from grpo_jax.models import decode_attention
from grpo_jax.models.shapes import SHAPES
from grpo_jax.sampling.weights import FORMS
from tools import bench_judge, bench_rollout, bench_step, peers

LEAST: dict[str, float] = dict.fromkeys(("temperature", "slots", "window", "cpu_devices", "seed", "beta"), 0)
LEAST |= dict.fromkeys(("prompts", "prompt_length", "new_tokens", "steps", "rounds", "runs"), 1)
LEAST |= dict.fromkeys(("generations", "tensor", "fsdp"), 1) | {"items": 1000}


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and runs the command."""
    options = parse(arguments)
    options.command(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises: ValueError for a mistake in the command line, ImportError for a peer that is not installed."""
    parser = command_line.Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_rollout(
        commands.add_parser("rollout", help="completions of prompts, as a training step samples them")
    )
    add_step(commands.add_parser("step", help="whole GRPO steps: sampling, rewards, one update"))
    add_judge(commands.add_parser("judge", help="completions graded, plain ones and behind hostile ones"))
    options = parser.parse_args(arguments)
    options.check(options)
    for name, value in vars(options).items():
        if name in LEAST and value < LEAST[name]:
            raise ValueError(f"--{name.replace('_', '-')} must be {LEAST[name]} or more; got {value}.")
    return options


def add_rollout(parser: argparse.ArgumentParser) -> None:
    model, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    model.add_argument("--model", default="", help="Hugging Face folder")
    model.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape")
    add_sizes(parser)
    add("--new-tokens", type=int, default=0, help="of a long completion; 0: 256, or 512 with skewed lengths")
    add("--lengths", choices=peers.LENGTHS, default="equal", help="skewed: three of four end near 32 tokens")
    add("--temperature", type=float, default=1.0, help="0: the likeliest token always")
    add("--against", default="", help=f"peers, of {','.join(bench_rollout.PEERS)}; the ratio is to the first")
    add("--runs", type=int, default=5, help="measured calls of each side")
    add("--slots", type=int, default=0, help="rows decoded at once; 0: what fits and helps")
    add("--no-refill", action="store_true", help="free slots stay empty until all rows have ended")
    add("--window", type=int, default=0, help="steps between two looks of the host; 0: chosen")
    add("--dtype", choices=("auto", *policy.COMPUTE_DTYPES), default="auto")
    add("--weights", choices=FORMS, default="compute", help="form of our sampling copy")
    add("--attention", choices=("auto", *decode_attention.ATTENTIONS), default="auto")
    add("--tensor", type=int, default=1, help="mesh: devices that share a row")
    add("--fsdp", type=int, default=1, help="mesh: devices that share the master weights")
    add("--cpu-devices", type=int, default=0, help="parts of the CPU; 0: one a core")
    add("--quiet-check", choices=("yes", "no"), default="yes", help="look for other programs' load")
    parser.set_defaults(command=bench_rollout.rollout, check=check_rollout)


def add_step(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), required=True, help="random weights of this shape")
    add_sizes(parser)
    add("--new-tokens", type=int, default=64, help="of every completion")
    add("--beta", type=float, default=0.001, help="weight of the KL; 0: no reference is computed")
    add("--against", default=bench_step.TRL, help=f"one of {', '.join(bench_step.PEERS)}")
    add("--steps", type=int, default=5, help="measured in each process, after its warm-up")
    add("--rounds", type=int, default=2, help="processes of each side")
    add(
        "--trl-batch",
        default="8,16,64",
        help="TRL's per_device_train_batch_size; of several, its fastest is found first",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="a field of our config, such as grpo.per_device_train_batch_size=16; may be repeated",
    )
    parser.set_defaults(command=bench_step.step, check=bench_step.check)


def add_judge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", default="", help="GSM8K's JSON lines, whose rationales are graded; without: made-up sums")
    add("--items", type=int, default=2000, help="completions of a run, 1000 or more")
    add("--runs", type=int, default=5, help="measured runs of each side")
    parser.set_defaults(command=bench_judge.judge, check=check_judge)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompts", type=int, default=8, help="a call or step")
    add("--generations", type=int, default=8, help="completions a prompt")
    add("--prompt-length", type=int, default=32, help="tokens of every prompt")
    add("--seed", type=int, default=0, help="of weights, prompts, lengths and tokens")


def check_judge(options: argparse.Namespace) -> None:
    """Raises: ValueError, FileNotFoundError for what cannot be read."""
    if options.data and not Path(options.data).is_file():
        raise FileNotFoundError(f"there is no file {options.data!r}; --data wants GSM8K's JSON lines.")


def check_rollout(options: argparse.Namespace) -> None:
    """Reads the peers. Raises: ValueError for one that is not known, ImportError for one that is not installed."""
    options.new_tokens = options.new_tokens or (512 if options.lengths == "skewed" else 256)
    options.against = [name for name in options.against.split(",") if name]
    known = bench_rollout.PEERS
    if not set(options.against) <= set(known):
        raise ValueError(f"--against takes any of {', '.join(known)}; got {', '.join(options.against)}.")
    if "transformers" in options.against and not importlib.util.find_spec("torch"):
        raise ImportError("--against transformers needs torch: pip install torch, or leave it out.")


if __name__ == "__main__":
    command_line.run_program(main)
