"""Mistakes in the data: files, fields, golds, splits, hubs that cannot be reached."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mistakes.harness import Mistake, Prepare, check, ours

OWN = ("data.task=", "evaluation.task=", "data.question_field=question", "data.answer_field=answer")


def rows(answer: object = None, *, count: int = 40, question: object = None) -> str:
    """A file of sums; `answer` and `question` in place of all of theirs."""
    return "".join(
        json.dumps(
            {
                "question": question or f"What is {i} + 1?",
                "answer": answer if answer is not None else str(i + 1),
            }
        )
        + "\n"
        for i in range(count)
    )


def nulls() -> str:
    return rows("x").replace('"x"', "null")


def file(name: str, content: str | bytes, *overrides: str) -> Prepare:
    """A run on a file with this content."""

    def prepare(folder: Path) -> Sequence[str]:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ours(*OWN, f"data.dataset={path}", *overrides)

    return prepare


def task_file(content: str) -> Prepare:
    def prepare(folder: Path) -> Sequence[str]:
        (folder / "mine.py").write_text(content)
        return ours(f"data.task={folder}/mine.py:TASK")

    return prepare


FILES = (
    Mistake(
        "missing_file",
        ours(*OWN, "data.dataset=no.jsonl"),
        ("no data file 'no.jsonl'", "config.data.dataset"),
    ),
    Mistake("empty_file", file("a.jsonl", ""), ("a.jsonl", "is empty")),
    Mistake("blank_lines", file("a.jsonl", "\n\n"), ("a.jsonl", "no rows")),
    Mistake(
        "half_a_line",
        file("a.jsonl", rows() + '{"question": "1 +\n' + rows()),
        ("a.jsonl", "line 41 is not JSON"),
    ),
    Mistake("no_objects", file("a.jsonl", "1\n2\n"), ("a.jsonl", "line 1 is no JSON object")),
    Mistake("text_file", file("a.txt", rows()), ("'.txt'", "'.jsonl'")),
    Mistake("packed_file", file("a.jsonl.gz", gzip.compress(rows().encode())), ("'.gz'", "unpack")),
    Mistake("binary_file", file("a.jsonl", b"\xff\xfe\x00" * 300), ("a.jsonl", "line 1 is not UTF-8")),
    Mistake(
        "latin_text",
        file("a.jsonl", '{"question": "caf\xe9", "answer": "1"}\n'.encode("latin-1")),
        ("a.jsonl", "not UTF-8"),
    ),
    Mistake("cut_json", file("a.json", '[{"question": "a", "answer": "b"},'), ("a.json", "cannot be read")),
    Mistake("no_parquet", file("a.parquet", rows()), ("a.parquet", "cannot be read", "Parquet")),
    Mistake(
        "semicolons",
        file("a.csv", "question;answer\n1 + 1?;2\n"),
        ("['question;answer']", "commas", "question_field"),
    ),
    Mistake(
        "streamed_json",
        file("a.json", "[]", "data.streaming_rows=64"),
        ("a.json", "is read whole", "streaming_rows"),
    ),
    Mistake(
        "half_a_line_streamed",
        file("a.jsonl", rows(count=9) + "{\n", "data.streaming_rows=64"),
        ("a.jsonl", "cannot be read on"),
    ),
    Mistake(
        "folder_without_data",
        ours(*OWN, "data.dataset={folder}"),
        ("doesn't contain any data files", "config.data.dataset"),
    ),
)

FIELDS = (
    Mistake(
        "no_such_field",
        file("a.jsonl", rows(), "data.answer_field=gold"),
        ("no field 'gold'", "['answer', 'question']", "config.data.answer_field"),
    ),
    Mistake(
        "no_extra_field",
        file("a.jsonl", rows(), "data.extra_fields=level"),
        ("no field 'level'", "config.data.extra_fields"),
    ),
    Mistake(
        "golds_of_null",
        file("a.jsonl", nulls()),
        ("no problem", "40 without a gold answer", "config.data.answer_field"),
    ),
    Mistake("golds_of_nothing", file("a.jsonl", rows("")), ("no problem", "40 without a gold answer")),
    Mistake(
        "golds_in_lists",
        file("a.jsonl", rows([1])),
        ("row 0", "list in 'answer'", "config.data.answer_field"),
    ),
    Mistake(
        "questions_are_numbers",
        file("a.jsonl", rows(question=7)),
        ("row 0", "no text in 'question'", "int '7'"),
    ),
    Mistake(
        "golds_that_nothing_reads",
        file("a.jsonl", rows("see above"), "reward.reward_funcs=accuracy_number"),
        ("no gold answer", "'see above'", "answer_field"),
    ),
    Mistake(
        "pattern_without_a_match",
        file("a.jsonl", rows(), "data.answer_pattern=#### (.*)"),
        ("no problem", "'#### (.*)'"),
    ),
    Mistake(
        "pattern_that_is_none",
        ours("data.answer_pattern=("),
        ("config.data.answer_pattern '('", "no regular expression"),
    ),
    Mistake(
        "pattern_without_a_group",
        ours("data.answer_pattern=abc"),
        ("config.data.answer_pattern", "exactly one group", "got 0"),
    ),
    Mistake(
        "all_too_long",
        file("a.jsonl", rows(), "data.max_prompt_length=2"),
        ("40 too long", "config.data.max_prompt_length", "2)"),
    ),
    Mistake(
        "prompt_without_a_question",
        ours("data.prompt_template=Solve it."),
        ("config.data.prompt_template", "{question}"),
    ),
    Mistake(
        "more_prompts_than_problems",
        file("a.jsonl", rows(), "rollout.num_prompts=64"),
        ("40", "got 64", "config.rollout.num_prompts"),
    ),
)

SPLITS = (
    Mistake(
        "empty_slice",
        file("a.jsonl", rows(), "data.split=train[100:200]"),
        ("no rows", "'train[100:200]'", "config.data.split"),
    ),
    Mistake(
        "slice_of_words",
        file("a.jsonl", rows(), "data.split=train[abc]"),
        ("'train[abc]'", "train[:1000]", "config.data.split"),
    ),
    Mistake(
        "more_than_all", file("a.jsonl", rows(), "data.split=train[:200%]"), ("'train[:200%]'", "train[:30%]")
    ),
    Mistake(
        "evaluated_on_training_problems",
        file("a.jsonl", rows(), "evaluation.dataset={folder}/a.jsonl", "evaluation.overlap=refuse"),
        ("40 training problems are evaluation problems too", "'What is 0 + 1?'", "'drop'"),
    ),
    Mistake(
        "evaluated_on_the_task_itself",
        ours("evaluation.split=train", "evaluation.max_problems=20"),
        ("20 training problems are evaluation problems too", "config.evaluation"),
    ),
)

TASKS = (
    Mistake("no_task", ours("data.task=", "evaluation.task="), ("no problems are named", "config.data.task")),
    Mistake(
        "mixture_of_a_file",
        ours("data.task=gsm8k,math", "data.dataset=a.jsonl"),
        ("mixture 'gsm8k,math'", "file.py:NAME"),
    ),
    Mistake("no_task_file", ours("data.task=mine.py:TASK"), ("no task file 'mine.py'", "config.data.task")),
    Mistake("task_file_without_the_task", task_file("OTHER = 1\n"), ("'TASK'", "grpo_jax.data.tasks.Task")),
    Mistake(
        "task_file_that_raises",
        task_file("import math\n\n1 / 0\n"),
        ("mine.py", "line 3", "ZeroDivisionError"),
    ),
)

HUBS = (
    Mistake(
        "hub_offline",
        ours("data.task=gsm8k", "evaluation.task="),
        ("the hub cannot be reached", "config.data.dataset"),
    ),
    Mistake(
        "model_offline", ours("model.path=Qwen/Qwen2.5-0.5B"), ("'Qwen/Qwen2.5-0.5B'", "config.model.path")
    ),
)


@pytest.mark.parametrize(
    "mistake", (*FILES, *FIELDS, *SPLITS, *TASKS, *HUBS), ids=lambda mistake: mistake.name
)
def test_it_is_told_in_one_line(mistake, run, tmp_path):
    check(mistake, run, tmp_path)


@pytest.fixture(scope="module")
def silent_hub() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ours("data.task=gsm8k", "evaluation.task="),
            ("the hub cannot be reached for 'openai/gsm8k'", "config.data.dataset"),
        ),
        (ours("model.path=Qwen/Qwen2.5-0.5B"), ("'Qwen/Qwen2.5-0.5B'", "config.model.path")),
    ],
)
def test_a_hub_that_is_silent_is_told_in_time(arguments, words, silent_hub, run, tmp_path):
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": silent_hub}
    told = (*words, f"nothing answers at {silent_hub} within 6 s")
    check(Mistake("silent_hub", arguments, told, environment=environment), run, tmp_path)


def test_a_hub_that_is_not_there_is_told_in_time(run, tmp_path):
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    words = ("the hub cannot be reached", "http://127.0.0.1:9", "config.data.dataset")
    row = Mistake("no_hub", ours("data.task=gsm8k", "evaluation.task="), words, environment=environment)
    check(row, run, tmp_path)
