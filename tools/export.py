"""A Hugging Face folder from any checkpoint of a run.

    python tools/export.py --checkpoint RUN/checkpoints/STEP --output DIR

With LoRA, DIR has the merged model and DIR_adapter the adapters alone, as PEFT reads them.
The run's `config.json` says which model the checkpoint belongs to; that model's folder is needed again for
its configuration and tokenizer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax

from grpo_jax import checkpoints, command_line, policy, settings
from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import train_state
from grpo_jax.models.decoder import Params
from grpo_jax.settings import Settings


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, restores, exports."""
    options = parse(arguments)
    checkpoint = Path(options.checkpoint)
    run_folder, step = checkpoint.parent.parent, checkpoint.name
    if not (run_folder / "config.json").is_file() or not step.isdigit():
        raise FileNotFoundError(
            f"{checkpoint} is no checkpoint of a run; give one as RUN/checkpoints/STEP, "
            f"with the run's config.json in {run_folder}."
        )
    run_settings = settings.read(json.loads((run_folder / "config.json").read_text()))
    mesh_lib.use_cpu_devices(1)
    opened = policy.open_policy(run_settings.model)
    parts = policy.parts(opened, run_settings.lora, seed=run_settings.seed)
    mesh = mesh_lib.create(data=1, fsdp=len(jax.devices()), tensor=1)
    trained = restore_trained(parts, run_settings, checkpoint.parent, int(step), mesh=mesh)
    frozen = policy.load_frozen(opened, parts, mesh=mesh)
    keeping = run_settings.checkpoint
    dtype = options.dtype or keeping.export_dtype
    params = parts.assemble(trained, frozen, None)
    policy.export(opened, params, options.output, dtype=dtype, shard_gb=keeping.export_shard_gb)
    if frozen is not None:
        policy.export_adapters(opened, trained, run_settings.lora, f"{options.output.rstrip('/')}_adapter")
    print(f"step {step} is in {options.output}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="RUN/checkpoints/STEP")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument(
        "--dtype", default="", help="float32, bfloat16, float16; as the run's config if not given"
    )
    return parser.parse_args(arguments)


def restore_trained(
    parts: policy.Parts, run_settings: Settings, folder: Path, step: int, *, mesh: jax.sharding.Mesh
) -> Params:
    """What a checkpoint holds of the parameters: all, or the adapters; on whatever devices are here."""
    tx = train_state.optimizer(run_settings.scaled_optimizer, num_updates=run_settings.num_updates)
    shapes = train_state.shapes(tx, parts.trained)
    places = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        mesh_lib.parameter_shardings(mesh, shapes),
    )
    keeper = checkpoints.Checkpoints(folder, keep=run_settings.checkpoint.save_total_limit)
    state, _ = keeper.restore(step, places)
    keeper.close()
    return state.params


if __name__ == "__main__":
    command_line.run_program(main)
