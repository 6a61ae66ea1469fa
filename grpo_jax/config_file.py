"""A config file is run, and what it returns is looked at; what is wrong with it is told with its line.

Enters: FILE, or FILE:VARIANT, which `get_config` is given. Leaves: a ConfigDict with every field of
`configs/base.py`, as the file has set them.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

NEEDED = ("output_dir", "max_steps", "model", "data", "rollout", "grpo", "optimizer")  # what base.py gives


def load(text: str) -> ConfigDict:
    """Runs the file and its `get_config`. Raises: ValueError, in one line, for whatever goes wrong in it."""
    from ml_collections import ConfigDict

    file, variant = _split(text)
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise ValueError(f"the config file {file!r} {what}; there are {shipped()}")
    try:
        made = _get_config(path)
        config = made(variant) if variant is not None else made()
    except (Exception, SystemExit) as error:
        given = f" (with the variant {variant!r} behind the colon)" if variant is not None else ""
        raise ValueError(f"the config file {_what(error, path)}{given}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"the config file {file}: get_config() returned {type(config).__name__}, not the ConfigDict that it must "
            "begin with, config = base.get_config(), and end with, return config"
        )
    if missing := [name for name in NEEDED if name not in config]:
        raise ValueError(
            f"the config file {file}: its config has no {', '.join(missing)}; begin with configs/base.py: "
            "config = base.get_config()"
        )
    return config


def shipped() -> list[str]:
    """The configs there are, as they are given to --config."""
    return sorted(str(path) for path in Path("configs").glob("*.py") if path.stem not in ("__init__", "base"))


def no_field(name: str, error: Exception) -> str:
    """What ConfigDict says of a field that there is not, with the near one if it found one."""
    near = re.search(r'Did you mean "(\w+)"', str(error))
    return f"the config has no field {name!r}; " + (
        f"did you mean {near[1]!r}?" if near else "configs/base.py has every field"
    )


def _split(text: str) -> tuple[str, str | None]:
    """FILE:VARIANT; a file of that very name comes first."""
    file, colon, variant = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, None
    return file, variant


def _get_config(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"config_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError("a config file must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError("it has no function get_config(), which returns the config")
    return module.get_config


def _what(error: BaseException, path: Path) -> str:
    """FILE, line N: what happened there."""
    place, message = str(path), " ".join(str(error).split())
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()
    ]
    if isinstance(error, SyntaxError) and error.lineno:
        lines, message = [error.lineno], error.msg
    if lines:
        place += f", line {lines[-1]}"
    missing = re.match(r'\W*Key "(\w+)"', message)
    if missing and isinstance(error, AttributeError | KeyError):
        return f"{place}: {no_field(missing[1], error)}"
    if lines or not isinstance(error, ValueError):
        message = f"{type(error).__name__}: {message}"
    return f"{place}: {message}"
