"""One mistake a row: what a user does, and what must come of it. `check` runs a row and looks at everything.

Every refusal must look alike: its exit status, one line on stderr that begins with "error: " and holds some words,
in time, and nothing on the disk that was not there before, or other than before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 60.0  # over its limit before a command is killed: its seconds are told, as with the others
QUIET_IMPORT_S = 5.0  # of two quiet cores, at most; 3.5 s measured
TRAIN = "grpo_jax.train"
IN_TIME_S = (
    15.0  # for what the command line, the config, headers and data show, from the start of the interpreter
)
# as users have it, but for the hub; the test's own settings of XLA are none of theirs
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
    "HF_HUB_OFFLINE": "1"
}

Prepare = Callable[[Path], Sequence[str]]
"""Makes the files of a row in an empty folder and returns the arguments."""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """What a user does, and what must come of it.

    Arguments may hold {folder}, the row's own folder, empty before `Prepare`; all that is in it, and the checkout, must stay
    as it is. A run's folder is "{folder}/run", which is not there before.
    """

    name: str  # of the test
    arguments: tuple[str, ...] | Prepare
    words: tuple[str, ...]  # all must be in the line
    status: int = 2
    within_s: float = IN_TIME_S
    program: str = TRAIN  # or a file of tools/
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)  # beside `ENVIRONMENT`; what
    # is imported may have read it long ago, so a row that has some is a process of its own


class Ended(NamedTuple):
    """How a command ended."""

    status: int  # negative: by this signal
    seconds: float  # from the start of the interpreter, or a little more
    stdout: str
    stderr: str


Run = Callable[..., Ended]
"""(program, arguments, folder=, limit_s=) -> Ended; the streams go to files in `folder`."""


def ours(*overrides: str, config: str = "configs/tiny.py") -> tuple[str, ...]:
    """The arguments of a run of a config with overrides such as "max_steps=3"."""
    return (
        f"--config={config}",
        "--config.output_dir={folder}/run",
        *(f"--config.{text}" for text in overrides),
    )


class Runner:
    """The process of `runner.py`; one row at a time.

    A command's seconds are never less than what it takes alone: all that the runner has imported counts, also where
    the command needs only some of it.
    """

    def __init__(self) -> None:
        started = time.monotonic()
        command = [sys.executable, str(Path(__file__).with_name("runner.py")), str(ROOT)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
        )
        self._read()
        self.import_s = time.monotonic() - started
        # How much slower than alone this machine is now: tests beside others must not fail for it.
        self.stretch = max(1.0, self.import_s / QUIET_IMPORT_S)

    def __call__(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        limit_s: float,
    ) -> Ended:
        files = {name: str(folder / name) for name in ("stdout", "stderr")}
        request = {"program": program, "arguments": list(arguments), "limit_s": limit_s + GRACE_S}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request | files) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        texts = {name: Path(file).read_text(errors="replace") for name, file in files.items()}
        return Ended(reply["status"], self.import_s + reply["seconds"], **texts)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the runner died; what it said is above"
        return json.loads(line)


def alone(
    program: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    limit_s: float,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """A command as a process of its own, with more in its environment. `folder` is not used."""
    start = [program] if program.endswith(".py") else ["-m", program]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=limit_s + GRACE_S,
    )
    return Ended(done.returncode, time.monotonic() - started, done.stdout, done.stderr)


def check(mistake: Mistake, run: Run, folder: Path) -> Ended:
    """Runs a row in an empty folder; AssertionError for whatever is not as it must be."""
    own, streams = folder / "own", folder / "streams"
    own.mkdir()
    streams.mkdir()
    arguments = mistake.arguments(own) if callable(mistake.arguments) else mistake.arguments
    arguments = [text.replace("{folder}", str(own)) for text in arguments]
    before = {**files_of(own), **checkout()}
    stretch = getattr(run, "stretch", 1.0)
    start = partial(alone, environment=mistake.environment) if mistake.environment else run
    ended = start(mistake.program, arguments, folder=streams, limit_s=mistake.within_s)
    left = changes(before, {**files_of(own), **checkout()})
    assert_told(mistake, ended._replace(seconds=ended.seconds / stretch))
    assert not left, f"it left or changed: {left}"
    return ended


def assert_told(mistake: Mistake, ended: Ended) -> None:
    """The exit status, the one line and its words, the time."""
    said = (
        f"status {ended.status} after {ended.seconds:.1f} s\n{ended.stdout[-1500:]}\n{ended.stderr[-3000:]}"
    )
    assert ended.status == mistake.status, said
    lines = ended.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), said
    assert "Traceback" not in ended.stdout, said
    missing = [word for word in mistake.words if word not in lines[0]]
    assert not missing, f"the line lacks {missing}: {lines[0]}"
    assert ended.seconds < mistake.within_s, said


def files_of(folder: Path) -> dict[str, str]:
    """Path -> kind, time of the last change and digest of everything in a folder, and of itself."""
    return {str(path): _state(path) for path in (folder, *sorted(folder.rglob("*")))}


def checkout() -> dict[str, str]:
    """What a command that forgets its folder could leave in the checkout or change of it."""
    found = files_of(ROOT / "configs" / "tiny_qwen")
    found |= {str(path): "there" for path in ROOT.iterdir()}
    return found | {str(path): "there" for path in ROOT.glob("runs/*")}


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {before.get(name, 'was not there')} -> {after.get(name, 'is gone')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _state(path: Path) -> str:
    stat = path.lstat()
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if not path.is_file():
        return f"folder {oct(stat.st_mode)}" if path.is_dir() else "special"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return f"file {oct(stat.st_mode)} {stat.st_mtime_ns} {digest}"
