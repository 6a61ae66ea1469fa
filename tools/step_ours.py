"""Our side of the step's benchmark, in a process of its own: `python -m tools.step_ours WORK RESULT`.

The steps are the trainer's own: rooms built by `run.prepare` from a config, `train.act` and `train.learn` in a loop.
Between steps nothing is told, saved or evaluated.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax

from grpo_jax import command_line, compilations, distributed, settings, stopping, train
from grpo_jax import mesh as mesh_lib
from grpo_jax.building import cpu_devices
from grpo_jax.run import Run, prepare
from tools import measuring, step_reward, step_work
from tools.step_work import StepResult, StepWork

BASE_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "base.py"


def main(arguments: Sequence[str]) -> None:
    """Reads the work, does it, writes the result."""
    work = step_work.read_work(Path(arguments[0]))
    with tempfile.TemporaryDirectory() as folder:
        config = read_config(work, output_dir=str(Path(folder) / "run"))
        s = settings.read(config)
        mesh_lib.use_cpu_devices(cpu_devices(s))
        with stopping.Stopper(grace_seconds=s.checkpoint.grace_seconds) as stopper:
            distributed.start(s.distributed)
            run = prepare(s, config, started_at=work.started_at, stopper=stopper)
            with run.judge, run.teller:
                result = take_steps(run, work)
            run.keeper.close()
    step_work.write(result, Path(arguments[1]))


def read_config(work: StepWork, *, output_dir: str) -> dict[str, Any]:
    """`configs/base.py` with what the work decides, after what the user sets.

    Raises: ValueError for an override of no field, or of one that the work decides.
    """
    decided = decided_fields(work, output_dir)
    for override in work.overrides:
        name, equals, _ = override.partition("=")
        if not equals:
            raise ValueError(f"--set takes section.field=value; got {override!r}.")
        if name in decided:
            raise ValueError(f"--set {name} is decided by the benchmark's own flags, alike for both sides.")
    lines = (*work.overrides, *(f"{name}={value}" for name, value in decided.items()))
    arguments = [f"--config={BASE_CONFIG}", *(f"--config.{line}" for line in lines)]
    return command_line.read_config(arguments, program="tools.bench")


def decided_fields(work: StepWork, output_dir: str) -> dict[str, Any]:
    """Fields of the config that both sides must have alike, and those that keep other work out of the steps."""
    return {
        "seed": work.seed,
        "output_dir": output_dir,
        "max_steps": step_work.WARM_UP_STEPS + work.steps,
        "model.path": work.model,
        "data.dataset": work.data,
        "data.max_prompt_length": work.prompt_length,
        "rollout.num_prompts": work.num_prompts,
        "rollout.num_generations": work.num_generations,
        "rollout.max_completion_length": work.new_tokens,
        "rollout.min_completion_length": work.new_tokens,
        "rollout.temperature": 1.0,
        "reward.reward_funcs": f"{Path(step_reward.__file__).resolve()}:checksum",
        "reward.reward_weights": "1.0",
        "grpo.beta": work.beta,
        "grpo.num_iterations": 1,
        "grpo.num_minibatches": 1,
        "optimizer.learning_rate": step_work.LEARNING_RATE,
        "evaluation.dataset": "",
        "telling.tensorboard": False,
    }


def take_steps(run: Run, work: StepWork) -> StepResult:
    """All steps; a measured one ends when the new state is there."""
    counter, scoring = compilations.Counter(), time_scoring(run)
    measured, warm_up, first, compiled = [], [], 0.0, 0
    prompts: set[tuple[int, ...]] = set()
    for step in range(1, step_work.WARM_UP_STEPS + work.steps + 1):
        scoring.clear()
        started = time.perf_counter()
        rollout, advantages_PG = train.act(run, step)
        with run.stopper.undivided(late=True):
            learned = train.learn(run, rollout, advantages_PG)
        jax.block_until_ready(run.state)
        whole = time.perf_counter() - started
        check_work(rollout.metrics, work)
        prompts |= {problem.prompt_ids for problem in rollout.problems}
        if step <= step_work.WARM_UP_STEPS:
            first = first or time.time() - work.started_at
            warm_up.append(whole)
            compiled = counter.total
        else:
            measured.append(parts(whole, rollout.metrics["time/judge"], sum(scoring), learned["time/update"]))
    return StepResult(
        seconds=measured,
        warm_up_seconds=warm_up,
        first_step_after=first,
        peak_rss_gb=measuring.peak_rss_gb(),
        judges_peak_rss_gb=measuring.children_peak_rss_gb(),
        prompts=sorted(map(list, prompts)),
        compilations=counter.total - compiled,
    )


def parts(whole: float, judge: float, reference: float, update: float) -> dict[str, float]:
    """A step's seconds.

    Args:
        judge: waited for rewards when all was sampled.
        reference: log-probabilities of the reference.
        update: packing, reference, gradients and optimizer, until the metrics are on the host.
    """
    return {
        "step": whole,
        "sampling": whole - judge - update,  # with problems drawn and the sampling copy made
        "scoring": judge + reference,
        "update": update - reference,
    }


def time_scoring(run: Run) -> list[float]:
    """The seconds of every call of the learner's scoring from now on; each is waited for."""
    seconds: list[float] = []
    score = run.learner.score

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        scored = jax.block_until_ready(score(*arguments))
        seconds.append(time.perf_counter() - started)
        return scored

    run.learner.score = cast(Any, timed)
    return seconds


def check_work(metrics: dict[str, float], work: StepWork) -> None:
    """Raises: RuntimeError where a step was less, or more, than what both sides shall do."""
    tokens = work.num_rows * work.new_tokens
    if metrics["completions/num_tokens"] != tokens or metrics["completions/max_length"] != work.new_tokens:
        raise RuntimeError(
            f"{metrics['completions/num_tokens']:.0f} tokens were sampled, planned were {tokens}."
        )
    if metrics["frac_reward_zero_std"]:
        raise RuntimeError("a group has equal rewards: its rows would cost nothing.")


if __name__ == "__main__":
    command_line.run_program(main)
