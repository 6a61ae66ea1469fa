"""Problems are read, rendered and dealt out: the right ones, once, and the same after a restart."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from pathlib import Path

import pytest

from grpo_jax import text, tiny_tokenizer
from grpo_jax.data import dealing, problem_sets
from grpo_jax.data.data_params import DataParams, resolve
from grpo_jax.data.problems import TOO_LONG, WITHOUT_GOLD, ProblemSet
from grpo_jax.structs import Problem

GSM8K_PATTERN = r"####\s*(.+)$"
ROWS = [
    {"question": "What is 1 + 1?", "answer": "One and one.\n#### 2"},
    {"question": "What is 2 + 2?", "answer": "#### 4"},
    {"question": "Say anything.", "answer": "no gold here"},
    {"question": "What is 3 + 3? " + "Think well. " * 40, "answer": "#### 6"},
    {"question": "What is 500 + 500?", "answer": "Many.\n#### 1,000 "},
]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_tokenizer.save_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path):
    return text.load_tokenizer(tiny_folder)


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def some_problems(num: int, *, offset: int = 0) -> list[Problem]:
    numbers = range(offset, offset + num)
    return [Problem(i, f"q{i}", f"a{i}", f"p{i}", (i, i + 1)) for i in numbers]


def load(params: DataParams, tokenizer) -> ProblemSet:
    (found,) = problem_sets.load(params, tokenizer)
    return found


def some_set(
    num: int | list[Problem], *, name: str = "own", weight: float = 1.0, offset: int = 0
) -> ProblemSet:
    made = some_problems(num, offset=offset) if isinstance(num, int) else num
    (task,) = resolve(DataParams(dataset="a.jsonl"))
    task = dataclasses.replace(task, name=name, weight=weight)
    return ProblemSet(task, made, num_loaded=len(made), offset=offset, num_rows=len(made))


def dealt(num: int | list[Problem], **settings) -> dealing.ProblemBatches:
    return dealing.problem_batches([some_set(num)], **settings)


def rows_of(batch: list[Problem]) -> list[int]:
    return [problem.index for problem in batch]


# Reading and rendering


def test_unusable_rows_are_left_out_counted_and_named(tmp_path, tokenizer):
    params = DataParams(
        dataset=jsonl(tmp_path / "a.jsonl", ROWS),
        answer_pattern=GSM8K_PATTERN,
        max_prompt_length=100,
    )
    found = load(params, tokenizer)
    assert rows_of(found.problems) == [0, 1, 4]  # rows of the source, not of what is left
    assert [problem.answer for problem in found.problems] == ["2", "4", "1,000"]
    assert found.num_loaded == 5
    assert dict(found.left) == {TOO_LONG: (3,), WITHOUT_GOLD: (2,)}
    assert found.summary() == (
        "3 problems from 5 rows, 1 too long left out (row 3), 1 without a gold answer left out (row 2)"
    )


def test_a_prompt_is_template_and_prefill_and_its_ids_are_its_text(tmp_path, tokenizer):
    params = DataParams(
        dataset=jsonl(tmp_path / "a.jsonl", ROWS[:1]),
        system_prompt="Be brief.",
        prompt_template="Solve \\boxed{x}: {question}",
        assistant_prefill="<think>\n",
    )
    (problem,) = load(params, tokenizer).problems
    assert problem.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nSolve \\boxed{x}: What is 1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )
    assert tokenizer.decode(list(problem.prompt_ids)) == problem.prompt
    assert problem.question == ROWS[0]["question"]
    assert problem.answer == ROWS[0]["answer"]


def test_the_longest_allowed_prompt_is_kept_and_one_token_more_is_not(tmp_path, tokenizer):
    params = DataParams(dataset=jsonl(tmp_path / "a.jsonl", ROWS[:2]))
    length = len(load(params, tokenizer).problems[0].prompt_ids)
    exact = dataclasses.replace(params, max_prompt_length=length)
    assert not any(rows for _, rows in load(exact, tokenizer).left)
    short = dataclasses.replace(params, max_prompt_length=length - 1)
    with pytest.raises(ValueError, match=r"2 too long.*config\.data\.max_prompt_length"):
        load(short, tokenizer)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_problems(kind, tmp_path, tokenizer):
    rows = [{"q": 'one, "1"?\n', "a": "007"}, {"q": "two?", "a": "NA"}, {"q": "three?", "a": ""}]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        jsonl(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["q", "a"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(path))
    params = DataParams(dataset=str(path), question_field="q", answer_field="a")
    found = load(params, tokenizer)
    assert [(p.question, p.answer) for p in found.problems] == [
        (rows[0]["q"], "007"),
        ("two?", "NA"),
    ]
    assert dict(found.left)[WITHOUT_GOLD] == (2,)


def test_golds_may_be_numbers_or_missing_but_nothing_else(tmp_path, tokenizer):
    rows = [{"question": "a?", "answer": 7}, {"question": "b?", "answer": None}]
    found = load(DataParams(dataset=jsonl(tmp_path / "a.jsonl", rows)), tokenizer)
    assert [p.answer for p in found.problems] == ["7"]
    assert dict(found.left)[WITHOUT_GOLD] == (1,)
    rows = [{"question": "a?", "answer": ["7"]}]
    with pytest.raises(ValueError, match=r"row 0.*list.*config\.data\.answer_field"):
        load(DataParams(dataset=jsonl(tmp_path / "b.jsonl", rows)), tokenizer)


def test_a_changed_file_of_the_same_name_is_read_anew(tmp_path, tokenizer):
    params = DataParams(dataset=jsonl(tmp_path / "a.jsonl", ROWS[:1]))
    assert len(load(params, tokenizer).problems) == 1
    jsonl(tmp_path / "a.jsonl", ROWS[:2])
    assert len(load(params, tokenizer).problems) == 2


def test_max_problems_takes_the_first_rows_or_rows_drawn_by_a_seed(tmp_path, tokenizer):
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(50)]
    params = DataParams(dataset=jsonl(tmp_path / "a.jsonl", rows), max_problems=10)

    def taken(seed: int) -> list[int]:
        drawn = dataclasses.replace(params, shuffle_seed=seed)
        found = load(drawn, tokenizer).problems
        assert all(problem.answer == str(problem.index) for problem in found)
        return rows_of(found)

    assert taken(-1) == list(range(10))
    assert taken(1) == taken(1)
    assert len(set(taken(1))) == 10
    assert sorted(taken(1)) != sorted(taken(2))


def test_a_slice_of_a_file_is_taken_by_its_split(tmp_path, tokenizer):
    params = DataParams(dataset=jsonl(tmp_path / "a.jsonl", ROWS), split="test[1:3]")
    assert [p.question for p in load(params, tokenizer).problems] == [
        ROWS[1]["question"],
        ROWS[2]["question"],
    ]


def test_the_embedded_task_has_a_training_and_a_test_split(tokenizer):
    params = DataParams(task="word_problems", max_prompt_length=64)
    train = load(params, tokenizer)
    (test,) = problem_sets.load(dataclasses.replace(params, max_problems=600), tokenizer, held_out=True)
    assert (len(train.problems), len(test.problems)) == (20_000, 600)
    assert problem_sets.settle_overlap([train], [test], overlap="refuse") == ([train], "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_field": "problem"}, r"no field 'problem'.*\['answer', 'question'\]"),
        ({"answer_field": "gold"}, r"no field 'gold'.*config\.data\.answer_field"),
        ({"answer_pattern": "####"}, "exactly one group.*got 0"),
        ({"answer_pattern": "(("}, "no regular expression"),
        ({"answer_pattern": "gold: (.*)"}, r"no problem.*5 without a gold.*'gold: \(\.\*\)'"),
        ({"prompt_template": "Solve this."}, r"\{question\}"),
        ({"max_prompt_length": 0}, r"config\.data\.max_prompt_length"),
        ({"dataset": "embedded:chess"}, "embedded:word_problems"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(changes, message, tmp_path, tokenizer):
    params = DataParams(dataset=jsonl(tmp_path / "a.jsonl", ROWS))
    with pytest.raises(ValueError, match=message):
        load(dataclasses.replace(params, **changes), tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"question": "a?",\n', "cannot be read"),
        ("a.csv", "question,answer\n", "has no rows in the split"),
        ("a.txt", "a?", r"ends in '\.txt'"),
        ("a.jsonl", '{"question": "", "answer": "1"}\n', "row 0 .* no text in 'question'"),
        (
            "a.jsonl",
            '{"question": [1], "answer": "1"}\n',
            "row 0 .* no text in 'question' but list",
        ),
    ],
)
def test_a_file_that_is_no_use_says_why(name, content, message, tmp_path, tokenizer):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load(DataParams(dataset=str(path)), tokenizer)


def test_a_missing_file_is_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        load(DataParams(dataset=str(tmp_path / "nowhere.jsonl")), tokenizer)


def test_a_template_that_drops_the_system_prompt_is_refused(tmp_path, tiny_folder):
    dropping = text.load_tokenizer(tiny_folder)
    dropping.chat_template = "{{ messages[-1].content }}"
    params = DataParams(dataset=jsonl(tmp_path / "a.jsonl", ROWS), system_prompt="Be brief.")
    with pytest.raises(ValueError, match=r"leaves out the system text.*prompt_template"):
        load(params, dropping)


# Dealing out


def test_every_epoch_has_every_problem_at_most_once_in_a_new_order():
    batches = dealt(10, num_prompts=4, seed=0)
    epochs = [[index for _ in range(2) for index in rows_of(next(batches))] for _ in range(20)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert {index for epoch in epochs for index in epoch} == set(range(10))  # none is left for ever


@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_processes_share_the_same_global_batch(process_count):
    problems = some_problems(20)
    alone = dealt(problems, num_prompts=6, seed=5)
    shared = [
        dealt(problems, num_prompts=6, seed=5, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for _ in range(8):  # over two epoch ends
        together = [problem for iterator in shared for problem in next(iterator)]
        assert together == next(alone)


def test_neighbouring_seeds_share_no_epoch():
    """grain's own shuffle adds the epoch to the seed: epoch 1 of seed 0 would be epoch 0 of seed 1."""
    orders = set()
    for seed in range(4):
        batches = dealt(30, num_prompts=30, seed=seed)
        orders |= {tuple(rows_of(next(batches))) for _ in range(4)}
    assert len(orders) == 16


@pytest.mark.parametrize("done", [0, 1, 3, 7])
def test_a_restored_position_continues_the_unbroken_stream(done):
    problems = some_problems(13)
    unbroken = dealt(problems, num_prompts=4, seed=2)
    for _ in range(done):
        next(unbroken)
    state = json.loads(json.dumps(unbroken.get_state()))
    expected = [next(unbroken) for _ in range(7)]
    restored = [dealt(problems, num_prompts=4, seed=2, process_index=i, process_count=2) for i in range(2)]
    next(restored[0])  # an iterator that was used already forgets it
    for iterator in restored:
        iterator.set_state(state)
    assert [next(restored[0]) + next(restored[1]) for _ in range(7)] == expected


@pytest.mark.parametrize(
    ("problems", "changes", "message"),
    [
        (some_problems(13), {"seed": 3}, "seed was 2, is 3"),
        (some_problems(13), {"num_prompts": 5}, "num_prompts was 4, is 5"),
        (some_problems(14), {}, "num_problems was 13, is 14"),
        (some_problems(14)[1:], {}, "problems was '[0-9a-f]+', is '[0-9a-f]+'"),
    ],
)
def test_a_position_in_other_data_is_refused_and_says_what_changed(problems, changes, message):
    settings = {"num_prompts": 4, "seed": 2}
    state = dealt(13, **settings).get_state()
    other = dealt(problems, **(settings | changes))
    with pytest.raises(ValueError, match=message):
        other.set_state(state)


def test_a_changed_gold_answer_or_prompt_is_noticed():
    problems = some_problems(5)
    state = dealt(problems, num_prompts=2, seed=0).get_state()
    for changes in ({"answer": "other"}, {"prompt_ids": (9, 9)}):
        changed = [*problems[:-1], dataclasses.replace(problems[-1], **changes)]
        with pytest.raises(ValueError, match="problems was"):
            dealt(changed, num_prompts=2, seed=0).set_state(state)


def test_a_batch_that_cannot_be_filled_or_shared_is_refused():
    with pytest.raises(ValueError, match=r"between 1 and 5 .*got 6.*config\.rollout\.num_prompts"):
        dealt(5, num_prompts=6, seed=0)
    with pytest.raises(ValueError, match="multiple of 3"):
        dealt(5, num_prompts=4, seed=0, process_count=3)


# Mixtures


@pytest.mark.parametrize(
    ("weights", "num_prompts", "expected"),
    [
        ([2, 1], 16, [11, 5]),  # 10.67 and 5.33
        ([1, 1, 1], 8, [3, 3, 2]),  # 2.67 each: the first ones are rounded up
        ([100, 1, 1], 8, [6, 1, 1]),  # 7.8, 0.08, 0.08: at least one each
        ([1, 100], 2, [1, 1]),
        ([0.5, 0.25, 0.25], 4, [2, 1, 1]),
        ([3], 7, [7]),
    ],
)
def test_shares_by_hand(weights, num_prompts, expected):
    assert dealing.shares(weights, num_prompts) == expected


def mixture(first: int = 23, second: int = 9) -> list[ProblemSet]:
    return [
        some_set(first, name="a", weight=2.0),
        some_set(second, name="b", weight=1.0, offset=100),
    ]


def test_every_step_of_a_mixture_has_the_same_shares_spread_evenly():
    batches = dealing.problem_batches(mixture(), num_prompts=6, seed=1)
    assert batches.describe() == "4 problems a step of a, 2 of b"
    steps = [rows_of(next(batches)) for _ in range(40)]
    assert {tuple(row >= 100 for row in step) for step in steps} == {(False, True, False, False, True, False)}
    assert all(len(set(step)) == 6 for step in steps)
    for begin, size, share in ((0, 23, 4), (100, 9, 2)):  # each task goes through its own epochs
        rows = [row for step in steps for row in step if row // 100 == begin // 100]
        epoch = size // share * share
        assert all(len(set(rows[i : i + epoch])) == epoch for i in range(0, len(rows) - epoch + 1, epoch))
        assert set(rows) == set(range(begin, begin + size))


@pytest.mark.parametrize("done", [0, 1, 9])
def test_a_mixture_goes_on_where_it_stopped_on_any_number_of_processes(done):
    unbroken = dealing.problem_batches(mixture(), num_prompts=6, seed=1)
    for _ in range(done):
        next(unbroken)
    state = json.loads(json.dumps(unbroken.get_state()))
    expected = [next(unbroken) for _ in range(12)]
    for count in (1, 2, 3):
        restored = [
            dealing.problem_batches(mixture(), num_prompts=6, seed=1, process_index=i, process_count=count)
            for i in range(count)
        ]
        for iterator in restored:
            iterator.set_state(state)
        assert [[p for iterator in restored for p in next(iterator)] for _ in range(12)] == expected


def test_a_mixture_with_other_weights_or_that_is_too_small_is_refused():
    state = dealing.problem_batches(mixture(), num_prompts=6, seed=1).get_state()
    other = [some_set(23, name="a"), some_set(9, name="b", offset=100)]
    with pytest.raises(ValueError, match=r"shares was \[4, 2\], is \[3, 3\]"):
        dealing.problem_batches(other, num_prompts=6, seed=1).set_state(state)
    with pytest.raises(ValueError, match=r"between 1 and 1 different problems of b.*got 2"):
        dealing.problem_batches(mixture(second=1), num_prompts=6, seed=1)
    with pytest.raises(ValueError, match=r"of 1 problems has no room for 2 tasks"):
        dealing.problem_batches(mixture(), num_prompts=1, seed=1)


# Overlap


def overlapping() -> tuple[ProblemSet, ProblemSet]:
    """Four training problems, one of which is asked again with other case and white space."""
    train = some_problems(4)
    again = dataclasses.replace(train[2], index=77, question="  Q2\n")
    return some_set(train), some_set([dataclasses.replace(train[0], question="x"), again], name="own")


def test_an_evaluation_problem_that_was_trained_on_is_refused():
    with pytest.raises(ValueError, match=r"^1 training problems.*row 2 .*'q2'.*config\.evaluation\.overlap"):
        problem_sets.settle_overlap([overlapping()[0]], [overlapping()[1]], overlap="refuse")


def test_an_evaluation_problem_that_was_trained_on_is_dropped_and_counted():
    train, held_out = overlapping()
    (kept,), told = problem_sets.settle_overlap([train], [held_out], overlap="drop")
    assert (rows_of(kept.problems), told) == ([0, 1, 3], "")
    assert kept.summary() == "3 problems from 4 rows, 1 evaluation problems left out (row 2)"
    with pytest.raises(ValueError, match=r"every training problem of \['own'\]"):
        problem_sets.settle_overlap([train], [train], overlap="drop")


def test_own_data_is_warned_of_and_built_in_tasks_are_refused():
    train, held_out = overlapping()
    kept, told = problem_sets.settle_overlap([train], [held_out], overlap="auto")
    assert kept == [train]
    assert told.startswith("warning: 1 training problems are evaluation problems too")
    of_ours = [
        dataclasses.replace(found, task=dataclasses.replace(found.task, built_in=True))
        for found in (train, held_out)
    ]
    with pytest.raises(ValueError, match="1 training problems"):
        problem_sets.settle_overlap(of_ours[:1], of_ours[1:], overlap="auto")
    with pytest.raises(ValueError, match=r"config\.evaluation\.overlap must be one of.*got 'forbid'"):
        problem_sets.settle_overlap([train], [held_out], overlap="forbid")


# Real data


def test_gsm8k_is_read_and_tokenised_in_seconds(data_folder):
    tokenizer = text.load_tokenizer(data_folder / "tokenizers" / "qwen2.5")
    params = DataParams(dataset=str(data_folder / "gsm8k" / "train.jsonl"), answer_pattern=GSM8K_PATTERN)
    start = time.monotonic()
    train = load(params, tokenizer)
    assert time.monotonic() - start < 20  # 2 s on two quiet cores
    assert (train.num_loaded, len(train.problems)) == (7473, 7473)
    assert train.problems[0].answer == "72"
    assert "You are Qwen" in train.problems[0].prompt  # the template's own system turn
    held_out = dataclasses.replace(params, dataset=str(data_folder / "gsm8k" / "test.jsonl"))
    assert (
        problem_sets.settle_overlap([train], problem_sets.load(held_out, tokenizer), overlap="refuse")[1]
        == ""
    )


def test_math500_is_read_with_its_own_field_names(data_folder):
    tokenizer = text.load_tokenizer(data_folder / "tokenizers" / "qwen3")
    params = DataParams(
        dataset=str(data_folder / "math500" / "test.jsonl"),
        split="test",
        question_field="problem",
        max_prompt_length=1024,
    )
    found = load(params, tokenizer)
    assert (len(found.problems), any(rows for _, rows in found.left)) == (500, False)
    assert found.problems[0].answer == r"\left( 3, \frac{\pi}{2} \right)"
