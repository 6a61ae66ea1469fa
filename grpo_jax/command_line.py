"""The command line: a config file, its overrides, and mistakes told in one line.

The only door to ml_collections besides `configs/`. Enters: arguments. Leaves: a resolved config as a plain
nested dictionary. `run_program` turns what a user can get wrong into one line and exit status 2.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError)
"""What rooms raise for what a user, a file or a machine got wrong; anything else is our own mistake."""


def read_config(arguments: Sequence[str], *, program: str) -> dict[str, Any]:
    """Resolves `--config FILE` and `--config.section.field=value`.

    Raises: ValueError, in one line, for what cannot be read: without `--config` it names the configs.
    """
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "the run's config", lock_config=True, flag_values=values)
    try:
        rest = values([program, *arguments])[1:]
        config = values["config"].value
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(_plain(str(error), program)) from None
    if config is None:
        raise ValueError(f"name a config: python -m {program} --config FILE, with FILE one of {_configs()}")
    if rest:
        raise ValueError(f"do not know what to do with {rest}; overrides look like --config.max_steps=10")
    return config.to_dict()


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(arguments)`; a user's mistake ends as one line on stderr and exit status 2.

    `--debug` among the arguments shows the whole traceback instead.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        main(arguments)
    except USER_ERRORS as error:
        if len(arguments) < len(sys.argv) - 1:
            traceback.print_exc()
        else:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        leave(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        leave(130)


def leave(status: int) -> None:
    """Ends the process now: threads of a half-built run must not hold it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _plain(message: str, program: str) -> str:
    """What ml_collections and absl say, without their inner names."""
    if "Failed loading config file" in message:
        cause = message.strip().splitlines()[-1].strip()
        return f"the config file could not be read: {cause}; there are {_configs()}"
    lines = [line.strip().strip("'\"") for line in message.strip().splitlines()]
    if len(lines) == 2 and lines[1].startswith("Did you mean"):
        return f"the config has no field '{lines[0]}'. {lines[1]}"
    return " ".join(lines)


def _configs() -> list[str]:
    return sorted(str(path) for path in Path("configs").glob("*.py") if path.stem not in ("__init__", "base"))
