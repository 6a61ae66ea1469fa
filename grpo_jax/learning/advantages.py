"""Rewards to advantages: how much better a completion is than the others of its group.

Enters: `rewards_PG` of a whole step, over all processes. Leaves: `advantages_PG`, float32. NumPy on the
host: these are a few hundred numbers, and the same code runs on every process.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

EPSILON = 1e-4  # added to the standard deviation, as in TRL


def group_relative(rewards_PG: np.ndarray, *, scale_rewards: str) -> np.ndarray:
    """Centres each group on its mean and divides by a standard deviation.

    `advantage = (reward - mean(group)) / (std + 1e-4)`; the deviation is the sample's (G - 1). A group
    of equal rewards gets exactly 0.

    Args:
        rewards_PG: float, any scale, finite.
        scale_rewards: key of `SCALES`: "group" (Shao et al. 2024), "batch" (Liu et al. 2025, "Tricks or
            traps"), or "none" (Liu et al. 2025, Dr. GRPO).

    Returns: float32 `[P, G]`.
    Raises: ValueError for fewer than two generations or rewards that are not finite.
    """
    if rewards_PG.ndim != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(
            f"Rewards are centred on their group, which needs at least 2 generations; got shape {rewards_PG.shape}."
        )
    if not np.isfinite(rewards_PG).all():
        raise ValueError(f"{int((~np.isfinite(rewards_PG)).sum())} rewards are not finite numbers.")
    rewards_PG = rewards_PG.astype(np.float64)
    centred_PG = rewards_PG - rewards_PG.mean(axis=1, keepdims=True)
    # the mean of equal numbers may miss them by a rounding, which a tiny deviation would blow up
    centred_PG = np.where(without_signal(rewards_PG)[:, None], 0.0, centred_PG)
    return SCALES[scale_rewards](centred_PG, rewards_PG).astype(np.float32)


def without_signal(rewards_PG: np.ndarray) -> np.ndarray:
    """bool `[P]`: all rewards of the group are equal, so nothing can be learned from it."""
    return (rewards_PG == rewards_PG[:, :1]).all(axis=1)


def _by_group(centred_PG: np.ndarray, rewards_PG: np.ndarray) -> np.ndarray:
    return centred_PG / (rewards_PG.std(axis=1, ddof=1, keepdims=True) + EPSILON)


def _by_batch(centred_PG: np.ndarray, rewards_PG: np.ndarray) -> np.ndarray:
    return centred_PG / (rewards_PG.std(ddof=1) + EPSILON)


def _by_nothing(centred_PG: np.ndarray, rewards_PG: np.ndarray) -> np.ndarray:
    return centred_PG


SCALES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "group": _by_group,
    "batch": _by_batch,
    "none": _by_nothing,
}
