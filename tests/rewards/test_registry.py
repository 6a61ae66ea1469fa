"""Names and weights to specs, and what is said when they are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.rewards import registry


def test_names_and_weights_keep_their_order() -> None:
    specs = registry.resolve(" format , accuracy", "0.2, 1.0")
    assert [(spec.name, spec.weight, spec.path) for spec in specs] == [
        ("format", 0.2, ""),
        ("accuracy", 1.0, ""),
    ]
    # 0.2 * 1 + 1.0 * 0.5
    assert registry.weighted_sum(specs, (1.0, 0.5)) == pytest.approx(0.7, abs=1e-12)


def test_without_weights_each_is_one() -> None:
    assert [spec.weight for spec in registry.resolve("accuracy,format")] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("reward_funcs", "reward_weights", "words"),
    [
        ("acuracy", "", ["'acuracy'", "'accuracy'"]),
        ("zzz", "", ["'zzz'", "accuracy", "format"]),
        ("", "", ["reward_funcs"]),
        ("accuracy,format", "1.0", ["1 numbers", "2 rewards"]),
        ("accuracy", "1.0,2.0", ["2 numbers", "1 rewards"]),
        ("accuracy", "much", ["'much'"]),
        ("accuracy", "nan", ["'nan'"]),
        ("accuracy,accuracy", "", ["two", "'accuracy'"]),
    ],
)
def test_a_mistake_is_one_clear_line(reward_funcs: str, reward_weights: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        registry.resolve(reward_funcs, reward_weights)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_an_own_function_is_found_without_running_its_file(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("raise SystemExit('run')\n\ndef short(attempt):\n    return 1.0\n")
    (spec,) = registry.resolve(f"{file}:short", "0.5")
    assert spec == registry.RewardSpec("short", 0.5, str(file))


def test_an_own_function_that_is_missing_is_an_error_with_the_near_name(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def short(attempt):\n    return 1.0\n")
    with pytest.raises(ValueError, match=r"'shrt'.*'short'"):
        registry.resolve(f"{file}:shrt")
    with pytest.raises(FileNotFoundError, match="no_such_file"):
        registry.resolve("no_such_file.py:short")
    file.write_text("def short(:\n")
    with pytest.raises(ValueError, match="not valid Python"):
        registry.resolve(f"{file}:short")


def test_an_own_function_is_loaded_and_may_import_its_neighbours_and_define_dataclasses(
    tmp_path: Path,
) -> None:
    (tmp_path / "neighbour_of_own.py").write_text("VALUE = 0.25\n")
    file = tmp_path / "own.py"
    file.write_text(
        "from __future__ import annotations\nimport dataclasses\nimport neighbour_of_own\n\n"
        "@dataclasses.dataclass\nclass Found:\n    value: float\n\n"
        "def short(attempt):\n    return Found(neighbour_of_own.VALUE).value\n"
    )
    code = (
        "import sys; from grpo_jax.rewards import registry; "
        "print(registry.load(registry.resolve(sys.argv[1])[0])(None))"
    )
    command = [sys.executable, "-c", code, f"{file}:short"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0.25\n"


def test_resolving_imports_neither_the_library_nor_jax() -> None:
    code = (
        "import sys; from grpo_jax.rewards import registry, pool; registry.resolve('accuracy'); "
        "print([name for name in ('math_verify', 'sympy', 'jax') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
