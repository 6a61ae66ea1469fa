"""The collector: problems in, one judged `Rollout` out. It owns the sampler and the judge.

Acting and judging overlap: a completion goes to the judge's processes the moment its window ends, and the
collector waits only for what is still being judged when the last one is sampled. Rewards and statistics
are gathered over all processes, so that every process sees the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax import distributed
from grpo_jax.rewards.pool import Judge
from grpo_jax.rewards.registry import RewardSpec
from grpo_jax.sampling.engine import Engine
from grpo_jax.structs import OUTCOMES, Attempt, Completion, Judgement, Problem, Rollout

DecodeText = Callable[[Sequence[np.ndarray]], list[str]]


class Collector:
    """Samples and judges one batch of problems at a time.

    Args:
        engine: the sampler, with its shapes.
        judge: the pool of judging processes.
        decode_text: token id arrays -> texts without special tokens.
    """

    def __init__(self, engine: Engine, *, judge: Judge, decode_text: DecodeText):
        self.engine, self.judge, self.decode_text = engine, judge, decode_text

    def collect(self, sampling_params: Any, problems: Sequence[Problem], *, step_key: jax.Array) -> Rollout:
        """Samples G completions a problem and judges them.

        Returns: the rollout; its metrics carry the names that the console and the logs use.
        """
        started = time.perf_counter()
        texts: dict[tuple[int, int], str] = {}

        def hand_over(p: int, g: int, completion: Completion) -> None:
            (texts[p, g],) = self.decode_text([completion.ids])
            problem = problems[p]
            self.judge.submit(
                (p, g),
                Attempt(
                    texts[p, g], problem.question, problem.answer, completion.num_tokens, completion.ended
                ),
            )

        completions = self.engine.generate(
            sampling_params, problems, step_key=step_key, on_finished=hand_over
        )
        sampled = time.perf_counter()
        judged = self.judge.collect()
        waited = time.perf_counter()
        num_generations = self.engine.shape.num_generations
        judgements = [[judged[p, g] for g in range(num_generations)] for p in range(len(problems))]
        table_PGX = distributed.gather(_table(completions, judgements))
        metrics = statistics(table_PGX, self.judge.specs)
        metrics["time/sample"], metrics["time/judge"] = sampled - started, waited - sampled
        metrics["tokens_per_second"] = metrics["completions/num_tokens"] / (sampled - started)
        return Rollout(
            problems=list(problems),
            completions=completions,
            texts=[[texts[p, g] for g in range(num_generations)] for p in range(len(problems))],
            judgements=judgements,
            rewards_PG=_weighted(table_PGX, self.judge.specs),
            metrics=metrics,
        )


def statistics(table_PGX: np.ndarray, specs: Sequence[RewardSpec]) -> dict[str, float]:
    """Metrics of judged completions, with TRL's names where it has one.

    Args:
        table_PGX: float32; the columns of `_table`.
    """
    count = len(specs)
    rewards_PG = _weighted(table_PGX, specs)
    length_PG, ended_PG, outcome_PG = (table_PGX[..., count + i] for i in range(3))
    metrics = {
        "reward": float(rewards_PG.mean()),
        "reward_std": float(rewards_PG.std(axis=1).mean()),
        "frac_reward_zero_std": float((rewards_PG == rewards_PG[:, :1]).all(axis=1).mean()),
        "accuracy": float((outcome_PG == OUTCOMES.index("correct")).mean()),
        "completions/mean_length": float(length_PG.mean()),
        "completions/max_length": float(length_PG.max()),
        "completions/clipped_ratio": float(1.0 - ended_PG.mean()),
        "completions/num_tokens": float(length_PG.sum()),
    }
    metrics |= {f"rewards/{spec.name}/mean": float(table_PGX[..., i].mean()) for i, spec in enumerate(specs)}
    return metrics | {
        f"outcome/{outcome}": float((outcome_PG == i).mean()) for i, outcome in enumerate(OUTCOMES)
    }


def shuffled(rewards_PG: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """The step's rewards dealt to other rows: the negative control, under which nothing can be learned."""
    flat = rewards_PG.reshape(-1)
    return np.random.default_rng((seed, step)).permutation(flat).reshape(rewards_PG.shape)


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


def _weighted(table_PGX: np.ndarray, specs: Sequence[RewardSpec]) -> np.ndarray:
    weights_F = np.array([spec.weight for spec in specs], np.float32)
    return (table_PGX[..., : len(specs)] * weights_F).sum(axis=-1)
