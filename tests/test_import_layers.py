"""Who may know whom: imports only go down the house, and each outside library has its doors.

The tables are the law; the tests read every import statement of the sources (also those inside functions)
and import nothing of the project themselves. A room is a file or a wing (a folder) of `grpo_jax`, or all of
`configs/` or `tools/`. A new room needs a line in `FLOORS`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: dict[int, set[str]] = {
    0: {
        *("structs", "configs", "endings", "harmless_text", "step_lines"),
        *("json_files", "secret_values", "whole_files", "other_names", "config_file", "hub", "save_noise"),
    },
    1: {
        "models",
        "rewards",
        "mesh",
        "distributed",
        "checkpoint_folder",
        "digests",
        "starts",
        "told_files",
        "console",
        "chips",
        "compilations",
        "overrides",
        "charts",
        "trackers",
        "notices",
        "run_lock",
        "stop_strings",
        "text",
    },
    2: {
        *("sampling", "learning", "data", "metrics", "report"),
        *("command_line", "end_ids", "stopping", "alarms", "checkpoint_reading"),
    },
    3: {"checkpoints", "policy", "rollout", "run_folder", "tiny_tokenizer", "watch"},
    4: {"evaluation", "dynamic_sampling", "roll_backs"},
    5: {"settings", "worked_answers", "run_story"},
    6: {"settings_ranges", "restored", "problem_loading", "resuming"},
    7: {"building", "opening", "settings_checks"},
    8: {"run", "suite"},
    9: {"keeping", "planning", "sft_run"},
    10: {"train"},
    11: {"sft", "doctor", "replaying"},
    12: {"tools"},
}

KNOWS_AT_MOST: dict[str, set[str]] = {  # where a room may know less than the floors below it
    "models": {"json_files", "whole_files"},
    "mesh": set(),
    "distributed": set(),
    "checkpoints": {
        "checkpoint_reading",
        "checkpoint_folder",
        "digests",
        "distributed",
        "save_noise",
        "whole_files",
    },
    "checkpoint_reading": {"checkpoint_folder", "digests", "distributed"},
    "checkpoint_folder": {"whole_files"},
    "whole_files": set(),
    "save_noise": set(),
    "json_files": set(),
    "secret_values": set(),
    "notices": set(),
    "run_lock": set(),
    "stopping": {"structs", "distributed", "endings", "notices"},
    "watch": {"distributed", "endings", "secret_values", "stopping", "structs"},
    "digests": set(),
    "starts": {"whole_files"},
    "told_files": {"whole_files"},
    "chips": set(),
    "compilations": set(),
    "command_line": {"config_file", "endings", "overrides", "secret_values"},
    "overrides": {"other_names"},
    "hub": set(),
    "alarms": set(),
    "endings": set(),
    "end_ids": {"text"},
    "stop_strings": set(),
    "text": {"hub", "json_files"},
    "rewards": {"structs", "secret_values"},
    "metrics": {"console", "harmless_text", "step_lines", "told_files", "trackers"},
    "report": {"charts", "told_files", "whole_files"},
    "charts": {"harmless_text"},
    "console": {"harmless_text", "step_lines"},
    "harmless_text": set(),
    "step_lines": set(),
    "trackers": set(),
    "data": {"structs", "text", "hub"},
    # acting, judging and learning are strangers: they meet in rollout and train, through structs
    "sampling": {"structs", "chips", "mesh", "models", "distributed"},
    "learning": {"structs", "mesh", "models", "distributed", "digests"},
    "dynamic_sampling": {"structs", "learning"},
    "worked_answers": {"structs", "text", "learning", "data"},
}

DOORS: dict[str, set[str]] = {  # outside library -> exactly the rooms that import it
    "absl": {"overrides"},
    "datasets": {"data", "tools"},
    "flax": {"models"},
    "grain": {"data"},
    "huggingface_hub": {"text", "policy"},
    "jinja2": {"text"},
    "math_verify": {"rewards"},
    "ml_collections": {"config_file", "overrides", "configs"},
    "ml_dtypes": {"models"},
    "optax": {"learning"},
    "orbax": {"checkpoints", "checkpoint_reading"},
    "rich": {"console"},
    "safetensors": {"models"},
    "sympy": {"rewards"},
    "tensorboardX": {"trackers"},
    "tokenizers": {"tiny_tokenizer", "tools"},
    "trackio": {"trackers"},
    "torch": {"tools"},  # not needed: the peer that the benchmark may be asked to run beside us
    "transformers": {"text", "tools"},
    "trl": {"tools"},  # not needed either: the step's peer
    "wandb": {"trackers"},
}
EVERYWHERE = {"jax", "numpy"}

SLOW = {  # imported inside functions only: a mistake in a config is told before they are loaded
    "datasets",
    "grain",
    "huggingface_hub",
    "math_verify",
    "ml_collections",
    "rich",
    "sympy",
    "tensorboardX",
    "tokenizers",
    "torch",
    "trackio",
    "transformers",
    "trl",
    "wandb",
}
DISTRIBUTIONS = {"absl": "absl-py", "orbax": "orbax-checkpoint"}  # where the package has another name


class Import(NamedTuple):
    """One imported name."""

    importer: str  # module, such as "grpo_jax.learning.update"
    name: str  # dotted; of the project: a module that exists
    late: bool  # inside a function
    for_types: bool  # under `if TYPE_CHECKING`


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.Module]:
    """Every source file of the project but the tests, by module name."""
    files = [path for top in ("grpo_jax", "configs", "tools") for path in sorted((ROOT / top).rglob("*.py"))]
    return {
        module_name(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files
    }


@pytest.fixture(scope="module")
def found(modules: dict[str, ast.Module]) -> list[Import]:
    return [entry for name, tree in modules.items() for entry in imports(name, tree, known=set(modules))]


def test_every_file_has_a_room_and_every_room_a_file(modules):
    rooms = {room(name) for name in modules} - {None}
    assert rooms == set().union(*FLOORS.values())
    assert set(KNOWS_AT_MOST) | set().union(*DOORS.values()) | set().union(*KNOWS_AT_MOST.values()) <= rooms


def test_no_room_stands_on_two_floors():
    assert sum(map(len, FLOORS.values())) == len(set().union(*FLOORS.values()))


def test_imports_go_down_or_stay_inside_a_wing(found):
    assert list(broken_arrows(found)) == []


def test_rooms_know_no_more_than_they_may(found):
    assert list(broken_secrets(found)) == []


def test_each_outside_library_comes_in_through_its_doors_only(found):
    users: dict[str, set[str]] = {}
    for entry in found:
        if not is_ours(entry.name) and not entry.for_types:
            users.setdefault(top(entry.name), set()).add(str(room(entry.importer)))
    outside = {
        name: rooms for name, rooms in users.items() if name not in EVERYWHERE | set(sys.stdlib_module_names)
    }
    assert outside == DOORS


def test_slow_libraries_are_imported_inside_functions(found):
    early = [e for e in found if top(e.name) in SLOW and not e.late and not e.for_types]
    assert [e for e in early if room(e.importer) != "configs"] == []


def test_a_judging_process_never_loads_jax(found):
    reached = reachable("grpo_jax.rewards.worker", found)
    assert "grpo_jax.rewards.math_reward" in reached  # the walk does walk
    assert {top(name) for name in reached} & {
        "jax",
        "flax",
        "optax",
        "orbax",
        "transformers",
        "datasets",
    } == set()


def test_the_same_walk_sees_jax_where_it_is(found):
    assert "jax" in {top(name) for name in reachable("grpo_jax.sampling.engine", found)}


def test_init_files_are_empty(modules):
    assert [name for name, tree in modules.items() if name.endswith("__init__") and tree.body] == []


def test_nothing_is_imported_by_string(modules):
    calls = (
        (name, ast.unparse(node.func))
        for name, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    )
    assert [call for call in calls if call[1].endswith(("import_module", "__import__"))] == []


def test_every_outside_library_is_named_in_setup():
    strings = (
        n.value for n in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(n, ast.Constant)
    )
    named = {re.split(r"[\[<>=]", str(text))[0].lower() for text in strings}
    needed = {DISTRIBUTIONS.get(name, name).replace("_", "-").lower() for name in {*DOORS, "numpy"}}
    assert needed - named == set()


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("grpo_jax.structs", "import grpo_jax.mesh"),
        ("grpo_jax.models.decoder", "from grpo_jax import train"),
        ("grpo_jax.rollout", "from grpo_jax.policy import Policy"),  # the same floor
        ("grpo_jax.learning.update", "from grpo_jax.sampling import engine"),
        ("grpo_jax.data.prompts", "def f():\n    from grpo_jax import rollout"),
        ("grpo_jax.run", "import tools.export"),
    ],
)
def test_a_planted_arrow_upwards_is_found(modules, importer, line):
    assert list(broken_arrows(imports(importer, ast.parse(line), known=set(modules))))


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("grpo_jax.sampling.engine", "from grpo_jax.rewards.pool import Judge"),  # down, but a stranger
        ("grpo_jax.learning.update", "from grpo_jax.rewards import registry"),
        ("grpo_jax.models.decoder", "from grpo_jax import structs"),
        ("grpo_jax.rewards.pool", "from grpo_jax import console"),
    ],
)
def test_a_planted_meeting_of_strangers_is_found(modules, importer, line):
    assert list(broken_secrets(imports(importer, ast.parse(line), known=set(modules))))


def imports(importer: str, tree: ast.Module, *, known: set[str]) -> Iterator[Import]:
    """Every import of a module, wherever in it; `from package import x` is the module x if there is one."""

    def visit(node: ast.AST, late: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, late, for_types) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{importer}: relative imports are not used here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                name = whole if whole in known else node.module
                yield Import(importer, name, late, for_types)
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = for_types or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late, for_types)

    yield from visit(tree, False, False)


def broken_arrows(found: Iterator[Import] | list[Import]) -> Iterator[tuple[str, str]]:
    floor = {name: number for number, rooms in FLOORS.items() for name in rooms}
    for entry in found:
        source, target = room(entry.importer), room(entry.name)
        if (
            is_ours(entry.name)
            and target != source
            and not (target in floor and floor[target] < floor[str(source)])
        ):
            yield entry.importer, entry.name


def broken_secrets(found: Iterator[Import] | list[Import]) -> Iterator[tuple[str, str]]:
    for entry in found:
        source, target = room(entry.importer), room(entry.name)
        if (
            is_ours(entry.name)
            and target != source
            and target not in KNOWS_AT_MOST.get(str(source), {target})
        ):
            yield entry.importer, entry.name


def reachable(start: str, found: list[Import]) -> set[str]:
    """All that importing `start` could load, through whatever statement, packages above it included."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [entry.name for entry in found if entry.importer == name]
            if is_ours(name) and "." in name:
                package = name.rpartition(".")[0]
                waiting += [package, f"{package}.__init__"]
    return reached


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def room(module: str) -> str | None:
    """The room of a module; None for an empty package file and for what is not ours."""
    parts = module.split(".")
    if not is_ours(module) or parts[-1] == "__init__":
        return None
    return parts[0] if parts[0] in ("configs", "tools") else parts[1] if len(parts) > 1 else None


def is_ours(name: str) -> bool:
    return top(name) in ("grpo_jax", "configs", "tools")


def top(name: str) -> str:
    return name.split(".")[0]
