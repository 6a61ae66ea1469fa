"""Checks of the config and of folders: the output folder, the model's files and weights, its tokenizer."""

from __future__ import annotations

import json
import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax import (
    checkpoint_folder,
    checkpoints,
    command_line,
    json_files,
    policy,
    resuming,
    run,
    run_folder,
    run_lock,
    settings,
    settings_checks,
    text,
)
from grpo_jax.data import data_params
from grpo_jax.doctor.checkup import Case
from grpo_jax.doctor.machine import existing
from grpo_jax.end_ids import around_answer, special_ids
from grpo_jax.learning import train_state
from grpo_jax.models import decoder, hf_files, hf_table, lora, registry
from grpo_jax.models.spec import ModelSpec
from grpo_jax.sampling.plan import GIB
from grpo_jax.settings import Settings

SAY_EVERY_S = 5.0  # while weights are read
MOST_NAMES = 5  # in one line


def config(case: Case) -> str:
    """The config as a run would read it."""
    case.config = command_line.read_config(case.arguments, program="tools.doctor")
    case.settings = settings.read(case.config)
    return (
        f"model {case.settings.model.path!r}, task {case.settings.data.task or case.settings.data.dataset!r}"
    )


def rules(case: Case) -> str:
    """Every rule that needs no file, for the devices that are here and one process."""
    case.mesh, case.specs = run.checked(case.settings)
    settings_checks.check_best(case.settings, saving="checkpoint", evaluating="evaluation")
    told = [
        f"mesh {dict(case.mesh.shape)}",
        *(f"note: {note}" for note in settings_checks.notes(case.settings)),
    ]
    if case.settings.distributed.mode != "none":
        told.append("checked as one process")
    return "; ".join(told)


def output(case: Case) -> str:
    """What the run would find in its folder."""
    folder = Path(case.settings.output_dir)
    if owner := owner_of(folder / run_lock.LOCK_FILE):
        raise ValueError(f"{folder} is in use by {owner}")
    resuming.check(folder, case.config, case.settings)
    kept = checkpoints.Reader(folder / run_folder.CHECKPOINTS)
    if step := resuming.choose(
        checkpoint_folder.steps(folder / run_folder.CHECKPOINTS), folder, case.settings
    ):
        kept.read_record(step)  # missing files and those of another size show
        last = case.settings.max_steps
        return f"{folder}: goes on after step {step} of {last}" + (" (all done)" * (step >= last))
    return f"{folder}: " + ("begins anew, nothing was kept yet" if folder.exists() else "a new run")


def owner_of(lock: Path) -> str:
    """Who holds a run's folder; "" where nobody does, or nobody who is alive."""
    try:
        age, content = time.time() - lock.stat().st_mtime, lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    if age > run_lock.DEAD_AFTER_S:
        return ""
    try:
        owner = json.loads(content)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has not said who it is"


# The model ----------------------------------------------------------------------------------------


def model(case: Case) -> str:
    """Configuration, index and shards; each tensor's name, shape and dtype, from headers."""
    s = case.settings
    folder = local_folder(case)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            json_files.check_no_pointer(path)
    spec = registry.read_spec(folder)
    settings_checks.check_model(s, spec, tensor=case.mesh.shape["tensor"])
    files = hf_files.WeightFiles(folder)
    files.check(spec)
    count = sum(math.prod(shape) for shape in hf_table.tensor_shapes(spec).values())
    return f"{folder}: {count:,} weights in {len(files.home)} tensors, {files.common_dtype()}"


def local_folder(case: Case) -> Path:
    """Where the model lies; one of the hub is fetched, as the run would do it."""
    path = case.settings.model.path
    if path and not Path(path).is_dir() and path.count("/") == 1:
        case.say(f"{path} is no folder here: asking the hub")
    return policy._local_folder(path)


def weights(case: Case) -> str:
    """Every value of every tensor, one tensor after the other: NaN and infinite ones are counted."""
    files = hf_files.WeightFiles(local_folder(case))
    told, wrong, largest = time.monotonic(), [], 0.0
    for count, name in enumerate(sorted(files.home)):
        values = files.values(name)
        if bad := int(values.size - np.isfinite(values).sum()):
            nan = int(np.isnan(values).sum())
            wrong.append(f"{name} has {nan} NaN and {bad - nan} infinite values of {values.size}")
        else:
            largest = max(largest, float(np.abs(values).max(initial=0.0)))
        if time.monotonic() > told + SAY_EVERY_S:
            case.say(f"weights: {count + 1} of {len(files.home)} tensors read")
            told = time.monotonic()
    if wrong:
        raise ValueError(f"{files.folder}: {listed(wrong, '; ')}")
    return f"{len(files.home)} tensors, all values finite, the largest {largest:.3g}"


def room(case: Case) -> str:
    """Disk for the checkpoints that are kept, one more while it is written, and the exported model."""
    s = case.settings
    spec = registry.read_spec(local_folder(case))
    one = checkpoint_bytes(s, spec)
    needed = one * (s.checkpoint.save_total_limit + 1) + 4 * spec.num_weights
    free = shutil.disk_usage(existing(Path(s.output_dir))).free
    told = f"{needed / GIB:.2f} GiB for {s.checkpoint.save_total_limit + 1} checkpoints and final/, {free / GIB:.1f} free"
    if free < needed:
        raise ValueError(f"{existing(Path(s.output_dir))}: {told}")
    return told


def checkpoint_bytes(s: Settings, spec: ModelSpec) -> int:
    """Of one checkpoint: what is trained, its moments, and a reference that moves."""
    _, shapes = decoder.build(spec)
    trained: Any = shapes
    if s.lora.r:
        trained = jax.eval_shape(partial(lora.create, spec, s.lora, seed=s.seed))
    tx = train_state.optimizer(s.scaled_optimizer, num_updates=s.num_updates)
    state = train_state.shapes(tx, trained)
    kept = (state, shapes if s.grpo.ref_model_sync_steps else None)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def listed(names: list[str], between: str = ", ") -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return between.join(names[:MOST_NAMES]) + more


# The tokenizer ------------------------------------------------------------------------------------


def tokenizer(case: Case) -> str:
    """Text comes back from its ids, the chat template keeps it, and all agree where an answer ends."""
    case.policy = opened = policy.open_policy(case.settings.model)
    settings_checks.check_sampling(case.settings, opened, platform=case.mesh.devices.flat[0].platform)
    found = opened.tokenizer
    told = [f"{opened.num_valid_ids} ids, {opened.model.spec.vocab_size} embedded"]
    if any(task.template.chat for task in data_params.resolve(case.settings.data, held_out=False)):
        told.append(f"answers end with {check_template(found, opened.end_ids)!r}")
    told.append(f"end ids {check_end_ids(opened)}, pad {found.pad_token_id}")
    return "; ".join(told)


def check_template(found: Any, end_ids: tuple[int, ...]) -> str:
    """The token that the chat template puts behind an answer.

    Raises: ValueError if the template loses text, or if completions would not end there.
    """
    asked = {"role": "user", "content": text.PROBE}
    (prompt,) = text.render_chats(found, [[asked]])
    if text.PROBE not in prompt:
        raise ValueError(f"the chat template loses text: of {text.PROBE[:40]!r}... it makes {prompt[:80]!r}")
    before, behind = around_answer(found)
    if text.PROBE not in before:
        raise ValueError(f"the chat template loses the question before an answer: it makes {before[-80:]!r}")
    (ids,) = text.encode(found, [behind])
    if not ids or ids[0] not in end_ids:
        ends = [found.decode([index]) for index in end_ids]
        raise ValueError(
            f"the chat template ends an answer with {behind[:40]!r}{f' (id {ids[0]})' if ids else ''}, but completions "
            f"end at {ends} ({list(end_ids)}) only: they would run on. Mend the template, or set config.rollout.stop_strings"
        )
    return found.decode([ids[0]])


def check_end_ids(opened: policy.Policy) -> list[int]:
    """Raises: ValueError for ids that are never sampled, are ordinary text, or that two files disagree about."""
    found, special = opened.tokenizer, special_ids(opened.tokenizer)
    for index in opened.end_ids:
        if index >= opened.num_valid_ids:
            raise ValueError(
                f"the end id {index} is none of the tokenizer's {opened.num_valid_ids}: nothing would end there"
            )
        if index not in special:
            raise ValueError(
                f"the end id {index} is ordinary text, {found.decode([index])!r}: answers would be cut"
            )
    path = opened.folder / "generation_config.json"
    named = registry.read_json(path).get("eos_token_id") if path.is_file() else None
    listed_ids = named if isinstance(named, list) else [named]
    if named is not None and found.eos_token_id is not None and found.eos_token_id not in listed_ids:
        raise ValueError(
            f"the tokenizer ends at {found.eos_token!r} ({found.eos_token_id}), {path} at {listed_ids}: whoever reads "
            "only one of them stops elsewhere"
        )
    if found.pad_token_id is not None and found.pad_token_id >= opened.model.spec.vocab_size:
        raise ValueError(
            f"the pad id {found.pad_token_id} is beyond the {opened.model.spec.vocab_size} embedded ids"
        )
    return list(opened.end_ids)
