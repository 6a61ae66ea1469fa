"""Names and weights to specs, and what is said when they are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.rewards import pool, registry
from grpo_jax.structs import Attempt


def test_names_and_weights_keep_their_order() -> None:
    specs = registry.resolve(" format , accuracy", "0.2, 1.0")
    assert [(spec.name, spec.weight, spec.path) for spec in specs] == [
        ("format", 0.2, ""),
        ("accuracy", 1.0, ""),
    ]


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


def test_options_stand_behind_the_name_and_reach_the_function(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def short(attempt, *, limit, word='a,b', on=False):\n    return (limit, word, on)\n")
    specs = registry.resolve(f"format, {file}:short(limit=-0.5, word='(c,d', on=True) ,accuracy()", "1,2,3")
    assert [spec.name for spec in specs] == ["format", "short", "accuracy"]
    assert [spec.weight for spec in specs] == [1.0, 2.0, 3.0]
    assert specs[1].options == (("limit", -0.5), ("word", "(c,d"), ("on", True))
    assert registry.load(specs[1])(None) == (-0.5, "(c,d", True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("limit=1, wrd='a'", ["no option 'wrd'", "'word'"]),
        ("limit=1, zzz=2", ["no option 'zzz'", "['limit', 'on', 'word']"]),
        ("", ["needs a value for limit", "short(limit=...)"]),
        ("limit=1, word=2", ["'word'", "must be a str", "'a'"]),
        ("limit=1, on=1", ["'on'", "truth value"]),
        ("1", ["name=value"]),
        ("limit=[1]", ["name=value"]),
        ("limit=open('x')", ["name=value"]),
        ("**{'limit': 1}", ["name=value"]),
        ("limit=1).__class__(", ["name=value"]),
        ("limit=1", []),
        ("limit=1e999", ["finite"]),
    ],
)
def test_a_wrong_option_is_one_clear_line(tmp_path: Path, options: str, words: list[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text("def short(attempt, *, limit, word='a', on=False):\n    return 1.0\n")
    if not words:
        assert registry.resolve(f"{file}:short({options})")
        return
    with pytest.raises(ValueError) as error:
        registry.resolve(f"{file}:short({options})")
    message = str(error.value)
    assert "\n" not in message and "config.reward.reward_funcs" in message
    assert all(word in message for word in words), message


def test_an_option_that_a_built_in_reward_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'format' has no option 'strict'; it has none"):
        registry.resolve("format(strict=True)")


@pytest.mark.parametrize(
    ("source", "grouped", "is_async"),
    [
        ("def f(attempt): ...", False, False),
        ("def f(attempts, *, a=1): ...", True, False),
        ("async def f(sample): ...", False, True),
        ("async def f(attempts): ...", True, True),
        ("import functools\n\nf = functools.partial(max)", False, False),
    ],
)
def test_how_a_function_is_called_is_read_from_its_source(
    tmp_path: Path, source: str, grouped: bool, is_async: bool
) -> None:
    (tmp_path / "own.py").write_text(source + "\n")
    (spec,) = registry.resolve(f"{tmp_path / 'own.py'}:f")
    assert (spec.grouped, spec.is_async) == (grouped, is_async)


def test_a_function_with_two_parameters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def f(completion, answer): ...\n")
    with pytest.raises(ValueError, match="must take one parameter, an attempt"):
        registry.resolve(f"{tmp_path / 'own.py'}:f")


@pytest.mark.parametrize(
    "change", ["from group_of_own import f", "def f(attempt):\n    return 1.0\n\n\nf = other(f)"]
)
def test_a_function_that_is_called_otherwise_than_its_file_shows_is_an_error_at_the_start(
    tmp_path: Path, change: str
) -> None:
    (tmp_path / "group_of_own.py").write_text("def f(attempts):\n    return [1.0] * len(attempts)\n")
    file = tmp_path / f"changed_{len(change)}.py"
    file.write_text(f"def other(function):\n    from group_of_own import f\n    return f\n\n\n{change}\n")
    (spec,) = registry.resolve(f"{file}:f")
    with pytest.raises(TypeError, match="name the file that defines it"):
        registry.load(spec)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package of the user's own that must not run here."""
    folder = tmp_path / "pkg_of_own" / "deep"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise SystemExit('run')\n")
    (folder / "__init__.py").write_text("raise SystemExit('run')\n")
    (folder / "mod.py").write_text(
        "from .near import VALUE\n\ndef score(attempt, *, x=1):\n    return x * VALUE\n"
    )
    (folder / "near.py").write_text("VALUE = 2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_an_own_module_is_found_without_running_it_or_its_packages(package: Path) -> None:
    (spec,) = registry.resolve("pkg_of_own.deep.mod:score(x=3)")
    assert (spec.name, spec.module, spec.path) == ("score", "pkg_of_own.deep.mod", str(package / "mod.py"))
    for name, words in (
        ("pkg_of_own.deep.mod:scor", "did you mean 'score'"),
        ("pkg_of_own.deep.no:score", "no module 'pkg_of_own.deep.no'"),
        ("no_pkg_of_own.mod:score", "no module 'no_pkg_of_own'"),
        ("math:sqrt", "no source file|has no function"),
    ):
        with pytest.raises(ValueError, match=words):
            registry.resolve(name)


def test_an_own_module_is_loaded_by_the_worker_with_its_package(package: Path) -> None:
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    specs = registry.resolve("pkg_of_own.deep.mod:score(x=3)")
    with pool.Judge(specs, num_workers=1) as judge:
        judge.submit(0, Attempt("", "", "", 1, True))
        assert judge.collect()[0].rewards == (6.0,)


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


def test_options_that_do_not_fit_the_longest_completion_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="between 1 and the 72 tokens of the longest completion; got 100"):
        registry.resolve("accuracy,soft_overlong(cache=100)", max_completion_length=72)
    with pytest.raises(ValueError, match="got 512"):  # the default
        registry.resolve("soft_overlong", max_completion_length=72)
    registry.resolve("soft_overlong(cache=72)", max_completion_length=72)
