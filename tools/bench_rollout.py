"""Measures our sampler, and peers in turn with it: `bench.py rollout`."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import compilations, policy
from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder
from tools import bare_loop, bench_sampler, measuring, peers

OURS = "ours"
PEERS = ("transformers", "bare")
LIBRARIES = ("jax", "jaxlib", "flax", "transformers", "torch")
LOGIT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.25}
"""Largest difference over largest logit: 2e-6, 0.02 and 0.07 were seen with 24 layers; other weights make 1."""


def rollout(options: argparse.Namespace) -> None:
    """Measures our sampler, and peers in turn with it, and tells."""
    counter = compilations.Counter()
    if "transformers" in options.against:  # where there is a GPU, torch needs some of its memory too
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    mesh_lib.use_cpu_devices(options.cpu_devices or measuring.num_cores())
    mesh = mesh_lib.create(data=-1, fsdp=options.fsdp, tensor=options.tensor)
    opened = bench_sampler.open_model(options)
    work = bench_sampler.plan_work(options, opened)
    params = bench_sampler.make_params(options, opened, mesh)
    ours = bench_sampler.Sampler(options, opened, params, mesh=mesh, work=work)
    facts = {"warm_up_seconds": warm_up(OURS, ours), "weights_seconds": ours.weights_seconds, **memory()}
    sides: dict[str, peers.Side] = {OURS: ours}
    for name in options.against:
        if name == "bare":
            bare = bare_loop.BareLoop(opened.model, ours.params, mesh=mesh, work=work, dtype=opened.dtype)
            sides[name] = bare
        else:
            sides[name] = transformers = open_transformers(options, opened, params, work)
            facts["largest_logit_difference"] = check_same_weights(options, opened, ours, transformers)
        warm_up(name, sides[name])
    del params
    seconds, measured = measure(sides, options, counter)
    tell(options, work, sides, seconds, {**facts, **measured, **ours.facts(statistics.median(seconds[OURS]))})


def open_transformers(
    options: argparse.Namespace, opened: policy.Policy, params: decoder.Params, work: peers.Work
) -> peers.Transformers:
    """transformers on the same weights: from the folder they came from, or by way of an export."""
    dtype = jnp.dtype(opened.dtype).name
    if options.model:
        return peers.Transformers(opened.folder, work=work, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        bench_sampler.export(options.shape, opened, params, weights, dtype)
        return peers.Transformers(weights, work=work, dtype=dtype)


def check_same_weights(
    options: argparse.Namespace,
    opened: policy.Policy,
    ours: bench_sampler.Sampler,
    transformers: peers.Transformers,
) -> float:
    """Largest difference of first-token logits. Raises: RuntimeError where rounding does not explain it."""
    mine_PV = bare_loop.first_logits(opened.model, ours.params, ours.work, dtype=opened.dtype)
    other_PV = transformers.first_logits()
    difference, largest = (float(np.abs(x).max()) for x in (mine_PV - other_PV, other_PV))
    print(f"same weights: largest logit difference {difference:.0e}, largest logit {largest:.2g}", flush=True)
    tolerance = LOGIT_TOLERANCE["int8" if options.weights == "int8" else jnp.dtype(opened.dtype).name]
    if not difference <= tolerance * largest:
        raise RuntimeError(
            f"transformers computes other logits: {difference:.2g} apart; this compares nothing."
        )
    return difference


def warm_up(name: str, side: peers.Side) -> float:
    """Seconds of the first call, in which programs are compiled."""
    started = time.perf_counter()
    side.generate(0)
    seconds = time.perf_counter() - started
    print(f"{name}: warm after {seconds:.1f} s", flush=True)
    return seconds


def measure(
    sides: Mapping[str, peers.Side], options: argparse.Namespace, counter: compilations.Counter
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every call, in turns; what ours compiled meanwhile, and what other programs took."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    compiled, before = 0, measuring.processor_seconds()
    for run in range(1, options.runs + 1):
        for name, side in sides.items():
            known, started = counter.total, time.perf_counter()
            side.generate(options.seed + run)
            seconds[name].append(time.perf_counter() - started)
            compiled += counter.total - known if name == OURS else 0
    share = measuring.others_share(before) if options.quiet_check == "yes" else None
    return seconds, {"compilations": compiled, "others_share": share}


def memory() -> dict[str, float | None]:
    """The most that this process has had until now, in gigabytes: on the host, and on a device if it tells."""
    device = max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())
    return {"peak_rss_gb": measuring.peak_rss_gb(), "peak_device_gb": device / 1e9 or None}


def tell(
    options: argparse.Namespace,
    work: peers.Work,
    sides: Mapping[str, peers.Side],
    seconds: Mapping[str, list[float]],
    facts: Mapping[str, Any],
) -> None:
    """The table, then the line of JSON."""
    speeds = {name: work.num_tokens / statistics.median(taken) for name, taken in seconds.items()}
    print(f"\n{'':14}{'tokens/s':>10}{'least':>10}{'most':>10}{'seconds':>10}{'ours is':>10}  on")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        cells = [f"{work.num_tokens / each:10,.1f}" for each in (middle, max(taken), min(taken))]
        ratio = f"{speeds[OURS] / speeds[name]:9.2f}x"
        print(f"{name:14}{''.join(cells)}{middle:10.3f}{ratio}  {sides[name].device}")
    measuring.warn_if_noisy(facts["others_share"])
    ratios = {name: speeds[OURS] / speed for name, speed in speeds.items() if name != OURS}
    first = options.against[0] if options.against else None
    found = {
        "tokens_per_second": speeds[OURS],
        "peer": first,
        "peer_tokens_per_second": speeds[first] if first else None,
        "ratio": ratios[first] if first else None,
        **{f"ratio_to_{name}": ratio for name, ratio in ratios.items()},
        "compile_seconds": max(facts["warm_up_seconds"] - statistics.median(seconds[OURS]), 0.0),
        **facts,
        "seconds": seconds,
        "num_tokens": work.num_tokens,
        "device": sides[OURS].device,
        "num_devices": jax.device_count(),
        "num_cores": measuring.num_cores(),
        "versions": measuring.versions(LIBRARIES),
        "settings": {
            name: value for name, value in vars(options).items() if name not in ("command", "check")
        },
    }
    measuring.print_json(found)
