"""The benchmark: its command line, the work it plans, and that all sides do that work on the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools import bare_loop, bench, bench_rollout, bench_sampler, peers

ROOT = Path(__file__).resolve().parent.parent
NAMED = {  # what readers of the last line count on
    "tokens_per_second",
    "peer_tokens_per_second",
    "ratio",
    "compile_seconds",
    "compilations",
    "weights_seconds",
    "occupancy",
    "roofline_share",
    "tokens_per_second_per_device",
    "peak_rss_gb",
    "device",
    "versions",
}


def tool(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tools/bench.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


class Stage:
    """One tiny benchmark set up in this process: 8 prompts, for the 8 devices of the tests."""

    def __init__(self, mesh: jax.sharding.Mesh, *more: str):
        line = [
            "rollout",
            "--shape",
            "bench-tiny",
            "--prompt-length",
            "5",
            "--generations",
            "2",
            "--seed",
            "3",
        ]
        self.options, self.mesh = bench.parse([*line, *more]), mesh
        self.opened = bench_sampler.open_model(self.options)
        self.work = bench_sampler.plan_work(self.options, self.opened)
        self.params = bench_sampler.make_params(self.options, self.opened, mesh)

    def ours(self) -> bench_sampler.Sampler:
        return bench_sampler.Sampler(self.options, self.opened, self.params, mesh=self.mesh, work=self.work)

    def own(self, tokens_BC: np.ndarray) -> list[list[int]]:
        """Each row's tokens up to its limit."""
        limits_B = self.work.limits_PG.reshape(-1)
        assert tokens_BC.shape == (limits_B.size, limits_B.max())
        return [row[:limit].tolist() for row, limit in zip(tokens_BC, limits_B, strict=True)]


@pytest.fixture(scope="module")
def greedy(mesh) -> Stage:
    return Stage(mesh, "--temperature", "0", "--new-tokens", "32", "--lengths", "skewed")


@pytest.fixture(scope="module")
def ours(greedy) -> bench_sampler.Sampler:
    return greedy.ours()


@pytest.fixture(scope="module")
def our_tokens(greedy, ours) -> list[list[int]]:
    return greedy.own(ours.generate(0))


def test_the_last_line_has_what_is_promised():
    small = ["--prompts", "2", "--generations", "2", "--new-tokens", "8", "--runs", "2", "--cpu-devices", "1"]
    done = tool("rollout", "--shape", "bench-tiny", "--against", "bare", *small)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) >= NAMED
    assert found["compilations"] == 0
    assert found["num_tokens"] == 2 * 2 * 8
    assert len(found["seconds"]["ours"]) == len(found["seconds"]["bare"]) == 2
    assert found["tokens_per_second"] == pytest.approx(32 / np.median(found["seconds"]["ours"]), rel=1e-3)
    assert found["ratio"] == pytest.approx(
        found["tokens_per_second"] / found["peer_tokens_per_second"], rel=1e-3
    )  # five digits are printed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rollout", "one of the arguments --model --shape is required"),
        ("rollout --shape qwen9", "invalid choice: 'qwen9'"),
        ("rollout --shape bench-tiny --prompts 0", "--prompts must be 1 or more; got 0"),
        ("rollout --shape bench-tiny --temperature -1", "--temperature must be 0 or more; got -1"),
        ("rollout --shape bench-tiny --against vllm", "--against takes any of transformers, bare; got vllm"),
        ("rollout --shape bench-tiny --model x", "not allowed with argument --shape"),
        ("rollout --shape bench-tiny --runs many", "invalid int value: 'many'"),
        ("", "COMMAND"),
    ],
)
def test_mistakes_on_the_command_line_are_told(line, words):
    with pytest.raises(ValueError, match=words) as raised:
        bench.parse(line.split())
    assert "\n" not in str(raised.value)


def test_a_mistake_ends_in_one_line():
    done = tool("rollout", "--model", "nowhere")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: nowhere/config.json is missing; a Hugging Face model folder has one."
    ]


def test_a_row_longer_than_the_model_reads_is_refused(mesh):
    with pytest.raises(ValueError, match="32768 positions; prompt and completion take 32773"):
        Stage(mesh, "--new-tokens", "32768")


def test_a_missing_torch_is_told_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs torch: pip install torch"):
        bench.parse(["rollout", "--shape", "bench-tiny", "--against", "transformers"])


def test_equal_lengths_are_equal():
    assert (peers.planned_lengths("equal", (3, 4), 256, seed=0) == np.full((3, 4), 256)).all()


@pytest.mark.parametrize(("shape", "num_long"), [((8, 8), 16), ((3, 6), 4), ((5, 1), 1), ((1, 2), 1)])
def test_a_quarter_of_skewed_lengths_is_long_in_all_groups_alike(shape, num_long):
    limits_PG = peers.planned_lengths("skewed", shape, 512, seed=0)
    long_PG = limits_PG == 512
    assert long_PG.sum() == num_long
    assert np.ptp(long_PG.sum(axis=1)) <= 1
    short = limits_PG[~long_PG]
    assert ((short >= 24) & (short <= 40)).all()


def test_skewed_lengths_follow_the_seed_and_never_pass_the_longest():
    plan = lambda seed, longest: peers.planned_lengths("skewed", (8, 8), longest, seed=seed)  # noqa: E731
    assert (plan(0, 512) == plan(0, 512)).all()
    assert (plan(0, 512) != plan(1, 512)).any()
    assert (plan(0, 10) == 10).all()


def test_ours_and_the_bare_loop_take_the_same_likeliest_tokens(greedy, ours, our_tokens):
    bare = bare_loop.BareLoop(
        greedy.opened.model, ours.params, mesh=greedy.mesh, work=greedy.work, dtype=jnp.float32
    )
    assert greedy.own(bare.generate(0)) == our_tokens


def test_transformers_takes_the_same_likeliest_tokens_on_the_same_weights(greedy, ours, our_tokens):
    pytest.importorskip("torch", reason="transformers generates with torch only")
    peer = bench_rollout.open_transformers(greedy.options, greedy.opened, greedy.params, greedy.work)
    # rounding of logits of size 1; the project's own bound on parity
    assert bench_rollout.check_same_weights(greedy.options, greedy.opened, ours, peer) < 1e-4
    assert greedy.own(peer.generate(0)) == our_tokens
    ours_with_others = Stage(greedy.mesh, "--seed", "4", "--new-tokens", "32").ours()
    with pytest.raises(RuntimeError, match="computes other logits"):
        bench_rollout.check_same_weights(greedy.options, greedy.opened, ours_with_others, peer)


def test_transformers_samples_for_as_long_as_planned_even_where_a_folder_names_end_ids(mesh, tmp_path):
    pytest.importorskip("torch", reason="transformers generates with torch only")
    stage = Stage(mesh, "--new-tokens", "12")
    source = tmp_path / "weights"
    bench_sampler.export("bench-tiny", stage.opened, stage.params, source, "float32")
    config = json.loads((source / "config.json").read_text())
    every_id = list(range(config["vocab_size"]))  # the first token would end every row
    (source / "config.json").write_text(json.dumps({**config, "eos_token_id": every_id}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": every_id}))
    peer = peers.Transformers(source, work=stage.work, dtype="float32")
    tokens_BC = peer.generate(0)
    assert tokens_BC.shape == (16, 12)
    assert len(np.unique(tokens_BC)) > 50  # 192 draws from a nearly flat distribution, not padding
    assert (tokens_BC != peer.generate(1)).any()


def test_waves_without_refill_sample_the_same_tokens_with_emptier_slots(mesh):
    line = ("--new-tokens", "96", "--lengths", "skewed", "--generations", "8", "--slots", "8")
    refilled, waves = Stage(mesh, *line).ours(), Stage(mesh, *line, "--no-refill").ours()
    assert (refilled.generate(5) == waves.generate(5)).all()
    # each wave has a long row, so that seven of eight slots stand empty most of the time
    assert 1.5 * waves.facts(1.0)["occupancy"] < refilled.facts(1.0)["occupancy"]


def test_waves_need_slots_for_a_group(mesh):
    with pytest.raises(ValueError, match="a prompt's 16 completions"):
        Stage(mesh, "--new-tokens", "8", "--generations", "16", "--slots", "8", "--no-refill").ours()


def test_the_bare_loop_chooses_by_the_inverse_of_the_running_sum(rng):
    logits_BV = rng.normal(size=(64, 3 * bare_loop.BLOCK - 100)).astype(np.float32) * 3
    uniform_B = rng.random(64).astype(np.float32)
    token_B, logprob_B = bare_loop._choose(jnp.asarray(logits_BV), jnp.asarray(uniform_B), 0.7)
    scaled_BV = logits_BV.astype(np.float64) / 0.7
    probability_BV = np.exp(scaled_BV) / np.exp(scaled_BV).sum(axis=1, keepdims=True)
    upto_BV, rows = np.cumsum(probability_BV, axis=1), np.arange(64)
    before_B = upto_BV[rows, token_B] - probability_BV[rows, token_B]
    # 1e-5: the running sum of 1,436 float32 probabilities rounds by less
    assert (before_B - 1e-5 <= uniform_B).all()
    assert (uniform_B <= upto_BV[rows, token_B] + 1e-5).all()
    np.testing.assert_allclose(logprob_B, np.log(probability_BV[rows, token_B]), atol=1e-5)


def test_a_draw_of_nearly_one_takes_an_id_of_the_vocabulary():
    logits_BV = jnp.zeros((1, bare_loop.BLOCK + 1))
    token_B, _ = bare_loop._choose(logits_BV, jnp.array([1 - 2**-24], jnp.float32), 1.0)
    assert token_B.tolist() == [bare_loop.BLOCK]


def test_the_bare_loop_refuses_prompts_that_cannot_be_cut(greedy, ours):
    odd = peers.Work(greedy.work.prompts_PT[:3], greedy.work.limits_PG[:3], 1.0)
    with pytest.raises(ValueError, match="over 8 devices; got 3 prompts"):
        bare_loop.BareLoop(greedy.opened.model, ours.params, mesh=greedy.mesh, work=odd, dtype=jnp.float32)
