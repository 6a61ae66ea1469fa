"""One owner of a folder: whoever starts beside it, on this machine or another, and whatever became of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grpo_jax import run_folder, run_lock
from grpo_jax.run_lock import RunLock

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys, time
from grpo_jax import run_lock
run_lock.BEAT_S = 0.1
try:
    run_lock.RunLock(sys.argv[1], say=print)
    print("won", flush=True)
except ValueError as error:
    print("refused", error, flush=True)
time.sleep(60)
"""
CLAIM = """
import os, sys
import jax
from grpo_jax import distributed, run_folder
run_folder.SEEN_WITHIN_S = 1.0
jax.config.update("jax_num_cpu_devices", 1)
address, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
distributed.start(distributed.DistributedParams("manual", address, 2, process, 60.0))
from pathlib import Path
try:
    lock = run_folder.claim(Path(folder))
    print("claimed", lock is not None, flush=True)
except ValueError as error:
    print("refused", error, flush=True)
distributed.wait_for_all("tried")
os._exit(0)
"""
OF_ANOTHER_MACHINE = {
    "host": "node7",
    "machine": "elsewhere 1",
    "process": "12",
    "since": "noon",
    "nonce": "abc",
}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_S", 0.1)
    monkeypatch.setattr(run_lock, "DEAD_AFTER_S", 1.0)
    monkeypatch.setattr(run_lock, "SETTLE_S", 0.3)


@pytest.fixture
def holder(tmp_path):
    """Another process that owns `tmp_path / "run"`."""
    process = start(HOLD, str(tmp_path / "run"))
    assert process.stdout and process.stdout.readline() == "won\n"
    yield process
    process.kill()
    process.wait()


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def write_lock(folder: Path, owner: dict[str, str], *, age_s: float = 0.0) -> Path:
    folder.mkdir()
    path = folder / "lock"
    path.write_text(json.dumps(owner))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_a_living_owner_is_named_and_nothing_is_changed(holder, tmp_path):
    path = tmp_path / "run" / "lock"
    before = path.read_bytes()
    with pytest.raises(ValueError) as error:
        RunLock(tmp_path / "run", say=print)
    text = str(error.value)
    assert f"{tmp_path / 'run'} is in use by process {holder.pid} on {socket.gethostname()}, since 2" in text
    assert "set config.output_dir" in text
    assert path.read_bytes() == before and os.listdir(tmp_path / "run") == ["lock"]


def test_a_killed_owner_is_followed_with_one_line_that_says_so(holder, tmp_path):
    holder.kill()
    holder.wait()
    said = []
    lock = RunLock(tmp_path / "run", say=said.append)
    (line,) = said
    assert f"took over {tmp_path / 'run' / 'lock'}: process {holder.pid} on" in line
    assert json.loads(lock.path.read_text())["process"] == str(os.getpid())
    lock.release()


def test_a_lock_that_was_given_back_leaves_nothing(tmp_path):
    lock = RunLock(tmp_path / "run", say=pytest.fail)
    lock.release()
    lock.release()
    assert os.listdir(tmp_path / "run") == []
    RunLock(tmp_path / "run", say=pytest.fail).release()


def test_an_owner_on_another_machine_that_beats_is_alive(tmp_path):
    path = write_lock(tmp_path / "run", OF_ANOTHER_MACHINE)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    threading.Thread(target=beat, daemon=True).start()
    with pytest.raises(ValueError, match="in use by process 12 on node7, since noon"):
        RunLock(tmp_path / "run", say=print)
    ended.set()
    assert json.loads(path.read_text()) == OF_ANOTHER_MACHINE


def test_an_owner_on_another_machine_that_falls_silent_is_waited_for(tmp_path):
    write_lock(tmp_path / "run", OF_ANOTHER_MACHINE)
    said, started = [], time.monotonic()
    RunLock(tmp_path / "run", say=said.append).release()
    assert 0.8 < time.monotonic() - started < 10
    assert "sign of life" in said[0] and "took over" in said[1]


def test_silence_is_measured_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    write_lock(tmp_path / "run", OF_ANOTHER_MACHINE, age_s=100)
    monkeypatch.setattr(run_lock, "DEAD_AFTER_S", 60.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this machine's clock is decades behind
    said, started = [], time.monotonic()
    RunLock(tmp_path / "run", say=said.append).release()
    assert time.monotonic() - started < 5
    assert len(said) == 1


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_start_at_once_one_wins(tmp_path, dead):
    folder = str(tmp_path / "run")
    if dead:
        first = start(HOLD, folder)
        assert first.stdout and first.stdout.readline() == "won\n"
        first.kill()
        first.wait()
    processes = [start(HOLD, folder) for _ in range(8)]
    try:
        answers = []
        for process in processes:
            assert process.stdout
            while not (answer := process.stdout.readline()).startswith(("won", "refused")):
                assert "took over" in answer, answer
            answers.append(answer.split()[0])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(answers) == ["refused"] * 7 + ["won"]


def test_of_many_one_wins_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    won, lost = [], []

    def take() -> None:
        try:
            won.append(RunLock(tmp_path / "run", say=print))
        except ValueError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].release()


def test_an_owner_that_sleeps_while_another_takes_over_ends(holder, tmp_path):
    path = tmp_path / "run" / "lock"
    path.write_text(json.dumps(OF_ANOTHER_MACHINE))
    assert holder.wait(timeout=10) == 2


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .*Set config\.output_dir"):
        RunLock(tmp_path / "file" / "run", say=print)


def test_a_folder_with_nothing_but_a_lock_is_new(tmp_path):
    write_lock(tmp_path / "run", {})
    run_folder.check_folder(tmp_path / "run", {})


@pytest.mark.parametrize("shared", [True, False])
def test_processes_find_out_whether_they_share_the_folder(tmp_path, shared):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    folders = [tmp_path / "run", tmp_path / ("run" if shared else "other")]
    pair = [start(CLAIM, address, str(i), str(folder)) for i, folder in enumerate(folders)]
    said = [process.communicate(timeout=60)[0].splitlines()[-1] for process in pair]  # the runtime talks too
    assert said[0] == "claimed True"
    if shared:
        assert said[1] == "claimed False"
    else:
        assert f"{tmp_path / 'other'} is not the folder that process 0 sees" in said[1]
