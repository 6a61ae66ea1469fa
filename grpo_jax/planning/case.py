"""What is planned: a config on devices that need not be there. Nothing reads or makes weights, or a tokenizer."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax

from grpo_jax import building, chips, policy, settings, settings_checks
from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import batches
from grpo_jax.learning.packing import PieceShape
from grpo_jax.models import decoder, packed_attention, registry
from grpo_jax.models.shapes import SHAPES
from grpo_jax.models.spec import ModelSpec
from grpo_jax.settings import Settings
from grpo_jax.structs import TrainBatch

NUM_VALID_IDS = 151665  # of Qwen's tokenizers; a plan does not depend on it in any way that shows

SHIPPED = (  # what `tools/plan.py --markdown` plans without a config: (config, topology, overrides)
    ("configs/gsm8k_qwen2p5_1p5b_tpu.py", "v5e:2x2", ()),
    ("configs/gsm8k_qwen2p5_7b_tpu.py", "v5e:8x8", ("--config.mesh.tensor=4",)),
    ("configs/gsm8k_qwen2p5_7b_tpu.py", "v6e:4x4", ()),
    ("configs/gsm8k_qwen2p5_7b_tpu.py", "v5p:2x2x2", ()),
    ("configs/gsm8k_qwen2p5_32b_tpu.py", "v5p:4x4x4", ()),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A config, its model and its mesh."""

    settings: Settings
    policy: policy.Policy  # without a tokenizer
    model_name: str
    mesh: jax.sharding.Mesh
    chip: chips.Chip
    where: str  # for people: "v5e:8x8", or "8 x h100, counted by the compiler for CPUs"


def make(config: dict[str, Any], *, shape: str, topology: str, num_devices: int, chip: str) -> Case:
    """Checks the config as a run would.

    Args:
        shape: key of `SHAPES`; "" takes the sizes of config.model.path.
        topology: of a TPU slice, such as "v5e:4x4"; "" takes `num_devices` fake CPU devices for the `chip`.

    Raises: ValueError, FileNotFoundError, ImportError for what the user can mend.
    """
    s = settings.read(config)
    if topology:
        found, devices = chips.named(topology.partition(":")[0]), tpu_devices(topology)
        where = topology
    else:
        found, devices = chips.named(chip), jax.devices("cpu")[:num_devices]
        where = f"{num_devices} x {chip}, bytes counted by the compiler for CPUs"
    sizes = {"data": s.mesh.data, "fsdp": s.mesh.fsdp, "tensor": s.mesh.tensor}
    mesh = mesh_lib.create(**sizes, preset=s.mesh.preset, devices=devices)
    settings_checks.check(s, num_processes=1)
    name, spec = model_spec(shape or s.model.path)
    settings_checks.check_model(s, spec, tensor=mesh.shape["tensor"])
    model, shapes = decoder.build(spec)
    dtype = policy.compute_dtype("bfloat16" if s.model.compute_dtype == "auto" else s.model.compute_dtype)
    attention = s.model.attention
    if attention == "auto":
        attention = packed_attention.default_attention("tpu" if topology else "cpu")
    num_valid_ids = min(NUM_VALID_IDS, spec.vocab_size)
    opened = policy.Policy(
        Path(name), model, shapes, None, (num_valid_ids - 1,), num_valid_ids, dtype, attention
    )
    return Case(s, opened, name, mesh, found, where)


def tpu_devices(topology: str) -> list[Any]:
    """The devices of a slice that is not there.

    Raises: ImportError without libtpu; ValueError for a topology it does not know.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "--topology needs the TPU compiler: pip install 'libtpu==0.0.42.*' (the version that jax's extra "
            "'tpu' names; it runs on any CPU), or plan with --devices N --chip NAME."
        )
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"no TPU topology {topology!r}: {str(error).splitlines()[0]}") from None


def model_spec(name: str) -> tuple[str, ModelSpec]:
    """Sizes of a model folder, of a name in `SHAPES`, or of a hub id that begins with such a name.

    Raises: ValueError for any other name: nothing is asked of a hub.
    """
    if name and Path(name).is_dir():
        return name, registry.read_spec(name)
    basename = name.rpartition("/")[2].lower()
    known = [shape for shape in SHAPES if basename == shape or basename.startswith(f"{shape}-")]
    if not known:
        raise ValueError(
            f"the sizes of {name!r} are not known without a hub; name a shape with --shape, one of {sorted(SHAPES)}, "
            "or set config.model.path to a model folder."
        )
    config = SHAPES[max(known, key=len)]
    return max(known, key=len), registry.FAMILIES[config["model_type"]](config)


def batch_params(case: Case) -> batches.BatchParams:
    """How the run would lay completions out, all prompts being as long as allowed."""
    s = case.settings
    return building.packing(s, case.mesh, s.data.max_prompt_length, attention=case.policy.attention)


def piece_shape(case: Case) -> PieceShape:
    """The widest pieces."""
    return batch_params(case).piece_shape(case.settings.rollout.max_completion_length)


def abstract_batch(case: Case) -> TrainBatch:
    """Shapes of one update's batch, at its widest."""
    s, params, shape = case.settings, batch_params(case), piece_shape(case)
    batch = batches.empty(
        shape, num_microbatches=params.num_microbatches(shape), num_shards=params.num_shards
    )
    sharding = mesh_lib.rows(case.mesh, leading=1)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)
    if s.grpo.num_minibatches * s.grpo.num_iterations > 1:
        batch = batch._replace(old_logprobs_AUSC=batch.sampler_logprobs_AUSC)
    if s.loss.penalises_loss:
        batch = batch._replace(ref_logprobs_AUSC=batch.sampler_logprobs_AUSC)
    return batch
