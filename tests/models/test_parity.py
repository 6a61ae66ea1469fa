"""The same numbers as `transformers`, in float32, for every family.

Always against `golden.npz` (see `make_golden.py`), and live where torch is installed. The reference reads
every row alone and without padding; ours reads it alone and in batches padded on either side.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder, hf_weights, registry
from grpo_jax.sampling.weights import SamplingWeights
from grpo_jax.structs import Problem
from tests.models import make_golden, small_models
from tests.sampling.small_samplers import make_engine

NAMES = sorted(small_models.CONFIGS)
GREEDY_NAMES = [name for name in NAMES if name != "qwen2.5-yarn"]  # its parts are in qwen2 and qwen3-yarn
TOLERANCE = 1e-4  # logits of size 1 to 4; float32 rounding through two layers stays below it
PADDING_ID = 299  # a real id: padding must be ignored because of the mask, not of its embedding


@pytest.fixture(scope="module")
def one_device() -> jax.sharding.Mesh:
    """Rows of any number fit, and nothing is computed eight times."""
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh_lib.AXES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("small_models")
    return {name: small_models.write_folder(parent / name, small_models.CONFIGS[name]) for name in NAMES}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(make_golden.GOLDEN_PATH, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def load(folders, one_device):
    """`load(name)`: the static model and its parameters, read once."""

    @functools.cache
    def read(name: str) -> tuple[decoder.Model, decoder.Params]:
        spec = registry.read_spec(folders[name])
        model, shapes = decoder.build(spec)
        shardings = mesh_lib.parameter_shardings(one_device, shapes)
        return model, hf_weights.load(folders[name], spec, shapes=shapes, shardings=shardings)

    return read


@pytest.fixture(scope="module")
def our_logits(load):
    """`our_logits(name)`: case -> one array `[length, V]` a row; computed once for both comparisons."""

    @functools.cache
    def compute(name: str) -> dict[str, list[np.ndarray]]:
        model, params = load(name)
        return {case: _padded_logits(model, params, *rest) for case, rest in _cases(name).items()}

    return compute


def _cases(name: str) -> dict[str, tuple[list[np.ndarray], list[str]]]:
    """Name -> rows of one batch and the side on which each is padded."""
    rows = make_golden.rows()
    long, one, hundred, longish, *short = rows
    cases = {
        "2000 alone": ([long], ["left"]),
        "8 up to 2000": ([long, one, hundred, longish] * 2, ["left"] * 4 + ["right"] * 4),
    }
    if name.endswith("yarn"):  # differs from its family where rows are long
        return cases
    return cases | {
        "100 alone": ([hundred], ["left"]),
        "1 alone": ([one], ["left"]),
        "8 up to 100": ([hundred, one, *short] * 2, ["left"] * 4 + ["right"] * 4),
        "8 of 1": ([one] * 8, ["left"] * 8),
    }


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens_BT, valid_BT):
    hidden_BTD = model.hidden_states(params, tokens_BT, valid_BT, dtype=jnp.float32)
    return jnp.einsum("BTD,VD->BTV", hidden_BTD, model.head(params))


def _padded_logits(model, params, rows: list[np.ndarray], sides: list[str]) -> list[np.ndarray]:
    width = max(map(len, rows))
    tokens_BT = np.full((len(rows), width), PADDING_ID, np.int32)
    valid_BT = np.zeros(tokens_BT.shape, bool)
    places = [
        slice(width - len(r), width) if s == "left" else slice(len(r))
        for r, s in zip(rows, sides, strict=True)
    ]
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        tokens_BT[i, place], valid_BT[i, place] = row, True
    logits_BTV = np.asarray(_logits(model, params, tokens_BT, valid_BT))
    return [logits_BTV[i, place] for i, place in enumerate(places)]


def _row_numbers(rows: list[np.ndarray]) -> list[int]:
    lengths: list[int] = list(make_golden.ROW_LENGTHS)
    return [lengths.index(len(row)) for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_stored_from_transformers(name, our_logits, golden):
    assert json.loads(str(golden[f"{name}/about"]))["config"] == small_models.CONFIGS[name], (
        "golden.npz is of another config: run tests/models/make_golden.py"
    )
    for case, (rows, _) in _cases(name).items():
        for number, ours in zip(_row_numbers(rows), our_logits(name)[case], strict=True):
            kept = make_golden.kept_positions(len(ours))
            expected = golden[f"{name}/logits{number}"]
            np.testing.assert_allclose(ours[kept], expected, atol=TOLERANCE, rtol=0, err_msg=case)


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers_at_every_position(name, our_logits, folders):
    pytest.importorskip("torch", reason="the live comparison needs torch; golden.npz stands in")
    expected = make_golden.reference_logits(folders[name])
    assert expected[0].std() > 0.5  # not flat: a tolerance of 1e-4 means something
    for case, (rows, _) in _cases(name).items():
        for number, ours in zip(_row_numbers(rows), our_logits(name)[case], strict=True):
            np.testing.assert_allclose(ours, expected[number], atol=TOLERANCE, rtol=0, err_msg=case)


@pytest.fixture(scope="module")
def our_completions(load, one_device, golden):
    """`our_completions(name)`: greedy tokens of the engine for the prompts, and the end ids used."""

    @functools.cache
    def compute(name: str) -> tuple[list[list[int]], list[int]]:
        end_ids = json.loads(str(golden[f"{name}/about"]))["end_ids"]
        model, params = load(name)
        prompts = make_golden.prompts()
        engine = make_engine(
            model,
            one_device,
            slots=len(prompts) - 1,  # one has to wait
            window=16,  # two windows
            generations=1,
            prompt=max(map(len, prompts)),
            completion=make_golden.MAX_NEW_TOKENS,
            end_ids=tuple(end_ids),
            num_valid_ids=make_golden.VOCABULARY,
        )
        weights = SamplingWeights(model, mesh=one_device, shapes=params, dtype=jnp.float32)(params)
        problems = [Problem(i, "", "", "", tuple(ids.tolist())) for i, ids in enumerate(prompts)]
        sampled = engine.generate(
            weights, problems, num_generations=1, temperature=0.0, step_key=jax.random.key(0)
        )
        return [group[0].ids.tolist() for group in sampled.completions], end_ids

    return compute


@pytest.mark.parametrize("name", GREEDY_NAMES)
def test_greedy_completions_equal_those_stored_from_transformers(name, our_completions, golden):
    expected = json.loads(str(golden[f"{name}/about"]))["completions"]
    completions, end_ids = our_completions(name)
    assert completions == expected
    lasts = {tokens[-1] for tokens in completions}
    assert set(end_ids) <= lasts  # both end ids ended a row,
    assert make_golden.MAX_NEW_TOKENS in map(len, completions)  # and the limit ended another


@pytest.mark.parametrize("name", GREEDY_NAMES)
def test_greedy_completions_equal_those_of_transformers_generate(name, our_completions, folders):
    pytest.importorskip("torch", reason="the live comparison needs torch; golden.npz stands in")
    completions, end_ids = our_completions(name)
    assert completions == make_golden.reference_completions(folders[name], end_ids=end_ids)


def test_the_stored_file_is_small_and_holds_plain_arrays(golden):
    assert make_golden.GOLDEN_PATH.stat().st_size < 300_000
    assert {array.dtype.kind for array in golden.values()} == {"f", "U"}  # no pickled objects
