"""How a program ends, everywhere in the project: its exit status, and one line where it is not 0.

    0    it has done what was asked
    1    our own mistake; the traceback says where
    2    a mistake of the user, of a file or of the machine
    3    another process of the run failed (`watch.py`)
    4    an alarm of the config stopped the run (`alarms.py`)
    5    a replayed step differs from what the run told (`tools/replay.py`)
    130  stopped by SIGINT (Ctrl-C)
    141  what read its output has ended, as in `... | head`
    143  stopped by SIGTERM, by SIGUSR1 (what SLURM sends by --signal=USR1@90) or by a notice of preemption

What was stopped by 130 or 143 has kept its last whole step, or says that it could not; the same command goes on.
"""

from __future__ import annotations

import signal

ALARM = 4
REPLAY_DIFFERS = 5
NOBODY_READS = 141  # 128 + SIGPIPE, as of other programs
STOP_STATUSES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
"""Signals that stop a run -> exit status: 128 + number, as shells have it; all but Ctrl-C end as SIGTERM does."""


class Ended(Exception):
    """Raised by all processes at the same step, to end on purpose; its text is the line for the user."""

    def __init__(self, line: str, *, status: int):
        super().__init__(line)
        self.status = status
