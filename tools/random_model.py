"""A Hugging Face folder of a real shape with random weights: for trying the whole program without a download.

python tools/random_model.py --shape qwen2.5-0.5b --tokenizer DIR --output DIR
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from grpo_jax import command_line, policy, text
from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder, hf_weights, registry
from grpo_jax.models.shapes import SHAPES


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, draws the weights, writes the folder."""
    options = parse(arguments)
    policy.check_new(options.output)
    mesh_lib.use_cpu_devices(1)
    mesh = mesh_lib.create(data=-1, fsdp=1, tensor=1)
    with tempfile.TemporaryDirectory() as folder:
        text.save_tokenizer(options.tokenizer, folder)
        end = text.load_tokenizer(folder).eos_token_id
        config = {**SHAPES[options.shape], "eos_token_id": end}
        (Path(folder) / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = {"eos_token_id": [end]}
        (Path(folder) / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        spec = registry.read_spec(folder)
        _, shapes = decoder.build(spec)
        params = decoder.initialise(
            spec, seed=options.seed, shardings=mesh_lib.parameter_shardings(mesh, shapes)
        )
        opened = policy.open_policy(policy.ModelParams(folder, "auto", "none"))
        policy.export(opened, params, options.output, dtype=options.dtype, shard_gb=options.shard_gb)
    print(f"{options.shape} with random weights is in {options.output}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--shape", required=True, choices=sorted(SHAPES))
    parser.add_argument("--tokenizer", required=True, help="folder or hub id")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=hf_weights.EXPORT_DTYPES, help="of the weights"
    )
    parser.add_argument("--shard-gb", type=float, default=4.0, help="gigabytes a weight file")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command_line.run_program(main)
