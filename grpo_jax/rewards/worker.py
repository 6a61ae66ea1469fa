"""One worker process of the judge: `python -m grpo_jax.rewards.worker FD`, started by `WorkerProcess`.

JSON lines enter by stdin and leave by what was stdout: first the settings (reward specs, memory cap, deadline),
answered with `ready` or `failed`; then one request a line, [part, entries], answered with one or more lists that
together hold an answer to each entry, in order. FD is shared memory in which the parent sees which entry and
function are at work; the deadline is the parent's business. The process imports no JAX, ignores the signals that
are meant for the trainer, sends whatever a reward prints to stderr, and ends when the trainer does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from typing import Any, BinaryIO

from grpo_jax import secret_values, structs
from grpo_jax.rewards import parts, registry
from grpo_jax.rewards.grade import RewardFunction
from grpo_jax.rewards.judging import Judging, failure
from grpo_jax.rewards.progress import Progress
from grpo_jax.rewards.worker_process import FOR_THE_TRAINER

HOLD_S = 0.005
"""Answers are held back for so long, to be sent together. A write for each would cost more than most take."""

_WARM_UP = structs.Attempt(
    "<think>half of it</think><answer>\\frac{\\sqrt{8}}{2}</answer>",
    "",
    "\\sqrt{2}",
    8,
    True,
    max_tokens=1 << 30,
)
_NUM_CORES = os.cpu_count() or 1  # asking takes longer than grading
_VERIFIER = "pip install 'math-verify>=0.9' 'antlr4-python3-runtime>=4.13.2'"


def main() -> None:
    """Answers each line that comes in, until stdin ends."""
    requests, replies = _own_the_pipes()
    progress = Progress(int(sys.argv[1]))
    for number in FOR_THE_TRAINER:
        signal.signal(number, signal.SIG_IGN)  # what rewards start ignores them too
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, FOR_THE_TRAINER
    )  # the trainer has started it with them blocked
    threading.Thread(target=_exit_with_the_trainer, args=(requests,), daemon=True).start()
    first = requests.readline()
    if not first:
        return  # the trainer has ended already
    settings = json.loads(first)
    timeout_s = settings["timeout_s"]
    try:
        judging = Judging(_prepare(settings), timeout_s=timeout_s, begin=progress.begin_function)
    except BaseException as error:  # own files may raise anything, SystemExit too
        _send(replies, {"failed": failure("", error).cause.removeprefix(": ")})
        return
    _send(replies, {"ready": True})
    for line in requests:
        part, entries = json.loads(line)
        if part in (parts.TOGETHER, parts.GROUP):
            _limit_own_time(timeout_s)
            progress.begin_entry()
            _send(replies, judging.whole(part, entries))
        else:
            _answer_singly(replies, judging, part, entries, progress=progress, timeout_s=timeout_s)
        _limit_own_time(None)


def _answer_singly(
    replies: BinaryIO,
    judging: Judging,
    part: str,
    entries: list[Any],
    *,
    progress: Progress,
    timeout_s: float,
) -> None:
    answers, sent_at = [], time.monotonic()
    for entry in entries:
        _limit_own_time(timeout_s)
        progress.begin_entry()
        answers.append(judging.singly(part, entry))
        if time.monotonic() - sent_at > HOLD_S:
            _send(replies, answers)
            answers, sent_at = [], time.monotonic()
    if answers:
        _send(replies, answers)


def _own_the_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's ends, moved away from stdin and stdout, which user code may use freely."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr = secret_values.RedactedStream(sys.stderr)
    return requests, replies


def _exit_with_the_trainer(requests: BinaryIO) -> None:
    """Ends the process when the trainer's end of the pipe is gone, also in mid-judgement."""
    poll = select.poll()
    poll.register(requests.fileno(), 0)  # no event but the hang-up, which always reports
    poll.poll()
    os._exit(0)


def _prepare(settings: dict[str, Any]) -> list[tuple[registry.RewardSpec, RewardFunction]]:
    """Loads the rewards and runs the plain built-in ones once, so that no deadline pays for imports.

    Raises: ImportError, with the packages to install, where the verifier of answers cannot be loaded; and
    whatever an own file raises.
    """
    _limit_memory(settings["memory_mb"])
    specs = [registry.RewardSpec(**spec) for spec in settings["specs"]]
    rewards = [(spec, registry.load(spec)) for spec in specs]
    built_in = [(spec, function) for spec, function in rewards if not spec.path]
    try:
        if any(spec.name in registry.GOLD_READERS for spec, _ in built_in):
            import math_verify  # noqa: F401
        for spec, function in built_in:
            if parts.part_of(spec) == parts.ITEM:
                function(_WARM_UP)
    except ImportError as error:
        raise ImportError(f"answers cannot be verified: {error}. {_VERIFIER}") from None
    return rewards


def _limit_memory(memory_mb: int) -> None:
    import resource

    limit = memory_mb * 2**20
    # macOS has the name of the limit but does not let it be set; the deadline still holds.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_own_time(timeout_s: float | None) -> None:
    """A kernel timer for the one case nobody else can end: an orphan inside a call that holds the
    interpreter, where the thread that watches the pipe cannot run."""
    signal.setitimer(signal.ITIMER_PROF, (timeout_s + 5) * _NUM_CORES if timeout_s else 0)


def _send(replies: BinaryIO, reply: Any) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
