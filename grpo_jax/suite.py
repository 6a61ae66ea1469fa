"""Evaluates one model on one task or several, each into a folder that the same call goes on with.

Enters: an opened model, problem sets, how to sample, an output folder. Leaves, a task: `options.json`,
`problems.jsonl`, `metrics.json`, `report.md`, `report.html`; of several tasks each has a folder of its own
and `summary.md` stands beside them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from grpo_jax import policy, whole_files
from grpo_jax.data import problems
from grpo_jax.evaluation import evaluation, evaluation_folder, evaluation_report
from grpo_jax.evaluation.evaluation import Evaluation
from grpo_jax.evaluation.evaluation_folder import METRICS_FILE, RECORDS_FILE, RecordFile
from grpo_jax.restored import Opened
from grpo_jax.rewards import registry
from grpo_jax.rewards.pool import Judge
from grpo_jax.rollout import Collector
from grpo_jax.sampling.engine import Engine
from grpo_jax.sampling.plan import EngineShape
from grpo_jax.sampling.token_choice import TokenFilters
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.structs import Problem

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How problems are answered."""

    num_generations: int  # samples a problem
    temperature: float  # 0: the likeliest token always
    top_k: int  # 0: all
    top_p: float
    max_completion_length: int  # tokens, the end token counted
    stop_strings: tuple[str, ...]  # the first of these texts ends a completion
    chunk: int  # completions that are sampled between two writes, about
    num_slots: int  # completions decoded at once; 0: as many as fit and help
    seed: int


@dataclasses.dataclass(frozen=True)
class EvaluatedSet:
    """The problems of one task, and what judges their answers."""

    name: str  # also of its folder in a suite
    problems: list[Problem]
    reward_funcs: str  # as config.reward.reward_funcs
    reward_weights: str
    format_reward: str  # which of them tells whether a completion is well formed; "": none


@dataclasses.dataclass(frozen=True)
class Sampler:
    """An engine with the weights it reads."""

    opened: Opened
    engine: Engine
    weights: Any  # the sampling copy


class Judges:
    """The judging processes of several sets; those with equal rewards share them. `with` closes all."""

    def __init__(self, *, num_workers: int, timeout_s: float):
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._judges: dict[tuple[str, str], Judge] = {}

    def of(self, found: EvaluatedSet) -> Judge:
        """A tested judge. Raises: RuntimeError where one cannot start or misgrades a known pair."""
        rewards = (found.reward_funcs, found.reward_weights)
        if rewards not in self._judges:
            specs = registry.resolve(*rewards)
            judge = Judge(specs, num_workers=self._num_workers, timeout_s=self._timeout_s)
            self._judges[rewards] = judge  # before it is tested: it must be closed all the same
            judge.self_test()
        return self._judges[rewards]

    def __enter__(self) -> Judges:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for judge in self._judges.values():
                stack.callback(judge.close)


def readable(found: EvaluatedSet, judge: Judge, say: Say) -> EvaluatedSet:
    """Without the problems whose gold no grader can read: no answer to them could be right. They are named.

    Raises: ValueError if none is left.
    """
    fine = judge.read_golds([problem.answer for problem in found.problems])
    kept = [problem for problem, good in zip(found.problems, fine, strict=True) if good]
    bad = [problem.index for problem, good in zip(found.problems, fine, strict=True) if not good]
    if bad:
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        say(f"{found.name}: {len(bad)} problems left out, whose gold answer no reward can read: rows {shown}")
    if not kept:
        raise ValueError(
            f"no gold answer of {found.name} can be read by {found.reward_funcs}, such as "
            f"{found.problems[0].answer[:80]!r}; look at --answer-field and --answer-pattern."
        )
    return dataclasses.replace(found, problems=kept)


def folder_of(output: Path, name: str, *, num_tasks: int) -> Path:
    """Where a task's results go: the output folder itself, or one in it where there are several tasks."""
    return output if num_tasks == 1 else output / evaluation_folder.plain_name(name)


def longest_prompt(opened: Opened, sets: Sequence[EvaluatedSet], params: SamplingParams) -> int:
    """Tokens. Raises: ValueError where the model has no room for the longest prompt and completion."""
    longest = max(len(problem.prompt_ids) for found in sets for problem in found.problems)
    room = opened.policy.model.spec.max_position_embeddings - longest
    if params.max_completion_length > room:
        raise ValueError(
            f"The longest prompt has {longest} tokens, which leaves {room} positions for the completion; got "
            f"--max-completion-length {params.max_completion_length}. Set that to at most {room}."
        )
    return longest


def make_sampler(
    opened: Opened, sets: Sequence[EvaluatedSet], params: SamplingParams, *, mesh: jax.sharding.Mesh
) -> Sampler:
    """Loads the weights and builds one sampler for all sets, which `longest_prompt` has looked at."""
    longest = longest_prompt(opened, sets, params)
    weights = SamplingWeights(
        opened.policy.model,
        mesh=mesh,
        shapes=opened.parts.trained,
        dtype=opened.policy.dtype,
        frozen_shapes=opened.parts.frozen,
        assemble=opened.parts.assemble,
    )
    copy = weights(*opened.load(mesh))
    shape = EngineShape(
        num_rows=min(params.chunk, max(len(s.problems) for s in sets) * params.num_generations),
        num_generations=params.num_generations,
        max_prompt_length=longest,
        max_completion_length=params.max_completion_length,
        num_slots=params.num_slots,
    )
    engine = policy.make_engine(
        opened.policy,
        mesh=mesh,
        shape=shape,
        weights=weights,
        filters=TokenFilters(top_k=params.top_k, top_p=params.top_p),
        stop_strings=params.stop_strings,
    )
    return Sampler(opened, engine, copy)


def decides(
    opened: Opened, found: EvaluatedSet, params: SamplingParams, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides an evaluation's numbers: what was asked for, and what model and problems that led to."""
    return {
        **asked,
        **dataclasses.asdict(params),
        "task": found.name,
        "reward_funcs": found.reward_funcs,
        "reward_weights": found.reward_weights,
        "format_reward": found.format_reward,
        "weights": opened.fingerprint(),
        "problems": problems.digest(found.problems),
    }


def evaluate_task(
    folder: Path,
    found: EvaluatedSet,
    sampler: Sampler,
    params: SamplingParams,
    *,
    options: Mapping[str, Any],
    command: str,
    judge: Judge,
    say: Say,
) -> dict[str, float]:
    """Evaluates one set into its folder, from where the folder's records end. Returns the metrics.

    Raises: ValueError if the folder holds another evaluation.
    """
    evaluation_folder.claim(folder, options)
    indices = [problem.index for problem in found.problems]
    chunk = max(1, params.chunk // params.num_generations)
    file = RecordFile(folder / RECORDS_FILE, indices, chunk=chunk)
    if file.num_done:
        say(f"{found.name}: {file.num_done} of {len(indices)} problems are done already")
    collector = Collector(
        sampler.engine,
        judge=judge,
        decode_text=policy.judged_text(sampler.opened.policy),
        num_generations=params.num_generations,
        temperature=params.temperature,
    )
    result = evaluation.evaluate_into(
        file,
        collector,
        sampler.weights,
        found.problems,
        key=jax.random.key(params.seed),
        format_reward=found.format_reward,
        on_progress=Tenths(say),
    )
    write(folder, found, result, options=options, command=command)
    return result.metrics


def write(
    folder: Path, found: EvaluatedSet, result: Evaluation, *, options: Mapping[str, Any], command: str
) -> None:
    """The reports, and last the metrics: who finds those finds all."""
    evaluation_report.write_report(
        folder,
        metrics=result.metrics,
        records=result.records,
        options=options,
        command=command,
        format_reward=found.format_reward,
    )
    summary = {"options": options, "metrics": result.metrics}
    whole_files.write_text(folder / METRICS_FILE, json.dumps(summary, indent=2) + "\n")


class Tenths:
    """Says how many completions are done, at each tenth."""

    def __init__(self, say: Say):
        self._say = say

    def __call__(self, done: int, total: int) -> None:
        if done * 10 // total > (done - 1) * 10 // total:
            self._say(f"{done} of {total} completions")


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The numbers of several tasks side by side, as Markdown."""
    rows = {name: {n: value for n, value, _ in evaluation_report.numbers(m)} for name, m in results.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["task", *columns], ["---", *("---:" for _ in columns)]]
    lines += [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
