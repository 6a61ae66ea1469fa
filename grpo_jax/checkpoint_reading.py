"""Reading checkpoints: any tree of arrays and its record, or one line that says what is damaged.

What is restored is what was saved: the files are compared with the hashes in the step's sealed record, and what
came back onto the devices, on whatever mesh, with the digests (`digests.py`) that were made before the save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from grpo_jax import checkpoint_folder, digests, distributed
from grpo_jax.checkpoint_folder import Flaw

MOST_NAMES = 3  # told in one line


class Damaged(ValueError):
    """A checkpoint that is not what was saved."""


class Reader:
    """The checkpoints of a folder, to look at: nothing in it is ever changed.

    Args:
        folder: holds one folder a step; need not be there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()

    def steps(self) -> list[int]:
        """All steps that look whole, oldest first: sealed, and no file missing or of another size."""
        return sorted(self._records())

    def latest_step(self) -> int | None:
        """The newest step that looks whole; None without one."""
        return max(self.steps(), default=None)

    def damage(self) -> dict[int, str]:
        """By step, what is wrong with those that do not look whole."""
        found = {}
        for step in checkpoint_folder.steps(self.folder):
            try:
                checkpoint_folder.read(self._place(step))
            except Flaw as flaw:
                found[step] = str(flaw)
        return found

    def read_record(self, step: int) -> dict:
        """What was given to `save` as the record; no array is read. Raises: as `restore`."""
        return self._sealed(step)["record"]

    def check_files(self, step: int) -> None:
        """Reads all files of a step. In a run of several processes all must call. Raises: as `restore`."""
        self._check_files(step, self._sealed(step)["files"])

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """Reads a checkpoint onto the devices. In a run of several processes all must call.

        Args:
            like: the tree with a `jax.ShapeDtypeStruct` (with sharding) a leaf.

        Raises: FileNotFoundError if there is no such step; Damaged if it is not what was saved; ValueError if it
        does not fit `like`; RuntimeError if the devices cannot take it.
        """
        return self._restore(step, "tree", like), self.read_record(step)

    def restore_second(self, step: int, like: Any) -> Any:
        """The second tree of a checkpoint that has one; as `restore`."""
        return self._restore(step, "second", like)

    def _restore(self, step: int, item: str, like: Any) -> Any:
        sealed = self._sealed(step)
        saved = sealed["arrays"].get(item, {})
        if different := _differences(saved, described(like)):
            raise ValueError(
                f"the checkpoint of step {step} in {self.folder} is of another model, adapter or optimizer: "
                f"{_listed(different, between='; ')}. Restore the config that it was saved with."
            )
        others = tuple(f"{name}/" for name in sealed["arrays"] if name != item)
        files = {name: noted for name, noted in sealed["files"].items() if not name.startswith(others)}
        self._check_files(step, files)
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
                tree = reader.restore(self._place(step) / item, args=ocp.args.StandardRestore(like))
        except Exception as error:  # not for its files: devices without room, another version of Orbax
            raise RuntimeError(
                f"the checkpoint of step {step} in {self.folder} is whole, but could not be restored: "
                f"{type(error).__name__}: {error}"
            ) from error
        found = digests.of_tree(tree)
        changed = [name for name, (_, _, digest) in saved.items() if found[name] != digest]
        if changed:
            raise self._damaged(step, f"the values of {_listed(changed)} are not those that were saved")
        return tree

    def _check_files(self, step: int, files: dict[str, Any]) -> None:
        """Each process reads a share of the files, and all raise the same. Raises: Damaged."""
        own, flaw = dict(list(files.items())[jax.process_index() :: jax.process_count()]), ""
        try:
            checkpoint_folder.check_files(self._place(step), own)
        except Flaw as found:
            flaw = str(found)
        if flaws := [found for found in distributed.gather_texts([flaw]) if found]:
            raise self._damaged(step, flaws[0])

    def _sealed(self, step: int) -> dict[str, Any]:
        if step not in checkpoint_folder.steps(self.folder):
            raise FileNotFoundError(f"{self.folder} has no checkpoint of step {step}; it has {self.steps()}.")
        try:
            return checkpoint_folder.read(self._place(step))
        except Flaw as flaw:
            raise self._damaged(step, str(flaw)) from None

    def _records(self) -> dict[int, dict[str, Any]]:
        """The sealed content of all that look whole."""
        found = {}
        for step in checkpoint_folder.steps(self.folder):
            try:
                found[step] = checkpoint_folder.read(self._place(step))
            except Flaw:
                continue
        return found

    def _damaged(self, step: int, what: str) -> Damaged:
        older = [other for other in self.steps() if other < step]
        cure = (
            f"Whole ones before it: {older}. To go on after step {older[-1]}: --config.checkpoint.resume_step={older[-1]}"
            if older
            else "No whole one is before it: bring its files back, or set config.output_dir to a new folder."
        )
        return Damaged(f"the checkpoint of step {step} in {self.folder} is damaged: {what}. {cure}")

    def _place(self, step: int) -> Path:
        return self.folder / str(step)


def described(tree: Any) -> dict[str, list]:
    """Each leaf's dtype and shape, by its path, as JSON keeps them."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves)
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in named}


def _differences(saved: Mapping[str, list], wanted: Mapping[str, list]) -> list[str]:
    """What is not the same of two trees, each array in a few words."""
    both = [
        f"{name} is {_form(saved[name])} there and {_form(form)} here"
        for name, form in wanted.items()
        if name in saved and saved[name][:2] != form
    ]
    missing = [f"{name} is not there" for name in wanted if name not in saved]
    return both + missing + [f"{name} is only there" for name in saved if name not in wanted]


def _form(form: Sequence) -> str:
    return f"{form[0]} {form[1]}"


def _listed(names: Sequence[str], *, between: str = ", ") -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return between.join(names[:MOST_NAMES]) + more
