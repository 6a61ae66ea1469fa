"""The learning step: on-policy identities, several updates a rollout, and what may be left out."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.learning import train_state
from tests.learning import small_batches
from tests.learning.small_batches import (
    GENERATIONS,
    NUM_PROBLEMS,
    NUM_VALID,
    ROWS,
    assert_same,
    in_order,
    learner,
    random_rollout,
)

BETA = 0.04

pack = functools.partial(small_batches.pack, num_shards=8, rows_per_device=2)  # for the mesh data 8


def test_the_first_update_is_on_policy(get_learner, new_state, off_policy, host_params):
    used = get_learner("data 8", loss_type="dapo", beta=BETA)
    state = new_state("data 8")
    reference = train_state.frozen_copy(state.params, dtype=jnp.float32)
    _, metrics = used.learn(state, pack(*off_policy), ref_params=reference, num_iterations=1)
    assert metrics["ratio/max"] == 1.0  # exactly: nothing was scored, the policy's own numbers stand in
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["clip_ratio/region_mean"] == 0
    # ratio 1: the loss is minus the mean advantage over tokens
    batch = pack(*off_policy)[0].batch
    mask_AUSC = batch.completion_mask_AUSC
    expected = -(mask_AUSC * batch.advantages_AUS[..., None]).sum() / mask_AUSC.sum()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_minibatches_of_a_policy_that_has_not_moved_are_on_policy_too(get_learner, new_state):
    rows = random_rollout(3, num_problems=NUM_PROBLEMS * 2, num_generations=GENERATIONS)
    used = get_learner("data 8", loss_type="dapo", beta=BETA)
    state = new_state("data 8")
    reference = train_state.frozen_copy(state.params, dtype=jnp.float32)
    minibatches = pack(*rows, num_minibatches=2)
    state, metrics = used.learn(state, minibatches, ref_params=reference, num_iterations=1)
    assert int(state.num_updates) == 2
    # Old log-probabilities come from a program of their own here, and this optimizer moves nothing. The two round
    # hidden states apart: a logit of 10 in float32 steps by 1e-6, and a few of them add up.
    assert metrics["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    # dapo: every token of the step weighs the same, so the mean over both is that of all tokens
    mask = np.stack([part.batch.completion_mask_AUSC for part in minibatches])
    advantages = np.stack([part.batch.advantages_AUS for part in minibatches])
    assert metrics["loss"] == pytest.approx(-(mask * advantages[..., None]).sum() / mask.sum(), rel=1e-4)


def test_the_second_pass_over_a_rollout_finds_a_policy_that_moved(
    tiny_model, shapes, new_state, meshes, off_policy
):
    tx = optax.sgd(0.05)
    used = learner(tiny_model, shapes, mesh=meshes["one device"], tx=tx)
    minibatches = pack(*off_policy, rows_per_device=24, num_shards=1)
    before = new_state("one device", tx)
    start = jax.device_get(before.params)
    state, metrics = used.learn(before, minibatches, ref_params=None, num_iterations=2)
    assert int(state.num_updates) == 2
    assert metrics["ratio/max"] > 1.01  # the largest of both passes
    assert metrics["clip_ratio/region_mean"] > 0
    moved = jax.tree.map(lambda new, old: np.abs(np.asarray(new) - old).max(), state.params, start)
    assert min(jax.tree.leaves(moved)) > 0  # every parameter learns
    assert "kl" not in metrics  # there is no reference to be away from


def on_policy_gradient(get_learner, new_state, minibatches):
    used = get_learner("data 8", loss_type="grpo", beta=0.0)
    state, metrics = used.learn(new_state("data 8"), minibatches, ref_params=None, num_iterations=1)
    return metrics, jax.device_get(state.opt_state)


def test_leaving_out_groups_without_signal_changes_no_gradient(get_learner, new_state, off_policy):
    rollout, advantages_PG = off_policy
    advantages_PG = advantages_PG.copy()
    advantages_PG[1:] = 0.0  # six rows of 24 have signal
    everything = pack(rollout, advantages_PG, keep_rows_without_signal=True)
    shortened = pack(rollout, advantages_PG, keep_rows_without_signal=False)
    assert (everything[0].num_active, shortened[0].num_active) == (2, 1)
    whole = on_policy_gradient(get_learner, new_state, everything)
    short = on_policy_gradient(get_learner, new_state, shortened)
    assert_same(short, whole, tolerance=1e-5)


def test_a_rollout_without_any_signal_changes_nothing_and_is_still_measured(
    get_learner, new_state, off_policy
):
    rollout, advantages_PG = off_policy
    minibatches = pack(rollout, 0 * advantages_PG, keep_rows_without_signal=False)
    metrics, kept = on_policy_gradient(get_learner, new_state, minibatches)
    assert metrics["loss"] == 0
    assert metrics["grad_norm"] == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(kept))
    assert metrics["entropy"] > 0.1


def test_completions_that_were_cut_off_teach_nothing_when_masked(get_learner, new_state, off_policy):
    rollout, advantages_PG = off_policy
    cut = [[not completion.ended for completion in group] for group in rollout.completions]
    assert 0 < np.sum(cut) < ROWS
    masked = functools.partial(pack, mask_truncated_completions=True)
    first = on_policy_gradient(get_learner, new_state, masked(rollout, advantages_PG))
    others = np.where(cut, 100.0, advantages_PG).astype(np.float32)
    second = on_policy_gradient(get_learner, new_state, masked(rollout, others))
    assert_same(second, first, tolerance=1e-6)  # what they would have been worth does not matter
    trained = on_policy_gradient(get_learner, new_state, pack(rollout, others))
    assert trained[0]["grad_norm"] > 2 * first[0]["grad_norm"]  # and does where they are trained on


def test_padding_may_hold_anything(get_learner, new_state, off_policy):
    (minibatch,) = pack(*off_policy)
    clean = on_policy_gradient(get_learner, new_state, [minibatch])
    batch, rng = minibatch.batch, np.random.default_rng(0)
    packed, mask_AUSC = batch.packed, batch.completion_mask_AUSC
    noise = lambda like: rng.integers(0, NUM_VALID, like.shape).astype(np.int32)  # noqa: E731
    valid_AUYZ = np.arange(packed.prompts_UYZ.shape[-1]) < packed.prompt_length_UY[..., None]
    garbage = batch._replace(
        packed=packed._replace(
            prompts_UYZ=np.where(valid_AUYZ, packed.prompts_UYZ, noise(packed.prompts_UYZ)),
            lines_UEW=np.where(packed.segments_UEW > 0, packed.lines_UEW, noise(packed.lines_UEW)),
            positions_UEW=np.where(packed.segments_UEW > 0, packed.positions_UEW, noise(packed.lines_UEW)),
        ),
        targets_AUQ=np.where(batch.targets_AUQ > 0, batch.targets_AUQ, noise(batch.targets_AUQ)),
        sampler_logprobs_AUSC=np.where(mask_AUSC > 0, batch.sampler_logprobs_AUSC, -np.inf),
    )
    dirty = on_policy_gradient(get_learner, new_state, [dataclasses.replace(minibatch, batch=garbage)])
    assert_same(dirty, clean, tolerance=1e-6)
    numbers = [
        {name: x for name, x in found[0].items() if not isinstance(x, str)} for found in (dirty, clean)
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)


def test_metrics_of_several_updates_are_means_but_for_the_largest(get_learner, new_state, off_policy):
    used = get_learner("data 8", loss_type="grpo", beta=0.0)
    state, minibatches = new_state("data 8"), pack(*off_policy)
    rollout, advantages_PG = off_policy
    worse = pack(*in_order(rollout, 3 * advantages_PG, np.arange(ROWS)))
    one, two = (
        used.learn(new_state("data 8"), part, ref_params=None, num_iterations=1)[1]
        for part in (minibatches, worse)
    )
    _, both = used.learn(state, [*minibatches, *worse], ref_params=None, num_iterations=1)
    assert both["loss"] == pytest.approx((one["loss"] + two["loss"]) / 2, rel=1e-4)
    assert both["grad_norm"] == pytest.approx((one["grad_norm"] + two["grad_norm"]) / 2, rel=1e-4)
    name = "sampling/sampling_logp_difference/max"
    assert both[name] == pytest.approx(max(one[name], two[name]), abs=1e-5)


@pytest.mark.parametrize("mesh_name", ["data 8", "fsdp 8", "tensor 2 x fsdp 4"])
def test_one_microbatch_is_learned_on_every_mesh(get_learner, new_state, off_policy, mesh_name):
    """XLA would take the only microbatch out of the loop, and on a CPU devices then waited for each other."""
    shards = 4 if "tensor" in mesh_name else 8
    minibatches = small_batches.pack(*off_policy, num_shards=shards, rows_per_device=24)
    assert len(minibatches[0].batch.start_AUS) == 1
    used = get_learner(mesh_name, loss_type="dapo", beta=BETA)
    state = new_state(mesh_name)
    reference = train_state.frozen_copy(state.params, dtype=jnp.float32)
    _, metrics = used.learn(state, minibatches, ref_params=reference, num_iterations=1)
    assert metrics["grad_norm"] > 0


def test_the_kl_of_a_rollout_is_each_completions_own(
    get_learner, new_state, off_policy, own_logprobs, host_params
):
    used = get_learner("data 8", loss_type="rloo", beta=BETA)
    rollout, advantages_PG = off_policy
    state = new_state("data 8")
    moved = jax.tree.map(lambda leaf: 1.05 * leaf, new_state("data 8").params)
    minibatches = pack(rollout, np.ones_like(advantages_PG))
    kl_PG = used.rollout_kl(state.params, minibatches, ref_params=moved, shape=advantages_PG.shape)
    for p, problem in enumerate(rollout.problems):
        for g, completion in enumerate(rollout.completions[p]):
            old_C = own_logprobs(problem.prompt_ids, completion.ids)
            ref_C = own_logprobs(problem.prompt_ids, completion.ids, params=jax.device_get(moved))
            expected = (np.exp(ref_C - old_C) - (ref_C - old_C) - 1).sum()
            # sums of up to ten differences of log-probabilities, each known to a few 1e-6
            assert kl_PG[p, g] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert kl_PG.max() > 1e-3


def test_only_tokens_of_high_entropy_are_trained_when_asked(get_learner, new_state, off_policy):
    """A quantile so small that one token is left has the gradient of that token's row alone."""
    minibatches = pack(*off_policy)
    gradients = {}
    for share in (1.0, 0.5, 1e-6):
        used = get_learner("data 8", loss_type="dapo", top_entropy_quantile=share)
        metrics = used.learn(new_state("data 8"), minibatches, ref_params=None, num_iterations=1)[1]
        gradients[share] = metrics["grad_norm"]
        part = used._with_old(new_state("data 8").params, None, used.put(minibatches)[0])
        if share < 1:
            mask = np.asarray(part.batch.completion_mask_AUSC)
            kept = np.asarray(part.batch.entropy_mask_AUSC)
            assert kept.sum() == max(1, np.ceil(share * mask.sum()))
            entropy = np.asarray(used.score(new_state("data 8").params, None, *part[:2]).entropy_AUSC)
            assert entropy[kept > 0].min() >= entropy[(mask > 0) & (kept == 0)].max()
    assert len({round(norm, 6) for norm in gradients.values()}) == 3
