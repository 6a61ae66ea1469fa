"""A model folder as one thing: sizes, weights, tokenizer, where its completions end.

Opening reads headers and the tokenizer only, so that every mistake in them shows before weights are read.
Enters: a Hugging Face folder or hub id. Leaves: a `Policy`, its parameters on the mesh, samplers for it,
and in the end a folder of the same kind again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import end_ids, hub, text
from grpo_jax import mesh as mesh_lib
from grpo_jax.models import (
    decode_attention,
    decoder,
    hf_files,
    hf_weights,
    lora,
    packed_attention,
    peft_files,
    registry,
)
from grpo_jax.models.lora import Assemble, LoraParams
from grpo_jax.sampling import decode, plan, token_choice
from grpo_jax.sampling.engine import Engine
from grpo_jax.sampling.token_choice import NO_FILTERS, TokenFilters
from grpo_jax.sampling.weights import SamplingWeights, check_form
from grpo_jax.stop_strings import StopStrings

DecodeText = Callable[[Sequence[np.ndarray]], list[str]]

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]


@dataclasses.dataclass(frozen=True)
class ModelParams:
    """Which model, and how it is computed."""

    path: str  # Hugging Face folder, or hub id where a hub can be reached
    compute_dtype: str  # "auto": bfloat16 on accelerators, float32 on a CPU; or one of COMPUTE_DTYPES
    remat: str  # key of `decoder.REMAT_POLICIES`: what the backward pass computes again
    attention: str = "auto"  # of training: or a key of `packed_attention.LINE_ATTENTIONS`


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model that can be sampled and trained, without its weights."""

    folder: Path
    model: decoder.Model
    shapes: Any  # the parameter tree as shapes
    tokenizer: Any
    end_ids: tuple[int, ...]
    num_valid_ids: int  # ids the tokenizer has; the embedding may have more
    dtype: Any  # of activations
    attention: str = "xla"  # of training: key of `packed_attention.LINE_ATTENTIONS`


@dataclasses.dataclass(frozen=True)
class Parts:
    """What of a policy's parameters is trained, what is frozen, and how the two become its parameters."""

    trained: Any  # as shapes: adapters, or with full fine-tuning the whole tree
    frozen: Any  # as shapes, quantised as the config says; None with full fine-tuning
    assemble: Assemble
    base_dtype: str  # key of `lora.BASE_FORMS`; of what is frozen


def open_policy(params: ModelParams) -> Policy:
    """Reads a folder's configuration and tokenizer.

    Raises: FileNotFoundError, ValueError for what is missing or not supported.
    """
    if params.remat not in decoder.REMAT_POLICIES:
        raise ValueError(
            f"config.model.remat is {params.remat!r}; known are {sorted(decoder.REMAT_POLICIES)}."
        )
    dtype, platform = compute_dtype(params.compute_dtype), jax.default_backend()
    attention = params.attention
    if attention == "auto":
        attention = packed_attention.default_attention(platform)
    packed_attention.check(attention, platform, dtype)
    folder = _local_folder(params.path)
    model, shapes = decoder.build(registry.read_spec(folder))
    tokenizer = text.load_tokenizer(folder)
    num_valid_ids = max(tokenizer.get_vocab().values()) + 1
    if num_valid_ids > model.spec.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {num_valid_ids - 1}, the model embeds {model.spec.vocab_size}; "
            "they belong to different models."
        )
    generation_path = folder / "generation_config.json"
    generation_config = registry.read_json(generation_path) if generation_path.is_file() else {}
    ends = end_ids.find(tokenizer, generation_config, registry.read_json(folder / "config.json"))
    if max(ends) >= model.spec.vocab_size:
        raise ValueError(
            f"{folder} ends completions at ids {list(ends)}, the model embeds {model.spec.vocab_size}: correct "
            "eos_token_id in generation_config.json, or where it is not there in config.json."
        )
    return Policy(folder, model, shapes, tokenizer, ends, num_valid_ids, dtype, attention)


def check_weights(policy: Policy) -> None:
    """Raises FileNotFoundError, ValueError for weight files that are not those of this model; reads headers only."""
    hf_files.WeightFiles(policy.folder).check(policy.model.spec)


def compute_dtype(name: str) -> Any:
    """The dtype that a config names; `auto` looks at the devices."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"config.model.compute_dtype is {name!r}; known are {['auto', *COMPUTE_DTYPES]}.")
    return COMPUTE_DTYPES[name]


def load_weights(policy: Policy, *, mesh: jax.sharding.Mesh) -> Any:
    """The folder's weights as float32, stacked, on the mesh."""
    shardings = mesh_lib.parameter_shardings(mesh, policy.shapes)
    return hf_weights.load(policy.folder, policy.model.spec, shapes=policy.shapes, shardings=shardings)


def parts(policy: Policy, params: LoraParams, *, seed: int) -> Parts:
    """What is trained and what is frozen, as shapes; rank 0 trains everything."""
    if not params.r:
        return Parts(policy.shapes, None, lora.whole, "float32")
    base_dtype = params.base_dtype
    if base_dtype == "auto":
        base_dtype = jnp.dtype(policy.dtype).name
    return Parts(
        trained=jax.eval_shape(partial(lora.create, policy.model.spec, params, seed=seed)),
        frozen=lora.frozen_shapes(policy.shapes, base_dtype=base_dtype),
        assemble=partial(lora.assemble, params=params, seed=seed),
        base_dtype=base_dtype,
    )


def load_frozen(policy: Policy, parts: Parts, *, mesh: jax.sharding.Mesh) -> Any:
    """The folder's weights as a frozen base keeps them, on the mesh; None with full fine-tuning."""
    if parts.frozen is None:
        return None
    return hf_weights.load(
        policy.folder,
        policy.model.spec,
        shapes=policy.shapes,
        shardings=mesh_lib.parameter_shardings(mesh, policy.shapes),
        keep=partial(lora.freeze, base_dtype=parts.base_dtype),
        kept_shardings=mesh_lib.parameter_shardings(mesh, parts.frozen),
    )


def fresh_trained(
    policy: Policy, parts: Parts, params: LoraParams, *, mesh: jax.sharding.Mesh, seed: int
) -> Any:
    """What training begins with, float32 on the mesh: adapters that change nothing yet, or the weights."""
    if parts.frozen is None:
        return load_weights(policy, mesh=mesh)
    shardings = mesh_lib.parameter_shardings(mesh, parts.trained)
    return jax.jit(partial(lora.create, policy.model.spec, params, seed=seed), out_shardings=shardings)()


def check_sampling(
    policy: Policy,
    *,
    platform: str,
    filters: TokenFilters,
    attention: str,
    stop_strings: Sequence[str],
    form: str,
) -> None:
    """What `make_engine` and the sampling weights would refuse, before any weight is read. Raises: ValueError."""
    decode_attention.check(_decode_attention(attention, platform), platform)
    check_form(form)
    try:
        StopStrings(policy.tokenizer, stop_strings)
    except ValueError as error:
        raise ValueError(f"config.rollout.stop_strings: {error}") from None
    if unknown := [index for index in filters.banned_ids if index >= policy.num_valid_ids]:
        raise ValueError(
            f"config.rollout.banned_ids has {unknown[0]}, but the tokenizer's ids end at {policy.num_valid_ids - 1}; "
            "ban ids of this tokenizer."
        )
    token_choice.check_filters(filters, end_ids=policy.end_ids, num_valid_ids=policy.num_valid_ids)


def _decode_attention(name: str, platform: str) -> str:
    return decode_attention.default_attention(platform) if name == "auto" else name


def make_engine(
    policy: Policy,
    *,
    mesh: jax.sharding.Mesh,
    shape: plan.EngineShape,
    weights: SamplingWeights,
    filters: TokenFilters = NO_FILTERS,
    attention: str = "auto",
    stop_strings: Sequence[str] = (),
    free_bytes: int | None = None,
) -> Engine:
    """A sampler for this model; its sizes follow from the shape and from the memory that is free now.

    Args:
        weights: makes the copy that it will read.
        attention: key of `decode_attention.ATTENTIONS`, or "auto".
        stop_strings: the first of these texts ends a completion.
        free_bytes: on one device; None asks it.
    """
    platform = mesh.devices.flat[0].platform
    name = _decode_attention(attention, platform)
    decode_attention.check(name, platform)
    settings = decode.DecodeSettings(
        end_ids=policy.end_ids,
        num_valid_ids=policy.num_valid_ids,
        dtype=policy.dtype,
        filters=filters,
        attention=name,
    )
    sizes = plan.make(
        policy.model.spec,
        mesh,
        shape,
        weight_bytes=weights.num_bytes,
        dtype=policy.dtype,
        columns_multiple=decode_attention.COLUMNS_MULTIPLE[name],
        free_bytes=free_bytes,
    )
    find_stop = StopStrings(policy.tokenizer, tuple(stop_strings)).num_tokens if stop_strings else None
    return Engine(policy.model, mesh=mesh, plan=sizes, settings=settings, find_stop=find_stop)


def judged_text(policy: Policy, *, stop_strings: Sequence[str] = (), keep: bool = True) -> DecodeText:
    """A function from completions' ids to the texts that the judge sees.

    Args:
        keep: whether a stop string, and what follows it in its last token, stays in the text.
    """
    stops = StopStrings(policy.tokenizer, tuple(stop_strings)) if stop_strings and not keep else None

    def decode_text(completions: Sequence[np.ndarray]) -> list[str]:
        texts = text.decode_completions(policy.tokenizer, completions)
        return [stops.cut(completion) for completion in texts] if stops else texts

    return decode_text


def check_new(folder: str | Path) -> None:
    """Raises FileExistsError, ValueError for where no folder can be made: known before there is anything to write."""
    folder = Path(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists; name a new folder with --output.")
    above = next(path for path in folder.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        kind = "may not be written to" if above.is_dir() else "is no folder"
        raise ValueError(f"{folder} cannot be made: {above} {kind}; name another one with --output.")


def export(policy: Policy, params: Any, folder: str | Path, *, dtype: str, shard_gb: float) -> Path:
    """Writes a Hugging Face folder: weights, configuration and the tokenizer's files as they were.

    Args:
        params: stacked; adapters are merged into the base that they were trained on, rounded or quantised
            as it is, so that the folder computes what the run evaluated.
        dtype: "auto" keeps the dtype of the folder the model came from.
        shard_gb: gigabytes of one weight file at most.

    Raises: FileExistsError if the folder exists.
    """
    return hf_weights.save(
        params,
        policy.model.spec,
        source=policy.folder,
        folder=folder,
        dtype=hf_weights.stored_dtype(policy.folder) if dtype == "auto" else dtype,
        shard_bytes=int(shard_gb * 1e9),
        write_more=lambda unfinished: text.save_tokenizer(policy.folder, unfinished),
    )


def export_adapters(policy: Policy, adapters: Any, params: LoraParams, folder: str | Path) -> Path:
    """Writes adapters alone, as PEFT keeps them; they name the model's folder as their base."""
    return peft_files.save(adapters, policy.model.spec, params, base=str(policy.folder), folder=folder)


def _local_folder(path: str) -> Path:
    if path and Path(path).is_dir():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{path!r} is no folder; set config.model.path to a Hugging Face model folder."
        )
    from huggingface_hub import snapshot_download

    trouble = hub.trouble()
    try:
        return Path(snapshot_download(path, allow_patterns=[*WEIGHT_FILES, *text.TOKENIZER_FILES]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{path!r} is no folder here and could not be fetched from the hub "
            f"({trouble or str(error).splitlines()[0]}). "
            "Set config.model.path to a model folder."
        ) from None
