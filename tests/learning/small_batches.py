"""Random rollouts for the tiny model, a learner that only keeps the gradient, and what compares two of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.learning import batches, train_state
from grpo_jax.learning.batches import BatchParams, Minibatch
from grpo_jax.learning.learner import Learner
from grpo_jax.learning.objective import LossParams
from grpo_jax.learning.scoring import ComputeParams
from grpo_jax.learning.train_state import TrainState
from grpo_jax.models import lora
from grpo_jax.structs import Completion, Judgement, Problem, Rollout

NUM_VALID = 90
PROMPT, COMPLETION = 6, 10  # tokens at most
NUM_PROBLEMS, GENERATIONS = 4, 6  # of the rollout that tests share
ROWS = NUM_PROBLEMS * GENERATIONS
COMPUTE = ComputeParams(dtype=jnp.float32, remat="none", num_valid_ids=NUM_VALID)


def loss_params(**changes: Any) -> LossParams:
    settings = {
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "temperature": 1.0,
        "max_completion_length": COMPLETION,
    }
    return LossParams(**{**settings, **changes})


def batch_params(**changes: Any) -> BatchParams:
    settings = {
        "max_prompt_length": PROMPT,
        "max_completion_length": COMPLETION,
        "num_generations": GENERATIONS,
        "num_rows": ROWS,
        "num_minibatches": 1,
        "num_shards": 1,
        "rows_per_device": 8,
        "max_tokens_per_microbatch": 0,
        "packing": 0,
        "share_prompts": True,
        "mask_truncated_completions": False,
        "keep_rows_without_signal": True,
    }
    return BatchParams(**{**settings, **changes})


def random_rollout(seed: int, *, num_problems: int, num_generations: int) -> tuple[Rollout, np.ndarray]:
    """Completions of 1 to COMPLETION tokens (the longest are cut off), and advantages `[P, G]`.

    Every third problem is one without signal.
    """
    rng = np.random.default_rng(seed)
    problems = [
        Problem(i, "", "", "", tuple(rng.integers(1, NUM_VALID, rng.integers(1, PROMPT + 1)).tolist()))
        for i in range(num_problems)
    ]
    completions = [[_completion(rng) for _ in range(num_generations)] for _ in problems]
    advantages_PG = rng.standard_normal((num_problems, num_generations)).astype(np.float32)
    advantages_PG[2::3] = 0.0
    judgements = [[Judgement((0.0,), "scored")] * num_generations for _ in problems]
    texts = [[""] * num_generations for _ in problems]
    return Rollout(problems, completions, texts, judgements, np.zeros_like(advantages_PG), {}), advantages_PG


def _completion(rng: np.random.Generator) -> Completion:
    count = int(rng.integers(1, COMPLETION + 1))
    ids = rng.integers(1, NUM_VALID, count).astype(np.int32)
    return Completion(ids, -rng.random(count).astype(np.float32), ended=count < COMPLETION)


def pack(
    rollout: Rollout, advantages_PG: np.ndarray, *, num_columns: int = COMPLETION, **changes: Any
) -> list[Minibatch]:
    changes = {"num_rows": advantages_PG.size, "num_generations": advantages_PG.shape[1], **changes}
    return batches.pack(rollout, advantages_PG, num_columns=num_columns, params=batch_params(**changes))


def kept_gradient() -> optax.GradientTransformation:
    """Moves nothing; the gradient of the last update is the optimizer's state."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)  # noqa: E731
    return optax.GradientTransformation(
        zeros, lambda gradient, state, params=None: (zeros(gradient), gradient)
    )


def learner(
    model,
    shapes,
    *,
    mesh,
    tx=None,
    remat="none",
    tile_tokens=0,
    assemble=lora.whole,
    over_data=False,
    num_valid_ids=NUM_VALID,
    **changes: Any,
) -> Learner:
    compute = dataclasses.replace(COMPUTE, remat=remat, tile_tokens=tile_tokens, num_valid_ids=num_valid_ids)
    return Learner(
        model,
        mesh=mesh,
        tx=tx or kept_gradient(),
        shapes=shapes,
        loss=loss_params(**changes),
        compute=compute,
        assemble=assemble,
        over_data=over_data,
    )


def fresh_state(host_params: Any, shardings: Any, *, mesh, tx=None) -> TrainState:
    """A state of its own: updates donate what they are given."""
    params = jax.tree.map(lambda x, s: jax.device_put(x.copy(), s), host_params, shardings)
    return train_state.create(tx or kept_gradient(), params, mesh=mesh)


def plain_logprobs(model, params, tokens_BT, valid_BT, temperature):
    """Log-probability of each next token `[B, T - 1]`, and the entropy of what it was drawn from."""
    hidden_BTD = model.hidden_states(params, tokens_BT, valid_BT, dtype=jnp.float32)
    logits_BTV = jnp.einsum("BTD,VD->BTV", hidden_BTD, model.head(params))[:, :-1, :NUM_VALID]
    all_BTV = jax.nn.log_softmax(logits_BTV / temperature, axis=-1)
    chosen_BT = jnp.take_along_axis(all_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return chosen_BT, -(jnp.exp(all_BTV) * all_BTV).sum(-1)


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


def assert_same(left, right, *, tolerance: float) -> None:
    """Loss, and gradient leaf by leaf, relative to the leaf's largest entry."""
    assert float(left[0]["loss"]) == pytest.approx(float(right[0]["loss"]), rel=tolerance)
    paths = jax.tree_util.tree_leaves_with_path(left[1])
    for (path, ours), other in zip(paths, jax.tree.leaves(right[1]), strict=True):
        scale = np.abs(other).max()
        assert scale > 1e-3, path  # there is something to compare
        np.testing.assert_allclose(ours, other, atol=tolerance * scale, rtol=0, err_msg=str(path))
