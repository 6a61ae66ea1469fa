"""A table of checks run in order: each is told as it ends, as passed, failed with the cure, or skipped.

Enters: the checks and an empty `Case`, which the first checks fill for those behind them. Leaves: one `Finding` a
check. Nothing that a check raises gets out of here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax

from grpo_jax.command_line import USER_ERRORS
from grpo_jax.policy import Policy
from grpo_jax.rewards.pool import Judge
from grpo_jax.rewards.registry import RewardSpec
from grpo_jax.settings import Settings
from grpo_jax.structs import Problem

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Skip(Exception):
    """Raised by a check that cannot be made here; its text is the reason."""


@dataclasses.dataclass
class Case:
    """What is examined. A field is there once the check that finds it has passed."""

    arguments: Sequence[str]  # of the command line
    say: Callable[[str], None]  # hears what takes long
    config: dict[str, Any] = dataclasses.field(init=False)
    settings: Settings = dataclasses.field(init=False)
    mesh: jax.sharding.Mesh = dataclasses.field(init=False)
    specs: tuple[RewardSpec, ...] = dataclasses.field(init=False)
    judge: Judge | None = None
    policy: Policy = dataclasses.field(init=False)
    problems: list[Problem] = dataclasses.field(init=False)  # of the first step


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    run: Callable[[Case], str]  # says what was found; raises what is wrong, or Skip
    cure: str  # what to do where it fails and its text does not already say it better
    needs: tuple[str, ...] = ()  # checks that must have passed
    hopes: tuple[str, ...] = ()  # checks that must not have failed


@dataclasses.dataclass(frozen=True)
class Finding:
    """How a check ended."""

    name: str
    status: str  # PASSED, FAILED or SKIPPED
    text: str
    seconds: float

    def line(self) -> str:
        return f"{self.status:<7}  {self.name:<10}  {self.text} ({self.seconds:.1f} s)"


def examine(
    checks: Sequence[Check], case: Case, tell: Callable[[str], None], *, debug: bool = False
) -> list[Finding]:
    """Runs all checks whose ground holds.

    Args:
        tell: called with a line as each check ends.
        debug: shows tracebacks, too.
    """
    findings: dict[str, Finding] = {}
    try:
        for check in checks:
            findings[check.name] = made(check, case, findings, debug=debug)
            tell(findings[check.name].line())
    finally:
        if case.judge:
            case.judge.close()
    return list(findings.values())


def made(check: Check, case: Case, findings: dict[str, Finding], *, debug: bool) -> Finding:
    """The finding of one check."""
    started = time.perf_counter()
    if reason := blocked(check, findings):
        return Finding(check.name, SKIPPED, reason, 0.0)
    try:
        status, text = PASSED, check.run(case)
    except Skip as skip:
        status, text = SKIPPED, str(skip)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is: the doctor must not die of what it examines
        if debug:
            traceback.print_exc()
        status, text = FAILED, f"{one_line(error).rstrip('.')} -> {check.cure}"
    return Finding(check.name, status, " ".join(text.split()), time.perf_counter() - started)


def blocked(check: Check, findings: dict[str, Finding]) -> str:
    """Why a check cannot be made; "" where it can."""
    for name in check.needs:
        if (found := findings.get(name)) and found.status != PASSED:
            return (
                f"because {name} was {found.status}" if found.status == SKIPPED else f"because {name} failed"
            )
    for name in check.hopes:
        if (found := findings.get(name)) and found.status == FAILED:
            return f"because {name} failed"
    return ""


def one_line(error: BaseException) -> str:
    """An error in words; of what is no user's mistake its kind too."""
    text = str(error)
    with contextlib.suppress(Exception):
        text = text.splitlines()[0] if isinstance(error, jax.errors.JaxRuntimeError) else text
    words = " ".join(text.split()) or repr(error)
    return words if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {words}"
