"""Loss and gradient depend on the data alone: not on microbatches, padding, row order or mesh."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import mesh as mesh_lib
from tests.learning.small_batches import ROWS, assert_same, in_order, pack, plain_logprobs

BETA = 0.04
LOSSES = ("bnpo", "dapo", "dr_grpo", "grpo")  # one of each aggregation; the others: test_objective.py


def gradient(get_learner, new_state, rows, *, mesh_name: str, loss_type: str, num_columns=10, **layout):
    """One update's metrics and gradient, off-policy and with a reference, whatever the layout."""
    (minibatch,) = pack(*rows, num_columns=num_columns, **layout)
    used = get_learner(mesh_name, loss_type=loss_type, beta=BETA)
    batch = mesh_lib.put_rows(used.mesh, minibatch.batch, leading=1)
    batch = batch._replace(
        old_logprobs_ABC=batch.sampler_logprobs_ABC, ref_logprobs_ABC=0.9 * batch.sampler_logprobs_ABC
    )
    tokens = jnp.float32(minibatch.batch.completion_mask_ABC.sum() + 7)  # other minibatches would have more
    count = jnp.int32(minibatch.num_active)
    state, metrics = used.update(new_state(mesh_name), batch, count, tokens)
    return jax.device_get(metrics), jax.device_get(state.opt_state)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_do_not_depend_on_microbatches_padding_row_order_or_mesh(
    get_learner, new_state, off_policy, loss_type
):
    compute = functools.partial(gradient, get_learner, new_state, loss_type=loss_type)
    backwards = in_order(*off_policy, np.arange(ROWS)[::-1])
    shuffled = in_order(*off_policy, np.random.default_rng(2).permutation(ROWS))
    plain = compute(off_policy, mesh_name="data 8", microbatch_rows=8)
    assert 0.1 < plain[0]["clip_ratio/region_mean"] < 0.9
    assert plain[0]["kl"] > 1e-3
    others = [
        compute(shuffled, mesh_name="data 8", microbatch_rows=8),
        compute(backwards, mesh_name="fsdp 8", microbatch_rows=24),
        compute(
            shuffled, mesh_name="tensor 2 x fsdp 4", microbatch_rows=8, max_prompt_length=9, num_columns=14
        ),
    ]
    for other in others:
        # float32 sums in another order; the bound
        assert_same(other, plain, tolerance=1e-5)
        for name in ("kl", "entropy", "clip_ratio/region_mean", "grad_norm", "ratio/max"):
            assert other[0][name] == pytest.approx(plain[0][name], rel=1e-5), name


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_gradient_and_metrics_equal_the_formula_written_out(
    tiny_model, host_params, get_learner, new_state, off_policy, loss_type
):
    (minibatch,) = pack(*off_policy)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), minibatch.batch)
    mask_BC, old_BC = flat.completion_mask_ABC, flat.sampler_logprobs_ABC
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
        now_BT, entropy_BT = plain_logprobs(tiny_model, params, flat.tokens_ABT, flat.valid_ABT, 1.0)
        now_BC, entropy_BC = now_BT[:, -10:], entropy_BT[:, -10:]
        ratio_BC, advantage_B1 = jnp.exp(now_BC - old_BC), flat.advantages_AB[:, None]
        gain_BC = jnp.minimum(ratio_BC * advantage_B1, jnp.clip(ratio_BC, 0.8, 1.28) * advantage_B1)
        log_ratio_BC = 0.9 * old_BC - now_BC
        kl_BC = jnp.exp(log_ratio_BC) - log_ratio_BC - 1
        loss_BC = jnp.where(mask_BC > 0, -gain_BC + BETA * kl_BC, 0)
        mean = lambda x_BC: jnp.where(mask_BC > 0, x_BC, 0).sum() / total  # noqa: E731
        largest = jnp.where(mask_BC > 0, ratio_BC, 0).max()
        return (weights_BC * loss_BC).sum(), jnp.stack([mean(kl_BC), mean(entropy_BC), largest])

    ((loss, measured), expected) = jax.device_get(objective(host_params, weights_BC))
    metrics, ours = gradient(
        get_learner, new_state, off_policy, mesh_name="data 8", loss_type=loss_type, microbatch_rows=8
    )
    # another formula: other roundings
    assert_same((metrics, ours), ({"loss": loss}, expected), tolerance=2e-5)
    named = [float(metrics[name]) for name in ("kl", "entropy", "ratio/max")]
    np.testing.assert_allclose(named, measured, rtol=2e-5)
    norm = np.sqrt(sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in jax.tree.leaves(expected)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=2e-5)
