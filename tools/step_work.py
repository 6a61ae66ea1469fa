"""What both sides of the step's benchmark have to do, handed to their processes as a file. Standard library only.

Both read the same Hugging Face folder and the same prompts, sample completions of exactly `new_tokens`
tokens, reward them alike, and make one optimizer update a step.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 2  # not counted: programs are compiled, caches and threads made
LEARNING_RATE = 1e-6
TIMES = ("step", "sampling", "scoring", "update")


@dataclasses.dataclass(frozen=True)
class StepWork:
    """One process's share: so many steps of one side."""

    model: str  # Hugging Face folder: weights, configuration, tokenizer; no token ends a completion
    data: str  # JSON lines, `question` and `answer`: the prompts, all of one length
    num_prompts: int  # a step
    num_generations: int
    prompt_length: int  # tokens
    new_tokens: int  # of every completion
    beta: float  # above 0: reference log-probabilities are computed
    seed: int
    steps: int  # measured, after the warm-up
    started_at: float = 0.0  # when the process was started, seconds since 1970
    overrides: tuple[str, ...] = ()  # ours: `section.field=value`
    trl_batch: int = 0  # TRL's: completions of one forward and backward pass

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.num_generations

    @property
    def questions(self) -> list[str]:
        return [json.loads(line)["question"] for line in Path(self.data).read_text().splitlines()]


@dataclasses.dataclass
class StepResult:
    """What a side's process found."""

    seconds: list[dict[str, float]]  # one a measured step, by the names in TIMES
    warm_up_seconds: list[float]  # whole steps
    first_step_after: float  # seconds from the process's start to the end of its first step
    peak_rss_gb: float  # of the trainer's process
    judges_peak_rss_gb: float  # of the processes that judge for it, together
    prompts: list[list[int]]  # token ids of the prompts as this side read them
    compilations: int | None  # programs compiled in measured steps; None where nothing is


def write(record: StepWork | StepResult, path: Path) -> None:
    path.write_text(json.dumps(dataclasses.asdict(record)))


def read_work(path: Path) -> StepWork:
    fields: dict[str, Any] = json.loads(path.read_text())
    return StepWork(**{**fields, "overrides": tuple(fields["overrides"])})


def read_result(path: Path) -> StepResult:
    return StepResult(**json.loads(path.read_text()))
