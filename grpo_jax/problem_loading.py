"""The problems of a run: loaded, freed of what may not or cannot be used, told, and ready to be dealt to steps.

Enters: settings, an opened policy, a judge that can say which golds are readable. Leaves: an iterator of
training problems and the sets that are evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from grpo_jax import distributed, metrics, policy
from grpo_jax.data import data_params, dealing, problem_sets, problems, streams
from grpo_jax.rewards.pool import Judge
from grpo_jax.settings import Settings
from grpo_jax.structs import Problem

Teller = metrics.Teller | metrics.SilentTeller  # of the first process | of the others


def check(s: Settings) -> None:
    """What is wrong with the names of tasks, templates and rules, before anything is read or started.

    Raises: ValueError, FileNotFoundError, in one line.
    """
    problem_sets.check_overlap(s.evaluation.overlap)
    if s.data.streaming_rows:
        streams.only_task(s.data, num_prompts=s.rollout.num_prompts, process_count=jax.process_count())
    sides = [(s.data, False)]
    if s.evaluation.task or s.evaluation.dataset:
        sides.append((s.evaluation_data, True))
    for params, held_out in sides:
        for task in data_params.resolve(params, held_out=held_out):
            problems.check_params(task, params, section="evaluation" if held_out else "data")


def load_problems(
    s: Settings, opened: policy.Policy, teller: Teller, *, accept: problem_sets.Accept | None = None
) -> tuple[dealing.ProblemBatches | streams.StreamedBatches, list[problems.ProblemSet], int]:
    """Training problems, ready to be dealt; held-out ones; and the longest prompt of both, in tokens.

    Args:
        accept: which problems have a gold that can be read; must say the same on every process.
    """
    if s.data.streaming_rows:
        held_out = load_held_out(s, opened, teller, accept=accept)
        stream = stream_problems(s, opened, held_out, teller, accept=accept)
        return stream, held_out, s.data.max_prompt_length
    train, held_out = load_sets(s, opened, teller, accept=accept)
    batches = dealing.problem_batches(
        train,
        num_prompts=s.rollout.num_prompts,
        seed=s.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if len(train) > 1:
        teller.tell_message(f"training data: {batches.describe()}")
    teller.tell_message(problem_sets.describe_first(train[0], opened.tokenizer))
    longest = max(len(p.prompt_ids) for p in problems.all_problems([*train, *held_out]))
    return batches, held_out, longest


def golds_read(judge: Judge, found: Sequence[Problem]) -> list[bool]:
    """Which problems' golds a grader of the run can read; where one process cannot, none does."""
    read = np.array(judge.read_golds([problem.answer for problem in found]), bool)
    return distributed.gather(read[None]).min(axis=0).tolist()


def load_sets(
    s: Settings, opened: policy.Policy, teller: Teller, *, accept: problem_sets.Accept | None = None
) -> tuple[list[problems.ProblemSet], list[problems.ProblemSet]]:
    """Training and held-out problems, a set a task, with what config.evaluation.overlap says done."""
    # All is read and compared before the first gold: what is wrong with a file is told before judges have started.
    train, held_out = problem_sets.load(s.data, opened.tokenizer), read_held_out(s, opened)
    train, told = problem_sets.settle_overlap(train, held_out, overlap=s.evaluation.overlap)
    held_out = problem_sets.readable(held_out, accept) if accept else held_out
    tell_problems("evaluation", held_out, teller)
    train = problem_sets.readable(train, accept) if accept else train
    tell_problems("training", train, teller)
    if told:
        teller.tell_message(told)
    return train, held_out


def load_held_out(
    s: Settings, opened: policy.Policy, teller: Teller, *, accept: problem_sets.Accept | None = None
) -> list[problems.ProblemSet]:
    """What is evaluated, as far as its golds can be read; nothing where the config names nothing."""
    held_out = read_held_out(s, opened)
    held_out = problem_sets.readable(held_out, accept) if accept else held_out
    tell_problems("evaluation", held_out, teller)
    return held_out


def read_held_out(s: Settings, opened: policy.Policy) -> list[problems.ProblemSet]:
    if not (s.evaluation.task or s.evaluation.dataset):
        return []
    return problem_sets.load(s.evaluation_data, opened.tokenizer, held_out=True)


def tell_problems(what: str, sets: list[problems.ProblemSet], teller: Teller) -> None:
    for found in sets:
        teller.tell_message(f"{what} data: {found.describe()}: {found.summary()}")


def stream_problems(
    s: Settings,
    opened: policy.Policy,
    held_out: list[problems.ProblemSet],
    teller: Teller,
    *,
    accept: problem_sets.Accept | None = None,
) -> streams.StreamedBatches:
    """Training problems that are read chunk by chunk, without those that are evaluated."""
    stream = streams.StreamedBatches(
        s.data,
        opened.tokenizer,
        num_prompts=s.rollout.num_prompts,
        seed=s.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        accept=accept,
        evaluated=problems.all_problems(held_out),
        tell=lambda text: teller.tell_message(f"training data: {text}"),
    )
    teller.tell_message(f"training data: {stream.chunk.describe()}, {s.data.streaming_rows} rows at a time")
    teller.tell_message(problem_sets.describe_first(stream.chunk, opened.tokenizer))
    return stream
