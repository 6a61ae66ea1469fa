"""What a run was computed with is kept, one entry a start, and found again by step."""

from __future__ import annotations

import json

import jax

from grpo_jax import starts


def test_each_start_is_one_entry_and_a_step_belongs_to_the_last_that_began_before_it(tmp_path):
    for after, version in ((0, "a"), (4, "b"), (2, "c")):  # the third went back behind the second
        starts.record(tmp_path, {"jax": version}, after=after)
    entries = starts.recorded(tmp_path)
    assert [entry["after"] for entry in entries] == [0, 4, 2]
    assert [starts.of_step(entries, step)["jax"] for step in (1, 2, 3, 5)] == ["a", "a", "c", "c"]
    assert starts.of_step(entries[1:], 2) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment.json"]


def test_a_damaged_file_is_no_list_of_starts_and_the_next_start_mends_it(tmp_path):
    (tmp_path / starts.ENVIRONMENT_FILE).write_text('[{"after": 0, "ja')
    assert starts.recorded(tmp_path) == []
    starts.record(tmp_path, {"jax": "1"}, after=3)
    assert [entry["after"] for entry in starts.recorded(tmp_path)] == [3]


def test_what_differs_is_named_without_times(mesh):
    now = starts.present(mesh, {"seed": 0})
    before = {"after": 0, "time": "then", **now, "jax": "0.1", "mesh": {"data": 1}}
    first, second = starts.differences(before, now)
    assert first == f"jax was 0.1, is {jax.__version__}"
    assert second == f"mesh was {{'data': 1}}, is {now['mesh']}"
    assert starts.differences({"after": 0, "time": "then", **now}, now) == []


def test_what_is_kept_is_plain_and_holds_no_variable_of_the_environment(mesh, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    text = json.dumps(starts.present(mesh, {"seed": 0}))
    assert "hf_secret" not in text
    assert json.loads(text)["devices"] == 8 and json.loads(text)["mesh"] == dict(mesh.shape)
