"""Joining processes and gathering: alone it costs nothing, and two processes see the same numbers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax import distributed
from grpo_jax.distributed import DistributedParams

ROOT = Path(__file__).resolve().parent.parent


def params(**changes) -> DistributedParams:
    fields = {
        "mode": "manual",
        "coordinator_address": "localhost:1",
        "num_processes": 2,
        "process_id": 0,
        "join_timeout_s": 300.0,
    }
    return DistributedParams(**fields | changes)


def test_alone_an_array_is_what_all_have_and_this_process_has_all_of_it():
    local = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(distributed.gather(local), local)
    np.testing.assert_array_equal(distributed.own_share(local), local)
    texts = ["a\nb", "", "\u00e9 \ud800"]
    assert distributed.gather_texts(texts) == texts


def test_alone_the_first_process_waits_for_nobody():
    assert distributed.is_first()
    assert distributed.largest([7, 2]) == [7, 2]
    distributed.wait_for_all("a name")


def test_one_process_joins_nobody(monkeypatch):
    def join(*args, **kwargs):
        raise AssertionError("mode 'none' must not look for other processes")

    monkeypatch.setattr(jax.distributed, "initialize", join)
    distributed.start(params(mode="none", num_processes=1))


def test_addresses_are_handed_on_as_they_stand(monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: joined.append(kwargs))
    for name in {name for names in distributed.ADDRESS_VARIABLES for name in names}:
        monkeypatch.delenv(name, raising=False)
    distributed.start(params(process_id=1))
    distributed.start(params(mode="auto", coordinator_address="", num_processes=1))
    manual = {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 1}
    assert [{name: kwargs[name] for name in manual if name in kwargs} for kwargs in joined] == [manual, {}]


PLAIN = {"COORDINATOR_ADDRESS": "a:5", "NUM_PROCESSES": "4", "PROCESS_ID": "3"}
TORCHRUN = {"MASTER_ADDR": "h", "MASTER_PORT": "7", "WORLD_SIZE": "2", "RANK": "1"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        (PLAIN, ("a:5", 4, 3)),
        ({f"JAX_{name}": value for name, value in PLAIN.items()}, ("a:5", 4, 3)),
        (TORCHRUN, ("h:7", 2, 1)),
        (TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, ("h:8", 2, 1)),  # torchrun holds port 7
        (TORCHRUN | PLAIN, ("a:5", 4, 3)),
    ],
)
def test_the_environment_tells_address_count_and_place(environ, place):
    assert distributed.find_place(environ) == distributed.Place(*place)


@pytest.mark.parametrize("lost", sorted(PLAIN))
def test_an_incomplete_environment_is_left_to_jax(lost):
    assert distributed.find_place({name: value for name, value in PLAIN.items() if name != lost}) is None


@pytest.mark.parametrize("wrong", [{"PROCESS_ID": "4"}, {"NUM_PROCESSES": "x"}, {"COORDINATOR_ADDRESS": "a"}])
def test_variables_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match="COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID needs"):
        distributed.find_place(PLAIN | wrong)


@pytest.mark.parametrize(
    ("environ", "ids"),
    [
        ({}, None),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, [3]),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, []),  # alone on its host: all GPUs
        ({"SLURM_LOCALID": "2", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, [2]),
        ({"SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, []),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "CUDA_VISIBLE_DEVICES": "3"}, []),  # already chosen
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [3]),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "JAX_LOCAL_DEVICE_IDS": "1"}, None),
    ],
)
def test_processes_of_one_host_take_a_gpu_each(environ, ids):
    assert distributed.local_device_ids(environ) == ids


def test_auto_says_what_it_looked_for(monkeypatch):
    def join(**kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", join)
    monkeypatch.setenv("MASTER_ADDR", "h")
    with pytest.raises(ValueError, match=r"PROCESS_ID.*set: MASTER_ADDR\).*SLURM.*mode='manual'") as told:
        distributed.start(params(mode="auto"))
    assert "\n" not in str(told.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(("process", "who"), [(0, "process 1 has not joined"), (1, "process 0 is missing")])
def test_who_waits_too_long_says_for_whom_and_where(process, who):
    port = free_port()
    program = (
        "from grpo_jax import distributed as d\n"
        f"d.start(d.DistributedParams('manual', 'localhost:{port}', 2, {process}, 2.0))"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"process {process} of 2: waited 2 s at localhost:{port}" in line and who in line


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"config\.distributed\.mode is 'slurm'; known are 'none', 'auto', 'manual'"
    ):
        distributed.start(params(mode="slurm"))


@pytest.mark.parametrize(
    "changes", [{"coordinator_address": ""}, {"process_id": 2}, {"process_id": -1}, {"num_processes": 0}]
)
def test_an_address_or_a_number_that_cannot_be_is_refused(changes):
    with pytest.raises(ValueError, match=r"needs coordinator_address as host:port and process_id in"):
        distributed.start(params(**changes))


PROGRAM = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 1)
from grpo_jax import distributed
me = int(sys.argv[2])
distributed.start(distributed.DistributedParams("manual", sys.argv[1], 2, me, 60.0))
whole = distributed.gather(np.array([[10 * me, 1], [10 * me + 1, 2]]))
assert whole.tolist() == [[0, 1], [1, 2], [10, 1], [11, 2]], whole
assert distributed.own_share(whole).tolist() == [[10 * me, 1], [10 * me + 1, 2]]
assert distributed.largest([3 - me, me]) == [3, 1]
assert distributed.gather(np.arange(me + 1)).tolist() == [0, 0, 1]  # shares of different length
texts = [["a\\n\\u00e9"], ["", "\\ud800 b"]]  # as many as one likes, of any characters
assert distributed.gather_texts(texts[me]) == texts[0] + texts[1]
assert distributed.is_first() == (me == 0)
distributed.wait_for_all("end")
print("same numbers")
"""


def test_two_processes_see_the_same_numbers_in_process_order():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:  # does nothing to those that have ended
            process.kill()
    assert all(out.endswith("same numbers\n") for out, _ in told), told
    assert [process.returncode for process in processes] == [0, 0], told
