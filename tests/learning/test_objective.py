"""The whole objective against float64 loops: value and gradient, for every choice, and where numbers get wild."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learning import objective
from grpo_jax.learning.corrections import SAMPLER_CORRECTIONS
from grpo_jax.learning.objective import LOSS_TYPES, LossParams, Rows, Totals
from tests.learning import plain_objective

LENGTHS = (5, 1, 3, 0, 4, 2)  # tokens of each row: one of one, one of none
COLUMNS = 5
TOTALS = Totals(6.0, 15.0, 19.0)  # the step's other minibatches have more tokens


def params(**changes: Any) -> LossParams:
    settings = {
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "temperature": 1.0,
        "max_completion_length": 7,
    }
    return LossParams(**{**settings, **changes})


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """float64; ratios from about 0.3 to 3, so that every limit bites somewhere."""
    rng = np.random.default_rng(3)
    shape = (len(LENGTHS), COLUMNS)
    old = -2.0 + 0.5 * rng.standard_normal(shape)
    return {
        "logprobs": old + 0.4 * rng.standard_normal(shape),
        "old": old,
        "sampler": old + 0.7 * rng.standard_normal(shape),
        "ref": old + 0.5 * rng.standard_normal(shape),
        "entropy": rng.random(shape) * 2,
        "mask": (np.arange(COLUMNS) < np.array(LENGTHS)[:, None]).astype(np.float64),
        "kept": (rng.random(shape) < 0.6).astype(np.float64),
        "advantages": np.array([1.3, -0.7, -2.0, 0.4, 0.9, -0.4]),
    }


def ours(a: dict[str, np.ndarray], chosen: LossParams, *, top_entropy: bool = False, moved: bool = True):
    """((loss, (sums, largest)), gradient by logprobs and entropy) in float32."""
    a = {name: jnp.asarray(x, jnp.float32) for name, x in a.items()}
    rows = Rows(
        mask_BC=a["mask"],
        advantages_B=a["advantages"],
        sampler_logprobs_BC=a["sampler"],
        old_logprobs_BC=a["old"] if moved else None,
        ref_logprobs_BC=a["ref"] if chosen.penalises_loss else None,
        entropy_mask_BC=a["kept"] if top_entropy else None,
    )
    totals = Totals(*map(jnp.float32, TOTALS))
    loss = partial(objective.microbatch_loss, rows=rows, totals=totals, params=chosen)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(a["logprobs"], a["entropy"])


def assert_equals_the_loops(a: dict[str, np.ndarray], chosen: LossParams, **how: Any) -> None:
    (loss, _), (gradient_BC, _) = ours(a, chosen, **how)
    kept = a["kept"] if how.get("top_entropy") else np.ones_like(a["mask"])
    old = a["old"] if how.get("moved", True) else a["logprobs"]
    rest = (old, a["sampler"], a["ref"], a["entropy"], a["mask"], kept, a["advantages"], TOTALS, chosen)
    assert float(loss) == pytest.approx(
        plain_objective.loss(a["logprobs"], a["logprobs"], *rest), rel=2e-5, abs=2e-6
    )
    expected_BC = plain_objective.gradient(a["logprobs"], *rest)
    assert np.abs(expected_BC).max() > 1e-3  # there is something to compare
    # float32 against float64; a sum of 15 terms of size 1
    np.testing.assert_allclose(gradient_BC, expected_BC, atol=1e-6, rtol=2e-5)


def test_the_loops_know_every_loss_type():
    assert set(plain_objective.POLICIES) == set(LOSS_TYPES)


@pytest.mark.parametrize("loss_type", sorted(LOSS_TYPES))
def test_every_loss_type_equals_the_loops_off_and_on_policy(arrays, loss_type):
    assert_equals_the_loops(arrays, params(loss_type=loss_type))
    assert_equals_the_loops(arrays, params(loss_type=loss_type), moved=False)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token"])
@pytest.mark.parametrize("loss_type", ["grpo", "cispo", "sapo"])
def test_every_level_equals_the_loops(arrays, loss_type, level):
    assert_equals_the_loops(arrays, params(loss_type=loss_type, importance_sampling_level=level))


@pytest.mark.parametrize("aggregation", sorted(objective.AGGREGATIONS))
def test_an_aggregation_can_be_chosen_for_any_loss(arrays, aggregation):
    assert_equals_the_loops(arrays, params(loss_type="gspo", aggregation=aggregation))


@pytest.mark.parametrize("correction", sorted(set(SAMPLER_CORRECTIONS) - {"none"}))
def test_the_correction_of_the_sampler_weighs_the_policy_and_not_the_kl(arrays, correction):
    chosen = params(sampler_correction=correction, sampler_correction_cap=1.4, beta=0.3)
    assert_equals_the_loops(arrays, chosen)
    assert_equals_the_loops(arrays, chosen, moved=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.3, "kl_estimator": "k2"},
        {"beta": 0.3, "kl_estimator": "k3"},
        {"beta": 0.3, "kl_estimator": "k3_unbiased"},
        {"beta": 0.3, "kl_estimator": "k3_unbiased", "loss_type": "gspo"},
        {"beta": 0.3, "kl_in": "loss", "loss_type": "rloo"},
        {"beta": 0.3, "kl_in": "reward"},  # no term of the loss
        {"delta": 1.6},
        {"log_ratio_clamp": 0.5, "beta": 0.3},
        {"log_ratio_clamp": 0.0},
        {"loss_type": "sapo", "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 3.0},
    ],
    ids=str,
)
def test_every_other_choice_equals_the_loops(arrays, changes):
    assert_equals_the_loops(arrays, params(**changes))


def test_the_top_entropy_mask_leaves_out_policy_terms_and_keeps_the_kl_and_the_shares(arrays):
    chosen = params(loss_type="grpo", beta=0.3, top_entropy_quantile=0.6)
    assert_equals_the_loops(arrays, chosen, top_entropy=True)
    (full, _), _ = ours(arrays, chosen)
    (masked, _), _ = ours(arrays, chosen, top_entropy=True)
    assert float(full) != pytest.approx(float(masked), rel=1e-3)


def test_the_entropy_bonus_is_a_mean_over_tokens_and_pushes_entropy_up(arrays):
    chosen = params(loss_type="dr_grpo", entropy_coef=0.01)
    assert_equals_the_loops(arrays, chosen)
    _, (_, by_entropy_BC) = ours(arrays, chosen)
    np.testing.assert_allclose(by_entropy_BC, -0.01 / 15 * arrays["mask"], rtol=1e-6)  # of 15 tokens
    assert_equals_the_loops(arrays, chosen, top_entropy=True)
    _, (_, by_entropy_BC) = ours(arrays, chosen, top_entropy=True)
    np.testing.assert_allclose(by_entropy_BC, -0.01 / 15 * arrays["mask"] * arrays["kept"], rtol=1e-6)


EVERYTHING = [
    {
        "loss_type": loss_type,
        "beta": 0.1,
        "kl_in": "loss",
        "entropy_coef": 0.01,
        "sampler_correction": "token_mask",
    }
    for loss_type in sorted(LOSS_TYPES)
] + [{"beta": 0.1, "kl_estimator": "k3_unbiased", "sampler_correction": "sequence_truncate", "delta": 2.0}]


@pytest.mark.parametrize("changes", EVERYTHING, ids=lambda changes: changes.get("loss_type", "other"))
def test_loss_and_sums_do_not_depend_on_how_a_minibatch_is_cut(arrays, changes):
    chosen = params(**changes)
    (whole, (sums, largest)), (gradient_BC, _) = ours(arrays, chosen, top_entropy=True)
    parts = [
        ours({name: x[cut] for name, x in arrays.items()}, chosen, top_entropy=True)
        for cut in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert sum(float(part[0][0]) for part in parts) == pytest.approx(float(whole), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(np.concatenate([part[1][0] for part in parts]), gradient_BC, rtol=1e-5)
    for name in objective.SUMS:
        total = sum(float(part[0][1][0][name]) for part in parts)
        assert total == pytest.approx(float(sums[name]), rel=1e-5), name
    for name in objective.LARGEST:
        assert max(float(part[0][1][1][name]) for part in parts) == float(largest[name]), name


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30, 1e4, -1e4])
@pytest.mark.parametrize("changes", EVERYTHING, ids=lambda changes: changes.get("loss_type", "other"))
def test_what_stands_at_masked_places_reaches_neither_loss_nor_gradient_nor_metrics(arrays, changes, garbage):
    chosen = params(**changes)
    plain = ours(arrays, chosen, top_entropy=True)
    dirty = {name: np.where(arrays["mask"] > 0, x, garbage) for name, x in arrays.items() if x.ndim == 2}
    dirty |= {
        "mask": arrays["mask"],
        "advantages": np.where(arrays["mask"].any(1), arrays["advantages"], garbage),
    }
    jax.tree.map(np.testing.assert_array_equal, ours(dirty, chosen, top_entropy=True), plain)
    assert (np.asarray(plain[1][0])[arrays["mask"] == 0] == 0).all()


@pytest.mark.parametrize("changes", EVERYTHING, ids=lambda changes: changes.get("loss_type", "other"))
@pytest.mark.parametrize("field", ["logprobs", "old", "sampler", "ref"])
def test_extreme_ratios_are_finite_and_right(arrays, changes, field):
    chosen = params(**changes)
    wild = arrays | {field: arrays[field].copy()}
    wild[field][0, 0], wild[field][1, 0], wild[field][2, 2], wild[field][4, 1] = -1e4, -1e4, -500.0, -60.0
    (loss, (sums, largest)), (gradient_BC, by_entropy_BC) = ours(wild, chosen, top_entropy=True)
    rest = (wild["old"], wild["sampler"], wild["ref"], wild["entropy"], wild["mask"], wild["kept"])
    rest = (*rest, wild["advantages"], TOTALS, chosen)
    expected = plain_objective.loss(wild["logprobs"], wild["logprobs"], *rest)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert all(np.isfinite(x).all() for x in (gradient_BC, by_entropy_BC, *sums.values(), *largest.values()))
    expected_BC = plain_objective.gradient(wild["logprobs"], *rest)
    # a difference quotient of a sum as large as the loss has so many digits
    np.testing.assert_allclose(gradient_BC, expected_BC, rtol=1e-4, atol=1e-6 + 1e-9 * abs(expected))


@pytest.mark.parametrize("loss_type", sorted(LOSS_TYPES))
def test_a_microbatch_with_nothing_to_train_on_costs_nothing(arrays, loss_type):
    empty = arrays | {"mask": np.zeros_like(arrays["mask"])}
    chosen = params(
        loss_type=loss_type, beta=0.1, kl_in="loss", entropy_coef=0.1, sampler_correction="sequence_mask"
    )
    (loss, (sums, largest)), gradients = ours(empty, chosen)
    for number in (loss, *sums.values(), *largest.values(), *gradients):
        np.testing.assert_array_equal(number, np.zeros_like(number))


@pytest.mark.parametrize("loss_type", sorted(LOSS_TYPES))
def test_a_completion_of_one_token_has_equal_ratios_of_token_and_sequence(arrays, loss_type):
    short = {name: x[1:2] for name, x in arrays.items()}  # the row of one token
    if loss_type in ("no_baseline", "reinforce_with_baseline"):
        return
    of_token, of_sequence = (
        ours(short, params(loss_type=loss_type, importance_sampling_level=level))
        for level in ("token", "sequence")
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), of_token, of_sequence)


@pytest.mark.parametrize("loss_type", ["gspo", "grpo"])
def test_a_sequence_ratio_on_policy_has_the_gradient_of_the_token_one(arrays, loss_type):
    """Ratios are 1: the mean over tokens of the sequence's gradient is what each token has of its own."""
    of_token = ours(arrays, params(loss_type=loss_type, importance_sampling_level="token"), moved=False)[1][0]
    of_sequence = ours(
        arrays, params(loss_type=loss_type, importance_sampling_level="sequence"), moved=False
    )[1][0]
    np.testing.assert_allclose(of_sequence, of_token, rtol=1e-5, atol=1e-8)


def test_metrics_by_hand():
    # two tokens of A = 1 with ratios 0.5 and 2, one of A = -1 with ratio 0.5; sampler gaps ln 2, 0, ln 4
    ln2 = float(np.log(2))
    a = {
        "logprobs": np.array([[-1 - ln2, -1 + ln2], [-1 - ln2, 0.0]]),
        "old": np.full((2, 2), -1.0),
        "sampler": np.array([[-1 - ln2, -1.0], [-1 - 2 * ln2, 0.0]]),
        "ref": np.array([[-1.0, -1.0], [-1.0, 0.0]]),
        "entropy": np.array([[0.5, 1.0], [3.0, 9.0]]),
        "mask": np.array([[1.0, 1.0], [1.0, 0.0]]),
        "advantages": np.array([1.0, -1.0]),
        "kept": np.ones((2, 2)),
    }
    chosen = params(beta=0.1, sampler_correction="token_truncate", sampler_correction_cap=3.0)
    (_, (sums, largest)), _ = ours(a, chosen)
    metrics = {name: float(x) for name, x in objective.metrics_of(sums, largest, chosen).items()}
    assert metrics == pytest.approx(
        {
            "entropy": 1.5,
            "clip_ratio/low_mean": 1 / 3,  # the ratio 0.5 of A = -1
            "clip_ratio/high_mean": 1 / 3,  # the ratio 2 of A = 1
            "clip_ratio/region_mean": 2 / 3,
            "kl": (0.306853 + 0.193147 + 0.306853) / 3,  # d = ln 2, -ln 2, ln 2
            "ratio/max": 2.0,
            "sampling/sampling_logp_difference/mean": ln2,
            "sampling/sampling_logp_difference/max": 2 * ln2,
            "sampling/importance_sampling_ratio/mean": 2.0,  # 2, 1 and 4, which counts 3
            "sampling/importance_sampling_ratio/max": 3.0,
            "sampling/importance_sampling_ratio/limited": 1 / 3,
        },
        rel=1e-5,
    )
    plain = objective.metrics_of(*objective.no_sums(), params())
    assert not {"kl", "sampling/importance_sampling_ratio/mean"} & set(plain)
    assert all(float(x) == 0 for x in plain.values())


def test_where_the_kl_is_and_whether_rows_without_advantage_learn():
    assert not params().penalises_loss and not params().penalises_reward
    assert params(beta=0.1).penalises_loss and params(beta=0.1).learns_without_advantage
    assert params(loss_type="reinforce++", beta=0.1).penalises_reward
    assert not params(loss_type="reinforce++", beta=0.1).learns_without_advantage
    assert params(loss_type="rloo", beta=0.1, kl_in="loss").penalises_loss
    assert params(entropy_coef=0.1).learns_without_advantage
