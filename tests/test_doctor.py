"""The doctor: a whole run passes, each broken thing fails its own check in one line with the cure, nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grpo_jax import checkpoint_folder
from grpo_jax.doctor import checkup, folders, machine, running, table
from grpo_jax.doctor.checkup import FAILED, PASSED, SKIPPED, Case, Check, Finding, examine
from tests import micro_run

GROUND = ("config", "devices", "rules")  # what most checks stand on
FEW = "--config.data.max_problems=64"


def findings(names: tuple[str, ...], *overrides: str) -> dict[str, Finding]:
    """The named checks, in the table's order, of the tiny config with overrides."""
    chosen = [check for check in table.CHECKS if check.name in names]
    arguments = ["--config", "configs/tiny.py", "--config.reward.num_workers=1", *overrides]
    found = examine(chosen, Case(arguments, say=lambda text: None), tell=lambda line: None)
    return {finding.name: finding for finding in found}


def failed(name: str, *overrides: str, needs: tuple[str, ...] = GROUND) -> str:
    """The text of a check that must fail; those it stands on must not."""
    found = findings((*needs, name), *overrides)
    assert {found[ground].status for ground in needs if ground in found} <= {PASSED}, found
    assert found[name].status == FAILED, found[name]
    assert "\n" not in found[name].line() and "Traceback" not in found[name].line()
    return found[name].text


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(micro_run.TINY, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def shard(model: Path) -> dict[str, str]:
    """Cuts the one file into two with an index; returns its map from tensors to files."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-{1 + (i > 5):05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, model / file, metadata={"format": "pt"})
    write_index(model, weight_map)
    return weight_map


def write_index(model: Path, weight_map: dict[str, str]) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


# The whole program ---------------------------------------------------------------------------------


def test_the_tiny_config_passes_everything_and_nothing_is_left(tmp_path):
    command = [sys.executable, "tools/doctor.py", f"--config.output_dir={tmp_path / 'run'}"]
    environment = micro_run.ENVIRONMENT | {"HF_TOKEN": "hf_secret", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=micro_run.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    *lines, total = done.stdout.splitlines()
    assert [tuple(line.split()[:2]) for line in lines] == [(PASSED, check.name) for check in table.CHECKS]
    assert total.startswith(f"{len(table.CHECKS)} passed, 0 failed, 0 skipped in ")
    assert "HF_TOKEN set" in done.stdout and "hf_secret" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_something_broken_ends_with_status_2_and_the_rest_is_still_examined(tmp_path):
    command = [
        *(sys.executable, "tools/doctor.py", f"--config.model.path={tmp_path}"),
        *("--config.reward.reward_funcs=accuracy", f"--config.output_dir={tmp_path / 'run'}"),
    ]
    done = micro_run.run(command, status=2)
    status = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()[:-1]}
    assert status.pop("model") == FAILED
    behind = ("room", "tokenizer", "data", "judging", "weights", "plan", "ratio")
    assert {status.pop(name) for name in behind} == {SKIPPED}
    assert set(status.values()) == {PASSED}
    assert "Traceback" not in done.stdout + done.stderr
    assert f"{tmp_path}/config.json is missing" in done.stdout


# The table itself ----------------------------------------------------------------------------------


def test_whatever_a_check_raises_is_its_line_and_those_behind_it_are_skipped():
    def broken(case: Case) -> str:
        raise KeyError("inner")

    def left(case: Case) -> str:
        raise SystemExit(3)

    def impossible(case: Case) -> str:
        raise checkup.Skip("no such device")

    good = lambda case: "all\nright"  # noqa: E731
    checks = [
        Check("broken", broken, "mend it"),
        Check("left", left, "stay"),
        Check("impossible", impossible, ""),
        Check("behind", good, "", needs=("broken",)),
        Check("after skip", good, "", needs=("impossible",)),
        Check("hopes", good, "", hopes=("impossible",)),
        Check("hopes not", good, "", hopes=("left",)),
    ]
    told: list[str] = []
    found = examine(checks, Case([], say=told.append), told.append)
    assert [(f.status, f.text) for f in found] == [
        (FAILED, "KeyError: 'inner' -> mend it"),
        (FAILED, "SystemExit: 3 -> stay"),
        (SKIPPED, "no such device"),
        (SKIPPED, "because broken failed"),
        (SKIPPED, "because impossible was skipped"),
        (PASSED, "all right"),
        (SKIPPED, "because left failed"),
    ]
    assert told == [finding.line() for finding in found]
    assert table.summary(found).startswith("1 passed, 2 failed, 4 skipped")


def test_every_check_has_a_cure_and_stands_on_earlier_ones():
    seen: set[str] = set()
    for check in table.CHECKS:
        assert check.cure and {*check.needs, *check.hopes} <= seen, check.name
        seen.add(check.name)


# One broken thing each -----------------------------------------------------------------------------


def test_an_old_package_is_named_with_its_bound(monkeypatch):
    real = machine.metadata.version
    old = lambda name: "2.9.1" if name == "numpy" else real(name)  # noqa: E731
    monkeypatch.setattr(machine.metadata, "version", old)
    assert "numpy is 2.9.1, needs" not in findings(("packages",))["packages"].text  # 2.9 is above 2.4
    monkeypatch.setattr(machine.metadata, "version", lambda name: "2.3.9" if name == "numpy" else real(name))
    assert (
        failed("packages", needs=())
        == "numpy is 2.3.9, needs 2.4 or newer -> pip install -e . in the checkout"
    )


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("jax>=0.10.2", ("jax", "0.10.2")),
        ("jax[cuda13]>=0.10.2; extra == 'cuda13'", ("", "")),
        ("math-verify >= 0.9", ("math-verify", "0.9")),
        ("rich", ("rich", "")),
    ],
)
def test_bounds_are_read_from_requirements(requirement, expected):
    assert machine.bound(requirement) == expected
    assert machine.numbers("0.10.2.dev3+g1") == (0, 10, 2) < machine.numbers("0.11")


def test_a_field_that_is_not_there_fails_the_config_and_devices_are_examined_all_the_same():
    found = findings(GROUND, "--config.rollout.num_promts=3")
    assert found["config"].status == FAILED and "num_promts" in found["config"].text
    assert (found["devices"].status, found["rules"].status) == (PASSED, SKIPPED)


def test_an_accelerator_that_jax_does_not_see_is_named(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(machine, "ACCELERATORS", {str(tmp_path / "nvidia0"): "cuda13"})
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert "pip install -e '.[cuda13]'" in failed("devices", needs=())


def test_devices_that_add_wrongly_are_told(monkeypatch):
    monkeypatch.setattr(machine, "added", lambda found: 35)
    assert "a sum over 8 devices is 35, must be 36 ->" in failed("devices", needs=())


def test_too_little_memory_and_too_little_disk_are_told(monkeypatch):
    monkeypatch.setattr(machine, "host_bytes", lambda: 2**29)
    assert "0.50 GiB of memory left, needs 1 or more" in failed("memory", needs=("devices",))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=2**20))
    text = failed("room", needs=(*GROUND, "disk", "model"))
    # 3 checkpoints of 12 bytes a weight and one export of 4, for 646,784 weights: 0.0241 GiB
    assert "0.02 GiB for 3 checkpoints and final/, 0.0 free -> free some" in text


def test_a_mesh_that_does_not_fit_the_devices_breaks_a_rule():
    text = failed("rules", "--config.mesh.data=3", needs=("config", "devices"))
    assert "has 3 devices; 8 are there" in text


def test_an_output_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    text = failed("disk", f"--config.output_dir={tmp_path / 'file' / 'run'}", needs=("config",))
    assert f"{tmp_path / 'file'} is a file" in text and "set config.output_dir" in text
    text = failed("disk", "--config.output_dir=/proc/here", needs=("config",))
    assert "nothing can be written in /proc" in text


@pytest.mark.parametrize("nameless", [True, False])
def test_looking_at_a_runs_folder_changes_nothing_in_it(tmp_path, monkeypatch, nameless):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)  # as on macOS
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    before = run.stat().st_mtime_ns
    assert findings(("config", "disk"), f"--config.output_dir={run}")["disk"].status == PASSED
    assert run.stat().st_mtime_ns == before and os.listdir(run) == ["config.json"]
    assert findings(("config", "disk"), f"--config.output_dir={tmp_path / 'new'}")["disk"].status == PASSED
    assert os.listdir(tmp_path) == ["run"]


def test_the_output_folders_state_is_told(tmp_path):
    def text(folder: Path) -> str:
        return findings(("config", "output"), f"--config.output_dir={folder}")["output"].text

    assert text(tmp_path / "new").endswith("new: a new run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert "it is no run's folder" in failed(
        "output", f"--config.output_dir={tmp_path / 'other'}", needs=("config",)
    )
    run = tmp_path / "run"
    (run / "checkpoints" / "new").mkdir(parents=True)
    checkpoint_folder.commit(run / "checkpoints" / "new", run / "checkpoints" / "7", {"record": {}})
    arguments = ["--config", "configs/tiny.py", "--config.reward.num_workers=1", f"--config.output_dir={run}"]
    case = Case(arguments, say=lambda text: None)
    folders.config(case)
    (run / "config.json").write_text(json.dumps(case.config))
    assert text(run).endswith("run: goes on after step 7 of 20")
    (run / "lock").write_text('{"process": "12", "host": "there"}')
    assert "is in use by process 12 on there" in failed(
        "output", f"--config.output_dir={run}", needs=("config",)
    )
    os.utime(run / "lock", (time.time() - 3600,) * 2)  # its owner has ended
    assert text(run).endswith("run: goes on after step 7 of 20")
    (run / "checkpoints" / "7" / "record.jsonl").unlink()
    damaged = failed("output", f"--config.output_dir={run}", needs=("config",))
    assert "the checkpoint of step 7" in damaged and "is damaged" in damaged


def test_a_reward_that_cannot_be_imported_is_told(tmp_path):
    (tmp_path / "own.py").write_text("import no_such_library\n\ndef own(attempt):\n    return 1.0\n")
    text = failed("rewards", f"--config.reward.reward_funcs=accuracy,{tmp_path / 'own.py'}:own")
    assert "no_such_library" in text and text.endswith("-> mend the reward, or config.reward")


def test_a_reward_that_raises_on_the_first_problem_is_told(tmp_path):
    (tmp_path / "own.py").write_text("def own(attempt):\n    return 1 / 0\n")
    needs = (*GROUND, "rewards", "model", "tokenizer", "data")
    text = failed("judging", f"--config.reward.reward_funcs={tmp_path / 'own.py'}:own", FEW, needs=needs)
    assert "ZeroDivisionError" in text


def test_a_shard_that_is_missing_and_one_outside_the_folder_are_named(model, tmp_path):
    weight_map = shard(model)
    path = f"--config.model.path={model}"
    assert findings((*GROUND, "model", "weights"), path)["weights"].status == PASSED
    (model / "model-00002-of-00002.safetensors").rename(tmp_path / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors" in failed("model", path)
    first = sorted(weight_map)[0]
    write_index(model, weight_map | {first: "../model-00002-of-00002.safetensors"})
    assert "no safetensors files of its own folder" in failed("model", path)


def test_a_pointer_of_git_lfs_is_told_as_such(model):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1297552\n"
    (model / "model.safetensors").write_text(pointer)
    text = failed("model", f"--config.model.path={model}")
    assert "model.safetensors is a pointer of Git LFS" in text and "git lfs pull" in text


def test_values_that_are_not_finite_are_counted_by_tensor(model):
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    broken = tensors[name].copy()
    broken[0, 0], broken[0, 1], broken[1, 0] = np.nan, np.inf, -np.inf
    save_file(tensors | {name: broken}, model / "model.safetensors", metadata={"format": "pt"})
    text = failed("weights", f"--config.model.path={model}", needs=(*GROUND, "model"))
    assert f"{name} has 1 NaN and 2 infinite values of {broken.size} ->" in text


def set_template(model: Path, change: Callable[[str], str]) -> str:
    edit(
        model / "tokenizer_config.json",
        lambda content: content.update(chat_template=change(content["chat_template"])),
    )
    return f"--config.model.path={model}"


TOKENIZER = (*GROUND, "model")


def test_an_end_id_that_is_ordinary_text_is_told(model):
    edit(model / "generation_config.json", lambda content: content.update(eos_token_id=[412, 65]))
    text = failed("tokenizer", f"--config.model.path={model}", needs=TOKENIZER)
    assert "the end id 65 is ordinary text" in text


def test_end_ids_that_two_files_disagree_about_are_told(model):
    edit(model / "generation_config.json", lambda content: content.update(eos_token_id=410))
    text = failed("tokenizer", f"--config.model.path={model}", needs=TOKENIZER)
    assert "the tokenizer ends at '<|im_end|>' (412)" in text and "generation_config.json at [410]" in text


def test_a_template_whose_answers_end_elsewhere_is_told(model):
    path = set_template(model, lambda old: old.replace("<|im_end|>", "(over)"))
    text = failed("tokenizer", path, needs=TOKENIZER)
    assert "ends an answer with '(over)" in text and "they would run on" in text


def test_a_template_that_loses_text_is_told(model):
    path = set_template(model, lambda old: old.replace("message.content", "message.content[:10]"))
    assert "the chat template loses text" in failed("tokenizer", path, needs=TOKENIZER)


def test_a_template_that_loses_answers_is_told(model):
    path = set_template(
        model,
        lambda old: old.replace("message.content", "(message.content if message.role == 'user' else '')"),
    )
    assert "the chat template loses an answer" in failed("tokenizer", path, needs=TOKENIZER)


def test_data_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1?", "ans')
    needs = (*GROUND, "rewards", "model", "tokenizer")
    text = failed("data", f"--config.data.dataset={tmp_path / 'train.jsonl'}", needs=needs)
    assert "train.jsonl" in text and "set config.data.dataset and its fields" in text


def test_a_plan_that_does_not_fit_is_told(monkeypatch):
    monkeypatch.setattr(running, "memory_of", lambda device: 8 * 2**21)  # 2 MiB for each of 8 devices
    text = failed("plan", needs=(*GROUND, "model", "tokenizer"))
    assert "does not fit" in text


def test_memory_that_is_not_known_skips_the_plan(monkeypatch):
    monkeypatch.setattr(running, "memory_of", lambda device: 0)
    found = findings((*GROUND, "model", "tokenizer", "plan"))["plan"]
    assert (found.status, found.text) == (SKIPPED, "cpu does not say how much memory it has")


def test_a_sampler_that_disagrees_with_the_trainer_is_told(monkeypatch):
    needs = (*GROUND, "rewards", "model", "tokenizer", "data", "weights")
    monkeypatch.setattr(running, "GAPS", running.GAPS | {"8 bits": running.GAPS["float32"]})
    text = failed("ratio", "--config.rollout.sampling_weights=int8", FEW, needs=needs)
    assert "|sampler - trainer| at most" in text and "8 bits" in text
    assert findings((*needs, "ratio"), FEW)["ratio"].status == PASSED
