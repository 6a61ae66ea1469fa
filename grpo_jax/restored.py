"""A model to look at: a Hugging Face folder, or a checkpoint of a run, opened alike.

Enters: DIR, a hub id, or RUN/checkpoints/STEP, where the run's `config.json` says which model and adapters
the checkpoint belongs to. Leaves: the policy, its parts, and their weights on whatever devices are here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import jax

from grpo_jax import json_files, policy, run_folder, settings
from grpo_jax import mesh as mesh_lib
from grpo_jax.checkpoint_reading import Reader
from grpo_jax.learning import train_state
from grpo_jax.models.decoder import Params
from grpo_jax.models.lora import whole
from grpo_jax.policy import ModelParams, Parts, Policy
from grpo_jax.settings import Settings

SAMPLED_BYTES = 1 << 16  # of each end of a file, read for the fingerprint


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One step of a run."""

    folder: Path  # RUN/checkpoints
    step: int
    settings: Settings  # of the run


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model without its weights, and where they are."""

    policy: Policy
    parts: Parts
    checkpoint: Checkpoint | None  # None: the weights are the policy's folder's

    def load(self, mesh: jax.sharding.Mesh) -> tuple[Params, Params | None]:
        """(what was trained, what is frozen) on the mesh; with full fine-tuning nothing is frozen."""
        if self.checkpoint is None:
            return policy.load_weights(self.policy, mesh=mesh), None
        trained = restore_trained(self.parts, self.checkpoint, mesh=mesh)
        return trained, policy.load_frozen(self.policy, self.parts, mesh=mesh)

    def fingerprint(self) -> str:
        """Changes, in all likelihood, when the weights do: of each file the name, the size and both ends."""
        at = self.checkpoint
        files = (at.folder / str(at.step)).rglob("*") if at else self.policy.folder.glob("*.safetensors")
        hashed = hashlib.sha256()
        for path in sorted(path for path in files if path.is_file()):
            hashed.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                hashed.update(file.read(SAMPLED_BYTES))
                file.seek(max(0, path.stat().st_size - SAMPLED_BYTES))
                hashed.update(file.read())
        return hashed.hexdigest()[:16]


def open_model(path: str, *, compute_dtype: str = "auto") -> Opened:
    """Opens a model folder, a hub id, or RUN/checkpoints/STEP.

    Args:
        compute_dtype: of activations; "auto": as the checkpoint's run, else as the platform has it.

    Raises: FileNotFoundError, ValueError for what is missing or not supported.
    """
    if is_checkpoint(path):
        checkpoint = find_checkpoint(path)
        s = checkpoint.settings
        chosen = s.model.compute_dtype if compute_dtype == "auto" else compute_dtype
        opened = policy.open_policy(dataclasses.replace(s.model, compute_dtype=chosen))
        return Opened(opened, policy.parts(opened, s.lora, seed=s.seed), checkpoint)
    opened = policy.open_policy(ModelParams(path, compute_dtype, "none"))
    policy.check_weights(opened)
    return Opened(opened, Parts(opened.shapes, None, whole, "float32"), None)


def is_checkpoint(path: str) -> bool:
    """Whether a path looks like RUN/checkpoints/STEP and not like a model folder."""
    place = Path(path)
    return place.name.isdigit() and (place.parent.parent / run_folder.CONFIG_FILE).is_file()


def find_checkpoint(path: str | Path) -> Checkpoint:
    """Reads which run RUN/checkpoints/STEP belongs to.

    Raises: FileNotFoundError if it is no such path; ValueError for a config that is no JSON or of another version,
    or where the checkpoint does not look whole.
    """
    place = Path(path)
    run, step = place.parent.parent, place.name
    if not (run / run_folder.CONFIG_FILE).is_file() or not step.isdigit():
        raise FileNotFoundError(
            f"{place} is no checkpoint of a run; give one as RUN/checkpoints/STEP, "
            f"with the run's config.json in {run}."
        )
    config = json_files.read(run / run_folder.CONFIG_FILE)
    try:
        run_settings = settings.read(config)
    except (TypeError, ValueError) as error:  # fields that are missing, or that there are no more
        raise ValueError(
            f"{run / run_folder.CONFIG_FILE} was written by another version of grpo_jax: {error}; "
            "export that checkpoint with the version that trained it."
        ) from None
    Reader(place.parent).read_record(int(step))  # before a model is read
    return Checkpoint(place.parent, int(step), run_settings)


def restore_trained(parts: Parts, checkpoint: Checkpoint, *, mesh: jax.sharding.Mesh) -> Params:
    """What a checkpoint holds of the parameters: all, or the adapters; on whatever devices are here."""
    return restore_state(parts, checkpoint, mesh=mesh).params


def restore_state(parts: Parts, checkpoint: Checkpoint, *, mesh: jax.sharding.Mesh) -> train_state.TrainState:
    """All that a checkpoint holds of the training, on whatever devices are here."""
    s = checkpoint.settings
    tx = train_state.optimizer(s.scaled_optimizer, num_updates=s.num_updates)
    shapes = train_state.shapes(tx, parts.trained)
    places = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        mesh_lib.parameter_shardings(mesh, shapes),
    )
    state, _ = Reader(checkpoint.folder).restore(checkpoint.step, places)
    return state
