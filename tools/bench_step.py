"""Measures whole GRPO steps, and TRL's in turn with ours: `bench.py step`.

Each round of each side is a process of its own, one at a time: threads of two libraries never share the
cores, and a process's peak memory is that of its side alone. All read one Hugging Face folder of random
weights; at the end TRL's first log-probabilities are compared with those of our model.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import mesh as mesh_lib
from grpo_jax import policy, settings, settings_checks
from grpo_jax.models import decoder
from tools import measuring, step_folder, step_ours, step_work
from tools.step_work import TIMES, StepResult, StepWork

ROOT = Path(__file__).resolve().parent.parent
OURS, TRL, ALONE = "ours", "trl", "none"
PEERS = (TRL, ALONE)
MODULES = {OURS: "tools.step_ours", TRL: "tools.step_trl"}
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "transformers", "torch", "trl", "accelerate")
TRIAL_STEPS = 2
LOGPROB_TOLERANCE = 1e-3  # nats: float32 rounds by 1e-5; other weights differ by 0.1 and more

Results = Mapping[str, Sequence[StepResult]]  # of each side, one a round


def check(options: argparse.Namespace) -> None:
    """Raises: ValueError for flags that do not fit each other, ImportError where TRL is not installed."""
    if options.against not in PEERS:
        raise ValueError(f"--against takes one of {', '.join(PEERS)}; got {options.against}.")
    rows = options.prompts * options.generations
    sizes = options.trl_batch.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(
            f"--trl-batch takes whole numbers above 0, such as 8,16,64; got {options.trl_batch!r}."
        )
    options.trl_batch = [int(size) for size in sizes if rows % int(size) == 0]
    if options.against == ALONE:
        return
    if not options.trl_batch:
        raise ValueError(f"--trl-batch needs a number that divides the {rows} completions of a step.")
    if not importlib.util.find_spec("trl"):
        raise ImportError("--against trl needs TRL: pip install torch 'trl>=1.16', or say --against none.")


def step(options: argparse.Namespace) -> None:
    """Makes the folder, lets the sides take turns, checks that they did the same, and tells."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work = plan_work(options, folder)
        mesh = check_config(options, work)
        opened, params = step_folder.make_model(options.shape, Path(work.model), seed=options.seed, mesh=mesh)
        prompts = step_folder.write_prompts(work)
        trials: dict[int, float] = {}
        if len(options.trl_batch) > 1 and options.against == TRL:
            trials = try_trl(options.trl_batch, work, folder)
            work = dataclasses.replace(work, trl_batch=min(trials, key=lambda size: trials[size]))
        before = measuring.processor_seconds()
        results = take_turns(options, work, folder)
        facts: dict[str, Any] = {"others_share": measuring.others_share(before)}
        check_prompts(results, prompts)
        if options.against == TRL:
            facts |= {"trl_batch": work.trl_batch, "trl_batch_seconds": trials}
            facts["largest_logprob_difference"] = check_logprobs(opened, params, folder / "trl.npz")
    tell(options, results, facts)


def plan_work(options: argparse.Namespace, folder: Path) -> StepWork:
    return StepWork(
        model=str(folder / "model"),
        data=str(folder / "prompts.jsonl"),
        num_prompts=options.prompts,
        num_generations=options.generations,
        prompt_length=options.prompt_length,
        new_tokens=options.new_tokens,
        beta=options.beta,
        seed=options.seed,
        steps=options.steps,
        overrides=tuple(options.set),
        trl_batch=options.trl_batch[0] if options.trl_batch else 0,
    )


def check_config(options: argparse.Namespace, work: StepWork) -> jax.sharding.Mesh:
    """Tells mistakes before anything heavy is made. Returns: a mesh over the devices here.

    Raises: ValueError for our config, and where JAX has an accelerator while TRL is kept on the CPU.
    """
    s = settings.read(step_ours.read_config(work, output_dir="runs/bench"))
    mesh_lib.use_cpu_devices(s.mesh.cpu_devices)
    mesh = mesh_lib.create(data=s.mesh.data, fsdp=s.mesh.fsdp, tensor=s.mesh.tensor)
    settings_checks.check(s, num_processes=1)
    if options.against == TRL and jax.default_backend() != "cpu":
        raise ValueError(
            f"--against trl compares on the CPU, and JAX runs on {jax.default_backend()}; set JAX_PLATFORMS=cpu."
        )
    return mesh


def take_turns(options: argparse.Namespace, work: StepWork, folder: Path) -> Results:
    """Ours, TRL, ours, TRL: a round each."""
    sides = (OURS,) if options.against == ALONE else (OURS, TRL)
    results: dict[str, list[StepResult]] = {side: [] for side in sides}
    for turn in range(1, options.rounds + 1):
        for side in sides:
            found = run_side(side, work, folder)
            results[side].append(found)
            seconds = statistics.median(step["step"] for step in found.seconds)
            print(f"{side}, round {turn}: {seconds:.3f} s a step", flush=True)
    return results


def try_trl(sizes: Sequence[int], work: StepWork, folder: Path) -> dict[int, float]:
    """Seconds of TRL's step by its `per_device_train_batch_size`, from a few steps each."""
    seconds = {}
    for size in sizes:
        trial = dataclasses.replace(work, trl_batch=size, steps=TRIAL_STEPS)
        seconds[size] = statistics.median(step["step"] for step in run_side(TRL, trial, folder).seconds)
        print(f"trl with {size} rows a backward pass: {seconds[size]:.3f} s a step", flush=True)
    return seconds


def run_side(side: str, work: StepWork, folder: Path) -> StepResult:
    """One process of one side. Raises: RuntimeError with its last words where it failed."""
    task, result = folder / f"{side}.work.json", folder / f"{side}.json"
    step_work.write(dataclasses.replace(work, started_at=time.time()), task)
    found = os.environ.get("PYTHONPATH")
    done = subprocess.run(
        [sys.executable, "-m", MODULES[side], str(task), str(result)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *([found] if found else [])))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise RuntimeError(f"{side}: {words[-1].removeprefix('error: ')}")
    return step_work.read_result(result)


def check_prompts(results: Results, prompts: list[list[int]]) -> None:
    """Raises: RuntimeError where a side read other prompts. TRL shows those of a few rows only."""
    if results[OURS][0].prompts != prompts:
        raise RuntimeError("our side read other prompts than were written; this compares nothing.")
    if not all(prompt in prompts for found in results.get(TRL, ()) for prompt in found.prompts):
        raise RuntimeError("TRL read other prompts than were written; this compares nothing.")


def check_logprobs(opened: policy.Policy, params: decoder.Params, kept: Path) -> float:
    """Largest difference between TRL's log-probabilities of its completions and our model's of the same tokens.

    Raises: RuntimeError where rounding does not explain it.
    """
    arrays = np.load(kept)
    tokens_BT, theirs_BC = arrays["tokens_BT"], arrays["logprobs_BC"]
    columns = theirs_BC.shape[1]

    def logprobs(params: decoder.Params) -> jax.Array:
        valid_BT = jnp.ones(tokens_BT.shape, bool)
        hidden_BTD = opened.model.hidden_states(params, tokens_BT, valid_BT, dtype=jnp.float32, remat="none")
        logits_BCV = hidden_BTD[:, -columns - 1 : -1] @ opened.model.head(params).T
        targets_BC1 = jnp.asarray(tokens_BT)[:, -columns:, None]
        return jnp.take_along_axis(jax.nn.log_softmax(logits_BCV), targets_BC1, axis=-1)[..., 0]

    with jax.default_matmul_precision("highest"):
        difference = float(np.abs(np.asarray(jax.jit(logprobs)(params)) - theirs_BC).max())
    print(f"same weights: largest difference of log-probabilities {difference:.0e}", flush=True)
    if not difference <= LOGPROB_TOLERANCE:
        raise RuntimeError(
            f"TRL computes other log-probabilities: {difference:.2g} apart; this compares nothing."
        )
    return difference


def tell(options: argparse.Namespace, results: Results, facts: Mapping[str, Any]) -> None:
    """The table, then the line of JSON."""
    rows = compare(results)
    print(
        f"\n{'':26}"
        + "".join(f"{title:>12}" for title in (*results, *(["trl / ours"] if TRL in results else [])))
    )
    for name, row in rows.items():
        unit = "GB" if name == "memory" else "s"
        cells = "".join(f"{row[side]:12.3f}" for side in results)
        ratio = f"{row[TRL] / row[OURS]:11.2f}x" if row.get("ratio") else ""
        print(f"{name.replace('_', ' ') + ', ' + unit:26}{cells}{ratio}")
    measuring.warn_if_noisy(facts["others_share"])
    seconds = {side: [step for found in each for step in found.seconds] for side, each in results.items()}
    ours = results[OURS]
    first = statistics.median(found.warm_up_seconds[0] for found in ours)
    told = {
        **rows,
        "compile_seconds": max(first - rows["step"][OURS], 0.0),
        "compilations": sum(found.compilations or 0 for found in ours),
        "judges_peak_rss_gb": statistics.median(found.judges_peak_rss_gb for found in ours),
        **facts,
        "seconds": {
            s: {name: [step[name] for step in each] for name in TIMES} for s, each in seconds.items()
        },
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_cores": measuring.num_cores(),
        "versions": measuring.versions(LIBRARIES),
        "settings": {
            name: value for name, value in vars(options).items() if name not in ("command", "check")
        },
    }
    measuring.print_json(told)


def compare(results: Results) -> dict[str, dict[str, float]]:
    """Each side's medians by name, and `ratio`: TRL's seconds over ours, of memory ours over TRL's.

    There is no ratio without TRL, nor where a part takes no time.
    """
    middle = {side: medians(found) for side, found in results.items()}
    rows = {name: {side: values[name] for side, values in middle.items()} for name in middle[OURS]}
    for name, row in rows.items():
        above, below = (OURS, TRL) if name == "memory" else (TRL, OURS)
        if row.get(above) and row.get(below):
            row["ratio"] = row[above] / row[below]
    return rows


def medians(results: Sequence[StepResult]) -> dict[str, float]:
    """Of all measured steps, and of all processes: memory is that of the trainer and of its judges."""
    steps = [step for found in results for step in found.seconds]
    return {
        **{name: statistics.median(step[name] for step in steps) for name in TIMES},
        "first_step_after": statistics.median(found.first_step_after for found in results),
        "memory": statistics.median(found.peak_rss_gb + found.judges_peak_rss_gb for found in results),
    }
