"""Compiles a sampler's programs for a TPU slice that is not there, and prints what they take of a device.

    TPU_SKIP_MDS_QUERY=1 python tests/sampling/tpu_programs.py --topology v5e:4x4 --model qwen2.5-7b --tensor 4

Needs `libtpu` (the version that jax's extra `tpu` names); the TPU compiler in it runs on any CPU. Prints one
JSON line a program: seconds to compile, bytes of a device, and for the decode window the least time that
the device's memory allows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from grpo_jax import chips
from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decode_attention, decoder, registry
from grpo_jax.models.shapes import SHAPES
from grpo_jax.sampling import decode, plan
from grpo_jax.sampling.programs import SamplerPrograms
from grpo_jax.sampling.weights import SamplingWeights


def main() -> None:
    options = parse()
    config = SHAPES[options.model]
    spec = registry.FAMILIES[config["model_type"]](config)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    mesh = jax.sharding.Mesh(np.array(devices).reshape(1, -1, options.tensor), mesh_lib.AXES)
    model, shapes = decoder.build(spec)
    weights = SamplingWeights(model, mesh=mesh, shapes=shapes, dtype=jnp.bfloat16, form=options.weights)
    sizes = plan.make(
        spec,
        mesh,
        plan.EngineShape(10**6, 8, options.prompt, options.positions - options.prompt, options.slots),
        weight_bytes=weights.num_bytes,
        dtype=jnp.bfloat16,
        columns_multiple=decode_attention.COLUMNS_MULTIPLE[options.attention],
        free_bytes=int(chips.named(options.topology[:3]).memory_gib * plan.GIB),
    )
    told = {"plan": sizes.describe(), "weights_gib": sizes.weight_bytes / plan.GIB}
    print(json.dumps(told | {"cache_gib": sizes.cache_bytes / plan.GIB}), flush=True)
    settings = decode.DecodeSettings(
        end_ids=(151643, 151645), num_valid_ids=151665, dtype=jnp.bfloat16, attention=options.attention
    )
    programs = SamplerPrograms(model, mesh=mesh, plan=sizes, settings=settings, stops=False)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), weights.shapes, weights.formats
    )
    whole = max(i for i, rung in enumerate(sizes.rungs) if rung.slots == sizes.slots)
    makers = programs.makers(params)
    masters = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        mesh_lib.parameter_shardings(mesh, shapes),
    )
    makers["weights", 0] = lambda: weights.relayout.lower(masters).compile()
    for name in (("weights", 0), ("window", whole), ("prefill", sizes.prompt_columns[-1]), ("arrive", whole)):
        started = time.perf_counter()
        compiled = makers[name]()
        report = describe(compiled)
        report |= {"program": name[0], "compile_seconds": round(time.perf_counter() - started, 1)}
        if name[0] == "window":
            report["best_seconds"] = best_seconds(sizes, options.topology)
            report["compiler_seconds"] = compiler_seconds(compiled, sizes, options.topology)
        print(json.dumps(report), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--model", default="qwen2.5-7b", choices=sorted(SHAPES))
    parser.add_argument("--tensor", type=int, default=4)
    parser.add_argument("--slots", type=int, default=0, help="over all devices; 0: what fits")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--attention", default="xla")
    parser.add_argument("--weights", default="compute")
    return parser.parse_args()


def describe(compiled) -> dict:
    """GiB of one device, as the TPU compiler counts them."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "arguments": round(memory.argument_size_in_bytes / plan.GIB, 3),
        "temporary": round(memory.temp_size_in_bytes / plan.GIB, 3),
        "peak": round((held + memory.temp_size_in_bytes) / plan.GIB, 3),
    }


def compiler_seconds(compiled, sizes: plan.Plan, topology: str) -> float | None:
    """A window by the compiler's own estimate: the cycles of all operations of a step, one after another.

    It knows nothing of what a Pallas kernel takes. None where XLA cannot print its program (v5p, jax 0.10.2).
    """
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    cycles = [
        sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', computation)))
        for computation in re.split(r"\n(?=%|ENTRY)", text)
        if not computation.startswith("ENTRY")
    ]
    return round(sizes.window * max(cycles) / chips.named(topology[:3]).clock, 4)


def best_seconds(sizes: plan.Plan, topology: str) -> float:
    """A window with every slot full and half of its columns filled, at the speed of the memory."""
    columns = sizes.slots * sizes.rungs[-1].columns / 2
    return round(
        sizes.window
        * (sizes.weight_bytes + columns * sizes.kv_token_bytes)
        / chips.named(topology[:3]).bandwidth,
        4,
    )


if __name__ == "__main__":
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    main()
