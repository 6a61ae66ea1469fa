"""The supervised loss against a decoder in NumPy float64, whatever the layout, and that it learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import supervised
from grpo_jax.learning.learner import Learner
from grpo_jax.learning.packing import Row
from grpo_jax.learning.supervised import SupervisedLearner
from grpo_jax.models import lora
from grpo_jax.models.lora import LoraParams
from grpo_jax.structs import Problem
from tests.learning import plain_decoder, small_batches
from tests.learning.small_batches import COMPLETION, NUM_VALID, PROMPT

ROWS = 12
SHARDS = {"one device": 1, "data 8": 8, "data 2 x fsdp 2 x tensor 2": 4}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Responses of 1 to 10 tokens, one of each prompt but two of the first."""
    rng = np.random.default_rng(5)
    ids = lambda most: rng.integers(1, NUM_VALID, rng.integers(1, most + 1)).tolist()  # noqa: E731
    prompts = [tuple(ids(PROMPT)) for _ in range(ROWS)]
    prompts[1] = prompts[0]
    return [
        supervised.worked_row(Problem(i, "", "", "", prompt), ids(COMPLETION))
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def make(tiny_model, shapes, meshes):
    """`make(mesh_name, tx, **layout)`."""

    def make(mesh_name: str = "one device", tx=None, *, parts: dict[str, Any] | None = None, **layout):
        learner = Learner(
            tiny_model,
            mesh=meshes[mesh_name],
            tx=tx or small_batches.kept_gradient(),
            loss=supervised.LOSS,
            compute=small_batches.COMPUTE,
            **(parts or {"shapes": shapes}),
        )
        sizes = {
            "max_prompt_length": PROMPT,
            "max_response_length": COMPLETION,
            "num_rows": ROWS,
            "num_shards": SHARDS[mesh_name],
            "rows_per_device": ROWS,
            "packing": 0,
        }
        return SupervisedLearner(learner, supervised.layout(**sizes | layout))

    return make


@pytest.fixture(scope="module")
def by_hand(host_params, tiny_model, rows):
    """`-log p` of every response token, in NumPy float64."""
    return np.concatenate([losses_of(host_params, tiny_model.spec, row) for row in rows])


def losses_of(params, spec, row: Row) -> np.ndarray:
    return plain_decoder.response_losses(
        params, spec, row.problem.prompt_ids, row.completion.ids.tolist(), num_valid=NUM_VALID
    )


def test_the_loss_is_the_mean_over_response_tokens_of_the_batch(make, new_state, rows, by_hand):
    _, metrics = make().learn(new_state("one device"), rows)
    assert metrics["loss"] == pytest.approx(by_hand.mean(), rel=1e-5)
    assert metrics["num_tokens"] == len(by_hand) == sum(row.completion.num_tokens for row in rows)
    mean_of_rows = np.mean([x.mean() for x in np.split(by_hand, np.cumsum(lengths(rows))[:-1])])
    assert abs(metrics["loss"] - mean_of_rows) > 1e-2  # rows of one token do not count as whole ones
    told = {"loss", "grad_norm", "entropy", "num_tokens", "digest/gradient", "digest/params"}
    assert set(metrics) == told


def test_the_gradient_is_the_slope_of_the_loss_by_hand(make, new_state, rows, host_params, tiny_model):
    """A central difference along the gradient, in float64, is its squared length."""
    state, metrics = make().learn(new_state("one device"), rows)
    gradient = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(state.opt_state))
    squared = sum((g * g).sum() for g in jax.tree.leaves(gradient))
    assert metrics["grad_norm"] == pytest.approx(np.sqrt(squared), rel=1e-5)
    step = 1e-4 / np.sqrt(squared)
    left, right = (
        np.concatenate([losses_of(moved, tiny_model.spec, row) for row in rows]).mean()
        for moved in (
            jax.tree.map(lambda p, g, by=by: p + by * g, host_params, gradient) for by in (-step, step)
        )
    )
    assert (right - left) / (2 * step) == pytest.approx(squared, rel=1e-4)


@pytest.mark.parametrize(
    ("mesh_name", "layout"),
    [
        ("one device", {"rows_per_device": 1}),
        ("one device", {"rows_per_device": 5}),
        ("one device", {"packing": 1, "rows_per_device": 4}),
        ("one device", {"packing": 3, "rows_per_device": 6}),
        ("one device", {"max_prompt_length": 9, "max_response_length": 14}),
        ("data 8", {"rows_per_device": 1}),
        ("data 2 x fsdp 2 x tensor 2", {"packing": 2, "rows_per_device": 2}),
    ],
)
def test_loss_and_gradient_do_not_depend_on_microbatches_packing_padding_or_mesh(
    make, new_state, rows, by_hand, mesh_name, layout
):
    plain, _ = make().learn(new_state("one device"), rows)
    state, metrics = make(mesh_name, **layout).learn(new_state(mesh_name), rows)
    assert metrics["loss"] == pytest.approx(by_hand.mean(), rel=1e-5)  # float32 sums of 12 rows
    for ours, other in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(plain.opt_state), strict=True):
        ours, other = jax.device_get((ours, other))
        np.testing.assert_allclose(ours, other, atol=1e-5 * np.abs(other).max(), rtol=0)


def test_packed_rows_take_fewer_microbatches(make, rows):
    of = lambda **layout: make(rows_per_device=2, **layout)._minibatch(rows).num_active  # noqa: E731
    assert of(packing=2) < of(packing=0) == ROWS // 2


def test_the_validation_loss_is_the_same_mean_over_any_number_of_rows(make, new_state, rows, by_hand):
    params = new_state("one device").params
    assert make().loss(params, rows) == pytest.approx(by_hand.mean(), rel=1e-5)
    for mesh_name in ("one device", "data 8"):
        cut = make(mesh_name, num_rows=5, rows_per_device=2, packing=1)  # three batches, the last of two rows
        assert cut.loss(new_state(mesh_name).params, rows) == pytest.approx(by_hand.mean(), rel=1e-5)
    first = by_hand[: rows[0].completion.num_tokens]
    assert make().loss(params, rows[:1]) == pytest.approx(first.mean(), rel=1e-5)
    assert make().loss(params, []) == 0


def test_repeated_updates_learn_the_batch(make, new_state, rows):
    tx = optax.adam(1e-2)
    learner, state, losses = make(tx=tx, packing=1, rows_per_device=4), new_state("one device", tx), []
    for _ in range(20):
        state, metrics = learner.learn(state, rows)
        losses.append(metrics["loss"])
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.num_updates) == 20


def test_with_adapters_only_they_move_and_the_loss_begins_as_the_bases(
    make, rows, shapes, host_params, meshes, tiny_model, by_hand
):
    params = LoraParams(4, 8.0, 0.0, "all-linear", "float32", 10.0)
    adapters = jax.jit(partial(lora.create, tiny_model.spec, params, seed=0))()
    mesh, tx = meshes["one device"], optax.adam(1e-2)
    frozen = jax.device_put(host_params, mesh_lib.parameter_shardings(mesh, shapes))
    trained = jax.eval_shape(lambda: adapters)
    before = jax.device_get(adapters)
    state = small_batches.fresh_state(before, mesh_lib.parameter_shardings(mesh, trained), mesh=mesh, tx=tx)
    parts = {"shapes": trained, "assemble": partial(lora.assemble, params=params, seed=0)}
    learner, losses = make(tx=tx, parts=parts), []
    for _ in range(3):
        state, metrics = learner.learn(state, rows, frozen=frozen)
        losses.append(metrics["loss"])
    assert losses[0] == pytest.approx(by_hand.mean(), rel=1e-5)  # a new adapter changes nothing
    assert losses[2] < losses[1] < losses[0]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        assert np.abs(old - new).max() > 1e-3
    for old, new in zip(jax.tree.leaves(host_params), jax.tree.leaves(frozen), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("fields", "updates"),
    [
        ({"num_train_epochs": 1.0}, 6),  # 50 answers: six updates of eight are full
        ({"num_train_epochs": 2.5}, 15),
        ({"num_train_epochs": 0.01}, 1),
        ({"num_train_epochs": 2.5, "max_steps": 4}, 4),
    ],
)
def test_updates_follow_from_epochs_or_from_max_steps(fields, updates):
    params = supervised.SFTParams(
        **{
            **{"max_steps": 0, "num_rows": 8, "learning_rate": 1e-5, "lr_scheduler_type": "constant"},
            **{"warmup_steps": 0, "packing": 1, "per_device_train_batch_size": 8, "max_response_length": 64},
            **{"validation_problems": 0, "eval_steps": 0, "save_steps": 0, "output_dir": ""},
            **fields,
        }
    )
    assert params.num_updates(50) == updates


def lengths(rows: list[Row]) -> list[int]:
    return [row.completion.num_tokens for row in rows]
