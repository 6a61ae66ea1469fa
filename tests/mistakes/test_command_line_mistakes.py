"""Mistakes in what is typed: arguments, overrides, the config file."""

from __future__ import annotations

import pytest

from tests.mistakes.harness import Mistake, check, ours

ROWS = (
    Mistake("no_config", (), ("name a config", "--config FILE", "configs/tiny.py")),
    Mistake("misspelt_field", ours("grpo.num_iteration=2"), ("num_iteration", "num_iterations")),
)


@pytest.mark.parametrize("mistake", ROWS, ids=lambda mistake: mistake.name)
def test_it_is_told_in_one_line(mistake, run, tmp_path):
    check(mistake, run, tmp_path)
