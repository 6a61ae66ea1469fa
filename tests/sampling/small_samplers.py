"""Small samplers and problems for tests."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.decoder import Model
from grpo_jax.sampling import decode, plan
from grpo_jax.sampling.engine import Engine
from grpo_jax.structs import Problem

NUM_VALID = 90  # of the 96 ids of the tiny model
END_IDS = (3, 7)


def make_engine(
    model: Model,
    mesh: jax.sharding.Mesh,
    *,
    slots: int = 0,
    window: int = 4,
    rows: int = 15,
    generations: int = 3,
    prompt: int = 12,
    completion: int = 21,
    find_stop: Any = None,
    **settings: Any,
) -> Engine:
    """A float32 sampler; `settings` go to `DecodeSettings`."""
    shape = plan.EngineShape(rows, generations, prompt, completion, slots, window)
    return Engine(
        model,
        mesh=mesh,
        plan=plan.make(model.spec, mesh, shape, weight_bytes=0, dtype=jnp.float32),
        settings=decode.DecodeSettings(
            **{"end_ids": END_IDS, "num_valid_ids": NUM_VALID, "dtype": jnp.float32} | settings
        ),
        find_stop=find_stop,
    )


def make_problems(rng: np.random.Generator, lengths: list[int]) -> list[Problem]:
    """Random prompts of the given numbers of tokens, without end ids."""
    return [
        Problem(10 * i, "", "", "", tuple(rng.integers(8, NUM_VALID, length).tolist()))
        for i, length in enumerate(lengths)
    ]
