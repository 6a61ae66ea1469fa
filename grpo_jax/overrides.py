"""`--config.section.field=value`: fields that there are, with values of their kind, put into a config.

Enters: a ConfigDict and arguments. Leaves: the ConfigDict with new values. Whoever misspells a field, leaves out
`--config.`, or brings another trainer's name is told what was meant. The only door to absl.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax import other_names

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PREFIX = "--config."
SEE = "configs/base.py has every field"
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def apply(config: ConfigDict, arguments: Sequence[str], *, program: str) -> None:
    """Sets what the arguments name; where a field is named twice, the last one counts.

    Raises: ValueError, in one line, for what is no field, no override, or no value of the field's kind.
    """
    from absl import flags
    from ml_collections import config_flags

    for argument in _names(arguments):
        _check_name(config, argument)
    line = [program, *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, "the run's config", lock_config=True, flag_values=values, sys_argv=line
    )
    try:
        values(line)
    except flags.Error as error:
        raise ValueError(_value_mistake(config, str(error))) from error


def _names(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments but for those that are the value of the one before, as in `--config.max_steps 10`."""
    is_value = False
    for argument in arguments:
        if not is_value:
            yield argument
        is_value = not is_value and argument.startswith(PREFIX) and "=" not in argument


def _check_name(config: Any, argument: str) -> None:
    """Raises ValueError for what is no override of a field."""
    name = argument.partition("=")[0]
    if not name.startswith(PREFIX):
        meant = _meant(config, re.sub(r"^(--?)?(config\.)?", "", name))
        raise ValueError(
            f"do not know what to do with {argument!r}{f': {meant}' if meant else ''}; "
            f"overrides look like {PREFIX}max_steps=10"
        )
    field, section = name.removeprefix(PREFIX), config
    for depth, part in enumerate(parts := field.split(".")):
        if not _is_section(section):
            whole = ".".join(parts[:depth])
            raise ValueError(
                f"the config has no field {field!r}: config.{whole} is {_kind(section)}, no section"
            )
        if part not in section:
            raise ValueError(f"the config has no field {field!r}; {_meant(config, field) or SEE}")
        section = section[part]
    if _is_section(section):
        raise ValueError(
            f"config.{field} is a section, which takes no value; its fields are {sorted(section)}"
        )


def _meant(config: Any, field: str) -> str:
    """What a field that there is not may have meant; "" where nothing is near."""
    there, last = list(_fields(config)), field.rpartition(".")[2]
    same = [name for name in there if name.rpartition(".")[2] == last and not name.startswith("sft.")]
    near = [field] if field in there else same
    if not near and (theirs := other_names.ours(field)):
        return f"here that is {theirs}"
    near = near or difflib.get_close_matches(field, there, n=1, cutoff=0.75)
    if not near:
        ends = {name.rpartition(".")[2]: name for name in there}
        near = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.75)]
    return f"did you mean {' or '.join(PREFIX + name for name in near)}?" if near else ""


def _fields(config: Any) -> Iterator[str]:
    """The dotted names of all fields."""
    for name in config:
        yield from (f"{name}.{field}" for field in config[name]) if _is_section(config[name]) else (name,)


def _is_section(value: Any) -> bool:
    return hasattr(value, "keys")


def _value_mistake(config: Any, message: str) -> str:
    """absl's message in our words: the field, what it was given, what it takes."""
    illegal = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
    missing = re.search(r"--config\.([\w.]+)$", message)
    if not (illegal or missing):
        return " ".join(message.split())
    name = (illegal or missing)[1]  # pyright: ignore[reportOptionalSubscript]
    now: Any = config
    for part in name.split("."):
        now = now[part]
    if illegal:
        given = " ".join(illegal[2].split())
        return f"{PREFIX}{name}={given}: it must be {_kind(now)}, such as {now!r}"
    return f"{PREFIX}{name} has no value; write {PREFIX}{name}={now}"


def _kind(value: Any) -> str:
    return next((kind for of, kind in KINDS.items() if type(value) is of), f"a {type(value).__name__}")
