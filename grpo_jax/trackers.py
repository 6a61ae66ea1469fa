"""Where a step's numbers go besides our own files: TensorBoard, Weights & Biases, trackio.

Each takes metrics by name and knows nothing else of a run. The last two are extras, imported only when the
config asks for them; their keys come from the environment. A new tracker is one more class here and one
line in `metrics.open_teller`.
"""

from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Closes(Protocol):
    """What has to be closed at the end."""

    def close(self) -> None: ...


class Sink(Closes, Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None: ...


class TensorBoard:
    """Scalars for TensorBoard; of an earlier program's steps it shows only those before `first_step`."""

    def __init__(self, folder: Path, *, first_step: int):
        import tensorboardX

        # The writer hands events to a thread; a longer queue keeps the trainer from waiting for it.
        self._writer = tensorboardX.SummaryWriter(
            str(folder), purge_step=first_step, max_queue=1000, flush_secs=5
        )

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. The run's id stands in the run folder, so that a resumed run goes on there."""

    def __init__(self, run_dir: Path, *, mode: str, project: str, name: str, config: Mapping):
        import wandb  # pyright: ignore[reportMissingImports]  # an extra

        id_file = run_dir / "wandb_run_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf-8")
        self._run = wandb.init(
            project=project,
            name=name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),  # the console is ours
        )

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio, in its local folder or the Space that its environment variables name."""

    def __init__(self, *, project: str, name: str, config: Mapping):
        import trackio  # pyright: ignore[reportMissingImports]  # an extra

        self._close = trackio.finish
        with contextlib.redirect_stdout(io.StringIO()):  # it greets with a page of advice
            self._run = trackio.init(project=project, name=name, config=dict(config), resume="allow")

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._close()
