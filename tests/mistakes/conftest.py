"""One runner for all rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mistakes.harness import Runner


@pytest.fixture(scope="session")
def run() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()
