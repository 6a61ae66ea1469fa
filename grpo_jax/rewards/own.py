"""Reward functions of the user's own: `file.py:function` or `module:function`.

In the trainer they are found and read with `ast`, so that a misspelt name is an error at the start, and nothing
of them runs. Only the judge's worker processes load them.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple, cast

from grpo_jax.rewards import signatures
from grpo_jax.rewards.grade import RewardFunction
from grpo_jax.rewards.signatures import Signature

THEIR_PARAMETERS = {
    **dict.fromkeys(("completions", "prompts", "completion_ids"), "TRL"),
    **dict.fromkeys(("data_source", "solution_str", "ground_truth"), "verl"),
}
"""Parameters by which other trainers hand over what they want judged."""


class Found(NamedTuple):
    """Where a function of the user's own is, and how it is called."""

    path: str  # absolute path of its file
    module: str  # dotted name; "" for one named by its file
    signature: Signature | None  # None: the file only imports or assigns it


def find(place: str, function: str) -> Found:
    """The function in the file or module of this name, without running any of it.

    Raises: ValueError or FileNotFoundError, in one line, where there is none.
    """
    by_file = place.endswith(".py") or "/" in place or "\\" in place
    path = _file(place) if by_file else _module_file(place)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"the reward file {str(path)!r} is not valid Python: {error}") from None
    names = _names_at_top_level(tree)
    if function not in names:
        near = difflib.get_close_matches(function, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {sorted(names)}"
        raise ValueError(f"the reward file {place!r} has no function {function!r}; {hint}")
    node = names[function]
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
        raise ValueError(
            f"{function!r} in the reward file {place!r} is {ast.unparse(node.value)}, no function; "
            "correct config.reward.reward_funcs"
        )
    known = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if known and (theirs := [a.arg for a in node.args.args if a.arg in THEIR_PARAMETERS]):
        raise ValueError(
            f"the reward {function!r} takes `{theirs[0]}`, as {THEIR_PARAMETERS[theirs[0]]} calls it; here a reward takes "
            f"one `attempt` (attempt.completion, attempt.answer, attempt.extra) or a group's `{signatures.GROUP_PARAMETER}`: "
            "see the head of grpo_jax/rewards/grade.py"
        )
    return Found(str(path), "" if by_file else place, signatures.of_source(node) if known else None)


def load(name: str, *, path: str, module: str) -> RewardFunction:
    """Runs the user's file and returns its function: only worker processes call this.

    Raises: whatever the file raises; TypeError for what is no function.
    """
    file = Path(path)
    root = file.parent
    for _ in range(module.count(".") + (file.name == "__init__.py" if module else 0)):
        root = root.parent
    sys.path.append(str(root))  # last, so that it hides no installed package
    if module:
        found = importlib.util.find_spec(module)  # loads the packages above it
    else:
        found = importlib.util.spec_from_file_location(f"own_reward_{file.stem}", file)
    assert found is not None and found.loader is not None, (path, module)
    if found.name not in sys.modules:
        loaded = importlib.util.module_from_spec(found)
        sys.modules[found.name] = loaded  # dataclasses look their module up
        found.loader.exec_module(loaded)
    function = getattr(sys.modules[found.name], name)
    if not callable(function):
        raise TypeError(f"{name} in {file.name} is a {type(function).__name__}, no function")
    return cast(RewardFunction, function)


def _file(place: str) -> Path:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no reward file {place!r} (looked at {path}); correct config.reward.reward_funcs"
        )
    return path


def _module_file(name: str) -> Path:
    """The source file of a module. `importlib.util.find_spec` would run the packages above it."""
    folders: Sequence[str] | None = None
    for end in range(1, name.count(".") + 2):
        whole = ".".join(name.split(".")[:end])
        found = PathFinder.find_spec(whole, folders)
        if found is None:
            raise ValueError(
                f"there is no module {whole!r} for the reward module {name!r} in config.reward.reward_funcs; "
                "install it, add its folder to PYTHONPATH, or name the file: path/to/file.py:function"
            )
        folders, origin = found.submodule_search_locations or [], found.origin
    if not origin or not origin.endswith(".py"):
        raise ValueError(f"the reward module {name!r} has no source file; name one that has")
    return Path(origin).absolute()


def _names_at_top_level(tree: ast.Module) -> dict[str, ast.stmt]:
    names: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: node for alias in node.names})
        elif isinstance(node, ast.Assign):
            names.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
    return names
