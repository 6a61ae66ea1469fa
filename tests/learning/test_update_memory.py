"""What the compiled update of a real shape takes: its memory does not grow with the vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grpo_jax.learning import batches, train_state
from grpo_jax.learning.losses import Totals
from grpo_jax.models import decoder, qwen
from grpo_jax.models.shapes import SHAPES
from tests.learning import small_batches

ROWS, PROMPT, COMPLETION = 8, 256, 768  # 8 rows of 1,024 tokens


def temporary_bytes(vocab_size: int) -> tuple[int, int]:
    """Of the update of a Qwen2.5-0.5B with another vocabulary, and of one array of its embedding's size."""
    spec = qwen.read_qwen2({**SHAPES["qwen2.5-0.5b"], "vocab_size": vocab_size})
    model, shapes = decoder.build(spec)
    tx = optax.adamw(1e-6)
    params = small_batches.batch_params(
        max_prompt_length=PROMPT,
        max_completion_length=COMPLETION,
        num_generations=ROWS,
        num_rows=ROWS,
        rows_per_device=ROWS,
        share_prompts=False,
    )
    shape = params.piece_shape(COMPLETION)
    assert shape.num_lines * shape.line_columns == ROWS * (PROMPT + COMPLETION)
    batch = batches.empty(shape, num_microbatches=params.num_microbatches(shape), num_shards=1)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    learner = small_batches.learner(
        model,
        shapes,
        mesh=mesh,
        tx=tx,
        remat="full",
        num_valid_ids=vocab_size,
        max_completion_length=COMPLETION,
    )
    one = jnp.float32(1)
    lowered = learner.update.lower(
        train_state.shapes(tx, shapes), None, batch, jnp.int32(1), Totals(one, one, one)
    )
    table = 4 * vocab_size * spec.hidden_size
    return lowered.compile().memory_analysis().temp_size_in_bytes, table


def test_temporary_memory_does_not_grow_with_the_vocabulary():
    """But for the gradient of the tied embedding: the one accumulated and the one that is added to it."""
    once, table = temporary_bytes(151_936)
    twice, larger_table = temporary_bytes(2 * 151_936)
    assert once > 2 * table  # both gradients are there
    assert twice - 2 * larger_table < 1.1 * (once - 2 * table)
