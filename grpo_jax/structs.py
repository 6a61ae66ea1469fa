"""The records that travel between the rooms.

A step takes `Problem`s, acts (`Completion`), judges (`Attempt` in, `Judgement` out), gathers one
`Rollout` and packs it into a `TrainBatch`. This file knows none of the rooms and imports no JAX, so
that the judge's worker processes can read it without loading an accelerator library.

Shape letters of the whole project:
    P prompts of a step      G completions per prompt    B rows, `p * G + g`
    T token positions        C completion positions      S cache positions
    V vocabulary             D model width               F MLP width
    N query heads            K key/value heads           M query heads per key/value head, N / K
    H head width             L layers                    A accumulation steps (microbatches)
    U pieces of a microbatch, one a device that rows are cut over. Of a piece:
    Y prompts of Z columns   E lines of W columns        S completions    Q places that are scored
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

OUTCOMES = ("correct", "wrong", "unparsable", "scored", "timed_out", "crashed", "failed")
"""Every judgement ends in exactly one of these.

`correct`, `wrong`, `unparsable` come from a reward that grades an answer; `scored` where no reward of
the run grades one. The last three earn 0 of every reward: `timed_out` passed its deadline, `crashed`
ended its worker, `failed` raised or returned what is no reward.
"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One question of the data set, ready to be sampled."""

    index: int  # position in the data set before any was left out: names the problem in random keys
    question: str  # as the data set has it
    answer: str  # gold, extracted
    prompt: str  # rendered through the chat template
    prompt_ids: tuple[int, ...]  # what the model reads
    task: str = ""  # which task of a mixture it belongs to
    prefill: str = ""  # the end of the prompt that is the beginning of the answer, such as "<think>\n"
    response: str = ""  # worked answer behind the prefill, for supervised training; "" where there is none
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further columns, for own rewards


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled answer. The end token, when one was sampled, is its last id."""

    ids: np.ndarray  # int32 [num_tokens], at least one
    sampler_logprobs: np.ndarray  # float32 [num_tokens], natural log, at the sampling temperature
    ended: bool  # an end token was sampled; False: cut at max_completion_length

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


class Attempt(NamedTuple):
    """What a reward sees: text and counts, never arrays."""

    completion: str  # decoded text without special tokens
    question: str
    answer: str  # gold
    num_tokens: int
    ended: bool
    prompt: str = ""  # rendered, as the model read it
    prefill: str = ""  # given beginning of the answer; `text` has both
    max_tokens: int = 0  # the longest completion there can be
    extra: Mapping[str, Any] = {}  # the problem's further columns

    @property
    def text(self) -> str:
        """The whole answer: what was given of it and what was sampled."""
        return self.prefill + self.completion


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the judge says of one attempt."""

    rewards: tuple[float, ...]  # one per reward function, unweighted, in the order configured; NaN: None
    outcome: str  # one of OUTCOMES
    parsed: str = ""  # the answer that was read, at most 200 characters
    seconds: float = 0.0  # wall time inside the worker
    columns: Mapping[str, float | str] = dataclasses.field(default_factory=dict)  # what rewards logged


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Everything one step collected.

    Lists hold this process's problems; `rewards_PG` and `rewards_PGF` hold those of all processes, equal
    everywhere. F counts reward functions.
    """

    problems: list[Problem]  # [P_local]
    completions: list[list[Completion]]  # [P_local][G]
    texts: list[list[str]]  # [P_local][G]
    judgements: list[list[Judgement]]  # [P_local][G]
    rewards_PG: np.ndarray  # float32, weighted sum over reward functions; NaN: the row is left out
    metrics: dict[str, float]  # of this collection, over all processes
    rewards_PGF: Any = (
        None  # float32, of each reward function, unweighted, NaN where it said nothing; None: unjudged
    )


class Stopped(BaseException):
    """All processes have agreed to stop here; no `Exception`, so that nothing on the way takes it for an error.

    Args:
        status: the exit status that they end with.
    """

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


AskedToStop = Callable[[], int]
"""The exit status that this process was asked to end with; 0: none. Processes agree on it between them."""


def never() -> int:
    """An `AskedToStop` of what nobody stops."""
    return 0


class TrainBatch(NamedTuple):
    """Fixed-shape arrays of one minibatch, cut into A microbatches of U pieces, one a row shard.

    Log-probabilities are computed at Q places of a piece, which hold no prompts; losses then see completions
    as S rows of C columns, some of them empty.
    """

    packed: Any  # `models.packed_tokens.PackedTokens`, every array with a leading A: what the model reads
    source_AUQ: Any  # int32: which of the Y*Z + E*W positions of a piece predicts this place
    targets_AUQ: Any  # int32: the token there
    start_AUS: Any  # int32: the place in Q at which a completion begins
    completion_mask_AUSC: Any  # float32; 1 where a completion token is trained on
    advantages_AUS: Any  # float32
    sampler_logprobs_AUSC: Any  # float32, 0 outside the mask
    old_logprobs_AUSC: Any = None  # float32; None: the policy has not moved since it sampled
    ref_logprobs_AUSC: Any = None  # float32; None: no KL term
    entropy_mask_AUSC: Any = None  # float32; 1 where a token's entropy is high enough; None: everywhere
