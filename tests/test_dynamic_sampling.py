"""Which groups are replaced by which, on one process and on two, and what is told of it."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_jax import dynamic_sampling
from grpo_jax.structs import Rollout

ZERO, ONE, MIXED = (0.0, 0.0), (1.0, 1.0), (1.0, 0.0)


def rollout(groups, *, first: int, own: slice = slice(None)) -> Rollout:
    """Groups named by their number from `first` on; this process has those of `own`."""
    rewards_PG = np.array(groups, np.float32)
    names = [f"{first + p}" for p in range(len(groups))][own]
    return Rollout(
        problems=[f"problem {name}" for name in names],
        completions=[f"completions {name}" for name in names],
        texts=[f"texts {name}" for name in names],
        judgements=[f"judgements {name}" for name in names],
        rewards_PG=rewards_PG,
        metrics={
            "time/sample": 2.0,
            "time/judge": 0.5,
            "completions/num_tokens": 100.0,
            "tokens_per_second": 50.0,
            "reward": float(rewards_PG.mean()),
            "frac_reward_zero_std": float((rewards_PG[:, 0] == rewards_PG[:, 1]).mean()),
        },
        rewards_PGF=np.stack([rewards_PG, np.arange(len(groups))[:, None] + first + 0 * rewards_PG], axis=-1),
    )


class Rounds:
    """Hands out the rollouts of later rounds and keeps what was asked for."""

    def __init__(self, *rounds):
        self.rounds, self.asked = list(rounds), []

    def __call__(self, count: int, number: int) -> Rollout:
        self.asked.append((count, number))
        return self.rounds[number - 1]


def replenish(first: Rollout, rounds: Rounds, *, max_rounds=3, index=0, count=1) -> Rollout:
    return dynamic_sampling.replenish(
        first, rounds, max_rounds=max_rounds, process_index=index, process_count=count
    )


def test_groups_without_signal_are_replaced_in_order_and_all_of_a_group_moves_together():
    first = rollout([ZERO, MIXED, ONE, MIXED], first=0)
    rounds = Rounds(rollout([ONE, MIXED, MIXED, MIXED], first=10))
    result = replenish(first, rounds)
    assert rounds.asked == [(4, 1)]  # 2 are lacking and half of the groups had signal
    assert result.problems == ["problem 11", "problem 1", "problem 12", "problem 3"]
    for field in ("completions", "texts", "judgements"):
        assert getattr(result, field) == [name.replace("problem", field) for name in result.problems]
    np.testing.assert_array_equal(result.rewards_PG, [MIXED] * 4)
    np.testing.assert_array_equal(result.rewards_PGF[:, 0, 1], [11, 1, 12, 3])
    np.testing.assert_array_equal(first.rewards_PG[0], ZERO)  # what came in is as it was


def test_rounds_go_on_until_nothing_is_lacking():
    first = rollout([ZERO, MIXED, MIXED, MIXED], first=0)
    rounds = Rounds(rollout([ONE, ONE], first=10), rollout([MIXED, MIXED], first=20), None)
    result = replenish(first, rounds)
    assert rounds.asked == [(2, 1), (2, 2)]  # 1 / (3 / 4), then 1 / (3 / 6)
    assert result.problems[0] == "problem 20"
    assert result.metrics["dynamic_sampling/rounds"] == 2
    assert result.metrics["dynamic_sampling/num_problems"] == 4
    assert result.metrics["dynamic_sampling/frac_reward_zero_std"] == 0.25
    assert result.metrics["frac_reward_zero_std"] == 0
    assert result.metrics["reward"] == 0.375  # of the first collection: of all problems, hard and easy
    assert result.metrics["time/sample"] == 6 and result.metrics["completions/num_tokens"] == 300
    assert dynamic_sampling.note(result.metrics, num_groups=4) == ""


def test_what_is_left_after_the_last_round_is_used_and_told():
    first = rollout([ZERO, ZERO, ZERO], first=0)
    rounds = Rounds(rollout([ONE, ONE, ZERO], first=10), rollout([MIXED, ONE, ONE], first=20), None)
    result = replenish(first, rounds, max_rounds=2)
    assert rounds.asked == [(3, 1), (3, 2)]  # all of them while nothing has had signal
    assert result.problems == ["problem 20", "problem 1", "problem 2"]
    told = dynamic_sampling.note(result.metrics, num_groups=3)
    assert told.startswith(
        "2 of 3 groups still have equal rewards after 2 rounds of dynamic sampling, 6 problems"
    )


def test_nothing_is_sampled_where_every_group_has_signal():
    result = replenish(rollout([MIXED, MIXED], first=0), Rounds())
    assert result.metrics["dynamic_sampling/rounds"] == 0
    assert result.metrics["tokens_per_second"] == 50.0
    assert dynamic_sampling.note({"frac_reward_zero_std": 1.0}, num_groups=2) == ""  # not asked for


@pytest.mark.parametrize("own", [0, 1])
def test_two_processes_find_the_same_and_mend_their_own_share(own):
    """The first lacks two of three, the second one; three new problems each, of which one and three serve."""
    half = slice(3 * own, 3 * own + 3)
    first = rollout([ZERO, MIXED, ONE, MIXED, MIXED, ZERO], first=0, own=half)
    extra = rollout([ONE, MIXED, ONE, MIXED, MIXED, MIXED], first=10, own=half)
    rounds = Rounds(extra)
    result = replenish(first, rounds, max_rounds=1, index=own, count=2)
    assert rounds.asked == [(3, 1)]  # the first lacks 2, over a half
    assert (
        result.problems
        == [
            ["problem 11", "problem 1", "problem 2"],
            ["problem 3", "problem 4", "problem 13"],
        ][own]
    )
    np.testing.assert_array_equal(result.rewards_PG, [MIXED, MIXED, ONE, MIXED, MIXED, MIXED])
    np.testing.assert_array_equal(result.rewards_PGF[:, 0, 1], [11, 1, 2, 3, 4, 13])
    assert result.metrics["frac_reward_zero_std"] == 1 / 6
