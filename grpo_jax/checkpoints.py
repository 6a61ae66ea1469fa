"""Keeping and finding checkpoints, by Orbax: any tree of arrays, and a small JSON record beside it.

A step's folder appears only when it is whole; saving runs in the background while training goes on.
Enters: the train state and what else is needed to go on (data position, seed). Leaves: the same, on any
mesh. This room knows no trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils


class Checkpoints:
    """The checkpoints of one run, newest kept.

    Args:
        folder: created when missing; holds one folder a step.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: str | Path, *, keep: int):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step; None without one."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All whole checkpoints' steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, record: dict, *, second: Any = None) -> None:
        """Starts saving; returns when the devices may go on. Errors of an earlier save are raised here.

        Args:
            second: another tree, which `restore_second` reads; None: there is none.
        """
        self._manager.check_for_errors()
        if jax.default_backend() == "cpu":
            # On a CPU the saver would share memory with the arrays that the next update overwrites.
            tree, second = jax.tree.map(jnp.copy, (tree, second))
        items: dict[str, Any] = {"tree": ocp.args.StandardSave(tree), "record": ocp.args.JsonSave(record)}
        if second is not None:
            items["second"] = ocp.args.StandardSave(second)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """Reads a checkpoint onto the devices.

        Args:
            like: the tree with a `jax.ShapeDtypeStruct` (with sharding) a leaf.

        Raises: FileNotFoundError if there is no such step; ValueError if it does not fit `like`.
        """
        if step not in self.steps():
            raise FileNotFoundError(
                f"{self.folder} has no whole checkpoint of step {step}; it has {self.steps()}."
            )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(like), record=ocp.args.JsonRestore())
        )
        return restored["tree"], dict(restored["record"])

    def restore_second(self, step: int, like: Any) -> Any:
        """The second tree of a checkpoint that has one; as `restore`."""
        items = ocp.args.Composite(second=ocp.args.StandardRestore(like))
        return self._manager.restore(step, args=items)["second"]

    def wait(self) -> None:
        """Waits for the save under way and raises its error, if it had one."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def set_aside(self, steps: Sequence[int]) -> None:
        """Moves checkpoints to FOLDER/set_aside, where nothing looks for them; deletes none. No save is under way."""
        if jax.process_index() == 0:
            aside = self.folder / "set_aside"
            aside.mkdir(exist_ok=True)
            for step in steps:
                place, number = aside / str(step), 1
                while place.exists():  # that step was set aside before
                    number += 1
                    place = aside / f"{step}_{number}"
                (self.folder / str(step)).rename(place)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set checkpoints aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for the save under way and raises its error, if it had one."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        self._manager.close()


def like(tree: Any) -> Any:
    """The shapes of a tree of arrays, with the places where `restore` shall put them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
