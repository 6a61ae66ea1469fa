"""The whole program on a damaged checkpoint and on a full disk: one line, exit status 2, and nothing lost."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from grpo_jax.checkpoints import Damaged, Reader
from tests.micro_run import command, run, told
from tests.test_failed_saves import mounted, unmount

FIELDS = {"max_steps": 4, "evaluation__task": ""}


@pytest.fixture(scope="module")
def damaged_run(tmp_path_factory, micro_model, cache) -> Path:
    """A finished run, a bit of whose newest checkpoint has flipped since."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(command(micro_model, folder, cache, **FIELDS))
    assert Reader(folder / "checkpoints").steps() == [2, 4]
    data = max((folder / "checkpoints" / "4" / "tree").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the list of the starts, which gets a line at every one."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "environment.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def error_line(text: str) -> str:
    """The one line that a user sees."""
    assert "Traceback" not in text, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def test_a_flipped_bit_in_the_newest_checkpoint_ends_the_same_command_in_one_line(
    damaged_run, micro_model, cache
):
    before = contents(damaged_run)
    done = run(command(micro_model, damaged_run, cache, **FIELDS), status=2)
    assert re.fullmatch(
        rf"error: the checkpoint of step 4 in {damaged_run}/checkpoints is damaged: the file tree/\S+ is not as it was "
        r"written\. Whole ones before it: \[2\]\. To go on after step 2: --config\.checkpoint\.resume_step=2",
        error_line(done.stderr),
    )
    assert contents(damaged_run) == before


def test_export_ends_in_the_same_line_and_leaves_no_folder(damaged_run, tmp_path):
    before = contents(damaged_run)
    arguments = ("--checkpoint", str(damaged_run / "checkpoints" / "4"), "--output", str(tmp_path / "model"))
    done = run([sys.executable, "-m", "tools.export", *arguments], status=2)
    assert "the checkpoint of step 4" in error_line(done.stderr)
    assert "is not as it was written. Whole ones before it: [2]." in error_line(done.stderr)
    assert contents(damaged_run) == before and list(tmp_path.iterdir()) == []


def test_the_cure_in_that_line_goes_on_from_the_older_one(damaged_run, tmp_path, micro_model, cache):
    folder = Path(shutil.copytree(damaged_run, tmp_path / "run"))
    run(command(micro_model, folder, cache, "--config.checkpoint.resume_step=2", **FIELDS))
    for step in (2, 4):
        Reader(folder / "checkpoints").check_files(step)
    with pytest.raises(Damaged):  # kept, for whoever wants to know how it came to that
        Reader(folder / "checkpoints" / "set_aside").check_files(4)


def test_a_run_keeps_its_newest_its_regular_and_its_best_checkpoint(tmp_path, micro_model, cache):
    kept = {"save_total_limit": 1, "keep_every_steps": 4, "metric_for_best_model": "mean_length"}
    fields = {f"checkpoint__{name}": value for name, value in kept.items()}
    run(command(micro_model, tmp_path / "run", cache, **fields))
    lengths = {
        line["step"]: line["eval/mean_length"]
        for line in told(tmp_path / "run")
        if line.get("eval/mean_length") and line["step"]
    }
    assert sorted(lengths) == [2, 4, 6]
    assert set(Reader(tmp_path / "run" / "checkpoints").steps()) == {
        4,
        6,
        max(lengths, key=lengths.__getitem__),
    }
    fields["checkpoint__metric_for_best_model"] = "mean_lenght"
    done = run(command(micro_model, tmp_path / "other", cache, **fields), status=2)
    assert "'mean_lenght', which no evaluation of this run tells; known are: eval/" in error_line(done.stderr)
    assert "eval/mean_length" in error_line(done.stderr)


def test_a_disk_that_is_full_at_the_second_save_ends_the_run_and_the_first_stays(
    tmp_path, micro_model, cache
):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounted("-t", "tmpfs", "-o", "size=640k", "small", str(disk)):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        done = run(command(micro_model, disk / "run", cache, **FIELDS), status=2)
        line = error_line(done.stderr)
        assert re.search(
            r"step 4 could not be saved in .*: "
            r"(a checkpoint takes [\d.]+ MB and .* has room for [\d.]+ MB|No space left on device); ",
            line,  # by how little it lacks room decides which
        )
        assert line.endswith(
            "the last whole one is of step 2. Free some there; then the same command goes on."
        )
        assert Reader(disk / "run" / "checkpoints").steps() == [2]
        assert '"step": 4' in (disk / "run" / "metrics.jsonl").read_text()  # learned and told, but not saved
    finally:
        unmount(disk)
