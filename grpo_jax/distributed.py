"""Several processes as one program: joining them, and gathering small host values.

Every process runs the same program on its own devices; arrays on the mesh are global. What is here works
unchanged, and without communication, when there is one process. How all end when one fails: `watch.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

ADDRESS_VARIABLES: tuple[tuple[str, str, str], ...] = (  # host:port of process 0, how many, which is this
    ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"),
    ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)
TORCHRUN_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
HEARTBEAT_TIMEOUT_S = 50  # after which JAX itself gives a silent process up; `watch` is faster


@dataclasses.dataclass(frozen=True)
class DistributedParams:
    """How processes find each other."""

    mode: str  # "none": one process; "auto": environment or cluster tells; "manual": the three fields below
    coordinator_address: str  # host:port of process 0
    num_processes: int
    process_id: int
    join_timeout_s: float  # seconds to wait until all are there


@dataclasses.dataclass(frozen=True)
class Place:
    """Where process 0 listens, and which of how many this process is."""

    coordinator_address: str
    num_processes: int
    process_id: int


def start(params: DistributedParams) -> None:
    """Joins this process to the others; returns when all are there. Call before any device is used.

    After `join_timeout_s` it says what it waited for and ends the process with status 2.

    Raises: ValueError for an unknown mode, an incomplete address, or where `auto` finds nothing.
    """
    if params.mode not in ("none", "auto", "manual"):
        raise ValueError(f"config.distributed.mode is {params.mode!r}; known are 'none', 'auto', 'manual'.")
    if params.mode == "none" and params.num_processes == 1:
        return
    if params.mode == "none":
        raise ValueError(
            f"config.distributed.num_processes is {params.num_processes}, which config.distributed.mode 'none' does not "
            "read; set the mode to 'manual', or to 'auto' where the environment tells."
        )
    if not params.join_timeout_s > 0:
        raise ValueError(
            f"config.distributed.join_timeout_s must be above 0 seconds; got {params.join_timeout_s}."
        )
    place = _manual(params) if params.mode == "manual" else find_place(os.environ)
    # JAX's preemption service would catch SIGTERM, and then neither `kill` nor scancel ends a process.
    jax.config.update("jax_enable_preemption_service", False)
    with _time_limit(params.join_timeout_s, place):
        try:
            jax.distributed.initialize(
                **(dataclasses.asdict(place) if place else {}),
                local_device_ids=local_device_ids(os.environ),
                initialization_timeout=int(params.join_timeout_s) + 60,  # ours is told first
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            )
        except ValueError as error:
            if place:
                raise
            raise ValueError(_nothing_found(os.environ, error)) from error


def find_place(environ: Mapping[str, str]) -> Place | None:
    """What the environment says of the other processes; None where it is left to JAX.

    JAX itself knows SLURM, Open MPI, TPU pods and Kubernetes.

    Raises: ValueError where the variables are there and cannot be.
    """
    for names in ADDRESS_VARIABLES:
        if all(environ.get(name) for name in names):
            address, count, process = (environ[name] for name in names)
            return _checked(address, count, process, what=", ".join(names))
    if all(environ.get(name) for name in TORCHRUN_VARIABLES):
        host, port, count, process = (environ[name] for name in TORCHRUN_VARIABLES)
        if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and port.isdigit():
            port = str(int(port) + 1)  # torchrun itself listens at MASTER_PORT
        return _checked(f"{host}:{port}", count, process, what=", ".join(TORCHRUN_VARIABLES))
    return None


def local_device_ids(environ: Mapping[str, str]) -> list[int] | None:
    """Which GPUs of this host are this process's: one each where several processes share it.

    Returns: one id; [] for all that can be seen; None where it is left to JAX (JAX_LOCAL_DEVICE_IDS).
    """
    if environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    if "LOCAL_RANK" in environ:
        local, shared = environ["LOCAL_RANK"], environ.get("LOCAL_WORLD_SIZE") != "1"
    elif "SLURM_LOCALID" in environ:
        nodes = environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES", "1")
        local, shared = environ["SLURM_LOCALID"], int(environ.get("SLURM_NTASKS", "1")) > int(nodes)
    elif "OMPI_COMM_WORLD_LOCAL_RANK" in environ:
        local = environ["OMPI_COMM_WORLD_LOCAL_RANK"]
        shared = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") != "1"
    else:
        return None
    one_is_seen = re.fullmatch(r"[^,]+", environ.get("CUDA_VISIBLE_DEVICES", ""))  # the launcher has chosen
    return [int(local)] if shared and not one_is_seen else []


def _manual(params: DistributedParams) -> Place:
    return _checked(
        params.coordinator_address,
        params.num_processes,
        params.process_id,
        what="config.distributed.mode 'manual'",
    )


def _checked(address: str, count: int | str, process: int | str, *, what: str) -> Place:
    numbers = [int(n) if re.fullmatch(r"-?\d+", str(n)) else -1 for n in (count, process)]
    port = int(address.rpartition(":")[2]) if re.fullmatch(r".+:\d{1,5}", address) else 0
    if not 0 < port < 2**16 or not 0 <= numbers[1] < numbers[0]:
        raise ValueError(
            f"{what} needs coordinator_address as host:port and process_id in "
            f"[0, num_processes); got {address!r}, {process} of {count}."
        )
    return Place(address, *numbers)


def _nothing_found(environ: Mapping[str, str], error: Exception) -> str:
    sets = (*ADDRESS_VARIABLES, TORCHRUN_VARIABLES)
    seen = [name for names in sets for name in names if environ.get(name)]
    return (
        "config.distributed.mode is 'auto', but nothing tells where the other processes are. Looked for "
        + "; or ".join(", ".join(names) for names in sets)
        + f" (set: {', '.join(seen) or 'none'}), and for SLURM (srun), Open MPI (mpirun), a TPU pod and "
        "Kubernetes as JAX knows them. Set one of these, or config.distributed.mode='manual' with its fields. "
        f"JAX says: {error}"
    )


@contextlib.contextmanager
def _time_limit(seconds: float, place: Place | None) -> Iterator[None]:
    """Ends the process, with a message, if the body takes longer.

    JAX's own time limit aborts the process with a stack of C++ calls and cannot be caught.
    """

    def give_up() -> None:
        print(f"error: {missing(place, seconds)}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def missing(place: Place | None, seconds: float) -> str:
    """Who seems to be missing; JAX does not tell which of several."""
    if place is None:
        return (
            f"waited {seconds:.0f} s for the other processes where JAX found them (SLURM, Open MPI, TPU pod "
            "or Kubernetes). Are all started? config.distributed.join_timeout_s waits longer."
        )
    me, count, address = place.process_id, place.num_processes, place.coordinator_address
    if me == 0:
        others = "process 1" if count == 2 else f"at least one of the processes 1 to {count - 1}"
        who = f"{others} has not joined"
    elif answers(address):
        who = "process 0 answers there, another process is missing"
    else:
        who = "nothing answers there: process 0 is missing, or the address is wrong or blocked"
    return (
        f"process {me} of {count}: waited {seconds:.0f} s at {address}; {who}. Start all {count} with this address, "
        "each with a process_id of its own; config.distributed.join_timeout_s waits longer."
    )


def answers(address: str) -> bool:
    """Whether anything listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError:
        return False
    return True


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


def gather_texts(local: Sequence[str]) -> list[str]:
    """All processes' texts in process order; equal everywhere. Each process must give at least one."""
    lines = "".join(json.dumps(text) + "\n" for text in local)  # of ASCII alone, each text one line
    gathered = gather(np.frombuffer(lines.encode(), np.uint8))
    return [json.loads(line) for line in gathered.tobytes().splitlines()]


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
