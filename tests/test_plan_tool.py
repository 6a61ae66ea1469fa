"""Plans of runs on devices that are not there: what is counted, by hand; and the tool on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from grpo_jax import chips
from grpo_jax.models import registry
from grpo_jax.models.shapes import SHAPES
from grpo_jax.planning import case, counts, hlo
from tests.conftest import ROOT

TEXT = """HloModule jit_update_state

%fused_start (p: bf16[8,4]) -> bf16[32,4] {
  %a1 = bf16[32,4]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%fused_step (p: bf16[8,4]) -> bf16[32,4] {
  %a2 = bf16[32,4]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (p: f32[32,4]) -> f32[8,4] {
  %r = f32[32,4]{1,0} all-reduce(%p), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%inner_condition (p: (s32[])) -> pred[] {
  %c = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%inner (p: (s32[])) -> (s32[]) {
  %f = bf16[32,4] fusion(%x), kind=kLoop, calls=%fused_step, backend_config={"estimated_cycles":"10"}
}

%outer_condition (p: (s32[])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%outer (p: (s32[])) -> (s32[]) {
  %f = bf16[32,4] fusion(%x), kind=kLoop, calls=%fused_start, backend_config={"estimated_cycles":"100"}
  %g = f32[8,4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %w = (s32[]) while(%t), condition=%inner_condition, body=%inner
}

ENTRY %main (p: f32[]) -> f32[] {
  %w = (s32[]) while(%t), condition=%outer_condition, body=%outer
  %e = f32[100]{0} all-reduce(%p), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %q = f32[10]{0} collective-permute(%p), channel_id=4, source_target_pairs={{0,1}}
}
"""


def test_bytes_sent_and_cycles_count_as_often_as_their_loop_runs():
    program = hlo.Program(TEXT, unknown_trips=5)
    traffic = program.traffic()
    # a group of 4: a quarter is there already. The all-gather's other part, in the inner loop, is the same one
    assert traffic.by_kind == {
        "all-gather": 5 * (32 * 4 * 2) * 3 / 4,
        "reduce-scatter": 5 * (32 * 4 * 4) * 3 / 4,
        "all-reduce": 2 * 400 * 3 / 4,
        "collective-permute": 40,
    }
    assert traffic.num_bytes == sum(traffic.by_kind.values())
    assert traffic.largest[0][0] == 1920
    assert program.cycles() == 5 * 100 + 5 * 3 * 10


def test_weights_of_the_public_models():
    """Non-embedding parameters, in billions, as the models' cards have them: biases and norms are under 0.01."""
    for name, billions in (("qwen2.5-1.5b", 1.31), ("qwen2.5-7b", 6.53), ("qwen2.5-32b", 31.0)):
        spec = registry.FAMILIES["qwen2"](SHAPES[name])
        assert spec.layer_weights / 1e9 == pytest.approx(billions, abs=0.25 if billions > 30 else 0.006)


def test_attention_by_hand():
    spec = registry.FAMILIES["qwen2"](SHAPES["bench-tiny"])
    # 4 layers x 4 heads x (32 products and sums for a score, 32 for the mixing) x 10 queries x 7 columns
    assert counts.attention_operations(spec, 10, 7) == 4 * 4 * (2 * 32 + 2 * 32) * 10 * 7


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_a_device_is_known_by_its_kind(kind, name):
    assert chips.of_kind(kind) == next(
        chip for chip in chips.CHIPS if chip.name == name and chip.kind in kind
    )


def test_unknown_chips():
    assert chips.of_kind("cpu") is None
    with pytest.raises(ValueError, match=r"no chip is called 'h1000'; known are .*'h100'"):
        chips.named("h1000")


def test_a_hub_id_is_known_by_its_beginning_and_others_are_refused():
    assert case.model_spec("Qwen/Qwen2.5-7B-Instruct")[0] == "qwen2.5-7b"
    assert case.model_spec("configs/tiny_qwen")[1].num_layers > 0
    with pytest.raises(
        ValueError, match=r"'Qwen/Qwen2.5-Math-1.5B' are not known .* --shape, one of \['bench"
    ):
        case.model_spec("Qwen/Qwen2.5-Math-1.5B")


def plan(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tools/plan.py", "--config", "configs/tiny.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )


SMALL = (  # 8 rows of 128 + 128 tokens: activations are larger than weights
    "--shape=bench-tiny",
    "--config.rollout.num_prompts=2",
    "--config.rollout.num_generations=4",
    "--config.data.max_prompt_length=128",
    "--config.rollout.max_completion_length=128",
    "--config.rollout.window=64",
    "--config.grpo.per_device_train_batch_size=1",
    "--config.model.compute_dtype=float32",
)


def test_a_tiny_model_on_eight_devices():
    done = plan("--devices=8", "--chip=v5e", "--config.mesh.preset=zero3", *SMALL)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fits"]
    assert result["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    # 4 layers x (qkv 128 x 2 x 4 x 32, output 128 x 128, MLP 3 x 128 x 384) and 512 x 128, cut by 8
    matrices = (4 * (128 * 256 + 128 * 128 + 3 * 128 * 384) + 512 * 128) / 8
    whole = 4 * (256 + 256) + 128  # norms and biases
    assert result["gib"]["params"] * 2**30 == pytest.approx(4 * (matrices + whole))
    assert result["gib"]["moments"] * 2**30 == pytest.approx(8 * (matrices + whole), abs=16)  # and counters
    update = next(phase for phase in result["phases"] if phase["name"] == "update")
    # weights are gathered twice and gradients summed, in float32; no activation travels
    assert 2 * 4 * 7 * matrices < update["gb_sent"] * 1e9 < 6 * 4 * 8 * matrices
    assert "bytes counted by the compiler for CPUs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        # 12 bytes of 32,763,876,352 parameters
        (
            ("--shape=qwen2.5-32b", "--devices=1", "--chip=h100"),
            1,
            "take 366.16 GiB of a device's 79.20; set config",
        ),
        (("--devices=3", "--config.grpo.num_minibatches=3"), 2, "do not divide"),
        (("--chip=h100",), 2, "say for which devices: --topology"),
        (("--devices=1", "--chip=abacus"), 2, "no chip is called 'abacus'"),
        (("--devices=8", "--config.mesh.preset=zero7"), 2, "config.mesh.preset is 'zero7'; known are"),
    ],
)
def test_mistakes_and_what_cannot_fit_end_in_one_line(arguments, status, words):
    done = plan(*arguments)
    assert words in done.stderr
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_the_compiler_for_tpus_one_line_says_how_to_get_it():
    done = plan("--topology=v5e:2x2", *SMALL)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pip install 'libtpu==" in done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPUs' compiler, is missing"
)
@pytest.mark.timeout(600)
def test_a_small_model_on_a_tpu_slice():
    done = plan(
        "--topology=v5e:2x2", "--config.mesh.preset=zero3", *SMALL, "--config.model.compute_dtype=bfloat16"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {phase["name"]: phase["compiler_seconds"] > 0 for phase in result["phases"]} == dict.fromkeys(
        ("prefill", "window", "update"), True
    )
    assert result["update_share_of_peak_by_compiler"] > 0
