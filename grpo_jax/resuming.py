"""Where a run begins: anew, or after one of its checkpoints."""

from __future__ import annotations

from grpo_jax.checkpoints import Checkpoints


def last_step(keeper: Checkpoints) -> int:
    """The step to go on after; 0 for a new run. Raises: checkpoints.Damaged if the newest is not whole."""
    return keeper.newest_step() or 0
