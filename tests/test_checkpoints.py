"""Checkpoints: what was saved comes back, whatever happens to the arrays meanwhile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax import checkpoints
from grpo_jax.checkpoints import Checkpoints, Reader, Retention


def tree_on(mesh, value: float):
    cut = NamedSharding(mesh, P("data"))
    return {
        "a": jax.device_put(jnp.full((16, 3), value), cut),
        "n": jax.device_put(jnp.int32(value), NamedSharding(mesh, P())),
    }


def test_saving_goes_on_while_the_next_update_overwrites_its_arrays(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(5))
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = tree_on(mesh, 0.0)
    for step in range(1, 6):
        keeper.save(step, tree, {"step": step})
        for _ in range(20):
            tree = overwrite(tree)
    keeper.close()
    again = Reader(tmp_path / "c")
    for step in range(1, 6):
        restored, record = again.restore(step, checkpoints.like(tree_on(mesh, 0.0)))
        np.testing.assert_array_equal(restored["a"], np.full((16, 3), 20.0 * (step - 1)))
        assert record == {"step": step}


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(2), {50, 60}),
        (Retention(1, keep_every_steps=20), {20, 40, 60}),
        (Retention(1, metric_for_best_model="eval/accuracy"), {20, 60}),  # of two with 0.7 the earlier
        (Retention(1, metric_for_best_model="eval/loss", greater_is_better=False), {30, 60}),
        (Retention(1, metric_for_best_model="eval/reward"), {60}),  # which no record has
        (Retention(9), {10, 20, 30, 40, 50, 60}),
    ],
)
def test_the_newest_the_regular_and_the_best_are_kept(retention, kept):
    evaluated = {
        10: {"eval/accuracy": 0.1, "eval/loss": 2.0},
        20: {"eval/accuracy": 0.7, "eval/loss": 1.5},
        30: {"eval/accuracy": float("nan"), "eval/loss": 0.5},
        40: {"eval/accuracy": 0.7, "eval/loss": 0.75},
        50: {},
        60: {},
    }
    assert retention.kept(evaluated) == kept


def test_the_best_stays_when_the_run_goes_on_in_another_program(tmp_path, mesh):
    best = Retention(1, metric_for_best_model="eval/accuracy")
    for step, value in ((1, 0.2), (2, 0.9), (3, 0.4), (4, 0.5)):
        keeper = Checkpoints(tmp_path / "c", retention=best)
        keeper.save(step, tree_on(mesh, step), {"step": step}, evaluated={"eval/accuracy": value})
        keeper.close()
    assert Reader(tmp_path / "c").steps() == [2, 4]


def test_only_the_newest_are_kept(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    for step in (1, 2, 3, 4):
        keeper.save(step, tree_on(mesh, step), {})
    keeper.close()
    again = Reader(tmp_path / "c")
    assert again.steps() == [3, 4]
    assert again.latest_step() == 4


def test_another_mesh_may_read_it(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    keeper.save(1, tree_on(mesh, 3.0), {})
    whole = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), tree_on(mesh, 0.0))
    keeper.close()
    restored, _ = Reader(tmp_path / "c").restore(1, checkpoints.like(whole))
    np.testing.assert_array_equal(restored["a"], np.full((16, 3), 3.0))
    assert len(restored["a"].devices()) == 1


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    keeper.save(3, tree_on(mesh, 1.0), {})
    keeper.close()
    with pytest.raises(FileNotFoundError, match=r"step 2; it has \[3\]"):
        Reader(tmp_path / "c").restore(2, checkpoints.like(tree_on(mesh, 0.0)))


@pytest.mark.parametrize(
    "name", ["2.orbax-checkpoint-tmp", "2.unfinished", "2.unfinished.orbax-checkpoint-tmp", "2.deleted"]
)
def test_what_a_kill_has_left_is_no_checkpoint_and_the_next_run_removes_it(tmp_path, mesh, name):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    keeper.save(1, tree_on(mesh, 1.0), {})
    keeper.close()
    (tmp_path / "c" / name).mkdir()
    (tmp_path / "c" / name / "half").write_text("half")
    reader = Reader(tmp_path / "c")
    assert (reader.steps(), reader.damage()) == ([1], {})
    assert (tmp_path / "c" / name).exists()  # who only reads touches nothing
    assert Checkpoints(tmp_path / "c", retention=Retention(2)).steps() == [1]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1"]


def test_a_folder_that_is_not_there_is_not_made_by_reading_it(tmp_path):
    assert Reader(tmp_path / "c").latest_step() is None
    assert not (tmp_path / "c").exists()


def test_a_record_is_read_without_its_arrays(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    keeper.save(1, tree_on(mesh, 1.0), {"data": {"epoch": 3}, "looked": False})
    keeper.close()
    assert Reader(tmp_path / "c").read_record(1) == {"data": {"epoch": 3}, "looked": False}


def test_a_step_is_saved_once_and_what_was_restored_counts_as_saved(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    for value in (1.0, 2.0):
        keeper.save(1, tree_on(mesh, value), {})
    again = Checkpoints(tmp_path / "c", retention=Retention(2))
    keeper.close()
    with pytest.raises(FileExistsError, match="1 is there already and is not of this run"):
        again.save(1, tree_on(mesh, 2.0), {})
    restored, _ = again.restore(1, checkpoints.like(tree_on(mesh, 0.0)))
    np.testing.assert_array_equal(restored["a"], np.full((16, 3), 1.0))
    again.save(1, tree_on(mesh, 2.0), {})
    again.close()


def test_steps_set_aside_are_there_but_count_no_more_and_can_be_saved_again(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(3))
    for value in (1.0, 2.0):
        for step in (1, 2, 3):
            if step > 1 or value == 1.0:
                keeper.save(step, tree_on(mesh, value), {})
        keeper.set_aside([2, 3])
        assert keeper.steps() == [1]
    keeper.close()
    aside = Reader(tmp_path / "c" / "set_aside")
    assert sorted(path.name for path in aside.folder.iterdir()) == ["2", "2.1", "3", "3.1"]
    restored, _ = aside.restore(3, checkpoints.like(tree_on(mesh, 0.0)))
    np.testing.assert_array_equal(restored["a"], np.full((16, 3), 1.0))


def test_the_checkpoint_of_another_model_is_refused_in_one_line_with_the_arrays(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    keeper.save(1, tree_on(mesh, 1.0), {})
    keeper.close()
    other = {"a": jnp.zeros((16, 4)), "b": jnp.zeros(3, jnp.bfloat16)}
    with pytest.raises(ValueError) as error:
        keeper.restore(1, checkpoints.like(other))
    assert not isinstance(error.value, checkpoints.Damaged)
    assert (
        "of another model, adapter or optimizer: a is float32 [16, 3] there and float32 [16, 4] here; "
        "b is not there; n is only there" in str(error.value)
    )
    with pytest.raises(ValueError, match=r"a is float32.*there and bfloat16"):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree_on(mesh, 0.0))
        keeper.restore(1, checkpoints.like(half))  # Orbax alone would round what was saved


def test_a_second_tree_is_kept_beside_the_first_and_asked_for_apart(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    keeper.save(1, tree_on(mesh, 1.0), {"step": 1}, second=tree_on(mesh, 7.0))
    keeper.close()
    again = Reader(tmp_path / "c")
    places = checkpoints.like(tree_on(mesh, 0.0))
    restored, record = again.restore(1, places)
    np.testing.assert_array_equal(restored["a"], np.full((16, 3), 1.0))
    assert record == {"step": 1}
    np.testing.assert_array_equal(again.restore_second(1, places)["a"], np.full((16, 3), 7.0))
