"""Each alarm against numbers worked by hand: boundaries, streaks, references, what a checkpoint keeps of them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import pytest

from configs import base
from grpo_jax import alarms, settings_checks
from grpo_jax.alarms import GAP, LENGTH, AlarmParams, Alarms
from tests.test_settings import changed, message

HEALTHY = {
    "loss": 0.01,
    "grad_norm": 1.5,
    "reward": 0.4,
    "reward_std": 0.3,
    "accuracy": 0.4,
    "outcome/scored": 0.0,
    "frac_reward_zero_std": 0.25,
    "kl": 0.02,
    "entropy": 0.5,
    "completions/mean_length": 100.0,
    "completions/clipped_ratio": 0.1,
    "sampling/sampling_logp_difference/max": 1e-5,
}
NONE = {"reward": 0.0, "accuracy": 0.0, "reward_std": 0.0}


def raised(steps: list[dict[str, float]], **limits: Any) -> list[tuple[int, str]]:
    """(step, alarm) of all that is raised when these steps, changes of a healthy one, follow each other."""
    fields: dict[str, Any] = {"gap_limit": 1e-3} | limits
    watch = Alarms(AlarmParams(**fields))
    found = [watch.watch(step, HEALTHY | numbers) for step, numbers in enumerate(steps, start=1)]
    return [(entry.step, entry.alarm.name) for entries in found for entry in entries]


def test_healthy_numbers_raise_nothing():
    assert raised([{}] * 300) == []


@pytest.mark.parametrize(
    ("numbers", "limits", "name"),
    [
        ({"loss": math.nan}, {}, "non_finite"),
        ({"loss": -math.inf}, {}, "non_finite"),
        ({"grad_norm": math.inf}, {}, "non_finite"),
        (NONE, {"zero_reward_steps": 1}, "zero_reward"),
        (NONE | {"reward": -0.5, "reward_std": 0.2}, {"zero_reward_steps": 1}, "zero_reward"),
        (NONE | {"reward": math.nan, "reward_std": math.nan}, {"zero_reward_steps": 1}, "zero_reward"),
        (NONE | {"outcome/scored": 1.0}, {"zero_reward_steps": 1}, "zero_reward"),
        ({"frac_reward_zero_std": 1.0}, {"no_signal_steps": 1}, "no_signal"),
        ({"kl": 2.0001}, {}, "kl"),
        ({"kl": 0.11}, {"kl_limit": 0.1}, "kl"),
        ({"entropy": 0.09}, {"entropy_limit": 0.1}, "entropy"),
        ({"completions/clipped_ratio": 0.91}, {"clipped_steps": 1}, "clipped"),
        ({GAP: 1.1e-3}, {}, "gap"),
        ({GAP: 5.1}, {"gap_limit": 5.0}, "gap"),
    ],
)
def test_one_step_beyond_a_limit_raises_its_alarm(numbers, limits, name):
    assert raised([{}, numbers], **limits) == [(2, name)]


@pytest.mark.parametrize(
    ("numbers", "limits"),
    [
        (NONE | {"reward": 1e-6}, {"zero_reward_steps": 1}),  # something was earned
        (NONE | {"accuracy": 0.01}, {"zero_reward_steps": 1}),  # one was right, whatever it costs
        # a reward that knows no right answer, all costs: they differ, and so they teach
        (NONE | {"reward": -3.0, "reward_std": 1.0, "outcome/scored": 1.0}, {"zero_reward_steps": 1}),
        ({"frac_reward_zero_std": 0.99}, {"no_signal_steps": 1}),
        ({"kl": 2.0}, {}),
        ({"kl": 1e9}, {"kl_limit": 0}),
        ({"kl": math.nan}, {}),
        ({"entropy": 0.1}, {"entropy_limit": 0.1}),
        ({"completions/clipped_ratio": 0.9}, {"clipped_steps": 1}),
        ({"completions/clipped_ratio": 1.0}, {"clipped_steps": 0}),
        ({GAP: 1e-3}, {}),
        ({GAP: 9.0}, {"gap_limit": 0}),
        (NONE | {"frac_reward_zero_std": 1.0}, {"zero_reward_steps": 0, "no_signal_steps": 0}),
    ],
)
def test_a_step_at_a_limit_or_with_the_alarm_off_raises_nothing(numbers, limits):
    assert raised([numbers] * 30, **limits) == []


@pytest.mark.parametrize(
    ("numbers", "name", "field"),
    [
        (NONE, "zero_reward", "zero_reward_steps"),
        ({"frac_reward_zero_std": 1.0}, "no_signal", "no_signal_steps"),
        ({"completions/clipped_ratio": 1.0}, "clipped", "clipped_steps"),
    ],
)
def test_a_streak_is_counted_anew_after_a_good_step(numbers, name, field):
    bad, steps = [numbers], 3
    assert raised(bad * 2 + [{}] + bad * 2, **{field: steps}) == []
    assert raised(bad * 2 + [{}] + bad * 3, **{field: steps}) == [(6, name)]


def test_the_first_steps_are_the_measure_and_not_measured():
    # mean entropy 0.4, a tenth of it is 0.04; mean length 100, three times that is 300
    first = [{"entropy": 0.2, LENGTH: 50.0}, {"entropy": 0.6, LENGTH: 150.0}]
    limits = {"first_steps": 2, "entropy_share": 0.1, "length_factor": 3.0}
    assert raised([{"entropy": 1e-9, LENGTH: 1e9}] * 2, **limits) == []
    assert raised([*first, {"entropy": 0.041, LENGTH: 300.0}], **limits) == []
    assert raised([*first, {"entropy": 0.039}], **limits) == [(3, "entropy")]
    assert raised([*first, {LENGTH: 300.1}], **limits) == [(3, "length")]
    assert (
        raised([*first, {"entropy": 1e-9, LENGTH: 1e9}], first_steps=2, entropy_share=0, length_factor=0)
        == []
    )


def test_a_step_without_a_metric_says_nothing_of_it():
    watch = Alarms(AlarmParams())
    assert (
        watch.watch(1, {"loss": 0.1, "grad_norm": 1.0, "entropy": 0.2}) == []
    )  # as a supervised run tells it
    (found,) = watch.watch(2, {"loss": math.nan, "grad_norm": 1.0, "entropy": math.nan})
    assert found.line == "alarm non_finite at step 2: the loss is nan, the gradient's norm 1: not finite"


def test_an_alarm_that_is_not_watched_is_silent_and_the_cure_names_the_runs_own_rate():
    watch = Alarms(AlarmParams(), watched={"non_finite"}, learning_rate="config.sft.learning_rate")
    assert watch.watch(1, HEALTHY | {"kl": 99.0}) == []
    (found,) = watch.watch(2, {"loss": math.inf, "grad_norm": 1.0})
    assert found.alarm.cure == "lower config.sft.learning_rate"


def test_a_warning_is_told_once_and_again_after_a_hundred_steps():
    bad = {"kl": 3.0}
    assert raised([bad] * 250) == [(1, "kl"), (101, "kl"), (201, "kl")]
    assert raised([bad, {}] * 60) == [(1, "kl"), (101, "kl")]  # it comes and goes: as rarely


def test_a_line_says_the_value_the_limit_and_how_long_it_has_lasted():
    watch = Alarms(AlarmParams(clipped="stop", clipped_steps=3, clipped_limit=0.5))
    for step in (7, 8):
        assert watch.watch(step, HEALTHY | {"completions/clipped_ratio": 0.75}) == []
    (found,) = watch.watch(9, HEALTHY | {"completions/clipped_ratio": 0.75})
    assert (found.action, found.step, found.since) == ("stop", 9, 7)
    assert found.line == (
        "alarm clipped at step 9: the share of completions that were cut is 0.75, above "
        "config.alarms.clipped_limit 0.5, for 3 steps in a row, since step 7"
    )


def test_an_alarm_that_acts_is_raised_at_every_step():
    assert raised([{"kl": 3.0}] * 3, kl="roll_back") == [(1, "kl"), (2, "kl"), (3, "kl")]


def test_a_stop_goes_before_a_roll_back_and_both_before_a_warning():
    watch = Alarms(AlarmParams(kl="roll_back", gap="stop", entropy="warn", entropy_limit=9.0, gap_limit=1.0))
    found = watch.watch(1, HEALTHY | {"kl": 3.0, GAP: 2.0})
    assert [entry.alarm.name for entry in found] == ["kl", "entropy", "gap"]
    worst = alarms.worst(found)
    assert worst and worst.alarm.name == "gap"
    again = alarms.worst(found[:2])
    assert again and again.alarm.name == "kl"
    assert alarms.worst(found[1:2]) is None and alarms.worst([]) is None


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_watch_goes_on_from_its_state_as_if_it_had_not_stopped(cut):
    """Streaks, references and warnings, through JSON, cut at every place."""
    limits = AlarmParams(no_signal="stop", no_signal_steps=4, first_steps=3, length_factor=2.0, gap_limit=1.0)
    flat, long = {"frac_reward_zero_std": 1.0}, {LENGTH: 1000 / 3}
    steps = [{"entropy": 1 / 3}, {}, {}, flat, long | flat, flat, flat, flat, {}, long, {}, long | flat]
    straight, first = Alarms(limits), Alarms(limits)
    expected = [straight.watch(step, HEALTHY | numbers) for step, numbers in enumerate(steps, start=1)]
    for step in range(1, cut + 1):
        first.watch(step, HEALTHY | steps[step - 1])
    second = Alarms(limits)
    second.set_state(json.loads(json.dumps(first.state())))
    rest = [second.watch(step, HEALTHY | steps[step - 1]) for step in range(cut + 1, len(steps) + 1)]
    plain = [[entry._replace(alarm=entry.alarm.name) for entry in entries] for entries in rest]
    assert plain == [[entry._replace(alarm=entry.alarm.name) for entry in e] for e in expected[cut:]]
    assert second.state() == straight.state()
    assert [entry.step for entries in expected for entry in entries] == [5, 7, 8]  # long, then flat since 4


def test_a_state_is_not_changed_by_what_is_watched_later():
    watch = Alarms(AlarmParams())
    watch.watch(1, HEALTHY)
    before = watch.state()
    kept = json.dumps(before)
    watch.watch(2, HEALTHY | {"frac_reward_zero_std": 1.0})
    assert json.dumps(before) == kept


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("kl", "panic", "config.alarms.kl is 'panic'; known are warn, stop, roll_back."),
        (
            *("non_finite", "warn"),
            "config.alarms.non_finite is 'warn', but nothing can be learned with weights that are not finite; "
            "set 'stop' or 'roll_back'.",
        ),
        ("zero_reward_steps", -1, "config.alarms.zero_reward_steps must be at least 0; got -1."),
        ("kl_limit", math.nan, "config.alarms.kl_limit must be at least 0; got nan."),
        ("first_steps", 0, "config.alarms.first_steps must be at least 1; got 0."),
        ("max_roll_backs", -1, "config.alarms.max_roll_backs must be at least 0; got -1."),
        ("entropy_share", 1.0, "config.alarms.entropy_share must lie in [0, 1); got 1.0."),
        ("length_factor", 0.5, "config.alarms.length_factor must be above 1, or 0 for none; got 0.5."),
        (
            *("gap_limit", -2.0),
            "config.alarms.gap_limit must be at least 0, or -1 for a bound by the arithmetic; got -2.0.",
        ),
    ],
)
def test_a_wrong_field_is_told_in_one_line(field, value, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        AlarmParams(**{field: value})


def test_base_has_the_defaults_of_the_room():
    assert base.get_config().to_dict()["alarms"] == dataclasses.asdict(AlarmParams())


@pytest.mark.parametrize(("steps", "limit"), [(1, 1), (2, 2), (11, 2), (12, 3), (21, 3), (22, 4)])
def test_a_checkpoint_from_before_a_streak_must_be_kept(steps, limit):
    """Saves each 10 steps: a streak of 11 steps has at most one save before it acts, one of 12 two."""
    fields = {
        "alarms__no_signal": "roll_back",
        "alarms__no_signal_steps": steps,
        "checkpoint__save_steps": 10,
    }
    settings_checks.check(changed(**fields, checkpoint__save_total_limit=limit), num_processes=1)
    if limit > 1:
        told = message(**fields, checkpoint__save_total_limit=limit - 1)
        assert f"Set it to {limit}" in told and "config.alarms.no_signal is 'roll_back'" in told
