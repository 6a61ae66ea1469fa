"""The command line: a config file, its overrides, and mistakes told in one line.

The only door to ml_collections besides `configs/`. Enters: arguments. Leaves: a resolved config as a plain
nested dictionary. `run_program` turns what a user can get wrong into one line and exit status 2. Statuses: `endings.py`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.endings import STOP_STATUSES, Ended

USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError)
"""What rooms raise for what a user, a file or a machine got wrong; anything else is our own mistake."""
CONFIG_ERRORS = (AttributeError, KeyError, NameError, OSError, SyntaxError, TypeError, ValueError)
"""What a config file, or an override of it, may end in."""
USAGE = """usage: python -m {program} --config FILE [--config.section.field=value ...] [--debug]
configs: {configs}
fields: configs/base.py has every one, with its unit and range"""


def read_config(arguments: Sequence[str], *, program: str) -> dict[str, Any]:
    """Resolves `--config FILE` and `--config.section.field=value`; `--help` prints the usage and exits.

    Raises: ValueError, in one line, for what cannot be read: without `--config` it names the configs.
    """
    from absl import flags
    from ml_collections import config_flags

    if {"-h", "--help"} & set(arguments):
        print(USAGE.format(program=program, configs=", ".join(_configs())))
        sys.exit(0)
    values = flags.FlagValues()
    line = [program, *arguments]
    config_flags.DEFINE_config_file(
        "config", None, "the run's config", lock_config=True, flag_values=values, sys_argv=line
    )
    try:
        rest = values(line)[1:]
        config = values["config"].value
        resolved = None if config is None else config.to_dict()  # shows that there was no such file
    except (flags.Error, *CONFIG_ERRORS) as error:
        raise ValueError(_plain(error)) from error
    if resolved is None:
        raise ValueError(f"name a config: python -m {program} --config FILE, with FILE one of {_configs()}")
    if rest:
        raise ValueError(f"do not know what to do with {rest}; overrides look like --config.max_steps=10")
    return resolved


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(arguments)`; a user's mistake ends as one line on stderr and exit status 2, `Ended` as it says.

    `--debug` among the arguments shows the whole traceback instead.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        main(arguments)
    except Ended as ending:
        print(f"{_where(ending)}{ending}", file=sys.stderr, flush=True)
        leave(ending.status)
    except USER_ERRORS as error:
        if len(arguments) < len(sys.argv) - 1:
            traceback.print_exc()
        else:
            print(f"error: {_where(error)}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
        leave(2)
    except KeyboardInterrupt:  # of the tools; a run has its own way to stop
        print("stopped by SIGINT; the same command goes on or begins again", file=sys.stderr, flush=True)
        leave(STOP_STATUSES[signal.SIGINT])
    except Exception:
        traceback.print_exc()
        leave(1)  # Python's own way out would wait for the other processes


def end_on_signals() -> None:
    """Until a run knows better (`stopping.Stopper`), a signal that stops it ends the program at once.

    Call it before imports that take seconds: nothing is begun yet, so there is nothing to keep.
    """

    def end(number: int, _: object) -> None:
        name = signal.Signals(number).name
        print(
            f"stopped by {name}: nothing was under way; the same command goes on or begins again",
            file=sys.stderr,
            flush=True,
        )
        os._exit(STOP_STATUSES[number])

    for number in STOP_STATUSES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def leave(status: int) -> None:
    """Ends the process now: threads of a half-built run must not hold it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _where(error: BaseException) -> str:
    """Which of several processes it was; a note that `watch` leaves on the error."""
    notes = getattr(error, "__notes__", ())  # others leave notes too
    return "".join(f"{note}: " for note in notes if note.startswith("process "))


def _plain(error: BaseException) -> str:
    """What ml_collections and absl say, without their inner names."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    # the text of a KeyError is its argument's repr
    message = str(error.args[0] if isinstance(error, KeyError) else error).strip()
    if isinstance(error, SyntaxError | NameError) or "config file" in message:
        return (
            f"the config file could not be read: {message.splitlines()[-1].strip()}; there are {_configs()}"
        )
    missing = re.match(r'\W*(?:Key ")?(\w+)', message)
    if missing and (isinstance(error, KeyError) or 'Key "' in message):
        _, near, hint = message.partition("Did you mean")
        return f"the config has no field '{missing[1]}'. {near + hint or 'See configs/base.py.'}"
    return " ".join(message.split())


def _configs() -> list[str]:
    return sorted(str(path) for path in Path("configs").glob("*.py") if path.stem not in ("__init__", "base"))
