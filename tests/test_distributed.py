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
    fields = {"mode": "manual", "coordinator_address": "localhost:1", "num_processes": 2, "process_id": 0}
    return DistributedParams(**fields | changes)


def test_alone_an_array_is_what_all_have_and_this_process_has_all_of_it():
    local = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(distributed.gather(local), local)
    np.testing.assert_array_equal(distributed.own_share(local), local)


def test_alone_the_first_process_waits_for_nobody():
    assert distributed.is_first()
    assert distributed.largest([7, 2]) == [7, 2]
    distributed.wait_for_all("a name")


def test_one_process_joins_nobody(monkeypatch):
    def join(*args, **kwargs):
        raise AssertionError("mode 'none' must not look for other processes")

    monkeypatch.setattr(jax.distributed, "initialize", join)
    distributed.start(params(mode="none"))


def test_addresses_are_handed_on_as_they_stand(monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: joined.append(kwargs))
    distributed.start(params(process_id=1))
    distributed.start(params(mode="auto", coordinator_address="", num_processes=1))
    manual = {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 1}
    assert joined == [manual, {}]


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
distributed.start(distributed.DistributedParams("manual", sys.argv[1], 2, me))
whole = distributed.gather(np.array([[10 * me, 1], [10 * me + 1, 2]]))
assert whole.tolist() == [[0, 1], [1, 2], [10, 1], [11, 2]], whole
assert distributed.own_share(whole).tolist() == [[10 * me, 1], [10 * me + 1, 2]]
assert distributed.largest([3 - me, me]) == [3, 1]
assert distributed.gather(np.arange(me + 1)).tolist() == [0, 0, 1]  # shares of different length
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
