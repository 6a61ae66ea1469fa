"""What a model reads in one training pass: prompts once, and lines of completions that continue them.

Shape letters are in `grpo_jax/structs.py`; T is Y * Z + E * W here: prompts, then lines.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class PackedTokens(NamedTuple):
    """What a model reads in one forward pass: prompts, and lines of completions that continue them.

    A group's prompt stands here once, however many lines continue it. A line holds completions of one
    prompt end to end, each a segment: it reads the prompt and itself, never its neighbours. Where prompts
    are not shared (Y is 0), a segment is a prompt with its completion and lines hold any of them.
    """

    prompts_UYZ: Any  # int32, padded on the right
    prompt_length_UY: Any  # int32 tokens, 0 for an empty place
    lines_UEW: Any  # int32
    segments_UEW: Any  # int32: 1, 2, ... within a line; 0 is padding
    positions_UEW: Any  # int32: tokens before this one in prompt and completion
    prompt_of_line_UE: Any  # int32 in [0, Y): which prompt the line continues


def positions(packed: PackedTokens) -> jax.Array:
    """int32 `[U, T]`: what each token's rotary angle is for."""
    num_pieces, num_prompts, columns = packed.prompts_UYZ.shape
    prompt_X = jnp.tile(jnp.arange(columns, dtype=jnp.int32), num_prompts)
    prompt_UX = jnp.broadcast_to(prompt_X[None], (num_pieces, num_prompts * columns))
    return jnp.concatenate([prompt_UX, packed.positions_UEW.reshape(num_pieces, -1)], axis=1)


def tokens(packed: PackedTokens) -> jax.Array:
    """int32 `[U, T]`: prompts, then lines."""
    flat = [x.reshape(len(x), -1) for x in (packed.prompts_UYZ, packed.lines_UEW)]
    return jnp.concatenate(flat, axis=1)
