"""Keeps quiet what the parts of a failed save still say: `checkpoints.py` tells the failure, in one line.

A save is over when its first write fails. Orbax then logs the traceback; writes that are still under way find the
event loop closed or end in errors that nobody asks for, others never begin. Each would be on the user's terminal.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import Any

_UNFINISHED = "orbax-checkpoint-tmp"  # in the path of every file that is being written


@functools.cache
def hush() -> None:
    """From now on, in this process; everything else is said as before."""
    logging.getLogger("absl").addFilter(_is_no_log_of_orbax)
    logging.getLogger("asyncio").addFilter(_is_no_forgotten_write)
    never_begun = "coroutine 'async_serialize.*was never awaited"
    warnings.filterwarnings("ignore", never_begun, RuntimeWarning)
    before = sys.unraisablehook

    def told(unraisable: Any) -> None:
        if not _is_late_write(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = told


def _is_no_log_of_orbax(logged: logging.LogRecord) -> bool:
    return logged.levelno < logging.ERROR or "/orbax/" not in logged.pathname


def _is_no_forgotten_write(logged: logging.LogRecord) -> bool:
    text = logged.getMessage()
    return "never retrieved" not in text or _UNFINISHED not in text


def _is_late_write(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
