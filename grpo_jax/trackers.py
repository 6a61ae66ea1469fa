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

    def rewind(self, first_step: int) -> None:
        """Steps from this one on will be told again, with other numbers."""
        ...


class TensorBoard:
    """Scalars for TensorBoard; of an earlier program's steps it shows only those before `first_step`."""

    def __init__(self, folder: Path, *, first_step: int):
        self._folder, self._num_rewound = folder, 0
        self._open(first_step)

    def _open(self, first_step: int) -> None:
        import tensorboardX

        # Files are named by the second: two of the same second need something that tells them apart.
        suffix = f".{self._num_rewound}" if self._num_rewound else ""
        # The writer hands events to a thread; a longer queue keeps the trainer from waiting for it.
        self._writer = tensorboardX.SummaryWriter(
            str(self._folder),
            purge_step=first_step,
            max_queue=1000,
            flush_secs=5,
            filename_suffix=suffix,
        )

    def rewind(self, first_step: int) -> None:
        self._writer.close()
        self._num_rewound += 1
        self._open(first_step)

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

    def rewind(self, first_step: int) -> None:
        """Nothing: it keeps what it was told and takes no step twice, only those that lie further on."""

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

    def rewind(self, first_step: int) -> None:
        """Nothing: it keeps what it was told, and shows both."""

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._close()
