"""Teaches a model a task's worked answers: `python tools/sft.py --config configs/tiny.py`.

What GRPO is compared with: the same config, model, mesh, LoRA, prompts, packing, checkpoints and run folder;
`config.sft` has what is its own. One step:

    take    problems from the data iterator
    learn   the mean of -log p over the tokens of their responses: one update
    tell    numbers; then, when it is time, the validation loss, and save

The same command goes on where a run stopped. At the end the held-out problems are evaluated as GRPO does it,
and config.sft.output_dir has final/ (with LoRA final_adapter/ too).
"""

from __future__ import annotations

import time

from grpo_jax import building, command_line, whole_files

STARTED_AT = time.time()  # before the other imports: `seconds` in metrics.jsonl counts from here
if __name__ == "__main__":
    command_line.end_on_signals()  # those imports take seconds

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax import compilations, distributed, keeping, run_folder, settings, stopping, watch
from grpo_jax import mesh as mesh_lib
from grpo_jax.keeping import is_time
from grpo_jax.learning import train_state
from grpo_jax.learning.supervised import SupervisedLearner
from grpo_jax.run import Run
from grpo_jax.sft_run import prepare
from grpo_jax.train import look
from grpo_jax.worked_answers import WorkedAnswers


def main(arguments: Sequence[str]) -> None:
    """Reads the config, builds the rooms, teaches, exports."""
    config = command_line.read_config(arguments, program="grpo_jax.sft")
    s = settings.read(config)
    mesh_lib.use_cpu_devices(building.cpu_devices(s))
    kept = s.checkpoint
    with stopping.Stopper(grace_seconds=kept.grace_seconds, notice=kept.preemption_notice) as stopper:
        distributed.start(s.distributed)
        with watch.together(stopper):
            this, answers, learner = prepare(s, config, started_at=STARTED_AT, stopper=stopper)
            with this.judge, this.teller:
                keeping.restore(this)
                teach(this, answers, learner)
                keeping.finish(this)


def teach(this: Run, answers: WorkedAnswers, learner: SupervisedLearner) -> None:
    """The loop, from the first step that is not yet done to the last."""
    s, compiled = this.settings, compilations.Counter()
    if this.whole.step == 0 or this.start.may_deal_anew:
        write_record(this, answers)
    if keeping.owes_evaluation(this, every=s.sft.eval_steps):
        evaluate(this, answers, learner)
    while this.whole.step < s.max_steps:
        step, before = this.whole.step + 1, compiled.total
        with this.stopper.undivided(late=True):  # from the first change of the state on
            learned = take_step(this, answers, learner, step)
            this.teller.tell_step(step, learned | {"compilations": compiled.total - before})
            if keeping.heed(this, step, learned):
                continue
            keeping.mark_whole(this, step)
        if is_time(step, every=s.sft.eval_steps, last=s.max_steps):
            evaluate(this, answers, learner)
        if keeping.owes_checkpoint(this, every=s.sft.save_steps):
            keeping.keep(this)


def evaluate(this: Run, answers: WorkedAnswers, learner: SupervisedLearner) -> None:
    """Tells the validation loss, and at the end what the model answers."""
    step = this.whole.step
    validate(this, answers, learner, step=step)
    if step == this.settings.max_steps:
        look(this, step=step)
    keeping.mark_looked(this)


def take_step(this: Run, answers: WorkedAnswers, learner: SupervisedLearner, step: int) -> dict[str, Any]:
    """One update; replaces the run's state."""
    s, started = this.settings, time.perf_counter()
    rows = [answers.rows[problem.index] for problem in next(this.problem_batches)]
    taken = time.perf_counter()
    this.state, learned = learner.learn(
        this.state, rows, frozen=this.frozen, before_change=this.stopper.begin_change
    )
    rate = train_state.schedule(s.scaled_optimizer, num_updates=s.num_updates)
    ended = time.perf_counter()
    return learned | {
        "learning_rate": float(np.asarray(rate(step - 1))),
        "epoch": step * s.sft.num_rows / len(answers.problems),
        "tokens_per_second": learned["num_tokens"] / (ended - taken),
        "time/update": ended - taken,
        "time/step": ended - started,
    }


def validate(this: Run, answers: WorkedAnswers, learner: SupervisedLearner, *, step: int) -> None:
    """Tells the loss on the worked answers that are kept for it."""
    if not answers.validation:
        return keeping.mark_evaluated(this, {})
    mine = answers.validation[jax.process_index() :: jax.process_count()]
    rows = [answers.rows[problem.index] for problem in mine]
    loss = learner.loss(this.state.params, rows, frozen=this.frozen)
    this.teller.tell_evaluation(step, {"eval/loss": loss})
    keeping.mark_evaluated(this, {"eval/loss": loss})


def write_record(this: Run, answers: WorkedAnswers) -> None:
    """What is learned, for people; and the mark of a supervised run's folder."""
    record = {
        "updates": this.settings.max_steps,
        "worked_answers": len(answers.problems),
        "validation_problems": len(answers.validation),
        "digest": answers.digest(),
        "left_out": {found.name: {why: len(rows) for why, rows in found.left} for found in answers.sets},
    }
    if distributed.is_first():
        path = this.folder / run_folder.SUPERVISED_FILE
        whole_files.write_text(path, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    command_line.run_program(main)
