"""Supervised fine-tuning: GRPO's batches, forward pass and update, with worked answers in place of samples.

To learn an answer is REINFORCE on it with an advantage of 1: a token costs `-log p(token)`, and a batch its
mean over response tokens, whatever the microbatches. So supervised learning is `LOSS`, one choice among those
of `objective.py`; accumulation, frozen bases and donation are `update.py`'s. Prompts are read, never trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import distributed
from grpo_jax import mesh as mesh_lib
from grpo_jax.learning import batches
from grpo_jax.learning.batches import BatchParams
from grpo_jax.learning.learner import Learner
from grpo_jax.learning.objective import LossParams
from grpo_jax.learning.packing import Row
from grpo_jax.learning.train_state import TrainState
from grpo_jax.structs import Completion, Problem

LOSS = LossParams(
    loss_type="no_baseline",  # -advantage * log p, and the advantage is 1
    aggregation="minibatch_token_mean",
    epsilon=0.0,  # no ratio is taken, so nothing is limited
    epsilon_high=0.0,
    beta=0.0,
    temperature=1.0,
    max_completion_length=1,  # of another aggregation
)
TOLD = (  # of an update's metrics; the others compare with a sampler
    *("loss", "grad_norm", "entropy"),
    *("digest/gradient", "digest/params"),
)


@dataclasses.dataclass(frozen=True)
class SFTParams:
    """A supervised run. Names as TRL's where it has them; everything else is as the config's other sections say."""

    num_train_epochs: float  # passes over the worked answers, where max_steps is 0
    max_steps: int  # updates; 0: by num_train_epochs
    num_rows: int  # worked answers an update, over all processes
    learning_rate: float  # at the end of the warm-up; with adapters times `lora.learning_rate_ratio`
    lr_scheduler_type: str  # key of `train_state.SCHEDULES`
    warmup_steps: int  # updates
    packing: int  # longest rows, prompt and response, that a line has room for; 0: a line each
    per_device_train_batch_size: int  # longest rows of one backward pass on a device
    max_response_length: int  # tokens, the end token counted; longer answers are left out and counted
    validation_problems: int  # worked answers at the end of the training source, only for the validation loss
    eval_steps: int  # updates between two validation losses; 0: only at the start and the end
    save_steps: int  # updates between two checkpoints; 0: only at the end
    output_dir: str  # "": that of the config with "_sft" behind it

    def num_updates(self, num_answers: int) -> int:
        """Updates of the whole run on so many worked answers.

        An epoch has the updates that are full; what is left over comes in a later epoch.
        """
        of_epochs = round(self.num_train_epochs * (num_answers // self.num_rows))
        return self.max_steps or max(of_epochs, 1)


def worked_row(problem: Problem, response_ids: Sequence[int]) -> Row:
    """A prompt with the answer to be learned, whose last id is the end token."""
    ids = np.array(response_ids, np.int32)
    return Row(problem, Completion(ids, np.zeros(len(ids), np.float32), ended=True), advantage=1.0)


def layout(
    *,
    max_prompt_length: int,
    max_response_length: int,
    num_rows: int,
    num_shards: int,
    rows_per_device: int,
    packing: int,
) -> BatchParams:
    """How rows are laid out: a prompt stands before its response in a line, since it has only one.

    Args:
        num_rows: of an update, on this process.
        num_shards: devices of this process that rows are cut over.
    """
    return BatchParams(
        max_prompt_length=max_prompt_length,
        max_completion_length=max_response_length,
        num_generations=1,
        num_rows=num_rows,
        num_minibatches=1,
        num_shards=num_shards,
        rows_per_device=rows_per_device,
        max_tokens_per_microbatch=0,
        packing=packing,
        share_prompts=False,
        mask_truncated_completions=False,
        keep_rows_without_signal=True,
    )


class SupervisedLearner:
    """Updates and losses of rows with worked answers.

    Args:
        learner: made with `LOSS`.
        packing: from `layout`.
    """

    def __init__(self, learner: Learner, packing: BatchParams):
        assert learner.loss == LOSS, learner.loss
        self.learner, self.packing = learner, packing
        self._sum = jax.jit(_masked_sum, out_shardings=mesh_lib.replicated(learner.mesh))

    def learn(
        self,
        state: TrainState,
        rows: Sequence[Row],
        *,
        frozen: Any = None,
        before_change: Callable[[], None] = lambda: None,
    ) -> tuple[TrainState, dict[str, Any]]:
        """One update on this process's rows, at most `packing.num_rows`; the state is donated after `before_change`.

        Returns: the new state; `loss` (nats a response token), `grad_norm`, `entropy`, digests of gradient and
            parameters, and `num_tokens`, the response tokens of all processes.
        """
        minibatch = self._minibatch(rows)
        state, metrics = self.learner.learn(
            state,
            [minibatch],
            ref_params=None,
            num_iterations=1,
            frozen=frozen,
            before_change=before_change,
        )
        return state, {name: metrics[name] for name in TOLD} | {"num_tokens": _num_tokens(rows)}

    def loss(self, params: Any, rows: Sequence[Row], *, frozen: Any = None) -> float:
        """Mean negative log-probability of the response tokens of all processes' rows, in nats, without dropout.

        Args:
            rows: this process's, any number; as many calls as the process with most rows needs.
        """
        size, total = self.packing.num_rows, 0.0
        for i in range(0, distributed.largest([len(rows)])[0], size):
            part = self.learner.put([self._minibatch(rows[i : i + size])])[0]
            scored = self.learner.score(params, frozen, part.batch, part.num_active)
            total -= float(self._sum(scored.logprobs_AUSC, part.batch.completion_mask_AUSC))
        return total / max(_num_tokens(rows), 1)

    def _minibatch(self, rows: Sequence[Row]) -> batches.Minibatch:
        """Laid out as wide as the longest response of all processes needs."""
        longest = max((row.completion.num_tokens for row in rows), default=1)
        num_columns = batches.completion_columns(
            distributed.largest([longest])[0], max_completion_length=self.packing.max_completion_length
        )
        return batches.minibatch(rows, num_columns, self.packing)


def _masked_sum(x_AUSC: jax.Array, mask_AUSC: jax.Array) -> jax.Array:
    return jnp.where(mask_AUSC > 0, x_AUSC, 0.0).sum()


def _num_tokens(rows: Sequence[Row]) -> int:
    """Response tokens of all processes' rows."""
    own = sum(row.completion.num_tokens for row in rows)
    return int(distributed.gather(np.array([own], np.int64)).sum())
