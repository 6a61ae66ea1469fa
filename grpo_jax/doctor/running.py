"""Checks of what a run does: rewards, data, whether it fits, and whether sampler and trainer agree."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from grpo_jax import building, chips, metrics, policy, problem_loading, run
from grpo_jax.doctor.checkup import Case, Skip
from grpo_jax.doctor.machine import host_bytes
from grpo_jax.learning import batches, train_state
from grpo_jax.planning import case as planned_case
from grpo_jax.planning import report
from grpo_jax.rewards.grade import LOST
from grpo_jax.sampling.plan import GIB
from grpo_jax.settings import Settings
from grpo_jax.structs import Attempt, Completion, Problem, Rollout

RATIO_PROMPTS, RATIO_GENERATIONS, RATIO_TOKENS = 4, 2, 16  # of the sampled few
GAPS = {  # arithmetic -> most nats that sampler and trainer may differ by at a token, and on average
    "float32": (1e-3, 1e-4),  # rounding of two programs; on a CPU it stays below 1e-4
    "bfloat16": (1.0, 0.05),  # single tokens of low probability; a wrong mask or weight moves the mean
    "8 bits": (3.0, 0.2),  # the sampler's weights are rounded, the trainer's are not
}
GRADED = 2  # attempts that all rewards judge, as a group


class Notes(metrics.SilentTeller):
    """Keeps what a room says."""

    def __init__(self):
        self.lines: list[str] = []

    def tell_message(self, text: str) -> None:
        self.lines.append(text)


def rewards(case: Case) -> str:
    """The judge's processes start, and grade known pairs as they must."""
    case.judge = run.make_judge(case.settings, case.specs)
    case.judge.self_test()
    return f"{', '.join(spec.name for spec in case.specs)}: {case.judge.num_workers} workers started and graded known pairs"


def data(case: Case) -> str:
    """Problems as the run would load them: fields, golds, prompts, and none that is evaluated."""
    judge = case.judge
    assert judge is not None
    case.say("data: reading, rendering and asking the rewards about every gold")
    notes = Notes()
    found, _, longest = problem_loading.load_problems(
        case.settings, case.policy, notes, accept=lambda new: problem_loading.golds_read(judge, new)
    )
    case.problems = next(found)
    told = [line for line in notes.lines if not line.startswith("first prompt")]
    first = case.problems[0]
    return f"{'; '.join(told)}; longest prompt {longest} tokens; {first.question[:60]!r} has gold {first.answer[:20]!r}"


def judging(case: Case) -> str:
    """Every reward of the run judges the first problem's own gold."""
    judge, problem = case.judge, case.problems[0]
    assert judge is not None
    longest = case.settings.rollout.max_completion_length
    text = problem.response or problem.answer
    for g in range(GRADED):
        attempt = Attempt(
            text,
            problem.question,
            problem.answer,
            max(len(text) // 4, 1),
            True,
            problem.prompt,
            problem.prefill,
            longest,
            problem.extra,
        )
        judge.submit(g, attempt, group=0, group_size=GRADED)
    judged = judge.collect()
    if any(judgement.outcome in LOST for judgement in judged.values()):
        raise ValueError(f"a completion could not be judged: {judge.first_failure}")
    told = zip((spec.name for spec in case.specs), judged[0].rewards, strict=True)
    return "the first problem's own answer: " + ", ".join(f"{name} {value:g}" for name, value in told)


def workers_end(case: Case) -> str:
    """The judge's processes end."""
    assert case.judge is not None
    count = case.judge.num_workers
    case.judge.close()
    return f"{count} workers ended"


# Does it fit --------------------------------------------------------------------------------------


def plan(case: Case) -> str:
    """Compiles the run's programs at their full size and compares their bytes with the memory that is here."""
    device = case.mesh.devices.flat[0]
    memory_gib = (
        memory_of(device) / case.mesh.devices.size / GIB
        if device.platform == "cpu"
        else memory_of(device) / GIB
    )
    if not memory_gib:
        raise Skip(f"{device.device_kind} does not say how much memory it has")
    known = chips.of_kind(device.device_kind)
    chip = known or chips.Chip(device.platform, device.device_kind, memory_gib, 1e12, 1e11, 1e10)
    planned = planned_case.Case(
        case.settings,
        case.policy,
        str(case.policy.folder),
        case.mesh,
        chip._replace(memory_gib=memory_gib),
        "the devices here",
    )
    result = report.make(planned, case.say)
    if not result["fits"]:
        raise ValueError(report.misfit(result))
    return (
        f"{result['peak_program']} takes most, {result['peak_gib']:.2f} GiB of a device's {result['has_gib']:.1f}; "
        f"{result['sampling']}"
    )


def memory_of(device: Any) -> int:
    """Bytes that programs may use on a device; on a CPU of all devices together."""
    if device.platform == "cpu":
        return host_bytes()
    return (device.memory_stats() or {}).get("bytes_limit", 0)


# Do sampler and trainer agree ---------------------------------------------------------------------


def ratio(case: Case) -> str:
    """Samples a few tokens and scores them by the trainer: on-policy, the ratio must be 1."""
    s, problems = small(case.settings, case.mesh), few(case.problems, case.mesh)
    most, on_average = GAPS[arithmetic(case)]
    case.say(f"ratio: reading the weights of {case.policy.folder}, then compiling a small sampler and scorer")
    parts = policy.parts(case.policy, s.lora, seed=s.seed)
    frozen = policy.load_frozen(case.policy, parts, mesh=case.mesh)
    trained = policy.fresh_trained(case.policy, parts, s.lora, mesh=case.mesh, seed=s.seed)
    rollout, columns = sampled(case, s, problems, parts, trained, frozen)
    tx = train_state.optimizer(s.scaled_optimizer, num_updates=1)
    learner = building.make_learner(s, case.mesh, case.policy, parts, tx, s.loss)
    packed = batches.pack(
        rollout,
        rollout.rewards_PG,  # ones: all rows are scored
        num_columns=s.rollout.max_completion_length,
        params=building.packing(s, case.mesh, columns, attention=case.policy.attention),
    )
    case.say("ratio: scoring what was sampled")
    scored = learner.rollout_logprobs(trained, packed, frozen=frozen)
    gaps = np.concatenate(
        [
            scored[p, g][: completion.num_tokens] - completion.sampler_logprobs
            for p, group in enumerate(rollout.completions)
            for g, completion in enumerate(group)
        ]
    )
    largest, mean = float(np.abs(gaps).max()), float(np.abs(gaps).mean())
    told = (
        f"{len(gaps)} tokens, |sampler - trainer| at most {largest:.2g} nats, {mean:.2g} on average, ratio 1 within "
        f"{float(np.abs(np.expm1(gaps)).max()):.2g} ({arithmetic(case)}: {most:g} and {on_average:g} nats may be)"
    )
    if not (largest <= most and mean <= on_average):  # a NaN is neither
        raise ValueError(told)
    return told


def arithmetic(case: Case) -> str:
    """Key of GAPS: by the coarsest rounding that one side has and the other has not."""
    if case.settings.rollout.sampling_weights == "int8":
        return "8 bits"
    return "float32" if np.dtype(case.policy.dtype) == np.float32 else "bfloat16"


def small(s: Settings, mesh: jax.sharding.Mesh) -> Settings:
    """The run's settings with few and short rows, so that programs compile fast."""
    length = min(RATIO_TOKENS, s.rollout.max_completion_length)
    rollout = dataclasses.replace(
        s.rollout,
        num_prompts=num_prompts(mesh),
        num_generations=RATIO_GENERATIONS,
        max_completion_length=length,
        min_completion_length=min(s.rollout.min_completion_length, length),
        num_slots=0,
        window=0,
    )
    grpo = dataclasses.replace(
        s.grpo,
        num_minibatches=1,
        num_iterations=1,
        per_device_train_batch_size=1,
        max_tokens_per_microbatch=0,
    )
    return dataclasses.replace(s, rollout=rollout, grpo=grpo)


def num_prompts(mesh: jax.sharding.Mesh) -> int:
    """At least one row for every device that rows are cut over."""
    shards = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
    return max(RATIO_PROMPTS, -(-shards // RATIO_GENERATIONS))


def few(problems: list[Problem], mesh: jax.sharding.Mesh) -> list[Problem]:
    """The shortest of a step's problems; again from the first where they are too few."""
    ordered = sorted(problems, key=lambda problem: len(problem.prompt_ids))
    return [ordered[i % len(ordered)] for i in range(num_prompts(mesh))]


def sampled(
    case: Case, s: Settings, problems: list[Problem], parts: policy.Parts, trained: Any, frozen: Any
) -> tuple[Rollout, int]:
    """What the run's sampler gives for the few, every row worth 1, and the columns of their prompts."""
    columns = building.rounded_up(max(len(problem.prompt_ids) for problem in problems))
    weights = building.sampling_weights(s, case.mesh, case.policy, parts)
    engine = policy.make_engine(
        case.policy,
        mesh=case.mesh,
        shape=building.engine_shape(s, columns),
        weights=weights,
        filters=s.rollout.filters,
        attention=s.rollout.attention,
        stop_strings=s.rollout.stop_strings,
    )
    found = engine.generate(
        weights(trained, frozen),
        problems,
        num_generations=RATIO_GENERATIONS,
        temperature=s.rollout.temperature,
        step_key=jax.random.key(s.seed),
    )
    completions: list[list[Completion]] = found.completions
    ones_PG = np.ones((len(problems), RATIO_GENERATIONS), np.float32)
    return Rollout(problems, completions, [], [], ones_PG, {}), columns
