"""The learning step: on-policy identities, and a gradient that depends on the data alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import losses, train_state
from grpo_jax.models import decoder
from grpo_jax.structs import Completion, Rollout
from tests.learning import small_batches
from tests.learning.small_batches import NUM_VALID, learner, pack, random_rollout

BETA, NUM_PROBLEMS, GENERATIONS = 0.04, 4, 6  # 24 rows
ROWS = NUM_PROBLEMS * GENERATIONS


@pytest.fixture(scope="module")
def meshes() -> dict[str, jax.sharding.Mesh]:
    one = np.array(jax.devices()[:1]).reshape(1, 1, 1)
    return {
        "one device": jax.sharding.Mesh(one, mesh_lib.AXES),
        "data 8": mesh_lib.create(data=8, fsdp=1, tensor=1),
        "fsdp 8": mesh_lib.create(data=1, fsdp=8, tensor=1),
        "tensor 2 x fsdp 4": mesh_lib.create(data=1, fsdp=4, tensor=2),
    }


@pytest.fixture(scope="module")
def shapes(tiny_model):
    return decoder.build(tiny_model.spec)[1]


@pytest.fixture(scope="module")
def host_params(tiny_params):
    return jax.device_get(tiny_params)


@pytest.fixture(scope="module")
def get_learner(tiny_model, shapes, meshes):
    """`get_learner(mesh_name, **loss)`: one that keeps the gradient; compiled once for all tests."""

    @functools.cache
    def get(mesh_name: str, **loss: Any):
        return learner(tiny_model, shapes, mesh=meshes[mesh_name], **loss)

    return get


@pytest.fixture(scope="module")
def new_state(shapes, meshes, host_params):
    def new(mesh_name: str, tx=None):
        mesh = meshes[mesh_name]
        return small_batches.fresh_state(
            host_params, mesh_lib.parameter_shardings(mesh, shapes), mesh=mesh, tx=tx
        )

    return new


@pytest.fixture(scope="module")
def own_logprobs(tiny_model, host_params) -> Callable[..., np.ndarray]:
    """The policy's log-probabilities of one completion, by a plain softmax over all logits."""

    @functools.partial(jax.jit, static_argnames="temperature")
    def compute(params, tokens_1T, valid_1T, *, temperature=1.0):
        return _plain_logprobs(tiny_model, params, tokens_1T, valid_1T, temperature)[0]

    def of(prompt: tuple[int, ...], ids: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        width, count = small_batches.PROMPT + small_batches.COMPLETION, len(prompt) + len(ids)
        tokens_1T, valid_1T = np.zeros((1, width), np.int32), np.arange(width)[None] < count
        tokens_1T[0, :count] = [*prompt, *ids]
        logprobs_1T = compute(host_params, tokens_1T, valid_1T, temperature=temperature)
        return np.asarray(logprobs_1T)[0, len(prompt) - 1 : count - 1]

    return of


def _plain_logprobs(model, params, tokens_BT, valid_BT, temperature):
    """Log-probability of each next token `[B, T - 1]`, and the entropy of what it was drawn from."""
    hidden_BTD = model.hidden_states(params, tokens_BT, valid_BT, dtype=jnp.float32)
    logits_BTV = jnp.einsum("BTD,VD->BTV", hidden_BTD, model.head(params))[:, :-1, :NUM_VALID]
    all_BTV = jax.nn.log_softmax(logits_BTV / temperature, axis=-1)
    chosen_BT = jnp.take_along_axis(all_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return chosen_BT, -(jnp.exp(all_BTV) * all_BTV).sum(-1)


@pytest.fixture(scope="module")
def off_policy(own_logprobs) -> tuple[Rollout, np.ndarray]:
    """A rollout by a policy near ours, so that some ratios are clipped on either side and some are not."""
    rollout, advantages_PG = random_rollout(0, num_problems=NUM_PROBLEMS, num_generations=GENERATIONS)
    rng = np.random.default_rng(1)

    def moved(prompt, completion: Completion) -> Completion:
        noise = 0.3 * rng.standard_normal(completion.num_tokens).astype(np.float32)
        return dataclasses.replace(completion, sampler_logprobs=own_logprobs(prompt, completion.ids) + noise)

    completions = [
        [moved(problem.prompt_ids, completion) for completion in group]
        for problem, group in zip(rollout.problems, rollout.completions, strict=True)
    ]
    return dataclasses.replace(rollout, completions=completions), advantages_PG


def in_order(rollout: Rollout, advantages_PG: np.ndarray, order: np.ndarray) -> tuple[Rollout, np.ndarray]:
    """Every row becomes a group of one, at another place."""
    cells = [divmod(int(i), GENERATIONS) for i in order]
    return (
        dataclasses.replace(
            rollout,
            problems=[rollout.problems[p] for p, _ in cells],
            completions=[[rollout.completions[p][g]] for p, g in cells],
        ),
        np.array([[advantages_PG[p, g]] for p, g in cells]),
    )


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


def assert_same(left, right, *, tolerance: float) -> None:
    """Loss, and gradient leaf by leaf, relative to the leaf's largest entry."""
    assert float(left[0]["loss"]) == pytest.approx(float(right[0]["loss"]), rel=tolerance)
    paths = jax.tree_util.tree_leaves_with_path(left[1])
    for (path, ours), other in zip(paths, jax.tree.leaves(right[1]), strict=True):
        scale = np.abs(other).max()
        assert scale > 1e-3, path  # there is something to compare
        np.testing.assert_allclose(ours, other, atol=tolerance * scale, rtol=0, err_msg=str(path))


@pytest.mark.parametrize("loss_type", sorted(losses.TOKEN_WEIGHTS))
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


@pytest.mark.parametrize("loss_type", sorted(losses.TOKEN_WEIGHTS))
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
        now_BT, entropy_BT = _plain_logprobs(tiny_model, params, flat.tokens_ABT, flat.valid_ABT, 1.0)
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
    expected = (
        -(batch.completion_mask_ABC * batch.advantages_AB[..., None]).sum() / batch.completion_mask_ABC.sum()
    )
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_minibatches_of_a_policy_that_has_not_moved_are_on_policy_too(get_learner, new_state):
    rows = random_rollout(3, num_problems=NUM_PROBLEMS * 2, num_generations=GENERATIONS)
    used = get_learner("data 8", loss_type="dapo", beta=BETA)
    state = new_state("data 8")
    reference = train_state.frozen_copy(state.params, dtype=jnp.float32)
    minibatches = pack(*rows, num_minibatches=2)
    state, metrics = used.learn(state, minibatches, ref_params=reference, num_iterations=1)
    assert int(state.num_updates) == 2
    # old log-probabilities come from a program of their own here, and this optimizer moves nothing
    assert metrics["ratio/max"] == pytest.approx(1, abs=1e-6)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    # dapo: every token of the step weighs the same, so the mean over both is that of all tokens
    mask = np.stack([part.batch.completion_mask_ABC for part in minibatches])
    advantages = np.stack([part.batch.advantages_AB for part in minibatches])
    assert metrics["loss"] == pytest.approx(-(mask * advantages[..., None]).sum() / mask.sum(), rel=1e-4)


def test_the_second_pass_over_a_rollout_finds_a_policy_that_moved(
    tiny_model, shapes, new_state, meshes, off_policy
):
    tx = optax.sgd(0.05)
    used = learner(tiny_model, shapes, mesh=meshes["one device"], tx=tx)
    minibatches = pack(*off_policy, microbatch_rows=24)
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
    assert (everything[0].num_active, shortened[0].num_active) == (3, 1)
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
    noise = rng.integers(0, NUM_VALID, batch.tokens_ABT.shape).astype(np.int32)
    garbage = batch._replace(
        tokens_ABT=np.where(batch.valid_ABT, batch.tokens_ABT, noise),
        sampler_logprobs_ABC=np.where(batch.completion_mask_ABC > 0, batch.sampler_logprobs_ABC, -np.inf),
    )
    dirty = on_policy_gradient(get_learner, new_state, [dataclasses.replace(minibatch, batch=garbage)])
    assert_same(dirty, clean, tolerance=1e-6)
    assert dirty[0] == pytest.approx(clean[0], rel=1e-6)


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
