"""Floating-point operations and bytes of a step's phases, counted from shapes, for one device.

The compiler's own counts see a loop's body once and nothing inside a kernel. Every phase has one formula:
seconds = the largest of operations / peak, bytes / memory's bandwidth, sent bytes / interconnect. Work on
padding counts as done, and every prompt and completion counts as long as allowed, so seconds are upper ones of
that kind; waiting for the host is in none.
"""

from __future__ import annotations

import dataclasses
import math

from grpo_jax.models.spec import ModelSpec
from grpo_jax.planning.case import Case, piece_shape
from grpo_jax.planning.programs import Compiled, Held, full_microbatches, score_passes
from grpo_jax.sampling.plan import Plan

SCORE_BYTES = 12  # of one attention score: float32 written and read, bfloat16 written and read
RECOMPUTED = {
    "none": 0,
    "matmuls": 0,
    "offload": 0,
    "full": 1,
}  # weight matmuls that the backward pass makes again


@dataclasses.dataclass(frozen=True)
class Phase:
    """A program of a step, all its calls together, on one device."""

    name: str
    calls: int
    operations: float  # all that is computed
    useful: float  # without what is computed twice, attention up to the diagonal
    num_bytes: float  # to and from the device's memory
    sent: float  # bytes to other devices; 0 where the program could not be printed
    compute_seconds: float
    memory_seconds: float
    sent_seconds: float
    compiler_seconds: float  # by the compiler's cycles, of a TPU only; 0: none

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds, self.sent_seconds)

    @property
    def bound(self) -> str:
        """What the seconds are spent on."""
        by_name = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "interconnect": self.sent_seconds,
        }
        return max(by_name, key=lambda name: by_name[name])


def attention_operations(spec: ModelSpec, queries: float, columns: float) -> float:
    """Scores and mixing of all layers, for so many queries over so many columns each."""
    return 4 * spec.num_layers * spec.num_heads * spec.head_dim * queries * columns


def phases(case: Case, held: Held, plan: Plan, compiled: list[Compiled]) -> list[Phase]:
    """What a whole step runs, in order."""
    programs = {program.name: program for program in compiled}
    makers = {"prefill": _prefill, "window": _decode, "score": _score, "update": _update}
    found = []
    for name, make in makers.items():
        calls, operations, useful, num_bytes = make(case, held, plan)
        if not calls:
            continue
        program, chip = programs[name], case.chip
        sent = calls * program.traffic.num_bytes if program.traffic else 0.0
        found.append(
            Phase(
                name=name,
                calls=calls,
                operations=operations,
                useful=useful,
                num_bytes=num_bytes,
                sent=sent,
                compute_seconds=operations / chip.peak_flops,
                memory_seconds=num_bytes / chip.bandwidth,
                sent_seconds=sent / chip.interconnect,
                compiler_seconds=_compiler_seconds(case, plan, program, calls),
            )
        )
    return found


def _compiler_seconds(case: Case, plan: Plan, program: Compiled, calls: int) -> float:
    return calls * program.cycles / case.chip.clock if case.chip.clock else 0.0


def _prefill(case: Case, held: Held, plan: Plan) -> tuple[int, float, float, float]:
    spec, columns = case.policy.model.spec, plan.prompt_columns[-1]
    prompts = plan.prompts_at_once(columns)
    calls = math.ceil(case.settings.rollout.num_prompts / (prompts * plan.num_shards))
    tokens = calls * prompts * columns
    tensor = case.mesh.shape["tensor"]
    products = 2 * spec.layer_weights * tokens / tensor
    attention = attention_operations(spec, tokens, columns) / tensor
    num_bytes = calls * held.sampling_copy + tokens * plan.kv_token_bytes
    return calls, products + attention, products + attention / 2, num_bytes


def _decode(case: Case, held: Held, plan: Plan) -> tuple[int, float, float, float]:
    """Windows of full slots until every completion is as long as allowed, half of its columns filled."""
    spec, s = case.policy.model.spec, case.settings
    calls = math.ceil(s.rows / plan.num_slots) * math.ceil(s.rollout.max_completion_length / plan.window)
    steps = calls * plan.window
    columns = plan.slots * (s.data.max_prompt_length + s.rollout.max_completion_length / 2)
    tensor = case.mesh.shape["tensor"]
    products = 2 * (spec.layer_weights + spec.head_weights) * plan.slots * steps / tensor
    operations = products + attention_operations(spec, steps, columns) / tensor
    return calls, operations, operations, steps * (held.sampling_copy + columns * plan.kv_token_bytes)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """What one minibatch is to one device when every completion is as long as allowed."""

    microbatches: int
    read: int  # positions that pass through the layers
    scored: int  # and through the head
    columns: int  # keys that a completion's token is compared with, masked ones too


def _tokens(case: Case) -> _Tokens:
    shape, microbatches = piece_shape(case), full_microbatches(case)
    return _Tokens(
        microbatches=microbatches,
        read=microbatches * shape.num_positions,
        scored=microbatches * shape.num_places,
        columns=shape.prompt_columns + shape.line_columns,
    )


def _forward(case: Case) -> tuple[float, float, float]:
    """Operations of one minibatch on one device: layers' products, attention over all columns, the head."""
    spec, tensor = case.policy.model.spec, case.mesh.shape["tensor"]
    tokens = _tokens(case)
    layers = 2 * spec.layer_weights * tokens.read / tensor
    attention = attention_operations(spec, tokens.read, tokens.columns) / tensor
    return layers, attention, 2 * spec.head_weights * tokens.scored / tensor


def _forward_bytes(case: Case) -> float:
    """Bytes of one pass over a minibatch on one device, about: weights, layers' activations, scores."""
    spec, tensor = case.policy.model.spec, case.mesh.shape["tensor"]
    tokens = _tokens(case)
    weights = 2 * (spec.layer_weights + spec.head_weights) / tensor * tokens.microbatches
    heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    of_token = 2 * (6 * spec.hidden_size + 2 * (heads + 3 * spec.intermediate_size) / tensor)
    # a kernel keeps its scores to itself
    scores = SCORE_BYTES * tokens.columns * spec.num_heads / tensor if case.policy.attention == "xla" else 0
    return weights + spec.num_layers * tokens.read * (of_token + scores)


def _score(case: Case, held: Held, plan: Plan) -> tuple[int, float, float, float]:
    calls = score_passes(case) * case.settings.grpo.num_minibatches
    layers, attention, head = _forward(case)
    operations = calls * (layers + attention + head)
    return calls, operations, operations - calls * attention / 2, calls * _forward_bytes(case)


def _update(case: Case, held: Held, plan: Plan) -> tuple[int, float, float, float]:
    """Forward, twice that backward, and once more what remat makes again; the head's logits always are."""
    s = case.settings
    calls = s.grpo.num_minibatches * s.grpo.num_iterations
    layers, attention, head = _forward(case)
    again = RECOMPUTED[s.model.remat]
    attention_again = int(s.model.remat != "none")
    operations = (3 + again) * layers + (3 + attention_again) * attention + 4 * head
    useful = 3 * (layers + attention / 2 + head)
    microbatches = _tokens(case).microbatches
    accumulating = 3 * held.gradients * microbatches
    stepping = 2 * (held.params + held.moments) + 2 * held.gradients
    num_bytes = (3 + again) * _forward_bytes(case) + accumulating + stepping
    return calls, calls * operations, calls * useful, calls * num_bytes
