"""A Hugging Face folder from any checkpoint of a run.

    python tools/export.py --checkpoint RUN/checkpoints/STEP --output DIR

With LoRA, DIR has the merged model and DIR_adapter the adapters alone, as PEFT reads them.
The run's `config.json` says which model the checkpoint belongs to; that model's folder is needed again for
its configuration and tokenizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax

from grpo_jax import command_line, policy, restored
from grpo_jax import mesh as mesh_lib
from grpo_jax.models import hf_weights


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, restores, exports."""
    options = parse(arguments)
    policy.check_new(options.output)
    checkpoint = restored.find_checkpoint(options.checkpoint)
    mesh_lib.use_cpu_devices(1)
    opened = restored.open_model(options.checkpoint)
    mesh = mesh_lib.create(data=1, fsdp=len(jax.devices()), tensor=1)
    trained, frozen = opened.load(mesh)
    keeping = checkpoint.settings.checkpoint
    dtype = options.dtype or keeping.export_dtype
    params = opened.parts.assemble(trained, frozen, None)
    policy.export(opened.policy, params, options.output, dtype=dtype, shard_gb=keeping.export_shard_gb)
    if frozen is not None:
        adapters = f"{options.output.rstrip('/')}_adapter"
        policy.export_adapters(opened.policy, trained, checkpoint.settings.lora, adapters)
    print(f"step {checkpoint.step} is in {options.output}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="RUN/checkpoints/STEP")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument(
        "--dtype",
        default="",
        choices=("auto", *hf_weights.EXPORT_DTYPES),
        help="of the weights; as the run's config if not given",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command_line.run_program(main)
