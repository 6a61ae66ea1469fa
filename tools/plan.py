"""What a config takes of devices that are not there, and how fast they could be: before anything is rented.

    python tools/plan.py --config configs/gsm8k_qwen2p5_7b_tpu.py --topology v6e:4x4
    python tools/plan.py --config configs/gsm8k_qwen2p5_0p5b.py --chip h100 --devices 8 --config.mesh.preset=zero2
    python tools/plan.py --markdown      # tables of all that docs/benchmarks.md shows

Compiles the programs of a run, without weights: for a TPU slice with the TPU's compiler (needs libtpu), for other
chips with the one for CPUs, whose bytes are then only about right. Ends with status 1 where it does not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from grpo_jax import command_line
from grpo_jax.planning import case, report
from grpo_jax.sampling.plan import NoRoom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # configs are found beside tools/


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, plans, prints; the last line is JSON."""
    options, rest = parse(arguments)
    use_no_accelerator(options.devices)
    jobs = [(options.topology, rest)]
    if options.markdown and not rest:
        jobs = [(topology, ["--config", config, *more]) for config, topology, more in case.SHIPPED]
    results = []
    for topology, config_arguments in jobs:
        config = command_line.read_config(config_arguments, program="tools.plan")
        planned = case.make(
            config, shape=options.shape, topology=topology, num_devices=options.devices, chip=options.chip
        )
        try:
            results.append(report.make(planned, lambda line: print(line, file=sys.stderr, flush=True)))
        except NoRoom as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            command_line.leave(1)
    print(report.markdown(results) if options.markdown else "\n".join(map(report.describe, results)))
    print(json.dumps(results if options.markdown else results[0]))
    misfits = [report.misfit(result) for result in results if not result["fits"]]
    if misfits:
        print("error: " + " ".join(misfits), file=sys.stderr, flush=True)
        command_line.leave(1)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the plan, and what is the config's."""
    parser = command_line.Parser(description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--topology", default="", help="TPU slice: v5e:4x4, v6e:8x8, v5p:2x2x2, ...")
    where.add_argument("--devices", type=int, default=0, help="so many of --chip")
    parser.add_argument("--chip", default="h100", help="a name in grpo_jax/chips.py")
    parser.add_argument("--shape", default="", help="sizes of a model instead of config.model.path's")
    parser.add_argument(
        "--markdown", action="store_true", help="tables; without --config of the shipped plans"
    )
    options, rest = parser.parse_known_args(arguments)
    if not (options.topology or options.devices > 0 or (options.markdown and not rest)):
        raise ValueError("say for which devices: --topology v5e:4x4, or --devices 8 --chip h100.")
    return options, rest


def use_no_accelerator(num_devices: int) -> None:
    """Plans need no device: keeps JAX from looking for one, and libtpu from asking where it runs."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(num_devices, 1))


if __name__ == "__main__":
    command_line.run_program(main)
