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


def test_a_folder_left_by_a_killed_save_is_no_checkpoint(tmp_path, mesh):
    keeper = Checkpoints(tmp_path / "c", retention=Retention(2))
    keeper.save(1, tree_on(mesh, 1.0), {})
    keeper.close()
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    assert Reader(tmp_path / "c").latest_step() == 1


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
