"""The supervised update: its loss by the plain formula, and that it learns."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
import pytest

from grpo_jax.learning import supervised
from tests.learning import small_batches


@pytest.fixture(scope="module")
def parts(tiny_model, shapes, meshes, new_state):
    tx = optax.sgd(0.1)
    update = supervised.jitted_update(
        tiny_model, mesh=meshes["one device"], tx=tx, shapes=shapes, compute=small_batches.COMPUTE
    )
    state = functools.partial(new_state, "one device", tx)
    rows = small_batches.random_rollout(0, num_problems=4, num_generations=2)
    (minibatch,) = small_batches.pack(*rows)
    return update, state, jax.tree.map(lambda x: x[0], minibatch.batch), rows[0]


def test_loss_is_the_mean_negative_log_probability_of_completion_tokens(host_params, parts, own_logprobs):
    update, state, batch, rollout = parts
    _, metrics = update(state(), batch)
    each = [
        own_logprobs(problem.prompt_ids, completion.ids)
        for problem, group in zip(rollout.problems, rollout.completions, strict=True)
        for completion in group
    ]
    assert float(metrics["loss"]) == pytest.approx(-np.concatenate(each).mean(), rel=1e-5)
    assert float(metrics["grad_norm"]) > 0


def test_repeated_updates_on_one_batch_learn_it(parts):
    update, state, batch, _ = parts
    state, losses = state(), []
    for _ in range(20):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.num_updates) == 20


def test_a_batch_with_nothing_to_train_on_changes_nothing(parts):
    update, state, batch, _ = parts
    before = jax.device_get(state().params)
    after, metrics = update(state(), batch._replace(completion_mask_AUSC=0 * batch.completion_mask_AUSC))
    assert float(metrics["loss"]) == 0
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(old, new)
