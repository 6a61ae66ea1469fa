"""All that a step was made of, one completion a line: prompts, ids, rewards, advantages, both log-probabilities.

Enters: a rollout and the run that made it. Leaves: a new file of JSON lines, for looking into a step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax import train
from grpo_jax.run import Run
from grpo_jax.structs import Rollout


def check_output(output: Path | None, folder: Path) -> None:
    """Raises: ValueError, FileExistsError before anything is computed."""
    if output is None:
        return
    if output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"--output {output} lies in the run's folder, which is only read; name another place."
        )
    if output.exists():
        raise FileExistsError(f"--output {output} exists; name a new file.")
    if not output.resolve().parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.resolve().parent}; make it.")


def trainer_logprobs(run: Run, rollout: Rollout) -> dict[tuple[int, int], np.ndarray]:
    """Each completion's log-probabilities under the training graph, before the step's update."""
    ones_PG = np.ones(rollout.rewards_PG.shape, np.float32)  # all are scored, whatever they are worth
    packed = train.pack(run, rollout, ones_PG)
    return run.learner.rollout_logprobs(run.state.params, packed, frozen=run.frozen)


def write_samples(
    output: Path,
    run: Run,
    step: int,
    rollout: Rollout,
    advantages_PG: np.ndarray,
    scored: Mapping[tuple[int, int], np.ndarray],
) -> None:
    """One line a completion, in the order of the step."""
    names = [spec.name for spec in run.judge.specs]
    with output.open("x", encoding="utf-8") as lines:
        for (p, g), trainer_C in sorted(scored.items()):
            problem, completion = rollout.problems[p], rollout.completions[p][g]
            judgement = rollout.judgements[p][g]
            record = {
                "step": step,
                "problem_index": problem.index,
                "generation": g,
                "prompt": problem.prompt,
                "completion": rollout.texts[p][g],
                "gold": problem.answer,
                "ids": completion.ids.tolist(),
                "ended": bool(completion.ended),
                "rewards": dict(zip(names, map(plain, rollout.rewards_PGF[p, g]), strict=True)),
                "reward": plain(rollout.rewards_PG[p, g]),
                "advantage": plain(advantages_PG[p, g]),
                "outcome": judgement.outcome,
                "parsed": judgement.parsed,
                "sampler_logprobs": completion.sampler_logprobs.tolist(),
                "trainer_logprobs": trainer_C[: completion.num_tokens].tolist(),
            }
            lines.write(json.dumps(record) + "\n")


def plain(value: Any) -> float | None:
    """What JSON can hold."""
    return float(value) if np.isfinite(value) else None
