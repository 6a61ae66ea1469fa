"""One judge for the tests that only need grades, and the way completions are written here."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

from grpo_jax.rewards import pool, registry
from grpo_jax.structs import Attempt


def write_attempt(value: str, gold: str) -> Attempt:
    """A well-formed completion whose answer tag holds `value`."""
    text = f"<think>\nsome reasoning\n</think>\n<answer>\n{value}\n</answer>"
    return Attempt(text, "What is it?", gold, len(text) // 4, True)


@pytest.fixture(scope="session")
def attempt() -> Callable[[str, str], Attempt]:
    return write_attempt


@pytest.fixture(scope="session")
def judge() -> Iterator[pool.Judge]:
    """Two workers with both built-in rewards; a test that uses it leaves it idle."""
    with pool.Judge(registry.resolve("accuracy,format", "1.0,0.2"), num_workers=2) as judge:
        yield judge


@pytest.fixture(scope="session")
def data_folder() -> pathlib.Path:
    """The folder with gsm8k/ and math500/, which the project does not carry."""
    folder = os.environ.get("GRPO_JAX_DATA")
    if not folder:
        pytest.skip("GRPO_JAX_DATA is not set: it names the folder that holds gsm8k/ and math500/")
    return pathlib.Path(folder)
