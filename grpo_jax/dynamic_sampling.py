"""Groups of equal rewards replaced by new problems, until none is left or the rounds are used up.

Such a group teaches nothing when rewards are compared within it. Each round samples just so many new
problems as it should take, and their groups that do have signal take the places of those without. A step's
rows stay as many as they were. Every process finds the same from the gathered rewards, and mends its own
share. Source: Yu et al. 2025 (DAPO), section 3.2; verl's `filter_groups`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from grpo_jax.learning.advantages import without_signal
from grpo_jax.structs import Rollout

Sample = Callable[[int, int], Rollout]  # (problems of each process, round from 1) -> a rollout of new ones
SUMMED = ("time/sample", "time/judge", "completions/num_tokens")


def replenish(
    rollout: Rollout, sample: Sample, *, max_rounds: int, process_index: int, process_count: int
) -> Rollout:
    """The rollout with its groups of equal rewards replaced where new problems gave better ones.

    Args:
        sample: called by all processes alike, with a number up to that of this process's problems.
        max_rounds: at least 1; a rollout that still lacks signal after them is used as it is.

    Returns: a rollout of as many groups. Its metrics are those of the first collection, but for times and
        tokens, which count all; `frac_reward_zero_std`, of the groups that are there now; and
        `dynamic_sampling/rounds`, `/num_problems` (sampled more than the step has) and
        `/frac_reward_zero_std` (before).
    """
    seen = [rollout.metrics]
    without = num_left = int(without_signal(rollout.rewards_PG).sum())
    num_groups, num_new = len(rollout.rewards_PG), 0
    while num_left and len(seen) <= max_rounds:
        num_seen = num_groups + num_new
        signal = (num_seen - without, num_seen)
        count = problems_needed(rollout.rewards_PG, signal, process_count)
        extra = sample(count, len(seen))
        seen.append(extra.metrics)
        num_new += count * process_count
        without += int(without_signal(extra.rewards_PG).sum())
        rollout = replaced(rollout, extra, process_index=process_index, process_count=process_count)
        num_left = int(without_signal(rollout.rewards_PG).sum())
    metrics = seen[0] | {name: sum(part[name] for part in seen) for name in SUMMED}
    metrics["tokens_per_second"] = metrics["completions/num_tokens"] / metrics["time/sample"]
    metrics["dynamic_sampling/frac_reward_zero_std"] = seen[0]["frac_reward_zero_std"]
    metrics["dynamic_sampling/rounds"] = float(len(seen) - 1)
    metrics["dynamic_sampling/num_problems"] = float(num_new)
    metrics["frac_reward_zero_std"] = num_left / num_groups
    return dataclasses.replace(rollout, metrics=metrics)


def problems_needed(rewards_PG: np.ndarray, signal: tuple[int, int], process_count: int) -> int:
    """New problems for each process: what the neediest one lacks, over the share that has had signal so far.

    At most as many as a process has, and all of those while nothing has had signal.

    Args:
        signal: groups that had signal, of how many.
    """
    lacking = without_signal(rewards_PG).reshape(process_count, -1)
    most, (had, seen) = int(lacking.sum(axis=1).max()), signal
    return min(-(-most * seen // had), lacking.shape[1]) if had else lacking.shape[1]


def replaced(rollout: Rollout, extra: Rollout, *, process_index: int, process_count: int) -> Rollout:
    """Groups of equal rewards exchanged, first by first, for those of `extra` that differ; process by process."""
    lacking = without_signal(rollout.rewards_PG).reshape(process_count, -1)
    better = ~without_signal(extra.rewards_PG).reshape(process_count, -1)
    own: dict[str, list[Any]] = {
        name: list(getattr(rollout, name)) for name in ("problems", "completions", "texts", "judgements")
    }
    rewards_PG, rewards_PGF = rollout.rewards_PG.copy(), rollout.rewards_PGF.copy()
    for process in range(process_count):
        places, sources = np.flatnonzero(lacking[process]), np.flatnonzero(better[process])
        for place, source in zip(places, sources, strict=False):  # as many as there are of both
            to, origin = (process * part.shape[1] + p for part, p in ((lacking, place), (better, source)))
            rewards_PG[to], rewards_PGF[to] = extra.rewards_PG[origin], extra.rewards_PGF[origin]
            if process == process_index:
                for name, values in own.items():
                    values[place] = getattr(extra, name)[source]
    return dataclasses.replace(rollout, rewards_PG=rewards_PG, rewards_PGF=rewards_PGF, **own)


def note(metrics: dict[str, float], *, num_groups: int) -> str:
    """What to tell where groups without signal are left; "" where none is, or nothing was replaced."""
    left, rounds = metrics["frac_reward_zero_std"], metrics.get("dynamic_sampling/rounds", 0)
    if not left or not rounds:
        return ""
    return (
        f"{round(left * num_groups)} of {num_groups} groups still have equal rewards after {rounds:.0f} "
        f"rounds of dynamic sampling, {metrics['dynamic_sampling/num_problems']:.0f} problems more; "
        "the step goes on with what there is"
    )
