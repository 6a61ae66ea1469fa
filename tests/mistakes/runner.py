"""Runs programs of this project in forks of one process that has imported them: a command in a second or less.

    python tests/mistakes/runner.py ROOT

A line of JSON enters: {"program": "grpo_jax.train" or "tools/NAME.py", "arguments", "stdout", "stderr" (files),
"limit_s"}. A line leaves: {"status", "seconds"}, the seconds of the fork alone. A first line says that all is imported.

After so many seconds a command is killed. It runs as `__main__`, with its own arguments and streams, as Python would run it. Nothing here
touches a device or starts a thread of Python before the fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

_POLL_S = 0.005


def preload() -> None:
    """Everything that is slow to import and that a command which ends early may import."""
    import datasets  # noqa: F401
    import transformers  # noqa: F401
    from absl import flags  # noqa: F401
    from ml_collections import config_flags  # noqa: F401

    import grpo_jax.sft
    import grpo_jax.suite
    import grpo_jax.train  # noqa: F401


def serve(root: Path) -> None:
    """Answers line by line until there are no more."""
    os.chdir(root)
    sys.path[0] = str(root)
    preload()
    requests, replies = sys.stdin, sys.stdout
    print(json.dumps({"ready": True}), file=replies, flush=True)
    while line := requests.readline():
        status, seconds = run(root, json.loads(line))
        print(json.dumps({"status": status, "seconds": seconds}), file=replies, flush=True)


def run(root: Path, request: dict[str, Any]) -> tuple[int, float]:
    """One command in a fork: its exit status (negative: a signal's number) and the fork's seconds."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        become(root, request)
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() - started > request["limit_s"]:
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_S)
    seconds = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it may have left
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seconds


def become(root: Path, request: dict[str, Any]) -> None:
    """The forked process becomes the command; never returns."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    program, status = request["program"], 0
    sys.argv = [program, *request["arguments"]]
    try:
        if program.endswith(".py"):
            sys.path[0] = str(root / Path(program).parent)
            runpy.run_path(program, run_name="__main__")
        else:
            sys.modules.pop(program)  # the imported one; runpy warns of it
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = said(error)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)  # as Python tells what nobody caught
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def said(error: SystemExit) -> int:
    """Python's own reading of `sys.exit`: a number is the status; a text is printed, and the status 1."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve())
