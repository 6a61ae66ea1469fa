"""Tasks by name: where problems come from, which fields they have, how they are asked and rewarded.

Plain data; what a run changes of it, `data_params.py` puts in. Nothing is read here but a task file of the
user's own, which is run. To add a task: one entry in `TASKS`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import pathlib
import sys
import traceback


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set."""

    dataset: str  # hub id, a file that ends in .jsonl, .json, .parquet or .csv, or "embedded:..."
    name: str = ""  # configuration of a hub data set, "" for its only one
    split: str = "train"  # slices as `datasets` knows them; a file has any split


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything that is special about one kind of problem."""

    train: Source | None  # None: only ever evaluated
    held_out: Source | None = None  # evaluated, never trained on; None: it has none
    question_field: str = "question"  # text
    answer_field: str = "answer"  # text or number
    answer_pattern: str = ""  # regular expression whose one group is the gold, "" for all of it
    solution_field: str = ""  # worked answer, for supervised training; "": there is none
    solution_pattern: str = ""  # its one group is the worked answer, "" for all of it
    template: str = "question"  # key of `templates.TEMPLATES`
    reward_funcs: str = "accuracy"  # as config.reward.reward_funcs
    reward_weights: str = ""
    about: str = ""  # rows, licence, and what to know before training on it


OWN = Task(train=None)
"""What holds for data of the user's own where config.data says nothing."""

TASKS: dict[str, Task] = {
    "word_problems": Task(
        train=Source("embedded:word_problems"),
        held_out=Source("embedded:word_problems", split="test"),
        solution_field="solution",
        template="tagged",
        reward_funcs="accuracy,format",
        reward_weights="1.0,0.2",
        about="made from a seed, nothing to download: 20,000 and 1,000 rows that share no sum",
    ),
    "gsm8k": Task(
        train=Source("openai/gsm8k", "main"),
        held_out=Source("openai/gsm8k", "main", "test"),
        answer_pattern=r"####\s*(.+)$",
        solution_field="answer",
        solution_pattern=r"(?s)^(.*?)\s*####",
        template="boxed",
        about="7,473 and 1,319 rows, MIT. All golds are whole numbers; 79 and 14 have a thousands comma. "
        "Rationales carry calculator marks such as <<48/2=24>>.",
    ),
    "math": Task(
        train=Source("nlile/hendrycks-MATH-benchmark"),
        held_out=Source("nlile/hendrycks-MATH-benchmark", split="test"),
        question_field="problem",
        solution_field="solution",
        template="qwen_math",
        about="12,000 and 500 rows (MATH-500), MIT. Further fields: subject, level, unique_id.",
    ),
    "math500": Task(
        train=None,
        held_out=Source("HuggingFaceH4/MATH-500", split="test"),
        question_field="problem",
        solution_field="solution",
        template="qwen_math",
        about="500 rows of MATH's test split, MIT; for evaluation only",
    ),
    "bigmath": Task(
        train=Source("AmirMohseni/Big-Math-RL-filtered"),
        held_out=Source("AmirMohseni/Big-Math-RL-filtered", split="validation"),
        answer_field="answer_correct",
        template="think_box",
        reward_funcs="accuracy,think_box",
        reward_weights="1.0,0.2",
        about="filtered from Big-Math-RL-Verified (251,122 rows), no worked answers; it holds MATH and GSM8K "
        "problems. An earlier revision has the fields problem and answer. Its validation split is as its "
        "author's training config names it; number of rows and licence could not be looked up.",
    ),
    "deepscaler": Task(
        train=Source("agentica-org/DeepScaleR-Preview-Dataset"),
        question_field="problem",
        solution_field="solution",
        template="qwen_math",
        about="about 40,000 rows of AIME, AMC, Omni-MATH and STILL, MIT; no held-out split. Not every row has "
        "a worked answer.",
    ),
    "deepmath": Task(
        train=Source("zwhe99/DeepMath-103K"),
        answer_field="final_answer",
        template="qwen_math",
        about="about 103,000 hard rows, MIT; no held-out split. Worked answers are long (DeepSeek-R1's), in "
        "r1_solution_1 to 3: not read unless config.data.solution_field names one.",
    ),
}


def find(name: str) -> Task:
    """The task of a name, or of a file of the user's own, which is run.

    Args:
        name: a key of `TASKS`, or "path/to/file.py:NAME" where NAME is a `Task`.

    Raises:
        ValueError: no such task, or what the file names is none.
        FileNotFoundError: no such file.
    """
    if name in TASKS:
        return TASKS[name]
    if ":" in name:
        return _own_task(name)
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(TASKS)}"
    raise ValueError(
        f"no task {name!r}; {hint} (one of your own: file.py:NAME, or config.data.dataset and its fields)"
    )


def parse_mixture(text: str) -> tuple[tuple[str, float], ...]:
    """(task, weight) pairs of a text such as "gsm8k=2,math=1"; no weight is 1.

    Raises:
        ValueError: a weight that is no number above 0, or a task that is named twice.
    """
    parts = []
    for part in (part.strip() for part in text.split(",")):
        name, _, weight = part.rpartition("=") if "=" in part else (part, "", "1")
        parts.append((name.strip(), _weight(weight, text)))
    names = [name for name, _ in parts]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"a mixture names each task once, such as 'gsm8k=2,math=1'; got {text!r}")
    return tuple(parts)


def template_of(task: str) -> str:
    """The template that a run's tasks share; "" where they have different ones."""
    found = [find(name) for name, _ in parse_mixture(task)] if task else [OWN]
    names = {one.template for one in found}
    return names.pop() if len(names) == 1 else ""


def rewards_of(task: str) -> tuple[str, str]:
    """(`reward_funcs`, `reward_weights`) for a config that names none.

    Args:
        task: as config.data.task; "" is data of one's own.

    Raises:
        ValueError: an unknown task, or the tasks of a mixture do not agree.
    """
    found = [find(name) for name, _ in parse_mixture(task)] if task else [OWN]
    choices = {(one.reward_funcs, one.reward_weights) for one in found}
    if len(choices) > 1:
        raise ValueError(
            f"the tasks of {task!r} have different rewards, {sorted(choices)}; "
            "set config.reward.reward_funcs and reward_weights"
        )
    return choices.pop()


def _weight(text: str, mixture: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"a weight of a mixture must be a number above 0; got {text!r} in {mixture!r}")
    return weight


def _own_task(name: str) -> Task:
    path_text, _, attribute = name.rpartition(":")
    path = pathlib.Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no task file {path_text!r} (looked at {path}); correct config.data.task"
        )
    spec = importlib.util.spec_from_file_location(f"own_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the task file {path_text!r} must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"the task file {_failed_at(path, error)}") from error
    task = getattr(module, attribute, None)
    if not isinstance(task, Task):
        raise ValueError(
            f"{attribute!r} in {path_text!r} must be a grpo_jax.data.tasks.Task; got {type(task).__name__}"
        )
    return task


def _failed_at(path: pathlib.Path, error: Exception) -> str:
    """FILE, line N: what a user's file raised."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 0
    return f"{str(path)!r} cannot be run, line {line}: {type(error).__name__}: {' '.join(str(error).split())}"
