"""Every attention of training against one softmax a completion, written out in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import packed_attention
from grpo_jax.models.packed_tokens import PackedTokens

KV_HEADS, QUERIES, HEAD_DIM = 2, 3, 16
PROMPTS = (3, 5)  # tokens
SHARED = [[(0, 4), (0, 7)], [(1, 2), (1, 9)], [(1, 11)]]  # lines of (prompt, tokens of the completion)


def pieces(lines, *, share: bool, width: int = 14) -> PackedTokens:
    """One piece whose lines hold these completions."""
    columns = 6
    segments, positions = np.zeros((2, 1, len(lines), width), np.int32)
    for e, line in enumerate(lines):
        column = 0
        for segment, (prompt, count) in enumerate(line, start=1):
            first = PROMPTS[prompt] if share else 0
            length = count if share else PROMPTS[prompt] + count
            segments[0, e, column : column + length] = segment
            positions[0, e, column : column + length] = first + np.arange(length)
            column += length
    places = len(PROMPTS) if share else 0
    return PackedTokens(
        prompts_UYZ=np.zeros((1, places, columns if share else 0), np.int32),
        prompt_length_UY=np.array([PROMPTS[:places]], np.int32).reshape(1, places),
        lines_UEW=np.zeros((1, len(lines), width), np.int32),
        segments_UEW=segments,
        positions_UEW=positions,
        prompt_of_line_UE=np.array([[line[0][0] if share else 0 for line in lines]], np.int32),
    )


def written_out(packed: PackedTokens, q, k, v) -> np.ndarray:
    """Token by token: which others it reads, and their softmax."""
    q, k, v = (np.asarray(x, np.float64)[0] for x in (q, k, v))
    _, num_prompts, columns = packed.prompts_UYZ.shape
    width = packed.lines_UEW.shape[2]
    mixed = np.zeros_like(q)
    for t in range(len(q)):
        if t < num_prompts * columns:
            y, column = divmod(t, columns)
            if column >= packed.prompt_length_UY[0, y]:
                continue
            read = y * columns + np.arange(column + 1)
        else:
            e, column = divmod(t - num_prompts * columns, width)
            segment = packed.segments_UEW[0, e, column]
            if not segment:
                continue
            own = np.flatnonzero(packed.segments_UEW[0, e, : column + 1] == segment)
            read = num_prompts * columns + e * width + own
            if num_prompts:
                y = packed.prompt_of_line_UE[0, e]
                read = np.concatenate([y * columns + np.arange(packed.prompt_length_UY[0, y]), read])
        scores = np.einsum("kmh,skh->kms", q[t], k[read]) / np.sqrt(HEAD_DIM)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[t] = np.einsum("kms,skh->kmh", weights / weights.sum(-1, keepdims=True), v[read])
    return mixed


def real(packed: PackedTokens) -> np.ndarray:
    """bool `[T]`: no padding."""
    columns = packed.prompts_UYZ.shape[2]
    of_prompts = np.arange(columns)[None] < packed.prompt_length_UY[0][:, None]
    return np.concatenate([of_prompts.reshape(-1), (packed.segments_UEW > 0).reshape(-1)])


def inputs(packed: PackedTokens, seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    size = packed.prompts_UYZ[0].size + packed.lines_UEW[0].size
    shapes = [(1, size, KV_HEADS, QUERIES, HEAD_DIM), *[(1, size, KV_HEADS, HEAD_DIM)] * 2]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


ONE_EACH = [[(0, 4)], [(0, 7)], [(1, 9)]]
LAYOUTS = {
    "xla": [(SHARED, True), (SHARED, False), (ONE_EACH, True)],
    "splash": [(SHARED, False), (ONE_EACH, True), (ONE_EACH, False)],
    "cudnn": [(ONE_EACH, False)],
}
CASES = [(name, *layout) for name, layouts in LAYOUTS.items() for layout in layouts]


@pytest.fixture
def run_anywhere(monkeypatch):
    """Kernels as this CPU can run them: splash interpreted, cuDNN's call computed by XLA."""
    stand_ins = {
        "splash": functools.partial(packed_attention.lines_splash, interpret=True),
        "cudnn": functools.partial(packed_attention.lines_cudnn, implementation="xla"),
    }
    monkeypatch.setattr(
        packed_attention, "LINE_ATTENTIONS", {**packed_attention.LINE_ATTENTIONS, **stand_ins}
    )


@pytest.mark.parametrize(("name", "lines", "share"), CASES)
def test_a_token_reads_its_prompt_and_its_own_completion(run_anywhere, name, lines, share, monkeypatch):
    monkeypatch.setattr(packed_attention, "QUERY_COLUMNS", 5)  # several stretches a line
    packed = pieces(lines, share=share, width=22)
    q, k, v = inputs(packed)
    mixed = jax.jit(functools.partial(packed_attention.attend, name=name))(packed, q, k, v)
    used = real(packed)
    np.testing.assert_allclose(mixed[0][used], written_out(packed, q, k, v)[used], atol=2e-6)


@pytest.mark.parametrize(("name", "lines", "share"), [case for case in CASES if case[0] != "xla"])
def test_gradients_are_those_of_the_plain_form(run_anywhere, name, lines, share):
    packed = pieces(lines, share=share, width=22)
    q, k, v = inputs(packed)
    weights = jnp.where(real(packed), 1.0, 0.0)[None, :, None, None, None] * inputs(packed, 1)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(name, *qkv):
        total = lambda *qkv: (packed_attention.attend(packed, *qkv, name=name) * weights).sum()  # noqa: E731
        return jax.grad(total, argnums=(0, 1, 2))(*qkv)

    for ours, plain in zip(gradient(name, q, k, v), gradient("xla", q, k, v), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_kernels_are_cut_over_devices_by_lines_and_heads(run_anywhere):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 1, 2), ("data", "fsdp", "tensor"))
    packed = jax.tree.map(
        lambda x: np.concatenate([x, x[:, ::-1] if x.ndim > 2 else x]), pieces(ONE_EACH, share=False)
    )
    q, k, v = (jnp.concatenate([x, 2 * x]) for x in inputs(pieces(ONE_EACH, share=False)))
    plain = packed_attention.attend(packed, q, k, v, name="xla")
    cut = jax.jit(functools.partial(packed_attention.attend, name="splash", mesh=mesh))(packed, q, k, v)
    used = np.stack([real(jax.tree.map(lambda x: x[u : u + 1], packed)) for u in range(2)])  # noqa: B023
    np.testing.assert_allclose(np.asarray(cut)[used], np.asarray(plain)[used], atol=2e-6)


def test_layouts_that_an_attention_cannot_read_are_never_made():
    assert packed_attention.lines_of("xla", packing=2, share_prompts=True) == (2, True)
    assert packed_attention.lines_of("splash", packing=2, share_prompts=True) == (2, False)
    assert packed_attention.lines_of("splash", packing=0, share_prompts=True) == (0, True)
    assert packed_attention.lines_of("cudnn", packing=2, share_prompts=True) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flash", "cpu", jnp.float32), "'flash'; known are .*'splash'"),
        (("splash", "cpu", jnp.float32), "runs on a TPU, this is a CPU"),
        (("cudnn", "gpu", jnp.float32), "needs config.model.compute_dtype 'bfloat16'"),
    ],
)
def test_what_cannot_run_here_is_refused_at_the_start(arguments, message):
    with pytest.raises(ValueError, match=message):
        packed_attention.check(*arguments)
