"""The collector's numbers, and that rewards stay with their completion."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.learning import advantages
from grpo_jax.rewards import registry
from grpo_jax.rewards.pool import Judge
from grpo_jax.rollout import (
    Collector,
    column_means,
    digests_of,
    hidden_share,
    shuffled,
    statistics,
    task_means,
)
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.structs import OUTCOMES, Completion, Judgement, Problem, Rollout
from tests.sampling.small_samplers import make_engine

OWN_REWARD = '''
def first_token(attempt):
    """The first id of the completion and the problem's number: names the completion it belongs to."""
    return float(attempt.completion.split()[0]) + 1000.0 * float(attempt.question)
'''


def test_every_reward_belongs_to_its_own_completion(tiny_model, tiny_params, mesh, tmp_path, rng):
    (tmp_path / "own.py").write_text(OWN_REWARD)
    engine = make_engine(tiny_model, mesh, slots=8, generations=4, completion=16)
    problems = [Problem(i, str(i), "", "", tuple(rng.integers(8, 90, 3 + i).tolist())) for i in range(5)]
    weights = SamplingWeights(tiny_model, mesh=mesh, shapes=tiny_params, dtype=jnp.float32)(tiny_params)
    specs = registry.resolve(f"{tmp_path / 'own.py'}:first_token", "2.0")
    with Judge(specs, num_workers=2) as judge:
        collector = Collector(
            engine,
            judge=judge,
            decode_text=lambda arrays: [" ".join(map(str, ids)) for ids in arrays],
            num_generations=4,
            temperature=1.0,
        )
        rollout = collector.collect(weights, problems, step_key=jax.random.key(0))
    for p in range(5):
        for g in range(4):
            expected = 2.0 * (float(rollout.completions[p][g].ids[0]) + 1000.0 * p)
            assert rollout.rewards_PG[p, g] == expected
            assert rollout.rewards_PGF[p, g].tolist() == [expected / 2.0]
            assert rollout.texts[p][g].split()[0] == str(rollout.completions[p][g].ids[0])
    assert rollout.metrics["reward"] == pytest.approx(float(rollout.rewards_PG.mean()))
    assert rollout.metrics["outcome/scored"] == 1.0


def of_table(table_PGX, specs):
    weights_F = np.array([spec.weight for spec in specs])
    return statistics(table_PGX, advantages.total(table_PGX[..., : len(specs)], weights_F), specs)


def test_statistics_by_hand():
    specs = registry.resolve("accuracy,format", "1.0,0.5")
    correct, wrong, cut = OUTCOMES.index("correct"), OUTCOMES.index("wrong"), OUTCOMES.index("unparsable")
    table_PGX = np.array(
        [[[1, 1, 10, 1, correct], [0, 1, 20, 1, wrong]], [[0, 0, 30, 0, cut], [0, 0, 30, 0, cut]]], np.float32
    )
    metrics = of_table(table_PGX, specs)
    assert metrics["reward"] == pytest.approx((1.5 + 0.5 + 0 + 0) / 4)
    assert metrics["reward_std"] == pytest.approx(0.25)  # (0.5 + 0) / 2
    assert metrics["frac_reward_zero_std"] == 0.5
    assert metrics["accuracy"] == 0.25
    assert metrics["rewards/format/mean"] == 0.5
    assert metrics["completions/mean_length"] == 22.5
    assert metrics["completions/clipped_ratio"] == 0.5
    assert metrics["completions/num_tokens"] == 90
    assert metrics["outcome/unparsable"] == 0.5


def test_what_says_nothing_is_left_out_of_every_mean():
    specs = registry.resolve("accuracy,format", "1.0,0.5")
    nan, scored = np.nan, OUTCOMES.index("scored")
    rest = [1, 1, scored]
    table_PGX = np.array(
        [
            [[1, nan, *rest], [nan, 1, *rest], [nan, nan, *rest]],  # 1 and 0.5, one left out
            [[0, 1, *rest], [nan, 1, *rest], [nan, nan, *rest]],  # 0.5 twice, one left out
            [[nan, nan, *rest]] * 3,
        ],
        np.float32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of means over nothing
        metrics = of_table(table_PGX, specs)
        nothing = of_table(table_PGX[2:], specs)
    assert metrics["reward"] == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4)
    assert metrics["reward_std"] == pytest.approx((0.25 + 0) / 2)
    assert metrics["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert metrics["frac_reward_ignored"] == pytest.approx(5 / 9)
    assert metrics["rewards/accuracy/mean"] == 0.5  # of 1 and 0
    assert metrics["rewards/format/mean"] == 1.0
    assert metrics["outcome/failed"] == 0.0
    assert np.isnan([nothing["reward"], nothing["reward_std"], nothing["rewards/format/mean"]]).all()
    assert nothing["frac_reward_zero_std"] == nothing["frac_reward_ignored"] == 1.0


def test_means_of_columns_are_over_the_completions_that_have_them():
    logged = [{"a": 1.0, "b": 2.0}, {"a": 4.0, "text": "x"}, {}, {"c": -1.0}]
    means = column_means([Judgement((1.0,), "scored", columns=columns) for columns in logged])
    assert means == {"columns/a/mean": 2.5, "columns/b/mean": 2.0, "columns/c/mean": -1.0}
    assert column_means([]) == {}


GROUP_REWARD = """
from grpo_jax.rewards.grade import Grade


def place(attempts):
    good = all(a.question == attempts[0].question and a.max_tokens == 16 for a in attempts)
    good = good and all((a.prompt, a.prefill, a.extra) == ("prompt", "prefill", {"row": int(a.question)}) for a in attempts)
    return [Grade(float(g), columns={"good": good, "first": a.completion}) for g, a in enumerate(attempts)]
"""


def test_a_function_of_attempts_sees_whole_groups_with_all_that_the_problem_has(
    tiny_model, tiny_params, mesh, tmp_path, rng
):
    (tmp_path / "own.py").write_text(GROUP_REWARD)
    engine = make_engine(tiny_model, mesh, slots=8, generations=4, completion=16)
    problems = [
        Problem(
            i,
            str(i),
            "",
            "prompt",
            tuple(rng.integers(8, 90, 4).tolist()),
            prefill="prefill",
            extra={"row": i},
        )
        for i in range(4)
    ]
    weights = SamplingWeights(tiny_model, mesh=mesh, shapes=tiny_params, dtype=jnp.float32)(tiny_params)
    with Judge(registry.resolve(f"{tmp_path / 'own.py'}:place"), num_workers=2) as judge:
        collector = Collector(
            engine,
            judge=judge,
            decode_text=lambda arrays: [str(ids[0]) for ids in arrays],
            num_generations=4,
            temperature=1.0,
        )
        rollout = collector.collect(weights, problems, step_key=jax.random.key(0))
    assert rollout.rewards_PG.tolist() == [[0.0, 1.0, 2.0, 3.0]] * 4
    assert rollout.metrics["columns/good/mean"] == 1.0
    assert [j.columns["first"] for j in rollout.judgements[2]] == rollout.texts[2]


def test_the_hidden_share_of_judging_by_hand():
    judgements = [Judgement((1.0,), "scored", seconds=0.5)] * 8  # 4 s of work, 2 s for two workers
    assert hidden_share(judgements, 0.5, num_workers=2) == 0.75
    assert hidden_share(judgements, 3.0, num_workers=2) == 0.0  # waited longer than judging alone takes
    assert hidden_share([], 0.0, num_workers=2) == 1.0


def test_shuffling_deals_the_same_rewards_to_other_rows_and_follows_seed_and_step():
    rewards_PG = np.arange(32, dtype=np.float32).reshape(4, 8)
    dealt = shuffled(rewards_PG, seed=0, step=1)
    assert sorted(dealt.reshape(-1)) == sorted(rewards_PG.reshape(-1))
    assert (dealt != rewards_PG).mean() > 0.5
    np.testing.assert_array_equal(dealt, shuffled(rewards_PG, seed=0, step=1))
    assert (dealt != shuffled(rewards_PG, seed=0, step=2)).any()
    both_PGF = np.stack([rewards_PG, -rewards_PG], axis=-1)  # rewards of one completion stay together
    np.testing.assert_array_equal(shuffled(both_PGF, seed=0, step=1), np.stack([dealt, -dealt], axis=-1))


def test_each_task_of_a_mixture_has_its_own_means():
    correct, wrong = OUTCOMES.index("correct"), OUTCOMES.index("wrong")
    rewards_PG = np.array([[1.0, 0.0], [0.5, np.nan], [1.0, 1.0]], np.float32)
    outcome_PG = np.array([[correct, wrong], [wrong, wrong], [correct, correct]], np.float32)
    metrics = task_means(["sums", "math", "sums"], rewards_PG, outcome_PG)
    assert metrics == {"reward/sums": 0.75, "accuracy/sums": 0.75, "reward/math": 0.5, "accuracy/math": 0.0}
    assert task_means(["sums"] * 3, rewards_PG, outcome_PG) == {}


def test_digests_follow_ids_ends_order_and_rewards_and_nothing_else():
    def told(ids=((1, 2), (3,)), ended=(True, False), rewards=(1.0, np.nan), logprob=-1.0) -> dict[str, str]:
        group = [
            Completion(np.array(own, np.int32), np.full(len(own), logprob, np.float32), ended=end)
            for own, end in zip(ids, ended, strict=True)
        ]
        rewards_PGF = np.array(rewards, np.float32)[None, :, None]
        return digests_of(Rollout([], [group], [], [], rewards_PGF[..., 0], {}, rewards_PGF))

    def changed(**values) -> set[str]:
        return {name for name, text in told(**values).items() if text != told()[name]}

    assert changed() == changed(logprob=-2.0) == changed(rewards=(1.0, -np.float32(np.nan))) == set()
    for samples in (
        {"ids": ((1, 2), (4,))},
        {"ids": ((1,), (2, 3))},
        {"ids": ((3,), (1, 2)), "ended": (False, True)},
    ):
        assert changed(**samples) == {"digest/samples"}
    assert changed(ended=(True, True)) == {"digest/samples"}
    assert changed(rewards=(np.nan, 1.0)) == {"digest/rewards"}
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in told().values())
