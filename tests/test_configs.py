"""Every config can be read, `base.py` has every field once, and every field is read by somebody.

The last test follows types through the sources, so that `settings.data.name` counts for `DataParams.name`
and `spec.name` does not. A field that is only checked and never used counts as unread: a switch that does
nothing is worse than none.
"""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import base
from grpo_jax import command_line, settings

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
RECORDS = {"Settings": settings.Settings} | {kind.__name__: kind for kind in settings.SECTIONS.values()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_resolves_and_reads_into_settings(path):
    config = command_line.read_config(["--config", str(path)], program="test")
    assert isinstance(settings.read(config), settings.Settings)


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem != "base"], ids=lambda path: path.stem
)
def test_a_config_says_only_what_differs(path):
    assert len(path.read_text().splitlines()) < 60


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem != "base"], ids=lambda path: path.stem
)
def test_a_config_names_its_own_folder_and_command(path):
    config = command_line.read_config(["--config", str(path)], program="test")
    assert config["output_dir"] == f"runs/{path.stem}"
    assert f"python -m grpo_jax.train --config configs/{path.name}" in path.read_text()


def test_base_has_exactly_the_fields_of_the_settings():
    config = base.get_config().to_dict()
    sections = {name: field_names(kind) for name, kind in settings.SECTIONS.items()}
    assert {name: set(config[name]) for name in sections} == sections
    assert set(config) == field_names(settings.Settings)


def test_the_values_of_base_have_the_types_of_the_fields():
    config = base.get_config().to_dict()
    for name, kind in settings.SECTIONS.items():
        hints = typing.get_type_hints(kind)
        kinds = {field: typing.get_origin(hint) or hint for field, hint in hints.items()}
        wrong = {field: value for field, value in config[name].items() if type(value) is not kinds[field]}
        assert wrong == {}, name


def test_every_field_is_read_by_some_room():
    paths = [*(ROOT / "grpo_jax").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    assert unread([(path.stem, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]) == set()


READS_ALL_BUT_BETA = "\n".join(
    [
        "class GRPOParams:\n    beta: float\n    epsilon: float",
        "class Settings:\n    grpo: GRPOParams\n    seed: int",
        "class Run:\n    settings: Settings",
        "def use(run: Run):\n    grpo = run.settings.grpo\n    return grpo.epsilon, run.settings.seed",
        "def check_it(s: Settings):\n    assert s.grpo.beta >= 0",  # checked is not used
        "def other(loss: LossParams):\n    return loss.beta",  # another record's field
    ]
)


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ("", {"GRPOParams.beta"}),
        ("def go(run: Run):\n    return run.settings.grpo.beta", set()),
        ("def go(s: Settings):\n    a, b = s.seed, s.grpo\n    return lambda: b.beta", set()),
        ("def read() -> Settings: ...\ndef go():\n    s = room.read()\n    return s.grpo.beta", set()),
        ("def read() -> Settings: ...\ndef go():\n    return read().grpo.beta", set()),
        ("def go(s):\n    return s.grpo.beta", {"GRPOParams.beta"}),  # of what?
    ],
)
def test_a_field_that_nobody_reads_is_found(more, left):
    fields = {"GRPOParams": {"beta", "epsilon"}, "Settings": {"grpo", "seed"}}
    assert unread([("room", ast.parse(READS_ALL_BUT_BETA + "\n" + more))], fields=fields) == left


def field_names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def unread(modules: list[tuple[str, ast.Module]], *, fields: dict[str, set[str]] | None = None) -> set[str]:
    """`Class.field` of every settings record that no function of these (name, source) pairs reads."""
    fields = fields or {name: field_names(kind) for name, kind in RECORDS.items()}
    types = known_types(modules)
    read = {found for _, tree in modules for found in reads(tree, types)}
    return {f"{name}.{field}" for name, names in fields.items() for field in names} - read


def known_types(modules: list[tuple[str, ast.Module]]) -> dict[str, str]:
    """Types by `Class.attribute` (annotated fields and properties), `module.function()` and `function()`."""
    types: dict[str, str] = {}
    for module, node in ((name, node) for name, tree in modules for node in tree.body):
        if isinstance(node, ast.ClassDef):
            for entry in node.body:
                if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                    types[f"{node.name}.{entry.target.id}"] = last_name(entry.annotation)
                elif isinstance(entry, ast.FunctionDef) and entry.returns:
                    types[f"{node.name}.{entry.name}"] = last_name(entry.returns)
        elif isinstance(node, ast.FunctionDef) and node.returns:
            kind = last_name(node.returns)
            types[f"{module}.{node.name}()"] = kind
            same = types.setdefault(f"{node.name}()", kind) == kind
            types[f"{node.name}()"] = kind if same else ""  # two modules have one of this name
    return types


def reads(tree: ast.AST, types: dict[str, str], owner: str = "") -> Iterator[str]:
    """`Class.attribute` of every attribute read outside functions that only check."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from reads(node, types, owner=node.name)
        elif isinstance(node, ast.FunctionDef) and not is_check(node.name):
            scope = scope_of(node, types, {"self": owner})
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and (kind := type_of(inner.value, scope, types)):
                    yield f"{kind}.{inner.attr}"


def scope_of(function: ast.FunctionDef, types: dict[str, str], scope: dict[str, str]) -> dict[str, str]:
    """The types of a function's names: annotated arguments, then what is assigned from something known."""
    for node in ast.walk(function):
        if isinstance(node, ast.arg) and node.annotation:
            scope[node.arg] = last_name(node.annotation)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target, value in pairs(node):
                if isinstance(target, ast.Name) and (kind := type_of(value, scope, types)):
                    scope[target.id] = kind
    return scope


def pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        yield from zip(target.elts, value.elts, strict=True)
    else:
        yield target, value


def type_of(node: ast.expr, scope: dict[str, str], types: dict[str, str]) -> str:
    """The class of an expression; "" where it cannot be told."""
    if isinstance(node, ast.Name):
        return scope.get(node.id, "")
    if isinstance(node, ast.Attribute):
        return types.get(f"{type_of(node.value, scope, types)}.{node.attr}", "")
    if isinstance(node, ast.Call):
        return types.get(f"{ast.unparse(node.func)}()", "")
    return ""


def is_check(name: str) -> bool:
    return name.lstrip("_").startswith("check") or name == "__post_init__"


def last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]
