"""Loss and gradient depend on the data alone: not on microbatches, padding, row order or mesh."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.learning.losses import Totals
from tests.learning import small_batches
from tests.learning.small_batches import ROWS, assert_same, in_order, pack, plain_logprobs

BETA = 0.04
LOSSES = ("bnpo", "dapo", "dr_grpo", "grpo")  # one of each aggregation; the others: test_objective.py


SHARDS = {"one device": 1, "data 8": 8, "fsdp 8": 8, "tensor 2 x fsdp 4": 4, "data 2 x fsdp 2 x tensor 2": 4}


def gradient(get_learner, new_state, rows, *, mesh_name: str, loss_type: str, num_columns=10, **layout):
    """One update's metrics and gradient, off-policy and with a reference, whatever the layout."""
    compute = {name: layout.pop(name) for name in ("remat", "tile_tokens") if name in layout}
    (minibatch,) = pack(*rows, num_columns=num_columns, num_shards=SHARDS[mesh_name], **layout)
    used = get_learner(mesh_name, loss_type=loss_type, beta=BETA, **compute)
    batch = mesh_lib.put_rows(used.mesh, minibatch.batch, leading=1)
    batch = batch._replace(
        old_logprobs_AUSC=batch.sampler_logprobs_AUSC, ref_logprobs_AUSC=0.9 * batch.sampler_logprobs_AUSC
    )
    tokens = minibatch.batch.completion_mask_AUSC.sum()
    totals = Totals(*map(np.float32, (ROWS, tokens, tokens + 7)))  # other minibatches would have more
    count = jnp.int32(minibatch.num_active)
    state, metrics = used.update(new_state(mesh_name), None, batch, count, totals)
    return jax.device_get(metrics), jax.device_get(state.opt_state)


OTHERS = {
    "more rows a backward pass": {"rows_per_device": 24},
    "one row a backward pass": {"rows_per_device": 1},
    "another padding": {"max_prompt_length": 9, "num_columns": 14},
    "packed": {"packing": 1},
    "packed in long lines": {"packing": 3, "rows_per_device": 6},
    "prompts with every row": {"share_prompts": False},
    "prompts with every row, packed": {"share_prompts": False, "packing": 2},
    "a token budget": {"max_tokens_per_microbatch": 70, "packing": 2},
    "small tiles": {"tile_tokens": 7},
    "remat full": {"remat": "full"},
    "remat matmuls": {"remat": "matmuls"},
    "remat offload": {"remat": "offload"},
    "data 8": {"mesh_name": "data 8", "packing": 1},
    "fsdp 8": {"mesh_name": "fsdp 8"},
    "tensor 2 x fsdp 4": {"mesh_name": "tensor 2 x fsdp 4", "packing": 2},
    "data 2 x fsdp 2 x tensor 2": {"mesh_name": "data 2 x fsdp 2 x tensor 2"},
}
SEVERAL = ("packed", "data 2 x fsdp 2 x tensor 2")  # with every loss type; the others with one


@pytest.fixture(scope="module")
def plain(get_learner, new_state, off_policy):
    """The update with one completion a line, by loss type."""

    @functools.cache
    def compute(loss_type: str):
        return gradient(get_learner, new_state, off_policy, mesh_name="one device", loss_type=loss_type)

    return compute


@pytest.mark.parametrize(
    ("loss_type", "other"),
    [(loss_type, name) for loss_type in LOSSES for name in SEVERAL]
    + [("grpo", name) for name in OTHERS if name not in SEVERAL],
)
def test_loss_and_gradient_do_not_depend_on_how_the_work_is_cut(
    get_learner, new_state, off_policy, plain, loss_type, other
):
    shuffled = in_order(*off_policy, np.random.default_rng(2).permutation(ROWS))
    rows = off_policy if "token" in other else shuffled
    expected = plain(loss_type)
    assert 0.1 < expected[0]["clip_ratio/region_mean"] < 0.9
    assert expected[0]["kl"] > 1e-3
    changes = {"mesh_name": "one device", **OTHERS[other]}
    found = gradient(get_learner, new_state, rows, loss_type=loss_type, **changes)
    # float32 sums in another order; the bound
    assert_same(found, expected, tolerance=1e-5)
    for name in ("kl", "entropy", "clip_ratio/region_mean", "grad_norm", "ratio/max"):
        assert found[0][name] == pytest.approx(expected[0][name], rel=1e-5), name


def written_out(rows):
    """All completions as `[N, C]` arrays, each row on its own: tokens, where they start, and what is known."""
    rollout, advantages_PG = rows
    width = small_batches.PROMPT + 10
    tokens_NT, valid_NT = np.zeros((ROWS, width), np.int32), np.zeros((ROWS, width), bool)
    mask_NC, old_NC = np.zeros((ROWS, 10), np.float32), np.zeros((ROWS, 10), np.float32)
    index_NC = np.zeros((ROWS, 10), np.int32)
    cells = [(p, g) for p in range(len(rollout.problems)) for g in range(len(rollout.completions[p]))]
    for n, (p, g) in enumerate(cells):
        prompt, completion = rollout.problems[p].prompt_ids, rollout.completions[p][g]
        count = len(prompt) + completion.num_tokens
        tokens_NT[n, :count], valid_NT[n, :count] = [*prompt, *completion.ids], True
        mask_NC[n, : completion.num_tokens] = 1
        old_NC[n, : completion.num_tokens] = completion.sampler_logprobs
        index_NC[n] = np.minimum(len(prompt) - 1 + np.arange(10), width - 2)
    return tokens_NT, valid_NT, mask_NC, old_NC, index_NC, advantages_PG.reshape(-1, 1)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_gradient_and_metrics_equal_the_formula_written_out(
    tiny_model, host_params, off_policy, plain, loss_type
):
    tokens_NT, valid_NT, mask_BC, old_BC, index_BC, advantage_B1 = written_out(off_policy)
    lengths_B, total = mask_BC.sum(1), mask_BC.sum()
    weights_BC = {  # row means then their mean; a constant; tokens of the step; tokens here
        "grpo": mask_BC / lengths_B[:, None] / ROWS,
        "dr_grpo": mask_BC / (ROWS * 10),
        "dapo": mask_BC / (total + 7),
        "bnpo": mask_BC / total,
    }[loss_type]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def objective(params, weights_BC):
        scored = plain_logprobs(tiny_model, params, tokens_NT, valid_NT, 1.0)
        now_BC, entropy_BC = (jnp.take_along_axis(x_BT, index_BC, axis=1) for x_BT in scored)
        ratio_BC = jnp.exp(now_BC - old_BC)
        gain_BC = jnp.minimum(ratio_BC * advantage_B1, jnp.clip(ratio_BC, 0.8, 1.28) * advantage_B1)
        log_ratio_BC = 0.9 * old_BC - now_BC
        kl_BC = jnp.exp(log_ratio_BC) - log_ratio_BC - 1
        loss_BC = jnp.where(mask_BC > 0, -gain_BC + BETA * kl_BC, 0)
        mean = lambda x_BC: jnp.where(mask_BC > 0, x_BC, 0).sum() / total  # noqa: E731
        largest = jnp.where(mask_BC > 0, ratio_BC, 0).max()
        return (weights_BC * loss_BC).sum(), jnp.stack([mean(kl_BC), mean(entropy_BC), largest])

    ((loss, measured), expected) = jax.device_get(objective(host_params, weights_BC))
    metrics, ours = plain(loss_type)
    # another formula: other roundings
    assert_same((metrics, ours), ({"loss": loss}, expected), tolerance=2e-5)
    named = [float(metrics[name]) for name in ("kl", "entropy", "ratio/max")]
    np.testing.assert_allclose(named, measured, rtol=2e-5)
    norm = np.sqrt(sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in jax.tree.leaves(expected)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=2e-5)
