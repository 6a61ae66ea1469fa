"""Keeping and finding checkpoints: any tree of arrays by Orbax, and a small record beside it.

A step is saved in the background while training goes on, and its folder gets its name when all of it is on the
disk (`checkpoint_folder.py`); only then are older ones deleted. Reading them is `checkpoint_reading.py`. Enters: the
train state and what else is needed to go on (data position, seed). Leaves: a sealed folder, or one line that
says why there is none. This room knows no trainer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from grpo_jax import checkpoint_folder, checkpoint_reading, digests, distributed, save_noise, whole_files
from grpo_jax.checkpoint_reading import Damaged, Reader

__all__ = ["Checkpoints", "Damaged", "Reader", "Retention", "like", "num_bytes"]

MAX_TOLD_CHARACTERS = 300  # of another's error
CURES = {  # in an error's text -> what mends it; the first that is found
    "No space left on device": "Free some there",
    "has room for": "Free some there",
    "Disk quota exceeded": "Free some there",
    "File too large": "Raise the limit of a file's size there (ulimit -f)",
    "Read-only file system": "Make it writable",
    "Permission denied": "Make it writable",
    "Operation not permitted": "Make it writable",
}
# Where a folder cannot be made, threads would wait for it six minutes, if it were not made first.
WRITING = ocp.options.AsyncOptions(create_directories_asynchronously=False)


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay. Names as TRL's where it has them."""

    save_total_limit: int  # so many of the newest
    keep_every_steps: int = 0  # besides, those of every so many steps; 0: none
    metric_for_best_model: str = ""  # besides, the best by this number of `save`'s `evaluated`; "": none
    greater_is_better: bool = True

    def kept(self, evaluated: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Of the steps, each with its numbers, those that stay; of equally good ones the earliest is the best."""
        steps = sorted(evaluated)
        kept = set(steps[-self.save_total_limit :])
        if self.keep_every_steps:
            kept |= {step for step in steps if step % self.keep_every_steps == 0}
        values = {step: evaluated[step].get(self.metric_for_best_model, math.nan) for step in steps}
        values = {step: value for step, value in values.items() if not math.isnan(value)}
        if values:
            kept.add((max if self.greater_is_better else min)(values, key=values.__getitem__))
        return kept


class Checkpoints(Reader):
    """The checkpoints of one run, which alone writes here. In a run of several processes all must call alike.

    Args:
        folder: created when missing; what killed saves have left in it is removed.
        retention: which ones stay; an older one is deleted when a newer one is whole.
    """

    def __init__(self, folder: str | Path, *, retention: Retention):
        super().__init__(folder)
        self._retention = retention
        self._saving: threading.Thread | None = None
        self._saved: int | None = None  # the step of the last save, whole or under way
        self._error: RuntimeError | None = None
        self._saved_at = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_noise.hush()
        if distributed.is_first():
            checkpoint_folder.clean(self.folder)

    @property
    def seconds_since_save(self) -> float:
        """Since the last save began; without one since this was made."""
        return time.monotonic() - self._saved_at

    def lacks_room(self, *trees: Any) -> str:
        """One sentence if the disk has no room for these trees; else ""."""
        needed, free = num_bytes(trees), shutil.disk_usage(self.folder).free
        if needed <= free:
            return ""
        return (
            f"a checkpoint takes {needed / 1e6:,.1f} MB and {self.folder} has room for {free / 1e6:,.1f} MB"
        )

    def save(
        self,
        step: int,
        tree: Any,
        record: dict,
        *,
        second: Any = None,
        evaluated: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving and returns when the devices may go on; a step that is saved already is left as it is.

        Args:
            record: what JSON can hold; `restore` returns it.
            second: another tree, which `restore_second` reads; None: there is none.
            evaluated: numbers of this step's model, of which the retention knows one.

        Raises: FileExistsError if there is another checkpoint of this step; RuntimeError, before anything is
        written, if the disk has no room for it; as `check` for an earlier save.
        """
        self.wait()
        if step == self._saved:
            return
        if step in checkpoint_folder.steps(self.folder):
            raise FileExistsError(
                f"{self._place(step)} is there already and is not of this run; move it away."
            )
        if lacking := self.lacks_room(tree, second):
            raise self._failed(step, lacking)
        trees = {"tree": tree} | ({} if second is None else {"second": second})
        content = {
            "step": step,
            "record": record,
            "evaluated": dict(evaluated or {}),
            "arrays": {name: _with_digests(tree) for name, tree in trees.items()},
        }
        if jax.default_backend() == "cpu":
            # On a CPU the saver would share memory with the arrays that the next update overwrites.
            trees = jax.tree.map(jnp.copy, trees)
        if distributed.is_first():
            checkpoint_folder.clean(self.folder)  # what could not be deleted earlier, perhaps now
        self._saved, self._saved_at = step, time.monotonic()
        self._start(step, trees, content)

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """As a reader does; what was restored counts as saved."""
        restored = super().restore(step, like)
        self._saved = step  # a run that is stopped before its next step has nothing to save
        return restored

    def check(self) -> None:
        """Raises RuntimeError, in one line with the cause, if a save has failed since the last call."""
        if self._error:
            error, self._error, self._saved = self._error, None, None
            raise error

    def wait(self) -> None:
        """Returns when the save under way is whole. Raises: as `check`."""
        if self._saving:
            self._saving.join()
            self._saving = None
        self.check()

    def close(self) -> None:
        """As `wait`; call it at the end."""
        self.wait()

    def set_aside(self, steps: Iterable[int]) -> None:
        """Moves these steps, whole or not, to set_aside/ in the folder, where they count no more."""
        self.wait()
        for step in steps:
            if distributed.is_first():
                checkpoint_folder.set_aside(self._place(step))
            self._saved = None if self._saved == step else self._saved
        distributed.wait_for_all("set checkpoints aside")

    def _start(self, step: int, trees: dict[str, Any], content: dict[str, Any]) -> None:
        unfinished = self.folder / f"{step}{checkpoint_folder.UNFINISHED}"
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        try:
            writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=WRITING)
            writer.save(unfinished, args=ocp.args.Composite(**items))
        except Exception as error:
            self._give_up(step, error)
            return self.check()
        arguments = (step, writer, unfinished, content)
        self._saving = threading.Thread(target=self._finish, args=arguments, name="checkpoint")
        self._saving.start()

    def _finish(self, step: int, writer: Any, unfinished: Path, content: dict[str, Any]) -> None:
        """In the background: seals what is written, and only then deletes what is not to stay."""
        try:
            try:
                writer.wait_until_finished()
            finally:
                writer.close()
            if distributed.is_first():
                checkpoint_folder.commit(unfinished, self._place(step), content)
                self._retain()
        except Exception as error:
            self._give_up(step, error)

    def _retain(self) -> None:
        evaluated = {step: sealed["evaluated"] for step, sealed in self._records().items()}
        for step in set(evaluated) - self._retention.kept(evaluated):
            with contextlib.suppress(OSError):  # it stays; a disk that fills up is told before a save
                whole_files.delete(self._place(step))

    def _give_up(self, step: int, error: Exception) -> None:
        failed = RuntimeError(f"the checkpoint of step {step} could not be saved: {_told(error)}")
        with contextlib.suppress(OSError):  # of a disk that is gone altogether
            if distributed.is_first():
                checkpoint_folder.clean(self.folder)  # half a checkpoint may be what fills it
            failed = self._failed(step, _told(error))
        failed.__cause__ = error
        self._error = failed  # last: another thread raises it

    def _failed(self, step: int, why: str) -> RuntimeError:
        latest = self.latest_step()
        last = "there is none before it" if latest is None else f"the last whole one is of step {latest}"
        cure = next((cure for text, cure in CURES.items() if text in why), "Mend the cause")
        return RuntimeError(
            f"the checkpoint of step {step} could not be saved in {self.folder}: {why}; {last}. "
            f"{cure}; then the same command goes on."
        )


def like(tree: Any) -> Any:
    """The shapes of a tree of arrays, with the places where `restore` shall put them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def num_bytes(trees: Any) -> int:
    """Of all arrays, each counted once however many devices have it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def _with_digests(tree: Any) -> dict[str, list]:
    """By path each array's dtype, shape and digest."""
    found = digests.of_tree(tree)
    return {name: [*form, found[name]] for name, form in checkpoint_reading.described(tree).items()}


def _told(error: BaseException) -> str:
    """The cause of a failed save in a few words: the system's own where it is known."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    deepest: BaseException | None = error
    while deepest:
        if isinstance(deepest, OSError) and deepest.strerror:
            return f"{deepest.strerror} ({deepest.filename})" if deepest.filename else deepest.strerror
        deepest = deepest.__cause__ or deepest.__context__
    known = next((cause for cause in CURES if cause in text), "")
    return known or text[:MAX_TOLD_CHARACTERS]
