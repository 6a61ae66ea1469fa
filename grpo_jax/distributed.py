"""Several processes as one program: joining them, and gathering small host values.

Every process runs the same program on its own devices; arrays on the mesh are global. What is here works
unchanged, and without communication, when there is one process.
"""

from __future__ import annotations

import dataclasses

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
    """All processes' arrays of one shape, joined along axis 0 in process order; equal everywhere."""
    if jax.process_count() == 1:
        return local
    from jax.experimental import multihost_utils

    gathered = np.asarray(multihost_utils.process_allgather(local))
    return gathered.reshape(-1, *local.shape[1:])


def own_share(whole: np.ndarray) -> np.ndarray:
    """This process's part of what `gather` joined."""
    share = len(whole) // jax.process_count()
    return whole[jax.process_index() * share : (jax.process_index() + 1) * share]


def largest(number: int) -> int:
    """The largest of all processes' numbers."""
    return int(gather(np.array([number], np.int64)).max())


def wait_for_all(name: str) -> None:
    """Returns when every process has called it with this name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
