"""How a run ends on purpose before its last step: one line, and an exit status of its own.

0 done; 1 our own mistake; 2 a mistake of a user, a file or a machine; 3 another process failed; `ALARM`.
"""

from __future__ import annotations

ALARM = 4  # an alarm stopped the run


class Ended(Exception):
    """Raised by all processes at the same step; its text is the line for the user."""

    def __init__(self, line: str, *, status: int):
        super().__init__(line)
        self.status = status
