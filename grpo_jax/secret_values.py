"""Secrets of the environment stay there: no line, file or error of a run says one.

A secret is the value of a variable whose name ends in TOKEN, KEY, SECRET, PASSWORD or CREDENTIALS, a password in
an address, or a text of the form in which a hub or an endpoint hands out its keys. Enters: text on its way to
people or files. Leaves: the same, with a name in place of each secret; or, for what a user gives (`check`), one
line that says where it is, and never what. What a library writes past Python's streams is not seen here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

ENDINGS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIALS")
LEAST_CHARS = 8
"""Shorter values are words and numbers that any text has."""

SHAPES = {  # what is replaced -> by what; for keys that somebody typed and no variable holds
    r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)": "<PASSWORD>",
    r"(?<=https://)[^/\s:@'\"]+(?=@)": "<PASSWORD>",
    r"\bhf_[A-Za-z0-9]{20,}": "<HF_TOKEN>",
    r"\bsk-[A-Za-z0-9_-]{20,}": "<API_KEY>",
}


def redacted(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text with `<NAME>` in place of each secret.

    Args:
        environ: None: what this process's environment holds when it is first asked.
    """
    pattern, names = _known(_of(environ))
    return pattern.sub(lambda match: names[str(match.lastgroup)], text)


def of_environment(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """(name, value) of each secret, the longest value first. The path of a file that is there is none."""
    secrets = [(name, value.strip()) for name, value in environ.items() if name.upper().endswith(ENDINGS)]
    long = [(name, value) for name, value in secrets if len(value) >= LEAST_CHARS and not _is_path(value)]
    return tuple(sorted(long, key=lambda secret: -len(secret[1])))


def check(values: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> None:
    """Raises ValueError for values that a run would keep and that hold a secret; names them, shows none.

    Args:
        values: by the name that people know them by; nested mappings get dotted names.
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            check({f"{name}.{inner}": deeper for inner, deeper in value.items()}, environ)
            continue
        pattern, names = _known(_of(environ))
        if match := pattern.search(str(value)):
            raise ValueError(
                f"{redacted(name, environ)} holds a secret, {names[str(match.lastgroup)]}, which files and logs "
                "would keep: leave it out. Keys are read from the environment by whoever needs them; unset a "
                "variable of that name that is none."
            )


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises ValueError for a command line with a secret in it: reports keep the command that made them."""
    option = "the command line"
    for argument in arguments:
        name, is_set, value = argument.partition("=")
        option = name if argument.startswith("-") else option
        check({option: value if is_set and argument.startswith("-") else argument})


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """While it lasts, what Python writes to stdout and stderr is redacted, logging and tracebacks too."""
    plain = sys.stdout, sys.stderr
    covered = RedactedStream(plain[0]), RedactedStream(plain[1])
    sys.stdout, sys.stderr = covered
    _move_handlers(dict(zip(plain, covered, strict=True)))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = plain
        _move_handlers(dict(zip(covered, plain, strict=True)))


class RedactedStream:
    """A text stream that hands on what `redacted` leaves of each write."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _move_handlers(places: Mapping[Any, Any]) -> None:
    """Libraries that log have taken the streams when they were imported."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream in places:
                handler.setStream(places[handler.stream])


@functools.cache
def _own() -> tuple[tuple[str, str], ...]:
    return of_environment(os.environ)


def _of(environ: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return _own() if environ is None else of_environment(environ)


@functools.lru_cache(maxsize=8)
def _known(secrets: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """What finds them and all `SHAPES`, and what each of its groups is called."""
    found = [("|".join(map(_spelling, _forms(value))), f"<{name}>") for name, value in secrets]
    found += SHAPES.items()
    pattern = "|".join(f"(?P<secret_{i}>{spelling})" for i, (spelling, _) in enumerate(found))
    return re.compile(pattern), {f"secret_{i}": name for i, (_, name) in enumerate(found)}


def _forms(value: str) -> list[str]:
    """How a value may be written: as it is, in JSON, in an address."""
    forms = {value, json.dumps(value)[1:-1], urllib.parse.quote(value, safe=""), urllib.parse.quote(value)}
    return sorted(forms, key=len, reverse=True)


def _spelling(form: str) -> str:
    """A pattern for it; between its words any white space, or the escape of a line's end."""
    return r"(?:\s|\\[nrt])+".join(map(re.escape, re.split(r"(?:\s|\\[nrt])+", form)))


def _is_path(value: str) -> bool:
    return os.sep in value and len(value) < 1024 and os.path.exists(value)
