"""Damage to a checkpoint is found, whatever it is, and told in one line; older checkpoints stay whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax import checkpoint_folder, checkpoints
from grpo_jax.checkpoints import Checkpoints, Damaged, Reader, Retention

ROOT = Path(__file__).resolve().parent.parent
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a file, where a bit is flipped
KILLS = 10
METADATA = (
    "_CHECKPOINT_METADATA",
    "_METADATA",
    "_sharding",
    "manifest.ocdbt",
    "process_0",
    "commit_success.txt",
)


def tree_on(mesh, step: int):
    values = np.random.default_rng(step).normal(size=(64, 96)).astype(np.float32)
    put = {"w": jax.device_put(values, NamedSharding(mesh, P("data")))}
    return put | {"n": jax.device_put(np.int32(step), NamedSharding(mesh, P()))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mesh) -> Path:
    """Checkpoints of steps 1 and 2 with a second tree each."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    keeper = Checkpoints(folder, retention=Retention(2))
    for step in (1, 2):
        keeper.save(step, tree_on(mesh, step), {"step": step}, second=tree_on(mesh, 10 * step))
    keeper.close()
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def restore_all(folder: Path, step: int, mesh) -> None:
    """Restores both trees of a step and compares them with what was saved."""
    reader, like = Reader(folder), checkpoints.like(tree_on(mesh, 0))
    tree, record = reader.restore(step, like)
    second = reader.restore_second(step, like)
    for found, number in ((tree, step), (second, 10 * step)):
        jax.tree.map(np.testing.assert_array_equal, found, tree_on(mesh, number))
    assert record == {"step": step}


def files_of(folder: Path, step: int) -> list[str]:
    place = folder / str(step)
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def message(folder: Path, mesh) -> str:
    """What restoring step 2 says; step 1 is asked too and is whole."""
    with pytest.raises(Damaged) as error:
        restore_all(folder, 2, mesh)
    text = str(error.value)
    assert "\n" not in text
    assert f"the checkpoint of step 2 in {folder} is damaged: " in text
    assert text.endswith(
        "Whole ones before it: [1]. To go on after step 1: --config.checkpoint.resume_step=1"
    )
    return text


def flip(path: Path, place: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= 1 << bit
    path.write_bytes(content)


def test_one_flipped_bit_is_found_in_every_file_at_every_place(copy, mesh):
    names, flips = files_of(copy, 2), 0
    assert sum("/d/" in name for name in names) >= 4  # arrays of both trees
    for number, name in enumerate(names):
        path = copy / "2" / name
        whole = path.read_bytes()
        for place in PLACES:
            flip(path, place, bit=(number + flips) % 8)
            assert f"{name} is not as it was written" in message(copy, mesh)
            path.write_bytes(whole)
            flips += 1
    restore_all(copy, 2, mesh)
    restore_all(copy, 1, mesh)
    assert flips == len(PLACES) * len(names)


def test_every_bit_of_the_record_counts(copy):
    path = copy / "2" / checkpoint_folder.RECORD
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in (0, 1, len(whole) - 1, *rng.integers(0, len(whole), 30)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(Damaged, match=r"record\.jsonl is not as it was written"):
                Reader(copy).read_record(2)
    assert Reader(copy).steps() == [1]


def damage_of(kind: str, path: Path) -> str:
    """Damages a file; what the line must say of it."""
    size = path.stat().st_size
    if kind == "missing":
        path.unlink()
        return "is missing"
    path.write_bytes(path.read_bytes()[: size // 2 if kind == "cut" else 0])
    return f"has {size // 2 if kind == 'cut' else 0} bytes, not {size}"


@pytest.mark.parametrize("kind", ["cut", "emptied", "missing"])
def test_every_file_that_is_cut_emptied_or_missing_is_named_before_an_array_is_read(copy, mesh, kind):
    names = [name for name in files_of(copy, 2) if name != checkpoint_folder.RECORD]
    found = {Path(name).name for name in names}
    assert set(METADATA) <= found  # Orbax's own, each of them
    for name in names:
        path = copy / "2" / name
        whole = path.read_bytes()
        words = damage_of(kind, path)
        assert f"the file {name} {words}" in message(copy, mesh)
        reader = Reader(copy)
        assert (reader.steps(), reader.latest_step()) == ([1], 1)
        with pytest.raises(Damaged, match=re.escape(f"the file {name} {words}")):
            reader.read_record(2)
        path.write_bytes(whole)
    restore_all(copy, 2, mesh)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "its folder is empty"),
        ("missing", "it has no record.jsonl"),
        ("cut", "record.jsonl is not as it was written"),
        ("emptied", "record.jsonl is not as it was written"),
        ("file", "it is no folder"),
    ],
)
def test_a_step_without_its_seal_is_told_and_never_skipped(copy, mesh, kind, words):
    if kind in ("empty", "file"):
        shutil.rmtree(copy / "2")
        (copy / "2").mkdir() if kind == "empty" else (copy / "2").write_text("")
    else:
        damage_of(kind, copy / "2" / checkpoint_folder.RECORD)
    assert words in message(copy, mesh)
    keeper = Checkpoints(copy, retention=Retention(2))
    with pytest.raises(Damaged, match=words):
        keeper.read_record(2)
    assert list(keeper.damage()) == [2] and words in keeper.damage()[2]
    assert keeper.latest_step() == 1
    assert (copy / "2").exists()  # the next run removes what a kill has left, but no damage
    restore_all(copy, 1, mesh)


def test_the_first_checkpoint_has_none_before_it(copy, mesh):
    flip(copy / "1" / "tree" / "_METADATA", 0.5, 1)
    with pytest.raises(Damaged, match=r"No whole one is before it: .*config.output_dir"):
        restore_all(copy, 1, mesh)


def test_what_was_spoiled_before_it_was_written_is_found_by_the_arrays_digest(copy, mesh):
    place = copy / "2"
    content = checkpoint_folder.read(place)
    del content["files"]
    data = max((place / "tree").rglob("d/*"), key=lambda path: path.stat().st_size)
    flip(data, 0.5, 3)  # Orbax does not notice it
    (place / checkpoint_folder.RECORD).unlink()
    place.rename(copy / "2.unfinished")
    checkpoint_folder.commit(copy / "2.unfinished", place, content)
    Reader(copy).check_files(2)  # every file is as it was sealed
    assert "the values of w are not those that were saved" in message(copy, mesh)


SAVING = """
import os, random, signal, sys, time
import jax, orbax.checkpoint  # imported once; the devices are each child's own
import jax.numpy as jnp, numpy as np
from grpo_jax import checkpoints
from grpo_jax.checkpoints import Checkpoints, Retention

folder, kills = sys.argv[1], int(sys.argv[2])

def tree(step):
    return {"w": jnp.full((32, 16), step, jnp.float32), "n": jnp.int32(step)}

def save_on(told, last):
    # All that is listed is whole, and what was told as saved is there; then saves until it is killed.
    keeper = Checkpoints(folder, retention=Retention(2))
    newest, steps = keeper.latest_step() or 0, keeper.steps()
    assert keeper.damage() == {}
    # after a kill between a save and the deletion that follows it there are more than two
    assert newest >= last and steps[-2:] == [step for step in (newest - 1, newest) if step > 0], (steps, last)
    left = sorted(os.listdir(folder))
    assert left == sorted(map(str, steps)), left
    for step in steps:
        restored, record = keeper.restore(step, checkpoints.like(tree(0)))
        np.testing.assert_array_equal(restored["w"], tree(step)["w"])
        assert record == {"step": step}, record
    scratch = Checkpoints(f"{folder}_scratch_{os.getpid()}", retention=Retention(1))
    scratch.save(1, tree(1), {})  # the first save of a program is the slowest: kills shall not all come in it
    scratch.close()
    os.write(told, b"whole\\n")
    while kills:
        newest += 1
        keeper.save(newest, tree(newest), {"step": newest})
        if newest % 3 == 0:
            keeper.wait()
            os.write(told, f"{newest}\\n".encode())

draw, last, cut = random.Random(0), 0, 0
for kill in range(kills + 1):
    kills_left = kills - kill
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        kills = kills_left
        save_on(theirs, last)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as told:
        assert told.readline() == "whole\\n", f"after {kill} kills"
        if kills_left:
            time.sleep(draw.uniform(0.05, 0.8))
            os.kill(child, signal.SIGKILL)
        for line in told:
            last = int(line)
    _, status = os.waitpid(child, 0)
    assert status == (signal.SIGKILL if kills_left else 0), status
    cut += any("." in name for name in os.listdir(folder))
print("kills", kills, "of which", cut, "in a save; saved", last)
"""


def test_a_save_killed_at_any_moment_leaves_only_whole_steps_and_always_the_one_before(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVING, str(tmp_path / "c"), str(KILLS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    kills, cut, saved = map(int, re.findall(r"\d+", done.stdout.splitlines()[-1]))
    assert kills == KILLS and cut > 0 and saved > 0, done.stdout
