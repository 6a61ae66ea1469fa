"""Several processes as one program: joining them, and gathering small host values.

Every process runs the same program on its own devices; arrays on the mesh are global. What is here works
unchanged, and without communication, when there is one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class DistributedParams:
    """How processes find each other. On TPU pods and under SLURM, `auto` needs no addresses."""

    mode: str  # "none": one process; "auto": the cluster tells; "manual": the three fields below
    coordinator_address: str  # host:port of process 0
    num_processes: int
    process_id: int


def start(params: DistributedParams) -> None:
    """Joins this process to the others; returns when all are there. Call before any device is used.

    Raises: ValueError for an unknown mode or an incomplete address.
    """
    if params.mode == "none":
        return
    if params.mode == "auto":
        jax.distributed.initialize()
        return
    if params.mode != "manual":
        raise ValueError(f"config.distributed.mode is {params.mode!r}; known are 'none', 'auto', 'manual'.")
    if not params.coordinator_address or not 0 <= params.process_id < params.num_processes:
        raise ValueError(
            "config.distributed.mode 'manual' needs coordinator_address as host:port and process_id in "
            f"[0, num_processes); got {params.coordinator_address!r}, {params.process_id} of {params.num_processes}."
        )
    jax.distributed.initialize(
        coordinator_address=params.coordinator_address,
        num_processes=params.num_processes,
        process_id=params.process_id,
    )


def is_first() -> bool:
    """Whether this process is the one that writes for people."""
    return jax.process_index() == 0


def gather(local: np.ndarray) -> np.ndarray:
    """All processes' arrays, joined along axis 0 in process order; equal everywhere.

    Their lengths along axis 0 may differ, their other sizes not.
    """
    if jax.process_count() == 1:
        return local
    from jax.experimental import multihost_utils

    lengths = np.asarray(multihost_utils.process_allgather(np.array(len(local))))
    padded = np.zeros((lengths.max(), *local.shape[1:]), local.dtype)
    padded[: len(local)] = local
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return np.concatenate([part[:length] for part, length in zip(gathered, lengths, strict=True)])


def own_share(whole: np.ndarray) -> np.ndarray:
    """This process's part of what `gather` joined."""
    share = len(whole) // jax.process_count()
    return whole[jax.process_index() * share : (jax.process_index() + 1) * share]


def largest(numbers: Sequence[int]) -> list[int]:
    """For each position, the largest of all processes' numbers."""
    if jax.process_count() == 1:
        return [int(number) for number in numbers]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.array(numbers, np.int64))).max(axis=0).tolist()


def wait_for_all(name: str) -> None:
    """Returns when every process has called it with this name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
