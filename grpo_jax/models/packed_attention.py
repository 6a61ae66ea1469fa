"""Attention of training: lines of segments that read a shared prompt and themselves.

Whole pieces come in (prompts, then lines; see `packed_tokens.py`). Prompts, which are short, read themselves
by XLA; how lines read is one of `LINE_ATTENTIONS`. None is causal alone over several segments: a segment never
reads the one before it in its line. B is the lines of all pieces here, Z the columns of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from grpo_jax.models import layers
from grpo_jax.models.packed_tokens import PackedTokens

QUERY_COLUMNS = 128  # queries that read one stretch of keys: more would read more masked ones
BLOCK = 128  # columns that a TPU kernel takes at once; lines are padded to it
NO_SEGMENT = -1  # of keys that nobody reads


class SharedPrompt(NamedTuple):
    """Each line's prompt."""

    valid_BZ: Any  # bool
    k_BZKH: Any
    v_BZKH: Any


def attend(
    packed: PackedTokens,
    q_UTKMH: jax.Array,
    k_UTKH: jax.Array,
    v_UTKH: jax.Array,
    *,
    name: str,
    mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
    """Softmax attention of a layer, `[U, T, K, M, H]`.

    Args:
        name: key of `LINE_ATTENTIONS`.
        mesh: over which U is cut by the axes before the last and K by the last; kernels need it.
    """
    num_pieces, num_prompts, columns = packed.prompts_UYZ.shape
    of_prompts, lines = num_prompts * columns, (-1, packed.lines_UEW.shape[2])
    on_lines = [x[:, of_prompts:].reshape(*lines, *x.shape[2:]) for x in (q_UTKMH, k_UTKH, v_UTKH)]
    line_attention = _on_devices(name, mesh, num_kv_heads=k_UTKH.shape[2], shared=num_prompts > 0)
    segments_BW = packed.segments_UEW.reshape(lines)
    if not num_prompts:
        return line_attention(segments_BW, None, *on_lines).reshape(q_UTKMH.shape)
    q_XZKMH, k_XZKH, v_XZKH = (
        x[:, :of_prompts].reshape(-1, columns, *x.shape[2:]) for x in (q_UTKMH, k_UTKH, v_UTKH)
    )
    valid_XZ = jnp.arange(columns)[None] < packed.prompt_length_UY.reshape(-1, 1)
    mixed_XZKMH = layers.attend_row(layers.causal_mask(valid_XZ), q_XZKMH, k_XZKH, v_XZKH)

    def of_each_line(x_XZ: jax.Array) -> jax.Array:
        x_UYZ = x_XZ.reshape(num_pieces, num_prompts, *x_XZ.shape[1:])
        index = packed.prompt_of_line_UE.reshape(*packed.prompt_of_line_UE.shape, *(1,) * (x_UYZ.ndim - 2))
        return jnp.take_along_axis(x_UYZ, index, axis=1).reshape(-1, *x_XZ.shape[1:])

    prompt = SharedPrompt(*map(of_each_line, (valid_XZ, k_XZKH, v_XZKH)))
    mixed_BWKMH = line_attention(segments_BW, prompt, *on_lines)
    flat = [x.reshape(num_pieces, -1, *x.shape[2:]) for x in (mixed_XZKMH, mixed_BWKMH)]
    return jnp.concatenate(flat, axis=1)


def lines_xla(
    segments_BW: jax.Array,
    prompt: SharedPrompt | None,
    q_BWKMH: jax.Array,
    k_BWKH: jax.Array,
    v_BWKH: jax.Array,
) -> jax.Array:
    """Plain softmax; each stretch of queries reads its prompt and the line up to its own end."""
    width = segments_BW.shape[1]
    mixed = []
    for start in range(0, width, QUERY_COLUMNS):
        end = min(start + QUERY_COLUMNS, width)
        own_BXW = segments_BW[:, start:end, None] == segments_BW[:, None, :end]
        mask_BXS = own_BXW & (jnp.arange(end)[None, None] <= jnp.arange(start, end)[None, :, None])
        k_BSKH, v_BSKH = k_BWKH[:, :end], v_BWKH[:, :end]
        if prompt is not None:
            valid_BXZ = jnp.broadcast_to(
                prompt.valid_BZ[:, None], (*mask_BXS.shape[:2], prompt.valid_BZ.shape[1])
            )
            mask_BXS = jnp.concatenate([valid_BXZ, mask_BXS], axis=2)
            k_BSKH = jnp.concatenate([prompt.k_BZKH, k_BSKH], axis=1)
            v_BSKH = jnp.concatenate([prompt.v_BZKH, v_BSKH], axis=1)
        mixed.append(layers.attend_row(mask_BXS, q_BWKMH[:, start:end], k_BSKH, v_BSKH))
    return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


def lines_splash(
    segments_BW: jax.Array,
    prompt: SharedPrompt | None,
    q_BWKMH: jax.Array,
    k_BWKH: jax.Array,
    v_BWKH: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """JAX's splash attention for TPUs. A shared prompt counts as segment 1: lines hold one completion then."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    num_lines, width, kv_heads, queries, head_dim = q_BWKMH.shape
    before = 0
    k_BSKH, v_BSKH = _padded(k_BWKH, BLOCK), _padded(v_BWKH, BLOCK)
    segments_BX = kv_segments_BX = _padded(segments_BW, BLOCK)
    if prompt is not None:
        in_front = _padded(jnp.where(prompt.valid_BZ, 1, NO_SEGMENT), BLOCK, fill=NO_SEGMENT)
        before = in_front.shape[1]
        k_BSKH = jnp.concatenate([_padded(prompt.k_BZKH, BLOCK), k_BSKH], axis=1)
        v_BSKH = jnp.concatenate([_padded(prompt.v_BZKH, BLOCK), v_BSKH], axis=1)
        kv_segments_BX = jnp.concatenate([in_front, kv_segments_BX], axis=1)
    q_BXNH = _padded(q_BWKMH, BLOCK).reshape(num_lines, -1, kv_heads * queries, head_dim) * head_dim**-0.5
    shape = (q_BXNH.shape[1], k_BSKH.shape[1])
    mask = masks.MultiHeadMask([masks.CausalMask(shape, offset=before)] * (kv_heads * queries))
    attention = kernel.make_splash_mha_single_device(
        mask, block_sizes=_splash_blocks(kernel, *shape), interpret=interpret
    )
    heads_first = (x.transpose(0, 2, 1, 3) for x in (q_BXNH, k_BSKH, v_BSKH))
    segment_ids = kernel.SegmentIds(q=segments_BX, kv=kv_segments_BX)
    mixed_BNXH: Any = jax.vmap(attention)(*heads_first, segment_ids)
    return mixed_BNXH.transpose(0, 2, 1, 3)[:, :width].reshape(q_BWKMH.shape).astype(v_BWKH.dtype)


def lines_cudnn(
    segments_BW: jax.Array,
    prompt: SharedPrompt | None,
    q_BWKMH: jax.Array,
    k_BWKH: jax.Array,
    v_BWKH: jax.Array,
    *,
    implementation: Any = "cudnn",
) -> jax.Array:
    """cuDNN's flash attention by length, for GPUs and 16-bit floats: a line is one prompt and its completion."""
    length_B = (segments_BW > 0).sum(axis=1, dtype=jnp.int32)
    mixed_BWNH = jax.nn.dot_product_attention(
        q_BWKMH.reshape(*q_BWKMH.shape[:2], -1, q_BWKMH.shape[-1]),
        k_BWKH,
        v_BWKH,
        is_causal=True,
        query_seq_lengths=length_B,
        key_value_seq_lengths=length_B,
        implementation=implementation,
    )
    return mixed_BWNH.reshape(q_BWKMH.shape)


LINE_ATTENTIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": lines_xla,
    "splash": lines_splash,
    "cudnn": lines_cudnn,
}
"""`attention(segments_BW, prompt, q_BWKMH, k_BWKH, v_BWKH) -> [B, W, K, M, H]`."""

PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}


def lines_of(name: str, *, packing: int, share_prompts: bool) -> tuple[int, bool]:
    """The packing and sharing nearest to what is asked that an attention can read.

    XLA reads anything. Splash knows segments but not one prompt for several of them, so it packs prompts with
    their completions; cuDNN knows lengths alone, so every prompt and completion has its own line.
    """
    if name == "splash":
        return packing, share_prompts and not packing
    return (0, False) if name == "cudnn" else (packing, share_prompts)


def default_attention(platform: str) -> str:
    return "splash" if platform == "tpu" else "xla"


def check(name: str, platform: str, dtype: Any) -> None:
    """Raises ValueError for an attention that there is not, or not on this platform, or not in this dtype."""
    if name not in LINE_ATTENTIONS:
        raise ValueError(
            f"config.model.attention is {name!r}; known are {['auto', *sorted(LINE_ATTENTIONS)]}."
        )
    if PLATFORMS.get(name, platform) != platform:
        raise ValueError(
            f"config.model.attention {name!r} runs on a {PLATFORMS[name].upper()}, this is a {platform.upper()}; "
            "set 'auto'."
        )
    if name == "cudnn" and dtype != jnp.bfloat16:
        raise ValueError("config.model.attention 'cudnn' needs config.model.compute_dtype 'bfloat16'.")


def _on_devices(
    name: str, mesh: jax.sharding.Mesh | None, *, num_kv_heads: int, shared: bool
) -> Callable[..., jax.Array]:
    """The attention by each device over the lines and heads that it holds: XLA cannot cut a kernel itself."""
    attention = LINE_ATTENTIONS[name]
    if name == "xla" or mesh is None or mesh.size == 1:
        return attention
    around = jax.sharding.get_abstract_mesh()  # inside another shard_map some axes are cut already
    left = [axis for axis in mesh.axis_names if axis not in around.manual_axes]
    if not left:
        return attention
    *row_axes, head_axis = left
    rows = P(tuple(row_axes))
    heads = head_axis if num_kv_heads % mesh.shape[head_axis] == 0 else None
    cut = P(tuple(row_axes), None, heads)
    return jax.shard_map(
        attention,
        mesh=around if around.manual_axes else mesh,
        in_specs=(rows, SharedPrompt(rows, cut, cut) if shared else rows, cut, cut, cut),
        out_specs=cut,
        axis_names=set(left),
        check_vma=False,  # a kernel does not tell over which axes its results vary
    )


def _padded(x: jax.Array, multiple: int, *, fill: int = 0) -> jax.Array:
    """Columns (axis 1) up to a multiple."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % multiple)
    return jnp.pad(x, widths, constant_values=fill)


def _splash_blocks(kernel: Any, q_columns: int, kv_columns: int) -> Any:
    """Blocks of up to 512 columns that divide the line; splash's own default of 128 is slower."""
    largest = lambda columns: next(size for size in (512, 384, 256, BLOCK) if columns % size == 0)  # noqa: E731
    q, kv = largest(q_columns), largest(kv_columns)
    return kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
