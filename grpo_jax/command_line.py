"""The command line: a config file, its overrides, and mistakes told in one line.

Enters: arguments. Leaves: a resolved config as a plain nested dictionary. `run_program` turns what a user can
get wrong into one line and exit status 2. Statuses: `endings.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from grpo_jax import config_file, overrides, secret_values
from grpo_jax.endings import NOBODY_READS, STOP_STATUSES, Ended

USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError)
"""What rooms raise for what a user, a file or a machine got wrong; anything else is our own mistake."""
USAGE = """usage: python -m {program} --config FILE [--config.section.field=value ...] [--debug]
configs: {configs}
fields: configs/base.py has every one, with its unit and range"""


def read_config(arguments: Sequence[str], *, program: str) -> dict[str, Any]:
    """Resolves `--config FILE` and `--config.section.field=value`; `--help` prints the usage and exits.

    Raises: ValueError, in one line, for what cannot be read, or holds a secret that files would keep: without
    `--config` it names the configs.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE.format(program=program, configs=", ".join(config_file.shipped())))
        sys.exit(0)
    file, rest = _take_file(arguments)
    if file is None:
        raise ValueError(
            f"name a config: python -m {program} --config FILE, with FILE one of {config_file.shipped()}"
        )
    config = config_file.load(file)
    overrides.apply(config, rest, program=program)
    resolved = config.to_dict()
    secret_values.check({"config": resolved})
    return resolved


class Parser(argparse.ArgumentParser):
    """Of the tools' options: a mistake is one line, as everywhere, and no option goes by the beginning of its name."""

    def __init__(self, **settings: Any):
        super().__init__(
            **{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings}
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help tells more.")


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(arguments)`; a user's mistake ends as one line on stderr and exit status 2, `Ended` as it says.

    `--debug` among the arguments shows the whole traceback instead. No line says a secret of the environment.
    """
    with secret_values.hidden():
        _run_to_its_end(main)


def _run_to_its_end(main: Callable[[Sequence[str]], None]) -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        secret_values.check_arguments(arguments)
        main(arguments)
    except Ended as ending:
        print(f"{_where(ending)}{ending}", file=sys.stderr, flush=True)
        leave(ending.status)
    except USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            os._exit(NOBODY_READS)
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


def nobody_reads() -> bool:
    """Whether what read our standard output, such as `head`, has ended."""
    with contextlib.suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def leave(status: int) -> None:
    """Ends the process now: threads of a half-built run must not hold it."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _where(error: BaseException) -> str:
    """Which of several processes it was; a note that `watch` leaves on the error."""
    notes = getattr(error, "__notes__", ())  # others leave notes too
    return "".join(f"{note}: " for note in notes if note.startswith("process "))


def _take_file(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config, None where there is none, and the other arguments."""
    files, rest, waiting = [], [], False
    for argument in arguments:
        name, is_set, value = argument.partition("=")
        if waiting:
            files.append(argument)
            waiting = False
        elif name in ("--config", "-config"):
            waiting = not is_set
            files += [value] if is_set else []
        else:
            rest.append(argument)
    if len(set(files)) > 1:
        raise ValueError(f"--config names {len(files)} files, {files}; a run has one")
    return (files[0] or None) if files and not waiting else None, rest
