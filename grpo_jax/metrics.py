"""Telling: where the numbers, samples and sentences of a run go.

Enters: metrics by name once a step, evaluations, samples, messages. Leaves, in the run folder:
`metrics.jsonl` and `samples.jsonl` (one JSON object a line), `tensorboard/`; on the console what
`console.py` draws; and, where configured, Weights & Biases or trackio. Only the first process tells; the
others hold a `SilentTeller`. A step's number is the count of finished updates: 1 for the first one,
0 for what is told before it. This room computes no metric and knows no trainer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import numbers
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from grpo_jax import console, harmless_text, step_lines, told_files, trackers
from grpo_jax.told_files import JsonLines
from grpo_jax.trackers import Closes, Sink

WANDB_MODES = ("online", "offline", "disabled")
ON_POLICY_NOTE = (
    "the loss prints 0 because the update is on-policy: each ratio is exactly 1 and a group's advantages "
    "add up to 0; the gradient is not 0 (see grad)"
)
NO_SIGNAL_NOTE = (
    "no group has signal: within each group all rewards are equal, so the rewards teach nothing in this step"
)
JUDGE_NOTE = (
    "the step waited for its judge for a fifth of its time or more (column judge): set "
    "config.reward.num_workers higher, or config.rollout.num_slots lower so that fewer completions end at last"
)
REPEAT_NOTE_AFTER_STEPS = 100


@dataclasses.dataclass(frozen=True)
class TellingParams:
    """Settings of this room (`config.telling`)."""

    completions_every_steps: int = 5  # steps between two tables of samples, at least 0; 0: none
    num_completions_to_print: int = 3  # samples in a table, at least 1
    max_characters: int = 600  # longer questions and completions are cut in the tables; at least 20
    tensorboard: bool = True  # write scalars to RUN/tensorboard
    wandb: str = "disabled"  # "online" (key from WANDB_API_KEY), "offline" or "disabled"
    trackio: bool = False  # log to trackio; its folder or Space comes from trackio's environment
    project: str = "grpo_jax"  # the project's name in wandb and trackio
    run_name: str = ""  # the run's name there; empty: the name of the run folder

    def __post_init__(self):
        for name, least in (
            ("completions_every_steps", 0),
            ("num_completions_to_print", 1),
            ("max_characters", 20),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"config.telling.{name} must be at least {least}; got {getattr(self, name)}."
                )
        if self.wandb not in WANDB_MODES:
            raise ValueError(
                f"config.telling.wandb must be one of {', '.join(WANDB_MODES)}; got {self.wandb!r}."
            )


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion worth showing."""

    problem_index: int  # Problem.index
    question: str
    completion: str  # decoded text
    gold: str
    parsed: str  # the answer that was read; empty when none was
    rewards: Mapping[str, float]  # by reward name, unweighted
    outcome: str  # one of structs.OUTCOMES
    advantage: float | None = None  # None where nothing was learned from it
    columns: Mapping[str, float | str] = dataclasses.field(default_factory=dict)  # what rewards logged


def open_teller(
    run_dir: str | Path,
    *,
    params: TellingParams,
    num_steps: int,
    config: Mapping[str, Any],
    started_at: float,
    first_step: int = 0,
    looked: bool = True,
    stream: TextIO | None = None,
    table: step_lines.Table = step_lines.GRPO_TABLE,
) -> Teller:
    """The first process's teller: opens the files and trackers, then starts the progress bar.

    Args:
        num_steps: of the whole run.
        config: resolved, as plain dictionaries; goes to the trackers, to no file of ours.
        started_at: `time.time()` when the program started; `seconds` counts from there.
        first_step: the first step that this program will tell, 0 at a new start; see `told_files.rewind`.
        looked: False: it tells the evaluation of the step before that, too.
        stream: where the console's lines go; stdout when None.
        table: what the console's step lines show.

    Raises: ValueError as `check_trackers` does.
    """
    check_trackers(params)
    folder = Path(run_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    told_files.rewind(folder, first_step, looked=looked)
    tracker = {"project": params.project, "name": params.run_name or folder.name, "config": config}
    sinks: list[Sink] = []
    if params.tensorboard:
        board = trackers.TensorBoard(folder / "tensorboard", first_step=first_step - (not looked))
        if not looked:  # it forgets whole steps only
            for told in told_files.numbers_of(folder / told_files.METRICS_FILE, first_step - 1):
                board.write(first_step - 1, told)
        sinks.append(board)
    if params.wandb != "disabled":
        sinks.append(trackers.Wandb(folder, mode=params.wandb, **tracker))
    if params.trackio:
        sinks.append(trackers.Trackio(**tracker))
    return Teller(
        sinks,
        metrics_file=JsonLines(folder / told_files.METRICS_FILE),
        samples_file=JsonLines(folder / told_files.SAMPLES_FILE),
        screen=console.open_screen(
            stream,
            num_steps=num_steps,
            first_step=first_step,
            max_characters=params.max_characters,
            table=table,
        ),
        started_at=started_at,
        num_printed=params.num_completions_to_print,
    )


class Teller:
    """Tells everything to everyone. Use it as a context manager, so that the terminal is given back."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        metrics_file: JsonLines,
        samples_file: JsonLines,
        screen: console.Screen,
        started_at: float,
        num_printed: int,
    ):
        self._parts: tuple[Closes, ...] = (*sinks, metrics_file, samples_file, screen)
        self._sinks = sinks
        self._metrics_file = metrics_file
        self._samples_file = samples_file
        self._screen = screen
        self._started_at = started_at
        self._num_printed = num_printed
        self._note_told_at: dict[str, int] = {}

    def tell_step(self, step: int, metrics: Mapping[str, float | str], *, notes: Sequence[str] = ()) -> None:
        """One update's numbers, and in words what a reader may stumble over (see `step_notes`).

        Text among the numbers, such as a digest, goes to metrics.jsonl alone.
        """
        self._write(step, metrics)
        self._screen.step(step, {n: value for n, value in metrics.items() if not isinstance(value, str)})
        for note in notes:
            last = self._note_told_at.get(note)
            if last is None or step >= last + REPEAT_NOTE_AFTER_STEPS:
                self._note_told_at[note] = step
                self._screen.message(f"  note: {note}")

    def tell_evaluation(
        self, step: int, metrics: Mapping[str, float], *, samples: Sequence[Sample] = ()
    ) -> None:
        """An evaluation made after `step` updates. Names get the prefix `eval/` where they lack it, except times.

        `samples` are kept in samples.jsonl, not printed. The same few problems at each evaluation let the
        report show which of them went from wrong to right.
        """
        metrics = {
            name if name.startswith(("eval/", "time/")) else f"eval/{name}": value
            for name, value in metrics.items()
        }
        self._write(step, metrics)
        self._keep_samples(step, samples, split="eval")
        told = ", ".join(evaluation_in_words(metrics))
        self._screen.message(f"evaluation after step {step}: {told}")

    def tell_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Training samples: all are kept, the first `num_completions_to_print` are shown."""
        records = self._keep_samples(step, samples, split="train")
        if records:
            self._screen.samples(step, records[: self._num_printed])

    def tell_message(self, text: str) -> None:
        """One plain line, for what takes long enough that a reader wonders."""
        self._screen.message(text)

    @contextlib.contextmanager
    def rewound(self, first_step: int) -> Iterator[None]:
        """Inside, the files are closed and may be rewritten; then telling goes on with `first_step`."""
        files = (self._metrics_file, self._samples_file)
        for file in files:
            file.close()
        yield
        for file in files:
            file.open()
        for sink in self._sinks:
            sink.rewind(first_step)

    def finish(self) -> None:
        """Closes everything, also when one of the parts fails to close. May be called twice."""
        parts, self._parts = self._parts, ()
        with contextlib.ExitStack() as stack:
            for part in parts:
                stack.callback(part.close)

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *exception) -> None:
        self.finish()

    def _write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        plain = {name: _plain(value) for name, value in metrics.items()}
        seconds = round(time.time() - self._started_at, 3)
        self._metrics_file.write({"step": step, "seconds": seconds, **plain})  # ours first
        finite = {name: value for name, value in plain.items() if isinstance(value, int | float)}
        for sink in self._sinks:
            sink.write(step, finite)

    def _keep_samples(self, step: int, samples: Sequence[Sample], *, split: str) -> list[dict]:
        records = [{"step": step, "split": split, **dataclasses.asdict(sample)} for sample in samples]
        for record in records:
            rewards = {name: _plain_number(value) for name, value in record["rewards"].items()}
            advantage = record["advantage"]
            advantage = None if advantage is None else _plain_number(advantage)
            self._samples_file.write({**record, "rewards": rewards, "advantage": advantage})
        return records


class SilentTeller:
    """What the other processes hold: takes everything a `Teller` takes and tells nobody."""

    def tell_step(
        self, step: int, metrics: Mapping[str, float | str], *, notes: Sequence[str] = ()
    ) -> None: ...

    def tell_evaluation(
        self, step: int, metrics: Mapping[str, float], *, samples: Sequence[Sample] = ()
    ) -> None: ...

    def tell_samples(self, step: int, samples: Sequence[Sample]) -> None: ...

    def tell_message(self, text: str) -> None: ...

    @contextlib.contextmanager
    def rewound(self, first_step: int) -> Iterator[None]:
        yield

    def finish(self) -> None: ...

    def __enter__(self) -> SilentTeller:
        return self

    def __exit__(self, *exception) -> None: ...


class EarlyTeller(SilentTeller):
    """Says messages while a run has no folder yet; later hands them on to the run's teller."""

    def __init__(self, *, silent: bool):
        self._run_teller: Teller | SilentTeller | None = SilentTeller() if silent else None

    def hand_on(self, teller: Teller | SilentTeller) -> None:
        """From now on `teller` says what is told here."""
        self._run_teller = teller

    def tell_message(self, text: str) -> None:
        if self._run_teller:
            self._run_teller.tell_message(text)
        else:
            print(harmless_text.printable(text), flush=True)


def step_notes(metrics: Mapping[str, float], *, on_policy: bool) -> tuple[str, ...]:
    """What a step's numbers need said in words.

    Args:
        on_policy: the policy had not moved since it sampled when this step's gradient was taken.
    """
    notes = []
    if metrics.get("frac_reward_zero_std", 0) >= 1:
        notes.append(NO_SIGNAL_NOTE)
    elif on_policy and abs(metrics.get("loss", math.inf)) < 5e-5:  # the column has four decimals
        notes.append(ON_POLICY_NOTE)
    if metrics.get("time/judge", 0) > 0.2 * metrics.get("time/step", math.inf):
        notes.append(JUDGE_NOTE)
    return tuple(notes)


def check_trackers(params: TellingParams) -> None:
    """Finds out before anything is loaded whether the configured trackers can be used.

    Raises: ValueError if a tracker's package is missing, or the key that wandb needs online.
    """
    if (params.wandb != "disabled" or params.trackio) and not params.project.strip():
        raise ValueError("config.telling.project is empty; wandb and trackio need a project's name.")
    for package, wanted in (("wandb", params.wandb != "disabled"), ("trackio", params.trackio)):
        if wanted and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"config.telling.{package} is {getattr(params, package)!r} but the package {package} is not "
                f"installed: pip install 'grpo_jax[{package}]'"
            )
    if params.wandb == "online" and not os.environ.get("WANDB_API_KEY"):
        raise ValueError(
            "config.telling.wandb is 'online' but the environment has no WANDB_API_KEY: set it, or choose "
            "'offline' and upload later with `wandb sync`."
        )


def _plain(value: Any) -> float | int | str | None:
    """As `_plain_number`; text, such as a digest, stays as it is."""
    return value if isinstance(value, str) else _plain_number(value)


def _plain_number(value: Any) -> float | int | None:
    """What JSON can hold: infinities and NaN become None, arrays of one element numbers."""
    if isinstance(value, numbers.Integral):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def evaluation_in_words(metrics: Mapping[str, float]) -> Iterator[str]:
    """An evaluation's numbers for a line of the console; of several tasks their accuracies only."""
    several = any(re.fullmatch("eval/.+/accuracy", name) for name in metrics)
    for name, value in metrics.items():
        if name.endswith(("_low", "_high", "_stderr", "num_problems")):
            continue
        if several and not name.endswith("/accuracy") and not name.startswith("time/"):
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        sure = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
        yield _in_words(name, value) + sure


def _in_words(name: str, value: float) -> str:
    name = name.removeprefix("eval/")
    if name.endswith(("accuracy", "rate", "ratio")) or "@" in name or name.startswith("outcome/"):
        return f"{name} {100 * value:.1f}%"
    if name.startswith("time/"):
        return f"{value:.1f} s"
    return f"{name} {value:.4g}"
