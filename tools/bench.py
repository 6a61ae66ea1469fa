"""How fast sampling is on this machine, beside others that do the same work in the same run.

    python tools/bench.py rollout --shape qwen2.5-1.5b --prompts 8 --generations 8 --new-tokens 256
    python tools/bench.py rollout --model DIR --lengths skewed --against transformers,bare

Random prompts, and nothing ends early: every completion has its planned length, on all sides. After a call
each to warm up, the sides take turns; medians count. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import command_line, compilations, policy
from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decode_attention, decoder, hf_weights, registry
from grpo_jax.models.shapes import SHAPES
from grpo_jax.sampling.counters import Counters
from grpo_jax.sampling.plan import EngineShape
from grpo_jax.sampling.weights import FORMS, SamplingWeights
from grpo_jax.structs import Problem

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is there

from tools import peers

OURS = "ours"
PEERS = ("transformers", "bare")
LIBRARIES = ("jax", "jaxlib", "flax", "transformers", "torch")
LEAST = dict.fromkeys(("prompts", "generations", "prompt_length", "new_tokens", "runs", "tensor", "fsdp"), 1)
LEAST |= dict.fromkeys(("temperature", "slots", "window", "cpu_devices", "seed"), 0)
NOISY = 0.05  # of the processors' time taken by other programs: from there on figures are doubtful
LOGIT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.25}
"""Largest difference over largest logit: 2e-6, 0.02 and 0.07 were seen with 24 layers; other weights make 1."""


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as all our programs do."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help tells more.")


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and runs the command."""
    options = parse(arguments)
    options.command(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises: ValueError for a mistake in the command line, ImportError for a peer that is not installed."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_rollout(
        commands.add_parser("rollout", help="completions of prompts, as a training step samples them")
    )
    options = parser.parse_args(arguments)
    options.new_tokens = options.new_tokens or (512 if options.lengths == "skewed" else 256)
    options.against = [name for name in options.against.split(",") if name]
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            raise ValueError(
                f"--{name.replace('_', '-')} must be {least} or more; got {getattr(options, name)}."
            )
    if not set(options.against) <= set(PEERS):
        raise ValueError(f"--against takes any of {', '.join(PEERS)}; got {', '.join(options.against)}.")
    if "transformers" in options.against and not importlib.util.find_spec("torch"):
        raise ImportError("--against transformers needs torch: pip install torch, or leave it out.")
    return options


def add_rollout(parser: argparse.ArgumentParser) -> None:
    model, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    model.add_argument("--model", default="", help="Hugging Face folder")
    model.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape")
    add("--prompts", type=int, default=8, help="a call")
    add("--generations", type=int, default=8, help="completions a prompt")
    add("--prompt-length", type=int, default=32, help="tokens of every prompt")
    add("--new-tokens", type=int, default=0, help="of a long completion; 0: 256, or 512 with skewed lengths")
    add("--lengths", choices=peers.LENGTHS, default="equal", help="skewed: three of four end near 32 tokens")
    add("--temperature", type=float, default=1.0, help="0: the likeliest token always")
    add("--against", default="", help=f"peers, of {','.join(PEERS)}; the ratio is to the first")
    add("--runs", type=int, default=5, help="measured calls of each side")
    add("--slots", type=int, default=0, help="rows decoded at once; 0: what fits and helps")
    add("--no-refill", action="store_true", help="free slots stay empty until all rows have ended")
    add("--window", type=int, default=0, help="steps between two looks of the host; 0: chosen")
    add("--dtype", choices=("auto", *policy.COMPUTE_DTYPES), default="auto")
    add("--weights", choices=FORMS, default="compute", help="form of our sampling copy")
    add("--attention", choices=("auto", *decode_attention.ATTENTIONS), default="auto")
    add("--tensor", type=int, default=1, help="mesh: devices that share a row")
    add("--fsdp", type=int, default=1, help="mesh: devices that share the master weights")
    add("--cpu-devices", type=int, default=0, help="parts of the CPU; 0: one a core")
    add("--seed", type=int, default=0, help="of weights, prompts, lengths and tokens")
    add("--quiet-check", choices=("yes", "no"), default="yes", help="look for other programs' load")
    parser.set_defaults(command=rollout)


def rollout(options: argparse.Namespace) -> None:
    """Measures our sampler, and peers in turn with it, and tells."""
    counter = compilations.Counter()
    if "transformers" in options.against:  # where there is a GPU, torch needs some of its memory too
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    mesh_lib.use_cpu_devices(options.cpu_devices or peers.num_cores())
    mesh = mesh_lib.create(data=-1, fsdp=options.fsdp, tensor=options.tensor)
    opened = open_model(options)
    work = plan_work(options, opened)
    params = make_params(options, opened, mesh)
    ours = Sampler(options, opened, params, mesh=mesh, work=work)
    facts = {"warm_up_seconds": warm_up(OURS, ours), "weights_seconds": ours.weights_seconds, **memory()}
    sides: dict[str, peers.Side] = {OURS: ours}
    for name in options.against:
        if name == "bare":
            bare = peers.BareLoop(opened.model, ours.params, mesh=mesh, work=work, dtype=opened.dtype)
            sides[name] = bare
        else:
            sides[name] = transformers = open_transformers(options, opened, params, work)
            facts["largest_logit_difference"] = check_same_weights(options, opened, ours, transformers)
        warm_up(name, sides[name])
    del params
    seconds, measured = measure(sides, options, counter)
    tell(options, work, sides, seconds, {**facts, **measured, **ours.facts(statistics.median(seconds[OURS]))})


def open_model(options: argparse.Namespace) -> policy.Policy:
    """The model without weights, and without a tokenizer: prompts are ids, and no id ends a completion."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(options.model or folder)
        if options.shape:
            (source / "config.json").write_text(json.dumps(SHAPES[options.shape]))
        model, shapes = decoder.build(registry.read_spec(source))
    dtype = policy.compute_dtype(options.dtype)
    return policy.Policy(source, model, shapes, None, (), model.spec.vocab_size, dtype)


def plan_work(options: argparse.Namespace, opened: policy.Policy) -> peers.Work:
    """Raises: ValueError where a row would be longer than the model's positions."""
    spec, length = opened.model.spec, options.prompt_length + options.new_tokens
    if length > spec.max_position_embeddings:
        raise ValueError(
            f"The model has {spec.max_position_embeddings} positions; prompt and completion take {length}. "
            "Lower --prompt-length or --new-tokens."
        )
    rng = np.random.default_rng(options.seed)
    prompts_PT = rng.integers(0, spec.vocab_size, (options.prompts, options.prompt_length), np.int32)
    shape = (options.prompts, options.generations)
    limits_PG = peers.planned_lengths(options.lengths, shape, options.new_tokens, seed=options.seed)
    return peers.Work(prompts_PT, limits_PG, options.temperature)


def make_params(
    options: argparse.Namespace, opened: policy.Policy, mesh: jax.sharding.Mesh
) -> decoder.Params:
    """The master weights, float32: those of the folder, or random ones."""
    if options.model:
        return policy.load_weights(opened, mesh=mesh)
    shardings = mesh_lib.parameter_shardings(mesh, opened.shapes)
    return decoder.initialise(opened.model.spec, seed=options.seed, shardings=shardings)


class Sampler:
    """Our engine, set to the work.

    Raises: ValueError where slots are not refilled and a prompt's completions do not fit into them.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        opened: policy.Policy,
        params: decoder.Params,
        *,
        mesh: jax.sharding.Mesh,
        work: peers.Work,
    ):
        self.work, self.device = work, jax.devices()[0].device_kind
        weights = SamplingWeights(
            opened.model, mesh=mesh, shapes=opened.shapes, dtype=opened.dtype, form=options.weights
        )
        jax.block_until_ready(weights(params))  # compiles; its copy is let go
        started = time.perf_counter()
        self.params = jax.block_until_ready(weights(params))
        self.weights_seconds = time.perf_counter() - started
        shape = EngineShape(
            num_rows=work.limits_PG.size,
            num_generations=work.num_generations,
            max_prompt_length=work.prompts_PT.shape[1],
            max_completion_length=work.longest,
            num_slots=options.slots,
            window=options.window,
            halvings=0 if options.no_refill else EngineShape.halvings,
        )
        self._engine = policy.make_engine(
            opened, mesh=mesh, shape=shape, weights=weights, attention=options.attention
        )
        print(self._engine.plan.describe(), flush=True)
        self._problems = [
            Problem(i, "", "", "", tuple(ids)) for i, ids in enumerate(work.prompts_PT.tolist())
        ]
        groups = self._engine.plan.num_slots // work.num_generations if options.no_refill else options.prompts
        if not groups:
            raise ValueError(
                f"--no-refill needs a slot for each of a prompt's {work.num_generations} completions; "
                "set --slots higher or --generations lower."
            )
        self._waves = [slice(start, start + groups) for start in range(0, options.prompts, groups)]
        self._counters: list[Counters] = []

    def generate(self, seed: int) -> np.ndarray:
        """Raises: RuntimeError if a completion does not have its planned length."""
        work, rows = self.work, []
        self._counters = []
        for wave in self._waves:
            sampled = self._engine.generate(
                self.params,
                self._problems[wave],
                num_generations=work.num_generations,
                temperature=work.temperature,
                step_key=jax.random.key(seed),
                limits_PG=work.limits_PG[wave],
            )
            self._counters.append(sampled.counters)
            rows += [row for group in sampled.completions for row in group]
        tokens_BC = np.zeros((len(rows), work.longest), np.int32)
        for row, tokens_C, limit in zip(rows, tokens_BC, work.limits_PG.reshape(-1), strict=True):
            if row.num_tokens != limit:
                raise RuntimeError(f"A completion of ours has {row.num_tokens} tokens, planned were {limit}.")
            tokens_C[:limit] = row.ids
        return tokens_BC

    def facts(self, seconds: float) -> dict[str, float]:
        """What the engine counted in its last call, as if that had taken the given seconds."""
        names = ("num_tokens", "num_steps", "num_slot_steps", "kv_bytes")
        sums = {name: sum(getattr(counters, name) for counters in self._counters) for name in names}
        counters = dataclasses.replace(self._counters[0], seconds=seconds, **sums)
        return {name.removeprefix("sampling/"): value for name, value in counters.metrics().items()}


def open_transformers(
    options: argparse.Namespace, opened: policy.Policy, params: decoder.Params, work: peers.Work
) -> peers.Transformers:
    """transformers on the same weights: from the folder they came from, or by way of an export."""
    dtype = jnp.dtype(opened.dtype).name
    if options.model:
        return peers.Transformers(opened.folder, work=work, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        export(options.shape, opened, params, weights, dtype)
        return peers.Transformers(weights, work=work, dtype=dtype)


def export(shape: str, opened: policy.Policy, params: decoder.Params, folder: Path, dtype: str) -> None:
    """Random weights as a Hugging Face folder, without a tokenizer."""
    with tempfile.TemporaryDirectory() as source:
        (Path(source) / "config.json").write_text(json.dumps(SHAPES[shape]))
        hf_weights.save(
            params,
            opened.model.spec,
            source=source,
            folder=folder,
            dtype=dtype,
            shard_bytes=4 * 10**9,
            write_more=lambda unfinished: None,
        )


def check_same_weights(
    options: argparse.Namespace, opened: policy.Policy, ours: Sampler, transformers: peers.Transformers
) -> float:
    """Largest difference of first-token logits. Raises: RuntimeError where rounding does not explain it."""
    mine_PV = peers.first_logits(opened.model, ours.params, ours.work, dtype=opened.dtype)
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
    compiled, before = 0, processor_seconds()
    for run in range(1, options.runs + 1):
        for name, side in sides.items():
            known, started = counter.total, time.perf_counter()
            side.generate(options.seed + run)
            seconds[name].append(time.perf_counter() - started)
            compiled += counter.total - known if name == OURS else 0
    whole, others = (after - start for after, start in zip(processor_seconds(), before, strict=True))
    look = options.quiet_check == "yes" and whole > 0
    return seconds, {"compilations": compiled, "others_share": max(others / whole, 0.0) if look else None}


def processor_seconds() -> tuple[float, float]:
    """Processor seconds since the machine's start, and those that other programs used; 0 but on Linux."""
    if not Path("/proc/stat").is_file():
        return 0.0, 0.0
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    whole, idle = (sum(part) / os.sysconf("SC_CLK_TCK") for part in (ticks, ticks[3:5]))
    return whole, whole - idle - sum(os.times()[:4])


def memory() -> dict[str, float | None]:
    """The most that this process has had until now, in gigabytes: on the host, and on a device if it tells."""
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    device = max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())
    return {"peak_rss_gb": rss / 1e9, "peak_device_gb": device / 1e9 or None}


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
    if (facts["others_share"] or 0) > NOISY:
        share = f"{facts['others_share']:.0%}"
        print(f"other programs took {share} of the processors meanwhile: measure again when it is quiet")
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
        "num_cores": peers.num_cores(),
        "versions": {
            name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)
        },
        "settings": {name: value for name, value in vars(options).items() if name != "command"},
    }
    five_digits = json.loads(json.dumps(found), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    print(json.dumps(five_digits))


if __name__ == "__main__":
    command_line.run_program(main)
