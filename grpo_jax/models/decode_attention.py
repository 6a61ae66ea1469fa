"""Attention of one query a row over the filled columns of its cache, by name.

Each of `ATTENTIONS` takes a query, one layer's keys and values as `kv_cache` lays them out, and how many
columns of each row are filled. It returns their values mixed, with the log-sum-exp, so that `join` can put
together what was read apart (cache and window) as if one softmax had seen it all. The sizes of blocks come
from counting bytes and were never timed on an accelerator.

Shape letters are in `grpo_jax/structs.py`; n is the number of parts.
Source: Milakov and Gimelshein 2018 (online softmax); Dao et al. 2023 (Flash-Decoding: columns cut in parts).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec as P

from grpo_jax.models import layers

TPU_TILE = 128  # columns of the smallest piece of memory
TPU_COLUMNS = 512  # a read: 256 KiB of keys for two heads of width 128 in bfloat16
GPU_COLUMNS = 512  # a program
GPU_BLOCK_BYTES = 128  # of a key's one number along the columns: 64 columns in bfloat16, 32 in float32
GPU_QUERIES = 16  # rows of the smallest matrix product

Part = tuple[jax.Array, jax.Array]
"""Values mixed by a softmax over some columns `[B, K, M, H]` and its log-sum-exp `[B, K, M]`, float32.

Over no column at all the log-sum-exp is about `layers.MASKED`: weight 0 beside any part with a column.
"""

Attention = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Part]
"""`attention(q_BKMH, k_BKHS, v_BKSH, length_B)`: over the first `length_B` (0 to S) columns of each row."""


def check(name: str, platform: str) -> None:
    """Raises: ValueError if no attention has that name, or not on that platform (named as JAX does)."""
    if name not in ATTENTIONS:
        raise ValueError(
            f"No decode attention is called {name!r}; choose one of {', '.join(ATTENTIONS)} "
            "(config.rollout.attention)."
        )
    if NEEDS.get(name, platform) != platform:
        raise ValueError(
            f"Decode attention {name!r} runs on {NEEDS[name]} only, not on {platform}; choose xla "
            "(config.rollout.attention)."
        )


def default_attention(platform: str) -> str:
    """What "auto" means: "xla" everywhere, until a measurement on the hardware itself says otherwise."""
    return AUTOMATIC.get(platform, "xla")


def join(parts: Sequence[Part]) -> Part:
    """The softmax over the columns of all parts, which have none in common."""
    return _join(jnp.stack([mixed for mixed, _ in parts]), jnp.stack([lse for _, lse in parts]))


def over_cache(
    name: str,
    q_BKMH: jax.Array,
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    length_B: jax.Array,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> Part:
    """`ATTENTIONS[name]`, by each device of the mesh over the rows and heads that it holds.

    XLA cannot cut a kernel of ours over devices and would gather the cache, so it is told how: the mesh's
    last axis cuts heads where it divides them, and the axes before it cut rows.
    """
    attention = ATTENTIONS[name]
    if name == "xla" or mesh is None or mesh.size == 1:
        return attention(q_BKMH, k_BKHS, v_BKSH, length_B)
    *row_axes, head_axis = mesh.axis_names
    rows = P(tuple(row_axes))
    cut = P(tuple(row_axes), head_axis if q_BKMH.shape[1] % mesh.shape[head_axis] == 0 else None)
    # a kernel does not tell over which axes its results vary, so that check is off
    local = jax.shard_map(
        attention, mesh=mesh, in_specs=(cut, cut, cut, rows), out_specs=(cut, cut), check_vma=False
    )
    return local(q_BKMH, k_BKHS, v_BKSH, length_B)


def over_columns(q_BKMH: jax.Array, k_BKHS: jax.Array, v_BKSH: jax.Array, readable_BS: jax.Array) -> Part:
    """By XLA, over the columns that `readable_BS` (bool; its B may be 1) names; all must be finite."""
    scores_BKMS = _scores("BKMH,BKHS->BKMS", q_BKMH, k_BKHS)
    scores_BKMS = jnp.where(readable_BS[:, None, None], scores_BKMS, layers.MASKED)
    max_BKM1 = scores_BKMS.max(-1, keepdims=True)
    weights_BKMS = jnp.exp(scores_BKMS - max_BKM1)
    mixed_BKMH = _mix("BKMS,BKSH->BKMH", weights_BKMS, v_BKSH)
    mixed_BKMH, lse_BKM1 = _normalised(max_BKM1, weights_BKMS.sum(-1, keepdims=True), mixed_BKMH)
    return mixed_BKMH, lse_BKM1[..., 0]


def xla(q_BKMH: jax.Array, k_BKHS: jax.Array, v_BKSH: jax.Array, length_B: jax.Array) -> Part:
    """Reads all S columns, filled or not."""
    return over_columns(q_BKMH, k_BKHS, v_BKSH, jnp.arange(k_BKHS.shape[-1])[None] < length_B[:, None])


def pallas_tpu(
    q_BKMH: jax.Array, k_BKHS: jax.Array, v_BKSH: jax.Array, length_B: jax.Array, *, interpret: bool = False
) -> Part:
    """A program a row, over blocks of columns one after another; blocks behind the length are not fetched.

    Call it under `jit`. See `COLUMNS_MULTIPLE`: other S are right, but slow.
    """
    rows, heads, queries, width = q_BKMH.shape
    columns = min(TPU_COLUMNS, k_BKHS.shape[-1])
    of_row = lambda row, *_: (row, 0, 0, 0)  # noqa: E731
    held = lambda row, step, length_B: tpu_block(step, length_B[row], columns)  # noqa: E731
    columns_last = pl.BlockSpec((None, heads, width, columns), lambda *at: (at[0], 0, 0, held(*at)))
    width_last = pl.BlockSpec((None, heads, columns, width), lambda *at: (at[0], 0, held(*at), 0))
    # Where heads are narrower than a tile, XLA keeps values with the columns last. Turning them is free
    # then; as they are, they would be copied into twice the room at every call.
    turned = width < TPU_TILE
    values = v_BKSH.swapaxes(2, 3) if turned else v_BKSH
    if not interpret:  # XLA would bring a small cache into fast memory whole, whatever the lengths
        k_BKHS, values = (pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in (k_BKHS, values))
    mixed_BKMH, lse_BKM1 = pl.pallas_call(
        functools.partial(_tpu_kernel, columns=columns, turned=turned),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, pl.cdiv(k_BKHS.shape[-1], columns)),
            in_specs=[
                pl.BlockSpec((None, heads, queries, width), of_row),
                columns_last,
                columns_last if turned else width_last,
            ],
            out_specs=[pl.BlockSpec((None, heads, queries, last), of_row) for last in (width, 1)],
            scratch_shapes=[pltpu.VMEM((heads, queries, 1), jnp.float32)] * 2,
        ),
        out_shape=[jax.ShapeDtypeStruct((rows, heads, queries, last), jnp.float32) for last in (width, 1)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="decode_attention",
    )(length_B.astype(jnp.int32), q_BKMH, k_BKHS, values)
    return mixed_BKMH, lse_BKM1[..., 0]


def tpu_block(step: jax.Array, length: jax.Array, columns: int) -> jax.Array:
    """The block in hand at a step: the last filled one stays to the end, so that no other is fetched."""
    return jnp.minimum(step, jnp.maximum(pl.cdiv(length, columns) - 1, 0))


def _tpu_kernel(
    length_B, q_KMH, k_KHS, values, mixed_KMH, lse_KM1, max_KM1, sum_KM1, *, columns: int, turned: bool
):
    """One block of one row, all heads. `mixed_KMH` holds the running sum until the last step."""
    step = pl.program_id(1)
    num_filled = length_B[pl.program_id(0)] - step * columns  # in this block and after it

    @pl.when(step == 0)
    def _start():
        max_KM1[...] = jnp.full_like(max_KM1, layers.MASKED)
        sum_KM1[...] = jnp.zeros_like(sum_KM1)
        mixed_KMH[...] = jnp.zeros_like(mixed_KMH)

    @pl.when(num_filled > 0)
    def _add_block():
        scores_KMS = _scores("KMH,KHS->KMS", q_KMH[...], k_KHS[...])
        # behind the length may stand anything, and 0 * NaN is NaN
        scores_KMS = jnp.where(_index(scores_KMS.shape, 2) < num_filled, scores_KMS, layers.MASKED)
        filled = jnp.where(_index(values.shape, 2 if turned else 1) < num_filled, values[...], 0)
        letters = "KMS,KHS->KMH" if turned else "KMS,KSH->KMH"
        sums = (max_KM1[...], sum_KM1[...], mixed_KMH[...])
        max_KM1[...], sum_KM1[...], mixed_KMH[...] = _add(sums, scores_KMS, letters, filled)

    @pl.when(step == pl.num_programs(1) - 1)
    def _finish():
        mixed_KMH[...], lse_KM1[...] = _normalised(max_KM1[...], sum_KM1[...], mixed_KMH[...])


def pallas_gpu(
    q_BKMH: jax.Array, k_BKHS: jax.Array, v_BKSH: jax.Array, length_B: jax.Array, *, interpret: bool = False
) -> Part:
    """A program for each row, head and `GPU_COLUMNS` columns; one behind the length reads nothing."""
    rows, heads, queries, width = q_BKMH.shape
    padded = max(GPU_QUERIES, pl.next_power_of_2(queries))
    q_BKMH = jnp.pad(q_BKMH, ((0, 0), (0, 0), (0, padded - queries), (0, 0)))
    num_parts = pl.cdiv(k_BKHS.shape[-1], GPU_COLUMNS)
    of_head = lambda row, head, part: (row, head, 0, 0)  # noqa: E731
    mixed_nBKMH, lse_nBKM = pl.pallas_call(
        functools.partial(_gpu_kernel, block=GPU_BLOCK_BYTES // k_BKHS.dtype.itemsize),
        grid=(rows, heads, num_parts),
        in_specs=[
            pl.BlockSpec((1,), lambda row, head, part: (row,)),
            pl.BlockSpec((None, None, padded, width), of_head),
            pl.BlockSpec((None, None, *k_BKHS.shape[2:]), of_head),
            pl.BlockSpec((None, None, *v_BKSH.shape[2:]), of_head),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, padded, width), lambda row, head, part: (part, row, head, 0, 0)),
            pl.BlockSpec((None, None, None, padded), lambda row, head, part: (part, row, head, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((num_parts, rows, heads, padded, width), jnp.float32),
            jax.ShapeDtypeStruct((num_parts, rows, heads, padded), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="decode_attention",
    )(length_B.astype(jnp.int32), q_BKMH, k_BKHS, v_BKSH)
    return _join(mixed_nBKMH[:, :, :, :queries], lse_nBKM[..., :queries])


def _gpu_kernel(length_1, q_MH, k_HS, v_SH, mixed_MH, lse_M, *, block: int):
    """The columns of one part, block by block up to the row's length."""
    start = pl.program_id(2) * GPU_COLUMNS
    end = jnp.minimum(start + GPU_COLUMNS, length_1[0])
    q = q_MH[...]

    def add_block(index, sums):
        at = start + index * block
        filled_S = at + jnp.arange(block) < end
        k_block = plgpu.load(k_HS.at[:, pl.ds(at, block)], mask=filled_S[None], other=0.0)
        v_block = plgpu.load(v_SH.at[pl.ds(at, block)], mask=filled_S[:, None], other=0.0)
        scores_MS = jnp.where(filled_S[None], _scores("MH,HS->MS", q, k_block), layers.MASKED)
        return _add(sums, scores_MS, "MS,SH->MH", v_block)

    zeros_M1 = jnp.zeros((q.shape[0], 1), jnp.float32)
    nothing = (zeros_M1 + layers.MASKED, zeros_M1, jnp.zeros(q.shape, jnp.float32))
    num_blocks = pl.cdiv(jnp.maximum(end - start, 0), block)
    sums = jax.lax.fori_loop(0, num_blocks, add_block, nothing)
    mixed_MH[...], lse_M1 = _normalised(*sums)
    lse_M[...] = lse_M1[:, 0]


ATTENTIONS: dict[str, Attention] = {"xla": xla, "pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
NEEDS = {"pallas_tpu": "tpu", "pallas_gpu": "gpu"}  # platforms as JAX names them; others run anywhere
AUTOMATIC = {"cpu": "xla", "gpu": "xla", "tpu": "xla"}  # a kernel enters once it was measured to be faster
COLUMNS_MULTIPLE = {"xla": 1, "pallas_tpu": TPU_TILE, "pallas_gpu": 16}
"""S should be a multiple of it: else XLA copies the keys at every call (TPU), or reads are narrow (GPU)."""


def _scores(letters: str, q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum(letters, q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5


def _mix(letters: str, weights: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum(letters, weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _index(shape: tuple[int, ...], axis: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _add(sums: tuple, scores: jax.Array, letters: str, v: jax.Array) -> tuple:
    """Running largest score, sum of weights beside it `[..., M, 1]` and mix `[..., M, H]`, a block later."""
    largest, total, mixed = sums
    now = jnp.maximum(largest, scores.max(-1, keepdims=True))
    shrink, weights = jnp.exp(largest - now), jnp.exp(scores - now)
    return now, total * shrink + weights.sum(-1, keepdims=True), mixed * shrink + _mix(letters, weights, v)


def _normalised(largest: jax.Array, total: jax.Array, mixed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mix and the log-sum-exp `[..., M, 1]`; where nothing was added, zeros and MASKED."""
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # 1 or more where anything was added
    return mixed / total, largest + jnp.log(total)


def _join(mixed_nBKMH: jax.Array, lse_nBKM: jax.Array) -> Part:
    weights_nBKM = jax.nn.softmax(lse_nBKM, axis=0)
    return (weights_nBKM[..., None] * mixed_nBKMH).sum(0), jax.nn.logsumexp(lse_nBKM, axis=0)
