"""Alarms: what a run watches in its own numbers, and which of them have gone wrong.

Enters: a step's metrics, after they are told. Leaves: the alarms to act on, each with its action and one line.
What they decide follows from the metrics, which are equal on all processes, and from `Alarms.state`, which is
kept with every checkpoint: a run that goes on alarms at the same steps. This room knows no trainer; who warns,
stops or goes back is `keeping.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

ACTIONS = ("warn", "stop", "roll_back")
REPEAT_AFTER_STEPS = 100  # between two warnings of the same alarm
GAP = "sampling/sampling_logp_difference/max"
LENGTH = "completions/mean_length"
CUT = "completions/clipped_ratio"
FLAT = "frac_reward_zero_std"
AVERAGED = ("entropy", LENGTH)  # of which the first steps' mean is remembered

# The gap's bound where it is left to us. On a CPU float32 rounding stays below 1e-4. In 16 bits, with 8-bit
# weights or with dropout single tokens differ by up to a few nats; a wrong mask or weight differs by tens.
EXACT_GAP = 1e-3
ROUNDED_GAP = 5.0


@dataclasses.dataclass(frozen=True)
class AlarmParams:
    """Settings of this room (`config.alarms`): of each alarm what it does (one of ACTIONS) and its limits."""

    non_finite: str = "stop"  # or "roll_back": the loss or the gradient's norm is not finite
    zero_reward: str = "warn"  # no completion was right or earned anything
    zero_reward_steps: int = 50  # in so many steps in a row, at least 0; 0: off
    no_signal: str = "warn"  # no group had rewards that differ
    no_signal_steps: int = 20  # in so many steps in a row, at least 0; 0: off
    kl: str = "warn"  # the mean KL to the reference, where it is a term of the loss,
    kl_limit: float = 2.0  # is above so many nats a token; at least 0; 0: off
    entropy: str = "warn"  # the mean entropy is below
    entropy_limit: float = 0.0  # so many nats a token, at least 0; 0: off
    entropy_share: float = 0.05  # or this share of its first steps' mean, [0, 1); 0: off
    length: str = "warn"  # the mean completion length is above
    length_factor: float = 4.0  # so many times its first steps' mean, above 1; 0: off
    clipped: str = "warn"  # the share of completions that were cut is
    clipped_limit: float = 0.9  # above this, [0, 1)
    clipped_steps: int = 20  # in so many steps in a row, at least 0; 0: off
    gap: str = "warn"  # sampler's and trainer's log-probabilities of a token differ
    gap_limit: float = -1.0  # by more nats than this; -1: EXACT_GAP or ROUNDED_GAP, by the arithmetic; 0: off
    first_steps: int = 10  # how many "first steps" are, at least 1; those are not compared with themselves
    max_roll_backs: int = 3  # of the whole run, at least 0; the next alarm then stops it

    def __post_init__(self):
        _check_actions(self)
        _check_limits(self)


class Verdict(NamedTuple):
    """What an alarm finds in one step."""

    action: str
    text: str  # the value against its limit, if that is broken; else ""
    steps: int = 1  # in a row that it takes


Judge = Callable[[Mapping[str, float], AlarmParams, Mapping[str, float]], Verdict]
"""(metrics, limits, first steps' means by metric: empty while they are not known) -> verdict."""


class Alarm(NamedTuple):
    """One thing that is watched."""

    name: str  # of its field in the config too
    reads: tuple[str, ...]  # metrics; a step that lacks one of them says nothing
    judge: Judge
    cure: str


class Raised(NamedTuple):
    """An alarm to act on."""

    alarm: Alarm
    action: str
    text: str
    step: int
    since: int  # the first step of those in a row that broke the limit

    @property
    def line(self) -> str:
        """Alarm, step, value against limit, and how long already."""
        lasted = self.step - self.since + 1
        long = f", for {lasted} steps in a row, since step {self.since}" if lasted > 1 else ""
        return f"alarm {self.alarm.name} at step {self.step}: {self.text}{long}"


class Alarms:
    """Watches the numbers of one run, step by step.

    Args:
        watched: names of the alarms that are on; None: all.
        learning_rate: the config's field of that name, for the cures.
    """

    def __init__(
        self,
        limits: AlarmParams,
        *,
        watched: Collection[str] | None = None,
        learning_rate: str = "config.optimizer.learning_rate",
    ):
        self._limits, self._num_first = limits, limits.first_steps
        self._alarms = [
            alarm._replace(cure=alarm.cure.format(learning_rate=learning_rate))
            for alarm in ALARMS
            if watched is None or alarm.name in watched
        ]
        self._streaks: dict[str, int] = {}  # alarm -> steps in a row, up to now, that broke its limit
        self._told: dict[str, int] = {}  # alarm -> step of its last warning
        self._first: dict[str, list[float]] = {}  # metric -> its values in the first steps

    def watch(self, step: int, numbers: Mapping[str, float]) -> list[Raised]:
        """The alarms to act on after this step, in the table's order; a warning only when it is due again."""
        means = {}
        for metric in AVERAGED:
            first = self._first.setdefault(metric, [])
            if len(first) >= self._num_first:
                means[metric] = math.fsum(first) / len(first)
            elif math.isfinite(numbers.get(metric, math.nan)):
                first.append(float(numbers[metric]))
        found = [self._look(alarm, step, numbers, means) for alarm in self._alarms]
        return [raised for raised in found if raised]

    def _look(
        self, alarm: Alarm, step: int, numbers: Mapping[str, float], means: Mapping[str, float]
    ) -> Raised | None:
        if any(metric not in numbers for metric in alarm.reads):
            return None
        verdict = alarm.judge(numbers, self._limits, means)
        streak = self._streaks[alarm.name] = self._streaks.get(alarm.name, 0) + 1 if verdict.text else 0
        if not streak or streak < verdict.steps:
            return None
        if verdict.action == "warn":
            if alarm.name in self._told and step < self._told[alarm.name] + REPEAT_AFTER_STEPS:
                return None
            self._told[alarm.name] = step
        return Raised(alarm, verdict.action, verdict.text, step, since=step - streak + 1)

    def state(self) -> dict[str, Any]:
        """All that later decisions depend on; goes through JSON unchanged."""
        return {
            "streaks": dict(self._streaks),
            "told": dict(self._told),
            "first": {metric: list(values) for metric, values in self._first.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was called; an empty one is that of a new run."""
        self._streaks, self._told = dict(state.get("streaks", {})), dict(state.get("told", {}))
        self._first = {metric: list(values) for metric, values in state.get("first", {}).items()}


def worst(raised: Sequence[Raised]) -> Raised | None:
    """The one that decides how the run goes on: the first that stops it, else the first that rolls back."""
    for action in ("stop", "roll_back"):
        for found in raised:
            if found.action == action:
                return found
    return None


def _non_finite(numbers: Mapping[str, float], limits: AlarmParams, _: Mapping[str, float]) -> Verdict:
    loss, norm = numbers["loss"], numbers["grad_norm"]
    finite = math.isfinite(loss) and math.isfinite(norm)
    text = "" if finite else f"the loss is {loss:g}, the gradient's norm {norm:g}: not finite"
    return Verdict(limits.non_finite, text)


def _zero_reward(numbers: Mapping[str, float], limits: AlarmParams, _: Mapping[str, float]) -> Verdict:
    earned = numbers["reward"] > 0 or numbers["accuracy"] > 0  # NaN, where nothing was said, is not above 0
    # Rewards that know no right answer may all be negative: what they tell then is how they differ.
    earned = earned or (numbers["outcome/scored"] > 0 and numbers["reward_std"] > 0)
    text = "" if earned else f"no completion was right, and the mean reward is {numbers['reward']:g}"
    return Verdict(limits.zero_reward, text if limits.zero_reward_steps else "", limits.zero_reward_steps)


def _no_signal(numbers: Mapping[str, float], limits: AlarmParams, _: Mapping[str, float]) -> Verdict:
    text = "no group has signal: within each all rewards are equal" if numbers[FLAT] >= 1 else ""
    return Verdict(limits.no_signal, text if limits.no_signal_steps else "", limits.no_signal_steps)


def _kl(numbers: Mapping[str, float], limits: AlarmParams, _: Mapping[str, float]) -> Verdict:
    high = 0 < limits.kl_limit < numbers["kl"]
    told = f"the KL to the reference is {numbers['kl']:g} nats a token, above config.alarms.kl_limit"
    return Verdict(limits.kl, f"{told} {limits.kl_limit:g}" if high else "")


def _entropy(numbers: Mapping[str, float], limits: AlarmParams, means: Mapping[str, float]) -> Verdict:
    entropy, of_first = numbers["entropy"], limits.entropy_share * means.get("entropy", 0.0)
    told = f"the entropy is {entropy:g} nats a token, below"
    if entropy < limits.entropy_limit:
        return Verdict(limits.entropy, f"{told} config.alarms.entropy_limit {limits.entropy_limit:g}")
    if entropy < of_first:
        share = f"config.alarms.entropy_share {limits.entropy_share:g}"
        return Verdict(limits.entropy, f"{told} {of_first:g}: {share} of its mean at first")
    return Verdict(limits.entropy, "")


def _length(numbers: Mapping[str, float], limits: AlarmParams, means: Mapping[str, float]) -> Verdict:
    most = limits.length_factor * means.get(LENGTH, math.inf) if limits.length_factor else math.inf
    factor = f"config.alarms.length_factor {limits.length_factor:g}"
    text = f"completions have {numbers[LENGTH]:g} tokens, above {most:g}: {factor} times their mean at first"
    return Verdict(limits.length, text if numbers[LENGTH] > most else "")


def _clipped(numbers: Mapping[str, float], limits: AlarmParams, _: Mapping[str, float]) -> Verdict:
    high = limits.clipped_steps and numbers[CUT] > limits.clipped_limit
    share = f"the share of completions that were cut is {numbers[CUT]:g}"
    text = f"{share}, above config.alarms.clipped_limit {limits.clipped_limit:g}" if high else ""
    return Verdict(limits.clipped, text, limits.clipped_steps)


def _gap(numbers: Mapping[str, float], limits: AlarmParams, _: Mapping[str, float]) -> Verdict:
    high = 0 < limits.gap_limit < numbers[GAP]
    told = f"sampler and trainer differ by {numbers[GAP]:g} nats at a token, above config.alarms.gap_limit"
    return Verdict(limits.gap, f"{told} {limits.gap_limit:g}" if high else "")


SLOWER = "lower {learning_rate}"
ALARMS = (
    Alarm("non_finite", ("loss", "grad_norm"), _non_finite, SLOWER),
    Alarm(
        "zero_reward",
        ("reward", "reward_std", "accuracy", "outcome/scored"),
        _zero_reward,
        "take easier problems, a reward for part of the way or a longer config.rollout.max_completion_length",
    ),
    Alarm("no_signal", (FLAT,), _no_signal, "take problems of another difficulty, or more completions each"),
    Alarm("kl", ("kl",), _kl, f"{SLOWER}, or raise config.grpo.beta"),
    Alarm("entropy", ("entropy",), _entropy, f"{SLOWER}, or raise config.grpo.entropy_coef"),
    Alarm("length", (LENGTH,), _length, "look at the samples, and reward short answers"),
    Alarm("clipped", (CUT,), _clipped, "raise config.rollout.max_completion_length, or reward short answers"),
    Alarm("gap", (GAP,), _gap, f"{SLOWER}, or set config.rollout.sampling_weights=compute and no dropout"),
)


def _check_actions(limits: AlarmParams) -> None:
    for alarm in ALARMS:
        action = getattr(limits, alarm.name)
        if action not in ACTIONS:
            raise ValueError(f"config.alarms.{alarm.name} is {action!r}; known are {', '.join(ACTIONS)}.")
    if limits.non_finite == "warn":
        raise ValueError(
            "config.alarms.non_finite is 'warn', but nothing can be learned with weights that are not finite; "
            "set 'stop' or 'roll_back'."
        )


def _check_limits(limits: AlarmParams) -> None:
    least = {"zero_reward_steps": 0, "no_signal_steps": 0, "clipped_steps": 0, "kl_limit": 0}
    least |= {"entropy_limit": 0, "first_steps": 1, "max_roll_backs": 0}
    for name, bound in least.items():
        if not getattr(limits, name) >= bound:
            raise ValueError(f"config.alarms.{name} must be at least {bound}; got {getattr(limits, name)}.")
    for name in ("entropy_share", "clipped_limit"):
        if not 0 <= getattr(limits, name) < 1:
            raise ValueError(f"config.alarms.{name} must lie in [0, 1); got {getattr(limits, name)}.")
    if limits.length_factor != 0 and not limits.length_factor > 1:
        raise ValueError(
            f"config.alarms.length_factor must be above 1, or 0 for none; got {limits.length_factor}."
        )
    if limits.gap_limit != -1 and not limits.gap_limit >= 0:
        raise ValueError(
            "config.alarms.gap_limit must be at least 0, or -1 for a bound by the arithmetic; "
            f"got {limits.gap_limit}."
        )
