"""What is examined, in order: what needs no model comes first. To add a check: one function and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpo_jax.doctor import folders, machine, running
from grpo_jax.doctor.checkup import FAILED, PASSED, SKIPPED, Case, Check, Finding, examine

CHECKS: tuple[Check, ...] = (
    Check("packages", machine.packages, "pip install -e . in the checkout"),
    Check("config", folders.config, "mend the config file or the override; fields are in configs/base.py"),
    Check(
        "devices", machine.devices, "close what else uses them (nvidia-smi), or install jax for their driver"
    ),
    Check("memory", machine.memory, "close other programs, or take a larger machine", needs=("devices",)),
    Check("rules", folders.rules, "set this field in the config", needs=("config", "devices")),
    Check("keys", machine.keys, "unset the variable"),
    Check("disk", machine.disk, "set config.output_dir to a folder that takes files", needs=("config",)),
    Check("output", folders.output, "or set config.output_dir to a new folder", needs=("config",)),
    Check("rewards", running.rewards, "mend the reward, or config.reward", needs=("rules",)),
    Check("model", folders.model, "fetch the folder again, or set config.model.path", needs=("rules",)),
    Check(
        "room",
        folders.room,
        "free some, set config.checkpoint.save_total_limit lower, or config.output_dir elsewhere",
        needs=("model", "disk"),
    ),
    Check(
        "tokenizer",
        folders.tokenizer,
        "fetch the tokenizer's files again, or correct the file that is named",
        needs=("model",),
    ),
    Check(
        "data",
        running.data,
        "set config.data.dataset and its fields; README, 'use your own data'",
        needs=("tokenizer", "rewards"),
    ),
    Check("judging", running.judging, "mend the reward, or config.reward", needs=("data",)),
    Check("weights", folders.weights, "fetch the file again, or take another model", needs=("model",)),
    Check(
        "plan",
        running.plan,
        "change what is named, and see tools/plan.py for other devices",
        needs=("tokenizer",),
    ),
    Check(
        "ratio",
        running.ratio,
        "set config.rollout.attention and config.model.attention to 'xla' and config.model.compute_dtype to "
        "'float32'; where that heals it, report the other",
        needs=("data", "weights"),
        hopes=("plan",),
    ),
    Check("ending", running.workers_end, "report it", needs=("rewards",)),
)


def diagnose(
    arguments: Sequence[str],
    *,
    tell: Callable[[str], None],
    say: Callable[[str], None],
    debug: bool = False,
) -> list[Finding]:
    """Examines the run that a command line describes.

    Args:
        arguments: as `grpo_jax.train` takes them.
        tell: called with a line as each check ends, and with the sum of all.
        say: called with a line before what takes long.
    """
    findings = examine(CHECKS, Case(arguments, say), tell, debug=debug)
    tell(summary(findings))
    return findings


def summary(findings: Sequence[Finding]) -> str:
    counts = {status: sum(f.status == status for f in findings) for status in (PASSED, FAILED, SKIPPED)}
    seconds = sum(finding.seconds for finding in findings)
    return ", ".join(f"{count} {status}" for status, count in counts.items()) + f" in {seconds:.0f} s"
