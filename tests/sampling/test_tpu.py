"""The sampler of a 7B model, compiled for TPU slices that are not there. Needs `libtpu`; no TPU is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from grpo_jax import chips
from tests.conftest import ROOT

pytest.importorskip("libtpu", reason="libtpu, with the compiler for TPUs, is not installed")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("topology", "attention"),
    [("v5e:4x4", "xla"), ("v6e:4x4", "xla"), ("v5p:2x2x2", "xla"), ("v5e:4x4", "pallas_tpu")],
)
def test_sampling_with_7b_at_2048_positions_fits(topology, attention):
    command = [sys.executable, "tests/sampling/tpu_programs.py", "--topology", topology]
    command += ["--attention", attention]
    found = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    plan, *programs = map(json.loads, found.stdout.splitlines())
    print(found.stdout)
    by_name = {program["program"]: program for program in programs}
    assert set(by_name) == {"weights", "window", "prefill", "arrive"}
    for program in programs:
        assert program["peak"] < chips.named(topology[:3]).memory_gib
    # what the plan counted as weights, keys and values is what the window gets
    planned = plan["weights_gib"] + plan["cache_gib"]
    assert by_name["window"]["arguments"] <= planned * 1.01
    # nothing is laid out anew, neither the cache nor the weights: less than one of 28 layers' keys and values
    assert by_name["window"]["temporary"] < plan["cache_gib"] / 28


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return ours | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": path}
