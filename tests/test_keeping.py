"""When a run saves, and what it notes of a step for the choice of the best checkpoint."""

from __future__ import annotations

import dataclasses
import time
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from grpo_jax import checkpoints, keeping, settings
from grpo_jax.run import Whole
from tests.test_failed_saves import files_at_most


def run_in(folder, **fields: Any) -> Any:
    """As much of a run as keeping needs, after its first step."""
    s = settings.read(base.get_config().to_dict())
    made: Any = types.SimpleNamespace(
        settings=dataclasses.replace(s, checkpoint=dataclasses.replace(s.checkpoint, **fields)),
        state={"w": jnp.ones(3)},
        ref_params=None,
        mix_reference=None,
        keeper=checkpoints.Checkpoints(folder, retention=checkpoints.Retention(2)),
        problem_batches=types.SimpleNamespace(get_state=dict),
        whole=Whole(0, {}, looked=False),
        alarms=types.SimpleNamespace(state=dict),
        evaluated={},
        evaluated_names=set(),
    )
    keeping.mark_whole(made, 1)
    return made


def test_a_checkpoint_is_owed_at_its_steps_at_the_end_and_when_its_seconds_have_passed(tmp_path):
    run = run_in(tmp_path / "c", save_seconds=0.0)
    assert [step for step in range(1, 101) if at(run, step, every=40)] == [40, 80, 100]
    assert [step for step in range(1, 101) if at(run, step, every=0)] == [100]
    assert not at(run_in(tmp_path / "c", save_seconds=3600.0), 3, every=0)
    run = run_in(tmp_path / "c", save_seconds=1e-6)
    assert at(run, 3, every=0)
    run.keeper.save(3, run.state, {})
    run.keeper.close()
    assert run.keeper.seconds_since_save < 60


def at(run: Any, step: int, *, every: int) -> bool:
    keeping.mark_whole(run, step)
    return keeping.owes_checkpoint(run, every=every)


def test_a_failed_save_is_raised_when_the_next_step_asks(tmp_path):
    run, deadline = run_in(tmp_path / "c"), time.monotonic() + 60
    run.state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=250_000), jnp.float32)}
    with files_at_most(300_000):
        run.keeper.save(1, run.state, {})
        with pytest.raises(RuntimeError, match="the checkpoint of step 1 could not be saved"):
            while time.monotonic() < deadline:
                at(run, 2, every=0)
                time.sleep(0.01)


def test_a_checkpoint_has_the_numbers_of_its_own_steps_evaluation_only(tmp_path):
    run = run_in(tmp_path / "c", metric_for_best_model="accuracy")
    keeping.mark_evaluated(run, {"eval/accuracy": 0.5, "eval/length": 3, "time/evaluate": 1.0})
    assert run.evaluated == {"eval/accuracy": 0.5, "eval/length": 3.0}
    keeping.mark_evaluated(run, {"eval/loss": 2.0})  # a second part of it
    assert run.evaluated == {"eval/accuracy": 0.5, "eval/length": 3.0, "eval/loss": 2.0}
    keeping.mark_whole(run, 2)
    assert run.evaluated == {}
    keeping.mark_evaluated(run, {"eval/length": 4})  # which may lack a number that is known
    assert run.evaluated == {"eval/length": 4.0}


def test_an_unknown_number_is_told_at_the_first_evaluation_with_those_that_are_known(tmp_path):
    run = run_in(tmp_path / "c", metric_for_best_model="eval/acuracy")
    with pytest.raises(
        ValueError, match=r"is 'eval/acuracy', which .*; known are: eval/accuracy, eval/length\. Set"
    ):
        keeping.mark_evaluated(run, {"eval/length": 3, "eval/accuracy": 0.5, "time/evaluate": 1.0})
    with pytest.raises(ValueError, match="known are: none, since nothing is evaluated here"):
        keeping.mark_evaluated(run_in(tmp_path / "c", metric_for_best_model="accuracy"), {})
