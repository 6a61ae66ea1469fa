"""Teaches a model with GRPO: `python -m grpo_jax.train --config configs/tiny.py`.

One step:

    take    problems from the data iterator
    act     sample G completions a problem, with the parameters as they are
    judge   reward each completion, in other processes, while others are still sampled
    centre  rewards on their group: advantages
    pack    rows into fixed-shape minibatches
    learn   score where needed, then one update a minibatch
    tell    numbers and samples; heed what is alarming in them; then, when it is time, evaluate and save

The same command goes on where a run stopped. At the end OUTPUT_DIR/final is a Hugging Face folder; with LoRA,
OUTPUT_DIR/final_adapter has the adapters alone, as PEFT reads them.
"""

from __future__ import annotations

import time

from grpo_jax import command_line

STARTED_AT = time.time()  # before the other imports: `seconds` in metrics.jsonl counts from here
if __name__ == "__main__":
    command_line.end_on_signals()  # those imports take seconds

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from grpo_jax import (
    compilations,
    distributed,
    dynamic_sampling,
    keeping,
    metrics,
    settings,
    stopping,
    watch,
)
from grpo_jax import mesh as mesh_lib
from grpo_jax.building import cpu_devices
from grpo_jax.evaluation import evaluation, evaluation_folder
from grpo_jax.keeping import is_time
from grpo_jax.learning import advantages, batches, train_state
from grpo_jax.rollout import digests_of, shuffled
from grpo_jax.run import Run, prepare
from grpo_jax.structs import Problem, Rollout

NUM_EVALUATION_SAMPLES = 24  # kept of each evaluation, always the same problems: the report compares them
EVALUATION = "evaluation"  # folder in RUN: all records of each task's last evaluation


def main(arguments: Sequence[str]) -> None:
    """Reads the config, builds the rooms, trains, exports."""
    config = command_line.read_config(arguments, program="grpo_jax.train")
    run_settings = settings.read(config)
    mesh_lib.use_cpu_devices(cpu_devices(run_settings))
    kept = run_settings.checkpoint
    with stopping.Stopper(grace_seconds=kept.grace_seconds, notice=kept.preemption_notice) as stopper:
        distributed.start(run_settings.distributed)
        with watch.together(stopper):
            run = prepare(run_settings, config, started_at=STARTED_AT, stopper=stopper)
            with run.judge, run.teller:
                keeping.restore(run)
                train(run)
                keeping.finish(run)


def train(run: Run) -> None:
    """The loop, from the first step that is not yet done to the last."""
    last, compiled = run.settings.max_steps, compilations.Counter()
    if keeping.owes_evaluation(run, every=run.settings.evaluation.eval_steps):
        look(run, step=run.whole.step)
    while run.whole.step < last:
        step = run.whole.step + 1
        started, before = time.perf_counter(), compiled.total
        rollout, advantages_PG = act(run, step)
        with run.stopper.undivided(late=True):  # from the first change of the state on
            learned = learn(run, rollout, advantages_PG)
            follow(run, step)
            learned |= {
                "time/step": time.perf_counter() - started,
                "compilations": compiled.total - before,
            }
            tell(run, step, rollout, advantages_PG, learned)
            if keeping.heed(run, step, rollout.metrics | learned):
                continue
            keeping.mark_whole(run, step)
        if is_time(step, every=run.settings.evaluation.eval_steps, last=last):
            look(run, step=step)
        if keeping.owes_checkpoint(run, every=run.settings.checkpoint.save_steps):
            keeping.keep(run)


def act(run: Run, step: int) -> tuple[Rollout, np.ndarray]:
    """Take, act, judge and centre: one step's completions and what each is worth; changes no state."""
    rollout = collect(run, next(run.problem_batches), step)
    return rollout, centre(run, rollout, kl_PG=reward_kl(run, rollout))


def collect(run: Run, problems: list[Problem], step: int) -> Rollout:
    """Act, judge and gather; again for groups without signal, where that is asked for."""
    key, weights = sampling_key(run), run.weights(run.state.params, run.frozen)
    step_key = jax.random.fold_in(jax.random.fold_in(key, 0), step)
    rollout = run.collector.collect(weights, problems, step_key=step_key)
    if run.settings.grpo.dynamic_sampling_max_rounds:
        more_key = jax.random.fold_in(jax.random.fold_in(key, 2), step)

        def sample(count: int, number: int) -> Rollout:
            new = next(run.problem_batches)[:count]  # the others wait for the next epoch
            return run.collector.collect(weights, new, step_key=jax.random.fold_in(more_key, number))

        rollout = dynamic_sampling.replenish(
            rollout,
            sample,
            max_rounds=run.settings.grpo.dynamic_sampling_max_rounds,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    if run.settings.reward.shuffle_rewards:
        deal = partial(shuffled, seed=run.settings.seed, step=step)
        rollout = dataclasses.replace(
            rollout, rewards_PG=deal(rollout.rewards_PG), rewards_PGF=deal(rollout.rewards_PGF)
        )
    return rollout


def sampling_key(run: Run) -> jax.Array:
    """The key that those of a run's steps come from; after a roll-back other ones, or all would go as it went."""
    key = jax.random.key(run.settings.seed)
    if not run.whole.roll_backs:
        return key
    return jax.random.fold_in(jax.random.fold_in(key, 3), run.whole.roll_backs)


def centre(run: Run, rollout: Rollout, *, kl_PG: np.ndarray | None = None) -> np.ndarray:
    """Advantages `[P, G]` of all processes, after what is taken off the rewards.

    Args:
        kl_PG: each completion's KL to the reference, of all processes, where it is part of the reward.
    """
    s, penalty_PG = run.settings, None
    if kl_PG is not None:
        penalty_PG = advantages.penalised(np.zeros_like(kl_PG), kl_PG, s.grpo.beta)
    weights_F = np.array([spec.weight for spec in run.judge.specs], np.float32)
    return advantages.of_rewards(rollout.rewards_PGF, weights_F, s.advantages, penalty_PG=penalty_PG)


def reward_kl(run: Run, rollout: Rollout) -> np.ndarray | None:
    """Each completion's KL to the reference `[P, G]` of all processes, where it is part of the reward."""
    if not run.settings.loss.penalises_reward:
        return None
    ones_PG = np.ones(rollout.rewards_PG.shape, np.float32)  # all are scored, whatever they will be worth
    own_PG = run.learner.rollout_kl(
        run.state.params,
        pack(run, rollout, ones_PG),
        ref_params=run.ref_params,
        frozen=run.frozen,
        shape=(len(rollout.problems), rollout.rewards_PG.shape[1]),
    )
    return distributed.gather(own_PG)


def pack(run: Run, rollout: Rollout, advantages_PG: np.ndarray) -> list[batches.Minibatch]:
    """This process's minibatches, as wide as the longest completion of all processes needs."""
    longest = max(completion.num_tokens for group in rollout.completions for completion in group)
    num_columns = batches.completion_columns(
        distributed.largest([longest])[0], max_completion_length=run.packing.max_completion_length
    )
    return batches.pack(
        rollout, distributed.own_share(advantages_PG), num_columns=num_columns, params=run.packing
    )


def learn(run: Run, rollout: Rollout, advantages_PG: np.ndarray) -> dict[str, Any]:
    """Pack, score and learn; replaces the run's state."""
    started = time.perf_counter()
    run.state, learned = run.learner.learn(
        run.state,
        pack(run, rollout, advantages_PG),
        ref_params=run.ref_params,
        num_iterations=run.settings.grpo.num_iterations,
        frozen=run.frozen,
        before_change=run.stopper.begin_change,
    )
    rate = train_state.schedule(run.settings.scaled_optimizer, num_updates=run.settings.num_updates)
    learned["learning_rate"] = float(np.asarray(rate(int(run.state.num_updates) - 1)))
    learned["time/update"] = time.perf_counter() - started
    return learned


def follow(run: Run, step: int) -> None:
    """Moves the reference towards the policy, where and when that is asked for."""
    if run.mix_reference and step % run.settings.grpo.ref_model_sync_steps == 0:
        run.ref_params = run.mix_reference(run.ref_params, run.state.params)


def tell(run: Run, step: int, rollout: Rollout, advantages_PG: np.ndarray, learned: dict[str, Any]) -> None:
    """Numbers of the step, a remark where they would puzzle, and every few steps some samples."""
    numbers: dict[str, Any] = rollout.metrics | digests_of(rollout) | learned
    on_policy = run.settings.grpo.num_iterations * run.settings.grpo.num_minibatches == 1
    notes = [*metrics.step_notes(numbers, on_policy=on_policy)]
    if left := dynamic_sampling.note(numbers, num_groups=len(rollout.rewards_PG)):
        notes.append(left)
    if run.judge.first_failure:
        notes.append(f"a completion could not be judged and earned 0: {run.judge.first_failure}")
    run.teller.tell_step(step, numbers, notes=notes)
    if is_time(step, every=run.settings.telling.completions_every_steps, last=run.settings.max_steps):
        own_PG = distributed.own_share(advantages_PG)
        run.teller.tell_samples(step, samples(run, rollout, own_PG))


def samples(run: Run, rollout: Rollout, advantages_PG: np.ndarray) -> list[metrics.Sample]:
    """The first completion of each of this process's problems, and its second if that fared otherwise."""
    names = [spec.name for spec in run.judge.specs]
    chosen = []
    for p, problem in enumerate(rollout.problems):
        outcomes = [judgement.outcome for judgement in rollout.judgements[p]]
        others = [g for g, outcome in enumerate(outcomes) if outcome != outcomes[0]]
        for g in (0, *others[:1]):
            judgement = rollout.judgements[p][g]
            chosen.append(
                metrics.Sample(
                    problem_index=problem.index,
                    question=problem.question,
                    completion=rollout.texts[p][g],
                    gold=problem.answer,
                    parsed=judgement.parsed,
                    rewards=dict(zip(names, judgement.rewards, strict=True)),
                    outcome=judgement.outcome,
                    advantage=float(advantages_PG[p, g]),
                    columns=judgement.columns,
                )
            )
    return chosen


def look(run: Run, *, step: int) -> None:
    """Evaluates the policy as it is, on each held-out task, and keeps what it answered."""
    if not run.held_out:
        keeping.mark_evaluated(run, {})
        return keeping.mark_looked(run)
    started = time.perf_counter()
    count = sum(len(found.problems) for found in run.held_out)
    run.teller.tell_message(f"evaluating on {count} held-out problems")
    key = jax.random.fold_in(jax.random.key(run.settings.seed), 1)
    weights = run.weights(run.state.params, run.frozen)
    results, kept = {}, []
    for found in run.held_out:
        form = found.task.template.format_reward or evaluation.FORMAT_REWARD
        result = evaluation.evaluate(run.evaluator, weights, found.problems, key=key, format_reward=form)
        results[found.name] = result.metrics
        kept += result.records[: max(1, NUM_EVALUATION_SAMPLES // len(run.held_out))]
        name = found.name + (f"_process_{jax.process_index()}" if jax.process_count() > 1 else "")
        evaluation_folder.keep_newest(run.folder / EVALUATION, name, step, result.records)
    timing = {"time/evaluate": time.perf_counter() - started}
    told = evaluation.of_tasks(results) | timing
    with run.stopper.undivided():
        run.teller.tell_evaluation(step, told, samples=[first_sample(record) for record in kept])
        keeping.mark_evaluated(run, told)
        keeping.mark_looked(run)


def first_sample(record: evaluation.Record) -> metrics.Sample:
    """The first completion of an evaluated problem."""
    first = record["samples"][0]
    return metrics.Sample(
        problem_index=record["index"],
        question=record["question"],
        gold=record["gold"],
        rewards={name: math.nan if value is None else value for name, value in first["rewards"].items()},
        **{name: first[name] for name in ("completion", "parsed", "outcome")},
    )


if __name__ == "__main__":
    command_line.run_program(main)
