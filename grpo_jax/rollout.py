"""The collector: problems in, one judged `Rollout` out. It owns the sampler and the judge.

Acting and judging overlap: a completion goes to the judge's processes the moment its window ends, and the
collector waits only for what is still being judged when the last one is sampled. Rewards and statistics
are gathered over all processes, so that every process sees the same numbers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax import digests, distributed
from grpo_jax.learning import advantages
from grpo_jax.rewards.pool import Judge
from grpo_jax.rewards.registry import RewardSpec
from grpo_jax.sampling.engine import Engine
from grpo_jax.structs import (
    OUTCOMES,
    AskedToStop,
    Attempt,
    Completion,
    Judgement,
    Problem,
    Rollout,
    Stopped,
    never,
)

DecodeText = Callable[[Sequence[np.ndarray]], list[str]]


class Collector:
    """Samples and judges one batch of problems at a time.

    Args:
        engine: the sampler.
        judge: the pool of judging processes.
        decode_text: token id arrays -> texts as the judge shall see them.
        num_generations: completions a problem, G.
        temperature: of sampling; 0: the likeliest token always.
        shaping: what is done to the weighted sum of a row's rewards.
        stop: asked while it samples and judges.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        judge: Judge,
        decode_text: DecodeText,
        num_generations: int,
        temperature: float,
        shaping: advantages.RewardShaping = advantages.PLAIN,
        stop: AskedToStop = never,
    ):
        self.shaping, self.stop = shaping, stop
        self.engine, self.judge, self.decode_text = engine, judge, decode_text
        self.num_generations, self.temperature = num_generations, temperature

    def collect(
        self,
        sampling_params: Any,
        problems: Sequence[Problem],
        *,
        step_key: jax.Array,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Rollout:
        """Samples G completions a problem and judges them.

        Args:
            on_progress: called with completions sampled and completions in all.

        Returns: the rollout; its metrics carry the names that the console and the logs use.

        Raises: Stopped, in all processes, when any of them was asked to stop.
        """
        started = time.perf_counter()
        texts: dict[tuple[int, int], str] = {}
        total = len(problems) * self.num_generations

        def hand_over(p: int, g: int, completion: Completion) -> None:
            (texts[p, g],) = self.decode_text([completion.ids])
            attempt = _attempt(problems[p], texts[p, g], completion, self.engine.plan.max_completion_length)
            self.judge.submit((p, g), attempt, group=p, group_size=self.num_generations)
            if on_progress:
                on_progress(len(texts), total)

        sampled = self.engine.generate(
            sampling_params,
            problems,
            num_generations=self.num_generations,
            temperature=self.temperature,
            step_key=step_key,
            on_finished=hand_over,
            stop=self.stop,
        )
        sampled_at = time.perf_counter()
        judged = self.judge.collect(stop=self.stop)
        if status := distributed.largest([self.stop()])[0]:
            raise Stopped(status)
        waited = time.perf_counter() - sampled_at
        generations = range(self.num_generations)
        judgements = [[judged[p, g] for g in generations] for p in range(len(problems))]
        table_PGX = distributed.gather(
            _table(sampled.completions, judgements).reshape(
                len(problems), self.num_generations, len(self.judge.specs) + 3
            )
        )
        rewards_PGF = table_PGX[..., : len(self.judge.specs)]
        weights_F = np.array([spec.weight for spec in self.judge.specs], np.float32)
        rewards_PG = advantages.total(rewards_PGF, weights_F, self.shaping)
        metrics = statistics(table_PGX, rewards_PG, self.judge.specs) | sampled.counters.metrics()
        tasks_P = distributed.gather_texts([problem.task for problem in problems])
        metrics |= task_means(tasks_P, rewards_PG, table_PGX[..., -1])
        in_order = [judgement for group in judgements for judgement in group]  # sums depend on the order
        metrics |= column_means(in_order)
        metrics |= {"time/sample": sampled_at - started, "time/judge": waited}
        metrics["tokens_per_second"] = metrics["completions/num_tokens"] / metrics["time/sample"]
        metrics["judge/hidden"] = hidden_share(judged.values(), waited, num_workers=self.judge.num_workers)
        return Rollout(
            problems=list(problems),
            completions=sampled.completions,
            texts=[[texts[p, g] for g in generations] for p in range(len(problems))],
            judgements=judgements,
            rewards_PG=rewards_PG,
            metrics=metrics,
            rewards_PGF=rewards_PGF,
        )


def statistics(
    table_PGX: np.ndarray, rewards_PG: np.ndarray, specs: Sequence[RewardSpec]
) -> dict[str, float]:
    """Metrics of judged completions, with TRL's names where it has one.

    A row of which every reward function said nothing is left out of `reward`, `reward_std` and
    `frac_reward_zero_std`, which counts a group without any other row; a mean over nothing is NaN.

    Args:
        table_PGX: float32; the columns of `_table`.
        rewards_PG: float32; the one reward of each row, NaN where nothing was said.
    """
    count = len(specs)
    length_PG, ended_PG, outcome_PG = (table_PGX[..., count + i] for i in range(3))
    said_PG = ~np.isnan(rewards_PG)
    groups = [row_G[said_G] for row_G, said_G in zip(rewards_PG, said_PG, strict=True) if said_G.any()]
    metrics = {
        "reward": _mean(rewards_PG),
        "reward_std": _mean(np.array([group.std() for group in groups])),
        "frac_reward_zero_std": float(advantages.without_signal(rewards_PG).mean()),
        "frac_reward_ignored": float(1.0 - said_PG.mean()),
        "accuracy": float((outcome_PG == OUTCOMES.index("correct")).mean()),
        "completions/mean_length": float(length_PG.mean()),
        "completions/max_length": float(length_PG.max()),
        "completions/clipped_ratio": float(1.0 - ended_PG.mean()),
        "completions/num_tokens": float(length_PG.sum()),
    }
    metrics |= {f"rewards/{spec.name}/mean": _mean(table_PGX[..., i]) for i, spec in enumerate(specs)}
    return metrics | {
        f"outcome/{outcome}": float((outcome_PG == i).mean()) for i, outcome in enumerate(OUTCOMES)
    }


def task_means(tasks_P: Sequence[str], rewards_PG: np.ndarray, outcome_PG: np.ndarray) -> dict[str, float]:
    """`reward/TASK` and `accuracy/TASK` where problems are of several tasks; nothing else says which one learns.

    Args:
        outcome_PG: float32; indices of OUTCOMES.
    """
    metrics: dict[str, float] = {}
    for task in sorted(set(tasks_P)) if len(set(tasks_P)) > 1 else ():
        of_task = np.array([name == task for name in tasks_P])
        metrics[f"reward/{task}"] = _mean(rewards_PG[of_task])
        right_PG = outcome_PG[of_task] == OUTCOMES.index("correct")
        metrics[f"accuracy/{task}"] = float(right_PG.mean())
    return metrics


def column_means(judgements: Iterable[Judgement]) -> dict[str, float]:
    """`columns/NAME/mean` of the numbers that rewards logged, each over the completions that have it.

    Every process must call it; all get the means over the completions of all.
    """
    sums: dict[str, list[float]] = {}
    for judgement in judgements:
        for name, value in judgement.columns.items():
            if not isinstance(value, str):
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += value
                total[1] += 1.0
    names = sorted({n for text in distributed.gather_texts([json.dumps([*sums])]) for n in json.loads(text)})
    if not names:
        return {}
    own_1K2 = np.array([[sums.get(name, [0.0, 0.0]) for name in names]], np.float32)
    totals_K2 = distributed.gather(own_1K2).sum(axis=0)
    return {
        f"columns/{name}/mean": float(total / number)
        for name, (total, number) in zip(names, totals_K2, strict=True)
    }


def digests_of(rollout: Rollout) -> dict[str, str]:
    """`digest/samples` and `digest/rewards`: equal whenever the step's token ids and rewards are.

    Of all processes, and the same however many there are. Every process must call it.
    """
    own = [
        digests.joined(
            f"{completion.ended} {digests.of_bytes(np.ascontiguousarray(completion.ids, np.int32).tobytes())}"
            for completion in group
        )
        for group in rollout.completions
    ]
    rewards = np.ascontiguousarray(rollout.rewards_PGF, np.float32)
    told = np.where(np.isnan(rewards), np.float32(np.nan), rewards)  # one NaN for all
    return {
        "digest/samples": digests.joined(distributed.gather_texts(own)),
        "digest/rewards": digests.of_bytes(told.tobytes()),
    }


def hidden_share(judgements: Iterable[Judgement], waited: float, *, num_workers: int) -> float:
    """How much of judging cost the step no time, 0 to 1.

    All of it would have taken the workers' seconds, shared among them; `waited` seconds remained.
    """
    alone = sum(judgement.seconds for judgement in judgements) / num_workers
    return max(1.0 - waited / alone, 0.0) if alone else 1.0


def shuffled(rewards: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """The step's rewards dealt to other rows: the negative control, under which nothing can be learned.

    Args:
        rewards: `[P, G]` or `[P, G, F]`; both are dealt alike.
    """
    num_rows = rewards.shape[0] * rewards.shape[1]
    order = np.random.default_rng((seed, step)).permutation(num_rows)
    return rewards.reshape(num_rows, -1)[order].reshape(rewards.shape)


def _table(completions: list[list[Completion]], judgements: list[list[Judgement]]) -> np.ndarray:
    """float32 `[P, G, X]`: one column a reward function, then length, ended, index of the outcome."""
    rows = [
        [
            (*judgement.rewards, completion.num_tokens, completion.ended, OUTCOMES.index(judgement.outcome))
            for completion, judgement in zip(*group, strict=True)
        ]
        for group in zip(completions, judgements, strict=True)
    ]
    return np.array(rows, np.float32)


def _attempt(problem: Problem, text: str, completion: Completion, max_tokens: int) -> Attempt:
    return Attempt(
        completion=text,
        question=problem.question,
        answer=problem.answer,
        num_tokens=completion.num_tokens,
        ended=completion.ended,
        prompt=problem.prompt,
        prefill=problem.prefill,
        max_tokens=max_tokens,
        extra=problem.extra,
    )


def _mean(values: np.ndarray) -> float:
    """Over what is not NaN; NaN of nothing."""
    told = values[~np.isnan(values)]
    return float(told.mean()) if told.size else math.nan
