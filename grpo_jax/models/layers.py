"""The four pieces every layer is made of: norm, rotary position, attention projections, gated MLP.

Each is a small NNX module or a pure function over arrays. How attention reads keys and values (the
whole row, or a cache) is the caller's choice: `Block` takes it as a function, so that one layer serves
training, prefill and decode. Norms, rotary angles and softmax are float32; everything else runs in the
dtype of the activations, to which weights are cast where they are used.

Shape letters are in `grpo_jax/structs.py`. J is M + 2: a key/value head's queries, its key, its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grpo_jax.models import adapted
from grpo_jax.models import spec as spec_lib

MASKED = -1e30  # finite, so that a row of nothing but padding gives a uniform softmax and no NaN

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""`attend(q_BTKMH, k_BTKH, v_BTKH) -> (mixed_BTKMH, what the caller wants back)`."""


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, in float32, with a learned scale."""

    def __init__(self, width: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (x32 * inverse_rms * scale).astype(x.dtype)


class Attention(nnx.Module):
    """Query, key and value projections with rotary position, and the output projection.

    The fused kernel is `[D, K, J, H]`: a key/value head's queries, its key and its value lie together,
    so one matmul makes all three and tensor parallelism cuts the K axis only.
    """

    def __init__(self, spec: spec_lib.ModelSpec, *, rngs: nnx.Rngs):
        d, k, m, h = spec.hidden_size, spec.num_kv_heads, spec.queries_per_kv, spec.head_dim
        init = nnx.initializers.normal(spec.initializer_range)
        self.qkv = nnx.Param(init(rngs.params(), (d, k, m + 2, h), jnp.float32))
        self.output = nnx.Param(init(rngs.params(), (k, m, h, d), jnp.float32))
        if spec.qkv_bias:
            self.qkv_bias = nnx.Param(jnp.zeros((k, m + 2, h), jnp.float32))
        if spec.qk_norm:
            self.q_norm = RMSNorm(h, eps=spec.rms_norm_eps)
            self.k_norm = RMSNorm(h, eps=spec.rms_norm_eps)
        self.has_bias, self.has_norm = spec.qkv_bias, spec.qk_norm

    def project(
        self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns q `[B, T, K, M, H]`, k and v `[B, T, K, H]`, positions already applied."""
        qkv_BTKJH = adapted.contract("BTD,DKJH->BTKJH", x_BTD, self.qkv[...])
        if self.has_bias:
            qkv_BTKJH = qkv_BTKJH + self.qkv_bias[...].astype(x_BTD.dtype)[None, None]
        q_BTKMH, k_BTKH, v_BTKH = qkv_BTKJH[..., :-2, :], qkv_BTKJH[..., -2, :], qkv_BTKJH[..., -1, :]
        if self.has_norm:
            q_BTKMH, k_BTKH = self.q_norm(q_BTKMH), self.k_norm(k_BTKH)
        cos_BTH, sin_BTH = rope
        q_BTKMH = rotate(q_BTKMH, cos_BTH[:, :, None, None], sin_BTH[:, :, None, None])
        return q_BTKMH, rotate(k_BTKH, cos_BTH[:, :, None], sin_BTH[:, :, None]), v_BTKH

    def merge_heads(self, mixed_BTKMH: jax.Array) -> jax.Array:
        return adapted.contract("BTKMH,KMHD->BTD", mixed_BTKMH, self.output[...])


class MLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`, with gate and up in one kernel `[D, 2, F]`."""

    def __init__(self, spec: spec_lib.ModelSpec, *, rngs: nnx.Rngs):
        d, f = spec.hidden_size, spec.intermediate_size
        init = nnx.initializers.normal(spec.initializer_range)
        self.gate_up = nnx.Param(init(rngs.params(), (d, 2, f), jnp.float32))
        self.down = nnx.Param(init(rngs.params(), (f, d), jnp.float32))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        gate_up_BTcF = adapted.contract("BTD,DcF->BTcF", x_BTD, self.gate_up[...])
        hidden_BTF = jax.nn.silu(gate_up_BTcF[:, :, 0]) * gate_up_BTcF[:, :, 1]
        return adapted.contract("BTF,FD->BTD", hidden_BTF, self.down[...])


class Block(nnx.Module):
    """One decoder layer: norm, attention, add; norm, MLP, add."""

    def __init__(self, spec: spec_lib.ModelSpec, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.attention = Attention(spec, rngs=rngs)
        self.mlp_norm = RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.mlp = MLP(spec, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend
    ) -> tuple[jax.Array, Any]:
        with jax.named_scope("attention"):
            q_BTKMH, k_BTKH, v_BTKH = self.attention.project(self.attention_norm(x_BTD), rope)
            mixed_BTKMH, kept = attend(q_BTKMH, k_BTKH, v_BTKH)
            x_BTD = x_BTD + self.attention.merge_heads(mixed_BTKMH)
        with jax.named_scope("mlp"):
            return x_BTD + self.mlp(self.mlp_norm(x_BTD)), kept


def rope_tables(positions_BT: jax.Array, spec: spec_lib.ModelSpec) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines `[B, T, H/2]`, float32, of the rotary angles at int32 positions."""
    frequencies_H = jnp.asarray(spec_lib.rope_inverse_frequencies(spec))[None, None]
    angles_BTH = positions_BT[..., None].astype(jnp.float32) * frequencies_H
    factor = spec_lib.rope_attention_factor(spec)
    return jnp.cos(angles_BTH) * factor, jnp.sin(angles_BTH) * factor


@jax.custom_vjp
def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + H/2) of the last axis, in float32; no gradient goes to the angles.

    Two ways to write the same sums: a TPU fuses the first, a CPU runs the second in a sixth of the time.
    Source: Su et al. 2021 (RoFormer), in the half-split order that Hugging Face weights use.
    """
    return jax.lax.platform_dependent(x, cos, sin, cpu=_rotate_swapped, default=_rotate_halves)


def _rotate_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _rotate_swapped(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    swapped = jnp.concatenate(jnp.split(x32, 2, axis=-1)[::-1], axis=-1)
    turned = x32 * jnp.concatenate([cos, cos], axis=-1) + swapped * jnp.concatenate([-sin, sin], axis=-1)
    return turned.astype(x.dtype)


def _rotate_forward(x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, Any]:
    return rotate(x, cos, sin), (cos, sin)


def _rotate_backward(angles: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[Any, None, None]:
    cos, sin = angles
    return rotate(gradient, cos, -sin), None, None


rotate.defvjp(_rotate_forward, _rotate_backward)


def causal_mask(valid_BT: jax.Array) -> jax.Array:
    """bool `[B, T, S]`: position t may read position s, at or before it and no padding."""
    length = valid_BT.shape[1]
    causal_TS = jnp.tril(jnp.ones((length, length), bool))
    return causal_TS[None] & valid_BT[:, None, :]


def attend_row(mask_BTS: jax.Array, q_BTKMH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> jax.Array:
    """Softmax attention over whole rows; scores and softmax in float32. Returns `[B, T, K, M, H]`."""
    scores_BKMTS = jnp.einsum("BTKMH,BSKH->BKMTS", q_BTKMH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKMTS = scores_BKMTS * (q_BTKMH.shape[-1] ** -0.5)
    scores_BKMTS = jnp.where(mask_BTS[:, None, None], scores_BKMTS, MASKED)
    weights_BKMTS = jax.nn.softmax(scores_BKMTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKMTS,BSKH->BTKMH", weights_BKMTS, v_BSKH)
