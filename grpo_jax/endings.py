"""How a program ends, everywhere in the project: its exit status.

    0    it has done what was asked
    1    our own mistake; the traceback says where
    2    a mistake of the user, of a file or of the machine, in one line
    3    another process of the run failed (`watch.py`)
    4    an alarm of the config stopped the run
    130  stopped by SIGINT (Ctrl-C)
    141  what read its output has ended, as in `... | head`
    143  stopped by SIGTERM, SIGUSR1 (what SLURM sends by --signal) or a notice of preemption

A stopped run keeps its last whole step, and the same command goes on (`stopping.py`).
"""

from __future__ import annotations

import signal

ALARM = 4
NOBODY_READS = 141  # 128 + SIGPIPE, as of other programs
STOP_STATUSES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
"""Signals that stop a run -> exit status: 128 + number, as shells have it, and a notice as SIGTERM."""


class Ended(Exception):
    """Raised by all processes at the same step, to end on purpose; its text is the line for the user."""

    def __init__(self, line: str, *, status: int):
        super().__init__(line)
        self.status = status
