"""A plan for people, for a table in Markdown, and as JSON.

Enters: a `Case`, what its programs take, and its phases. Leaves: a nested dictionary, from which the texts
are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from grpo_jax.planning import counts, programs
from grpo_jax.planning.case import Case
from grpo_jax.planning.programs import Compiled, Held
from grpo_jax.sampling.plan import GIB

FORMULA = (
    "seconds = the largest of operations / peak, bytes / memory bandwidth, sent bytes / interconnect; every prompt "
    "and completion as long as allowed"
)
MEMORY_NAMES = {
    "params": "parameters",
    "moments": "optimizer",
    "gradients": "gradients",
    "reference": "reference",
    "sampling_copy": "sampling copy",
    "cache": "KV cache",
}
LEARNING = ("score", "update")


def make(case: Case, tell: Callable[[str], None]) -> dict[str, Any]:
    """Compiles, counts, and judges; `tell` hears what is being compiled.

    Raises: NoRoom where the state, or not even one slot of the sampler, fits a device.
    """
    held, plan, compiled = programs.compile_all(case, tell)
    phases = counts.phases(case, held, plan, compiled)
    highest = max(compiled, key=lambda c: c.step_peak)
    update = next(phase for phase in phases if phase.name == "update")
    has = case.chip.memory_gib
    return {
        "where": case.where,
        "model": case.model_name,
        "mesh": dict(case.mesh.shape),
        "preset": case.settings.mesh.preset,
        "sampling": plan.describe(),
        "gib": {name: getattr(held, name) / GIB for name in MEMORY_NAMES},
        "programs": [_program(c) for c in compiled],
        "phases": [_phase(phase) for phase in phases],
        "step_seconds": sum(phase.seconds for phase in phases),
        "update_share_of_peak": _share(case, update, update.seconds),
        "update_share_of_peak_by_compiler": _share(
            case,
            update,
            max(update.compiler_seconds, update.sent_seconds) if update.compiler_seconds else 0.0,
        ),
        "peak_gib": highest.step_peak / GIB,
        "peak_program": highest.name,
        "has_gib": has,
        "fits": highest.step_peak <= has * GIB,
        "advice": "" if highest.step_peak <= has * GIB else advice(case, held, highest),
    }


def advice(case: Case, held: Held, highest: Compiled) -> str:
    """The first changes to make when the highest peak is too high, in terms of the config's fields."""
    s, shape = case.settings, case.mesh.shape
    changes = []
    if highest.name in LEARNING:
        if s.model.remat != "full":
            changes.append("config.model.remat='full'")
        if s.grpo.per_device_train_batch_size > 1:
            changes.append(
                f"config.grpo.per_device_train_batch_size={s.grpo.per_device_train_batch_size // 2}"
            )
    else:
        changes.append(
            "config.rollout.num_slots at half of what the plan says, or a lower config.rollout.max_completion_length"
        )
    if shape["data"] > 1 and held.state > 0.25 * case.chip.memory_gib * GIB:
        changes.append("config.mesh.preset='zero3'")
    heads = case.policy.model.spec.num_kv_heads
    wider = shape["tensor"] * 2
    if heads % wider == 0 and math.prod(shape.values()) % wider == 0:
        changes.append(f"config.mesh.tensor={wider}")
    changes.append("more devices")
    return "set " + ", or ".join(changes)


def misfit(result: dict[str, Any]) -> str:
    """One line: what was got, what is there, what to change."""
    return (
        f"does not fit: {result['peak_program']} needs {result['peak_gib']:.2f} GiB of a device's "
        f"{result['has_gib']:.2f}; {result['advice']}."
    )


def describe(result: dict[str, Any]) -> str:
    """The plan as lines of text."""
    lines = [
        f"{result['model']} on {result['where']}, mesh {result['mesh']}",
        result["sampling"],
        "a device, GiB: " + ", ".join(f"{MEMORY_NAMES[k]} {v:.2f}" for k, v in result["gib"].items()),
        f"{'program':>9} {'arguments':>10} {'temporary':>10} {'peak':>8} {'of step':>8} {'compiled in':>12}",
    ]
    for p in result["programs"]:
        lines.append(
            f"{p['name']:>9} {p['arguments_gib']:>10.2f} {p['temporaries_gib']:>10.2f} {p['peak_gib']:>8.2f} "
            f"{p['step_peak_gib']:>8.2f} {p['compile_seconds']:>10.0f} s"
        )
    lines.append(
        f"{'phase':>9} {'calls':>6} {'TFLOP':>9} {'GB':>9} {'GB sent':>9} {'seconds':>9} {'bound':>13} {'compiler':>9}"
    )
    for p in result["phases"]:
        compiler = f"{p['compiler_seconds']:.2f}" if p["compiler_seconds"] else "-"
        lines.append(
            f"{p['name']:>9} {p['calls']:>6} {p['tflop']:>9.1f} {p['gb']:>9.1f} {p['gb_sent']:>9.1f} "
            f"{p['seconds']:>9.2f} {p['bound']:>13} {compiler:>9}"
        )
    lines += [f"({FORMULA})", _verdict(result)]
    return "\n".join(lines)


def _verdict(result: dict[str, Any]) -> str:
    by_compiler = result["update_share_of_peak_by_compiler"]
    return (
        f"a step {result['step_seconds']:.1f} s; the update at {result['update_share_of_peak']:.0%} of peak"
        + (f", by the compiler's cycles {by_compiler:.0%}" if by_compiler else "")
        + f"; {'fits' if result['fits'] else 'does not fit'}: {result['peak_gib']:.2f} of {result['has_gib']:.2f} GiB "
        f"in {result['peak_program']}"
    )


def markdown(results: list[dict[str, Any]]) -> str:
    """Two tables: memory, and seconds with what bounds them."""
    mesh = lambda r: " x ".join(f"{k} {v}" for k, v in r["mesh"].items() if v > 1)  # noqa: E731
    names = list(MEMORY_NAMES)
    lines = [
        "GiB a device:",
        "",
        "| model, slice, mesh | "
        + " | ".join(MEMORY_NAMES.values())
        + " | peaks: weights' relayout, prefill, window, update | has |",
        "| --- |" + " --- |" * (len(names) + 2),
    ]
    for r in results:
        peaks = {p["name"]: p["step_peak_gib"] for p in r["programs"]}
        cells = [f"{r['gib'][name]:.2f}" for name in names]
        cells.append(", ".join(f"{peaks[name]:.2f}" for name in ("weights", "prefill", "window", "update")))
        lines.append(
            f"| {r['model']}, {r['where']}, {mesh(r)} | " + " | ".join(cells) + f" | {r['has_gib']:.2f} |"
        )
    lines += [
        "",
        f"Seconds of a step ({FORMULA}), in brackets by the compiler's cycles:",
        "",
        "| model, slice | prefill | decode | update | bound of the update | GB sent | update's share of peak |",
        "| --- |" + " --- |" * 6,
    ]
    for r in results:
        phase = {p["name"]: p for p in r["phases"]}
        cells = [_seconds(phase[name]) for name in ("prefill", "window", "update")]
        cells += [phase["update"]["bound"], f"{phase['update']['gb_sent']:.0f}"]
        cells.append(f"{r['update_share_of_peak']:.0%} ({r['update_share_of_peak_by_compiler']:.0%})")
        lines.append(f"| {r['model']}, {r['where']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seconds(phase: dict[str, Any]) -> str:
    return f"{phase['seconds']:.2f}" + (
        f" ({phase['compiler_seconds']:.2f})" if phase["compiler_seconds"] else ""
    )


def _share(case: Case, update: counts.Phase, seconds: float) -> float:
    return update.useful / (seconds * case.chip.peak_flops) if seconds else 0.0


def _program(c: Compiled) -> dict[str, Any]:
    return {
        "name": c.name,
        "arguments_gib": c.arguments / GIB,
        "temporaries_gib": c.temporaries / GIB,
        "peak_gib": c.peak / GIB,
        "step_peak_gib": c.step_peak / GIB,
        "compile_seconds": c.compile_seconds,
        "largest_sent": [[round(size / 1e9, 3), what] for size, what in c.traffic.largest]
        if c.traffic
        else [],
    }


def _phase(phase: counts.Phase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "calls": phase.calls,
        "tflop": phase.operations / 1e12,
        "useful_tflop": phase.useful / 1e12,
        "gb": phase.num_bytes / 1e9,
        "gb_sent": phase.sent / 1e9,
        "seconds": phase.seconds,
        "bound": phase.bound,
        "compiler_seconds": phase.compiler_seconds,
    }
