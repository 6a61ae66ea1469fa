"""The decoder as a whole: embedding, layers, final norm, head, over an explicit parameter tree.

`Decoder` is the NNX definition. It is split once, here, and what travels is a `Model` (static: sizes and
graph definitions) beside a plain nested dictionary of arrays, so that policy, reference and sampling copy
live side by side. Two layouts of one set of weights:

- training: the leaves of `params["layers"]` carry a leading L axis and `hidden_states` scans over them
  (one layer is compiled once);
- sampling: `params["layers"]` is a tuple of L trees and `run_layers` walks them (a slice of a stacked
  array inside the decode loop would be a copy a token).

Shape letters are in `grpo_jax/structs.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grpo_jax.models import adapted, layers, packed_attention, packed_tokens, quantised
from grpo_jax.models.packed_tokens import PackedTokens
from grpo_jax.models.spec import ModelSpec

UNROLLED_LAYERS = 8  # at most, on a CPU

Params = Any
"""Nested dictionary of arrays; see `Decoder` for the names."""


class Decoder(nnx.Module):
    """Parameters: `embedding` [V, D], `layers` (stacked `Block`s), `final_norm`, `head` [V, D] if untied."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(spec.initializer_range)
        self.embedding = nnx.Param(init(rngs.params(), (spec.vocab_size, spec.hidden_size), jnp.float32))
        self.layers = _stacked_blocks(spec, rngs)
        self.final_norm = layers.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        if not spec.tie_word_embeddings:
            self.head = nnx.Param(init(rngs.params(), (spec.vocab_size, spec.hidden_size), jnp.float32))


@dataclasses.dataclass(frozen=True)
class Model:
    """The static half of a decoder: hashable, so jitted functions may close over it."""

    spec: ModelSpec
    block: nnx.GraphDef
    final_norm: nnx.GraphDef
    rows: jax.sharding.NamedSharding | None = None  # of hidden states in training; None: as XLA likes
    unroll: int = 1  # layers that training's loop takes at once

    def for_training(self, mesh: jax.sharding.Mesh, *, rows: jax.sharding.NamedSharding | None) -> Model:
        """This model as training computes it on a mesh: hidden states on `rows`, a few layers without a loop.

        On a CPU a loop over layers copies what the backward pass needs, which takes a third of a small
        model's update; elsewhere, and for deep models, it would only take longer to compile.
        """
        short = mesh.devices.flat[0].platform == "cpu" and self.spec.num_layers <= UNROLLED_LAYERS
        return dataclasses.replace(self, rows=rows, unroll=self.spec.num_layers if short else 1)

    def embed(self, params: Params, tokens_BT: jax.Array, *, dtype: Any) -> jax.Array:
        """Embeddings `[B, T, D]` in `dtype`."""
        if "embedding" in params:
            return quantised.rows(params["embedding"], tokens_BT, dtype=dtype)
        return quantised.columns(params["head_DV"], tokens_BT, dtype=dtype)  # tied, and turned

    def hidden_states(
        self,
        params: Params,
        tokens_BT: jax.Array,
        valid_BT: jax.Array,
        *,
        dtype: Any,
        remat: str = "none",
    ) -> jax.Array:
        """Normed hidden states `[B, T, D]` of whole rows; stacked layers.

        Args:
            tokens_BT: int32; anything where `valid_BT` is False.
            valid_BT: bool; padding may stand on the left, on the right or between.
            dtype: of activations and of weights inside matmuls.
            remat: key of `REMAT_POLICIES`: what the backward pass recomputes.
        """
        mask_BTS = layers.causal_mask(valid_BT)

        def attend(q_BTKMH, k_BTKH, v_BTKH):
            return layers.attend_row(mask_BTS, q_BTKMH, k_BTKH, v_BTKH), None

        return self._run_stacked(params, tokens_BT, positions(valid_BT), attend, dtype=dtype, remat=remat)

    def packed_hidden_states(
        self,
        params: Params,
        packed: PackedTokens,
        *,
        dtype: Any,
        remat: str = "none",
        attention: str = "xla",
        mesh: jax.sharding.Mesh | None = None,
    ) -> jax.Array:
        """Normed hidden states `[U, T, D]` of pieces: their prompts, then their lines; stacked layers.

        Args:
            attention: key of `packed_attention.LINE_ATTENTIONS`.
            mesh: over whose devices a kernel is run.
        """

        def attend(q_UTKMH, k_UTKH, v_UTKH):
            mixed_UTKMH = packed_attention.attend(packed, q_UTKMH, k_UTKH, v_UTKH, name=attention, mesh=mesh)
            return mixed_UTKMH, None

        tokens_UT, positions_UT = packed_tokens.tokens(packed), packed_tokens.positions(packed)
        return self._run_stacked(params, tokens_UT, positions_UT, attend, dtype=dtype, remat=remat)

    def _run_stacked(
        self,
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        attend: layers.Attend,
        *,
        dtype: Any,
        remat: str,
    ) -> jax.Array:
        rope = layers.rope_tables(positions_BT, self.spec)

        def run_layer(x_BTD, layer_params):
            x_BTD, kept = nnx.merge(self.block, layer_params)(x_BTD, rope, attend)
            return self._on_rows(x_BTD), kept

        x_BTD = self._on_rows(self.embed(params, tokens_BT, dtype=dtype))
        run = REMAT_POLICIES[remat](run_layer)
        x_BTD, _ = jax.lax.scan(run, x_BTD, params["layers"], unroll=self.unroll)
        return self.normed(params, x_BTD)

    def _on_rows(self, x_BTD: jax.Array) -> jax.Array:
        """Cut over rows where that is asked for.

        Left to itself, XLA cuts the width instead, as `fsdp` cuts the embedding's, and every device then
        computes the attention of all rows.
        """
        return x_BTD if self.rows is None else jax.lax.with_sharding_constraint(x_BTD, self.rows)

    def run_layers(
        self,
        params: Params,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        attends: Sequence[layers.Attend],
    ) -> tuple[jax.Array, list[Any]]:
        """Normed hidden states through unstacked layers, each with its own `attend` (its own cache).

        Returns: `[B, T, D]` and what each layer's `attend` wanted back.
        """
        rope = layers.rope_tables(positions_BT, self.spec)
        kept = []
        for layer_params, attend in zip(params["layers"], attends, strict=True):
            x_BTD, extra = nnx.merge(self.block, layer_params)(x_BTD, rope, attend)
            kept.append(extra)
        return self.normed(params, x_BTD), kept

    def normed(self, params: Params, x_BTD: jax.Array) -> jax.Array:
        return nnx.merge(self.final_norm, params["final_norm"])(x_BTD)

    def head(self, params: Params) -> jax.Array:
        """The output matrix `[V, D]`; the embedding itself where the two are tied."""
        return params["embedding"] if self.spec.tie_word_embeddings else params["head"]

    def logits(self, params: Params, hidden_BD: jax.Array) -> jax.Array:
        """float32 `[B, V]`, summed in float32."""
        if "head_DV" in params:
            head_DV = params["head_DV"].astype(hidden_BD.dtype)
            return jnp.einsum("BD,DV->BV", hidden_BD, head_DV, preferred_element_type=jnp.float32)
        head_VD = self.head(params).astype(hidden_BD.dtype)
        return jnp.einsum("BD,VD->BV", hidden_BD, head_VD, preferred_element_type=jnp.float32)


def build(spec: ModelSpec) -> tuple[Model, Params]:
    """Returns the static model and its parameters as shapes (`jax.ShapeDtypeStruct`, float32)."""
    decoder = nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0)))
    block = nnx.eval_shape(lambda: layers.Block(spec, rngs=nnx.Rngs(0)))
    model = Model(spec, nnx.split(block)[0], nnx.split(decoder.final_norm)[0])
    return model, nnx.to_pure_dict(nnx.state(decoder))


def initialise(spec: ModelSpec, *, seed: int, shardings: Params | None = None) -> Params:
    """Random float32 parameters, made on the devices that `shardings` name."""
    make = lambda: nnx.to_pure_dict(nnx.state(Decoder(spec, rngs=nnx.Rngs(seed))))  # noqa: E731
    return jax.jit(make, out_shardings=shardings)()


def unstack(
    params: Params, *, num_layers: int, dtype: Any, int8: bool = False, turn_head: bool = False
) -> Params:
    """The sampling layout: weights in `dtype`, layers as a tuple of L trees. Call it under jit.

    Norm scales keep float32: the training layout multiplies by them in float32 too. Adapters are merged into
    their kernels in float32.

    Args:
        int8: the matrices become `quantised.Int8`.
        turn_head: the output matrix becomes `head_DV`, `[D, V]`, which a CPU multiplies by faster.
    """

    def convert(path: tuple, leaf: jax.Array) -> Any:
        name = path[-1].key
        if isinstance(leaf, adapted.Adapted):
            leaf = leaf.astype(jnp.float32)
        if int8 and name in quantised.INPUT_AXES:
            return quantised.quantise(leaf, name)
        return leaf if name == "scale" else leaf.astype(dtype)

    def layer(index: int) -> Params:
        return jax.tree.map(lambda leaf: leaf[index], params["layers"])

    apart = {**params, "layers": tuple(layer(index) for index in range(num_layers))}
    if turn_head:
        apart["head_DV"] = apart.pop("head" if "head" in apart else "embedding").T
    return jax.tree_util.tree_map_with_path(
        convert, apart, is_leaf=lambda leaf: isinstance(leaf, adapted.Adapted)
    )


def positions(valid_BT: jax.Array) -> jax.Array:
    """int32 `[B, T]`: how many valid tokens stand before; 0 on leading padding."""
    return jnp.maximum(jnp.cumsum(valid_BT.astype(jnp.int32), axis=1) - 1, 0)


REMAT_POLICIES: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda function: function,
    "full": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable),
    "matmuls": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "offload": functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    ),
}
"""What is kept for the backward pass: everything, only layer inputs, also the weight matmuls (on the device, or
in the host's memory)."""


def _stacked_blocks(spec: ModelSpec, rngs: nnx.Rngs) -> layers.Block:
    @nnx.split_rngs(splits=spec.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs: nnx.Rngs) -> layers.Block:
        return layers.Block(spec, rngs=rngs)

    return make(rngs)
