"""Sizes of a sampler: by hand, from memory, and the way from one shape to the next."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.sampling import plan
from tests.conftest import TINY

GIB = 2**30
LARGE = dataclasses.replace(TINY, num_layers=28, num_kv_heads=4, num_heads=28, head_dim=128)


@pytest.fixture
def one_device():
    import jax
    import numpy as np

    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh_lib.AXES)


@pytest.fixture
def on_gpu(monkeypatch, one_device):
    """Plans as for an accelerator with so many GiB free."""

    def make(free_gib: float, shape: plan.EngineShape, weights_gib: float = 14.2) -> plan.Plan:
        monkeypatch.setattr(plan, "free_memory", lambda device: int(free_gib * GIB))
        monkeypatch.setattr(plan, "CPU_SLOTS", 10**6)
        monkeypatch.setattr(plan, "_columns_of_row", lambda spec, platform: 0.0)
        return plan.make(LARGE, one_device, shape, weight_bytes=int(weights_gib * GIB), dtype=jnp.bfloat16)

    return make


def test_slots_are_what_memory_holds_and_no_more_than_rows(on_gpu):
    shape = plan.EngineShape(600, 8, 512, 1536)
    # 2 * 28 layers * 4 heads * 128 * 2 bytes = 57,344 bytes a token; a row, its window, its eighth of a prompt;
    # and three times the logits of 96 ids
    made = on_gpu(80, shape)
    assert made.kv_token_bytes == 57_344
    a_slot = 57_344 * (2000 + 48 + 64) + 3 * 4 * 96
    assert made.slots == int((0.9 * 80 - 14.2) * GIB / a_slot) // 8 * 8 == 512
    made = on_gpu(160, shape)
    assert made.slots == 600
    assert made.cache_bytes == (600 * (2000 + 48) + 75 * 512) * 57_344


def test_nothing_left_is_said_with_the_numbers(on_gpu):
    with pytest.raises(ValueError, match=r"15\.00 GiB free.*14\.20 GiB.*mesh\.tensor"):
        on_gpu(15, plan.EngineShape(512, 8, 512, 1536))


def test_caches_with_their_window_have_the_multiple_of_columns_that_a_kernel_reads(one_device):
    shape = plan.EngineShape(64, 8, 500, 1500)
    made = plan.make(TINY, one_device, shape, weight_bytes=0, dtype=jnp.float32, columns_multiple=128)
    assert made.window == 32
    assert {(rung.columns + made.window) % 128 for rung in made.rungs} == {0}
    assert made.rungs[-1].columns >= 2000


def test_what_the_config_says_is_taken(on_gpu):
    made = on_gpu(80, plan.EngineShape(512, 8, 512, 1536, num_slots=96, window=24))
    assert (made.slots, made.window) == (96, 24)


def test_the_cache_grows_and_then_slots_are_halved(on_gpu):
    made = on_gpu(80, plan.EngineShape(64, 8, 512, 1536))
    never = on_gpu(80, plan.EngineShape(64, 8, 512, 1536, halvings=0))
    assert {rung.slots for rung in never.rungs} == {64}
    assert [tuple(rung) for rung in made.rungs] == [
        (64, 512 + 384),
        (64, 512 + 768),
        (64, 2000),
        (32, 2000),
        (16, 2000),
        (8, 2000),
    ]
    assert made.prompt_columns == (128, 256, 512)


def test_the_next_rung_is_the_cheapest_that_fits(on_gpu):
    made = on_gpu(80, plan.EngineShape(64, 8, 512, 1536))
    step = lambda now, **needs: made.rungs[made.next_rung(now, **needs)]  # noqa: E731
    assert step(0, running=64, columns=600, waiting=False) == (64, 896)
    assert step(0, running=64, columns=897, waiting=False) == (64, 1280)
    assert step(0, running=10, columns=600, waiting=False) == (16, 2000)  # 16 * 2000 < 64 * 896
    assert step(0, running=20, columns=600, waiting=False) == (64, 896)  # 32 * 2000 > 64 * 896
    assert step(0, running=10, columns=600, waiting=True) == (64, 896)  # slots are needed
    assert step(4, running=1, columns=600, waiting=False) == (8, 2000)  # never back


def test_short_completions_on_a_cpu_have_one_cache_size(one_device):
    made = plan.make(TINY, one_device, plan.EngineShape(256, 16, 48, 72), weight_bytes=0, dtype=jnp.float32)
    assert {rung.columns for rung in made.rungs if rung.slots == made.slots} == {48 + 64}
    assert made.slots == plan.CPU_SLOTS
    assert made.window == 16


@pytest.mark.parametrize(("length", "window"), [(16, 16), (72, 16), (512, 16), (1024, 32), (8192, 64)])
def test_the_automatic_window_follows_the_length_of_completions(length, window, on_gpu):
    assert on_gpu(80, plan.EngineShape(64, 8, 128, length)).window == window


def test_the_plan_is_told_in_one_sentence(on_gpu):
    told = on_gpu(80, plan.EngineShape(64, 8, 512, 1536)).describe()
    for part in (
        "weights 14.20 GiB",
        "56.0 KiB a token",
        "64 slots (then 32, 16, 8)",
        "896/1280/2000",
        "48 steps",
    ):
        assert part in told, told
