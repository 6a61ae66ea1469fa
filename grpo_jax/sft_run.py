"""Builds the rooms of a supervised run from its settings, cheapest checks first, and finds where to begin.

As `run.py` does for GRPO, and with its helpers; what differs is the loss, the rows, and how many updates there
are, which is known when the data is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from grpo_jax import (
    building,
    checkpoints,
    distributed,
    json_files,
    metrics,
    opening,
    policy,
    problem_loading,
    resuming,
    run,
    run_folder,
    settings_checks,
    starts,
    step_lines,
    worked_answers,
)
from grpo_jax import mesh as mesh_lib
from grpo_jax.alarms import Alarms
from grpo_jax.data import dealing, problem_sets
from grpo_jax.data.problems import ProblemSet, all_problems
from grpo_jax.learning import supervised, train_state
from grpo_jax.learning.supervised import SupervisedLearner
from grpo_jax.models import packed_attention
from grpo_jax.rewards.pool import Judge
from grpo_jax.run import Run
from grpo_jax.settings import Settings
from grpo_jax.stopping import Stopper
from grpo_jax.worked_answers import WorkedAnswers

MAX_SHOWN_CHARACTERS = 1_200  # of a response


def prepare(
    s: Settings, config: dict[str, Any], *, started_at: float, stopper: Stopper
) -> tuple[Run, WorkedAnswers, SupervisedLearner]:
    """Builds everything, cheapest checks first, as `run.prepare` does.

    Raises: ValueError, FileNotFoundError, FileExistsError for what the user can mend.
    """
    mesh, specs = run.checked(s)
    folder = Path(s.supervised_dir)
    run_folder.check_place(str(folder), "config.sft.output_dir")
    changes = resuming.check(folder, config, s, free=may_change(s), supervised=True)
    opened = policy.open_policy(s.model)
    settings_checks.check_model(s, opened.model.spec, tensor=mesh.shape["tensor"])
    settings_checks.check_supervised(s, opened.model.spec, num_processes=jax.process_count())
    settings_checks.check_sampling(s, opened, platform=mesh.devices.flat[0].platform)
    policy.check_weights(opened)
    run.use_compilation_cache(s.compilation_cache)
    judge = run.make_judge(s, specs)
    said = metrics.EarlyTeller(silent=not distributed.is_first())
    # the same problems as GRPO's: those whose gold can be read
    sets, held_out = problem_loading.load_sets(
        s, opened, said, accept=lambda found: problem_loading.golds_read(judge, found)
    )
    answers = read_answers(s, opened, sets)
    check_record(folder, answers, accept=resuming.accepted(s))
    s = s.supervised(s.sft.num_updates(len(answers.problems)))
    keeper, start = opening.open_folder(folder, s, config, changes, stopper=stopper)
    teller = opening.open_teller(folder, s, config, start, started_at=started_at, table=step_lines.SFT_TABLE)
    opening.stoppable(stopper, teller)
    for sentence in (answers.summary(), first_row(answers, opened)):
        teller.tell_message(sentence)
    this, learner = build(s, mesh, opened, answers, held_out, judge, keeper, teller, start, stopper)
    judge.self_test()
    if distributed.is_first():
        starts.record(folder, starts.present(mesh, config), after=start.step)
    return this, answers, learner


def build(
    s: Settings,
    mesh: jax.sharding.Mesh,
    opened: policy.Policy,
    answers: WorkedAnswers,
    held_out: list[ProblemSet],
    judge: Judge,
    keeper: checkpoints.Checkpoints,
    teller: opening.Teller,
    start: resuming.Start,
    stopper: Stopper,
) -> tuple[Run, SupervisedLearner]:
    """Weights, state and programs of a new run."""
    parts = policy.parts(opened, s.lora, seed=s.seed)
    teller.tell_message(
        f"model: {opened.folder}, {building.num_values(parts.trained):,} parameters are trained; reading its weights"
    )
    frozen = policy.load_frozen(opened, parts, mesh=mesh)
    trained = policy.fresh_trained(opened, parts, s.lora, mesh=mesh, seed=s.seed)
    tx = train_state.optimizer(s.scaled_optimizer, num_updates=s.num_updates)
    state = train_state.create(tx, trained, mesh=mesh, over_data=s.mesh.over_data)
    learner = make_learner(s, mesh, opened, parts, tx, answers)
    weights = building.sampling_weights(s, mesh, opened, parts)
    longest = max(len(problem.prompt_ids) for problem in (*answers.problems, *all_problems(held_out)))
    prompt_columns = min(building.rounded_up(longest), s.data.max_prompt_length)
    collector, evaluator = building.make_collectors(
        s, mesh, opened, weights, judge, prompt_columns, stop=lambda: stopper.asked
    )
    problem_batches = dealing.problem_batches(
        answers.sets,
        num_prompts=s.sft.num_rows,
        seed=s.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    this = Run(
        settings=s,
        folder=Path(s.output_dir),
        policy=opened,
        parts=parts,
        judge=judge,
        teller=teller,
        keeper=keeper,
        problem_batches=problem_batches,
        held_out=held_out,
        weights=weights,
        collector=collector,
        evaluator=evaluator,
        packing=learner.packing,
        learner=learner.learner,
        state=state,
        frozen=frozen,
        ref_params=None,
        mix_reference=None,
        start=start,
        # of the others, rewards and a sampler are missing, and learned answers have little entropy
        alarms=Alarms(s.alarms, watched={"non_finite"}, learning_rate="config.sft.learning_rate"),
        whole=run.Whole(0, problem_batches.get_state(), looked=False),
        stopper=stopper,
    )
    return this, learner


def read_answers(s: Settings, opened: policy.Policy, sets: Sequence[ProblemSet]) -> WorkedAnswers:
    """Raises ValueError where a task has fewer answers than its share of an update."""
    answers = worked_answers.read(
        sets,
        opened.tokenizer,
        end_ids=opened.end_ids,
        max_response_length=s.sft.max_response_length,
        num_validation=s.sft.validation_problems,
    )
    if s.sft.num_rows < len(sets):
        raise ValueError(
            f"config.sft.num_rows is {s.sft.num_rows}, fewer than the {len(sets)} tasks; set a multiple of that."
        )
    for found, count in zip(
        answers.sets, dealing.shares([found.weight for found in sets], s.sft.num_rows), strict=True
    ):
        if count > len(found.problems):
            raise ValueError(
                f"config.sft.num_rows is {s.sft.num_rows}, of which {count} are of task {found.name}, but it has "
                f"only {found.summary()}; set fewer."
            )
    return answers


def first_row(answers: WorkedAnswers, opened: policy.Policy) -> str:
    """The first prompt as the model reads it, and what it learns to write behind it."""
    ids = answers.rows[answers.problems[0].index].completion.ids.tolist()
    shown = opened.tokenizer.decode(ids)
    return (
        f"{problem_sets.describe_first(answers.sets[0], opened.tokenizer)}\n"
        f"learned behind it, {len(ids)} tokens: {shown[:MAX_SHOWN_CHARACTERS]!r}"
    )


def make_learner(
    s: Settings,
    mesh: jax.sharding.Mesh,
    opened: policy.Policy,
    parts: policy.Parts,
    tx: Any,
    answers: WorkedAnswers,
) -> SupervisedLearner:
    """The jitted programs, for lines as long as the longest prompt and response need."""
    learner = building.make_learner(s, mesh, opened, parts, tx, supervised.LOSS)
    longest_prompt, longest_response = answers.longest
    a_line, _ = packed_attention.lines_of(opened.attention, packing=s.sft.packing, share_prompts=False)
    layout = supervised.layout(
        max_prompt_length=min(building.rounded_up(longest_prompt), s.data.max_prompt_length),
        max_response_length=min(building.rounded_up(longest_response), s.sft.max_response_length),
        num_rows=s.sft.num_rows // jax.process_count(),
        num_shards=mesh_lib.num_row_shards(mesh) // jax.process_count(),
        rows_per_device=s.sft.per_device_train_batch_size,
        packing=a_line,
    )
    return SupervisedLearner(learner, layout)


def may_change(s: Settings) -> set[str]:
    """What decides no number of a supervised run, when it goes on."""
    free = (run_folder.MAY_CHANGE - {"sft"}) | {"grpo", "sft.output_dir", "sft.save_steps"}
    free |= {f"optimizer.{name}" for name in ("learning_rate", "lr_scheduler_type", "warmup_steps")}
    if s.sft.lr_scheduler_type == "constant":
        free |= {"sft.max_steps", "sft.num_train_epochs"}
    return free


def check_record(folder: Path, answers: WorkedAnswers, *, accept: Collection[str] = ()) -> None:
    """Raises ValueError if the folder's run learns other answers: what a file says may have changed.

    Args:
        accept: what may differ; other answers may where that decides them.
    """
    path = folder / run_folder.SUPERVISED_FILE
    if resuming.decide_data(accept) or not run_folder.has_begun(folder):
        return
    if json_files.read(path).get("digest") != answers.digest():
        raise ValueError(
            f"the worked answers are not those that the run in {folder} learns, though the config is the same. "
            "Restore the data, or set config.sft.output_dir to a new folder, or go on all the same with "
            "--config.checkpoint.accept_changes=data."
        )
