"""Eight fake CPU devices, strict rank promotion, and small random models for all tests."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach out
# Small programs: compiling them takes most of the time, and a third of it is enough without optimisation.
# Tests that start the whole program take this out again.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0")

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(prefix="grpo_jax_tests_"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)  # tests share many programs
jax.config.update("jax_numpy_rank_promotion", "raise")

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder
from grpo_jax.models.spec import ModelSpec
from tests import micro_run

ROOT = Path(__file__).resolve().parent.parent

TINY = ModelSpec(
    family="qwen3",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    qk_norm=True,
    initializer_range=0.3,  # wide, so that distributions are far from flat
)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data sets and tokenizers; the folder is named by an environment variable."""
    folder = os.environ.get("GRPO_JAX_DATA")
    if not folder:
        pytest.skip("GRPO_JAX_DATA names no folder with gsm8k/, math500/ and tokenizers/")
    return Path(folder)


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory) -> Path:
    """Of the tests that run the whole program in seconds (`micro_run.py`); none of them changes it."""
    return micro_run.make_model(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    """Where these programs find what others of them have compiled."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def cache(compiled) -> str:
    """The same, for a command line."""
    return f"--config.compilation_cache={compiled}"


@pytest.fixture(scope="session")
def mesh() -> jax.sharding.Mesh:
    return mesh_lib.create(data=8, fsdp=1, tensor=1)


@pytest.fixture(scope="session")
def tiny_model() -> decoder.Model:
    return decoder.build(TINY)[0]


@pytest.fixture(scope="session")
def tiny_params(mesh: jax.sharding.Mesh):
    _, shapes = decoder.build(TINY)
    return decoder.initialise(TINY, seed=0, shardings=mesh_lib.parameter_shardings(mesh, shapes))


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs():
    """Hundreds of compiled programs take gigabytes, which the tests that start a real model need themselves."""
    yield
    used_pages = (
        int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    )
    if used_pages * 4096 > 3 << 30:
        jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
