"""Saves that fail for real: a full disk, a limit on files, a folder that cannot be written. The rest stays whole."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax import checkpoints, save_noise
from grpo_jax.checkpoints import Checkpoints, Retention


def tree_of(num_bytes: int, seed: int = 0):
    """Bits that no compression makes fewer."""
    drawn = np.random.default_rng(seed).integers(-(2**31), 2**31, num_bytes // 4, np.int32)
    return {"w": jax.numpy.asarray(drawn)}


def mounted(*arguments: str) -> bool:
    """Whether the system lets us mount; needs root."""
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    return False


def unmount(place: Path) -> None:
    for _ in range(50):  # a thread of the saver may still have it open
        if subprocess.run(["umount", str(place)], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mounted("-t", "tmpfs", "-o", "size=1m", "small", str(place)):
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    unmount(place)


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Nothing can be written there; where we are root by a mount, else by the folder's rights."""
    if os.geteuid():
        place.chmod(0o555)
        yield
        place.chmod(0o755)
        return
    if not mounted("--bind", str(place), str(place)):
        pytest.skip("needs the right to mount")
    try:
        assert mounted("-o", "remount,bind,ro", str(place))
        yield
    finally:
        unmount(place)


@contextlib.contextmanager
def files_at_most(num_bytes: int) -> Iterator[None]:
    """The system refuses to let this process write a larger file (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def with_step_1(folder: Path) -> Checkpoints:
    keeper = Checkpoints(folder, retention=Retention(1))
    keeper.save(1, tree_of(200_000, seed=1), {"step": 1})
    keeper.wait()
    return keeper


def assert_step_1_is_whole(keeper: Checkpoints) -> None:
    """And nothing else is there."""
    assert sorted(path.name for path in keeper.folder.iterdir()) == ["1"]
    expected = tree_of(200_000, seed=1)
    restored, record = checkpoints.Reader(keeper.folder).restore(1, checkpoints.like(expected))
    np.testing.assert_array_equal(restored["w"], expected["w"])
    assert record == {"step": 1}


def failure(keeper: Checkpoints) -> str:
    """What the next steps of a run say; once."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            keeper.check()
        except RuntimeError as error:
            keeper.check()
            assert "\n" not in str(error)
            return str(error)
        time.sleep(0.01)
    raise AssertionError("the save did not fail")


def test_without_room_for_a_checkpoint_nothing_is_written_and_both_numbers_are_told(small_disk):
    keeper = with_step_1(small_disk / "checkpoints")
    assert keeper.lacks_room(tree_of(100_000)) == ""
    assert "takes 2.0 MB" in keeper.lacks_room(tree_of(1_000_000), tree_of(1_000_000))
    with pytest.raises(
        RuntimeError, match=r"step 2 could not be saved in .*: a checkpoint takes 2\.0 MB and .*"
    ) as error:
        keeper.save(2, tree_of(2_000_000), {"step": 2})
    assert "has room for 0.8 MB; the last whole one is of step 1. Free some there; then" in str(error.value)
    assert_step_1_is_whole(keeper)


def test_a_disk_that_fills_up_during_a_save_is_told_at_the_next_step(small_disk):
    keeper = with_step_1(small_disk / "checkpoints")
    left = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    keeper.save(2, tree_of(left - 4096), {"step": 2})  # the array has room, what else is written has none
    told = failure(keeper)
    assert told.startswith(f"the checkpoint of step 2 could not be saved in {keeper.folder}: No space left")
    assert told.endswith("the last whole one is of step 1. Free some there; then the same command goes on.")
    assert_step_1_is_whole(keeper)
    keeper.save(2, tree_of(100_000), {"step": 2})  # the failed one is not in its way
    keeper.close()
    assert keeper.steps() == [2]


def test_a_file_that_the_system_cuts_is_told_and_the_next_save_is_whole(tmp_path):
    keeper = with_step_1(tmp_path / "checkpoints")
    with files_at_most(300_000):
        keeper.save(2, tree_of(1_000_000), {"step": 2})
        with pytest.raises(RuntimeError, match=r"step 2 could not be saved in .*: File too large.*ulimit -f"):
            keeper.close()
    assert_step_1_is_whole(keeper)
    keeper.save(2, tree_of(1_000_000), {"step": 2})
    keeper.close()
    assert keeper.steps() == [2]


def test_a_folder_that_cannot_be_written_any_more_is_told(tmp_path):
    keeper = with_step_1(tmp_path / "checkpoints")
    with read_only(tmp_path / "checkpoints"):
        with pytest.raises(RuntimeError) as error:
            keeper.save(2, tree_of(100_000), {"step": 2})
            keeper.close()
        told = str(error.value)
        assert "step 2 could not be saved" in told and "the last whole one is of step 1" in told
        assert "Read-only file system" in told or "Permission denied" in told
        assert "Make it writable; then the same command goes on." in told
        assert_step_1_is_whole(keeper)
    keeper.save(2, tree_of(100_000), {"step": 2})
    keeper.close()
    assert keeper.steps() == [2]


FAILS_FOUR_TIMES = """
import resource, sys
import jax.numpy as jnp
from grpo_jax import checkpoints

tree = {f"a{i}": jnp.arange(90_000.0) for i in range(40)}
for step in range(4):
    keeper = checkpoints.Checkpoints(sys.argv[1], retention=checkpoints.Retention(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    try:
        keeper.save(step, tree, {})
        keeper.close()
    except RuntimeError as error:
        print(error)
"""


def test_many_writes_that_fail_together_say_nothing_themselves(tmp_path):
    command = [sys.executable, "-c", FAILS_FOUR_TIMES, str(tmp_path / "kept")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("could not be saved") == len(done.stdout.splitlines()) == 4
    assert done.stderr == ""


def test_only_what_a_failed_save_says_is_kept_quiet(monkeypatch, caplog):
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    save_noise.hush.__wrapped__()
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "x")
    )
    sys.unraisablehook(late)  # type: ignore[arg-type]
    sys.unraisablehook(other)  # type: ignore[arg-type]
    assert said == [other]
    logging.getLogger("asyncio").error("Task exception was never retrieved: 1.orbax-checkpoint-tmp/x")
    logging.getLogger("asyncio").error("Task exception was never retrieved: another")
    assert [record.getMessage()[-7:] for record in caplog.records] == ["another"]
