"""Problems: read, rendered, tokenised, and handed out batch by batch.

`load_problems` reads the rows of a source (`sources.py`), renders each question through the tokenizer's
chat template and leaves out what cannot be used, with a count. `problem_batches` deals the problems to
the steps of a run: shuffled anew every epoch, the same global batch however many processes share it,
with a position that is saved, restored and checked. The only door to grain.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax import sources, text
from grpo_jax.structs import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_PROBED = 32  # prompts that are decoded again to see that the tokenizer keeps text


@dataclasses.dataclass(frozen=True)
class DataParams:
    """Where problems come from and how they become prompts."""

    dataset: str = "embedded:word_problems"  # that, a .jsonl/.json/.parquet/.csv file, or a hub id
    name: str = ""  # configuration of a hub data set, "" for its only one; GSM8K: "main"
    split: str = "train"  # slices as `datasets` knows them, e.g. "train[:1000]"; a file has any split
    question_field: str = "question"  # text
    answer_field: str = "answer"  # text or number
    answer_pattern: str = ""  # regex whose one group is the gold, "" for all; GSM8K: "####\s*(.+)$"
    system_prompt: str = ""  # "" leaves the system turn to the chat template
    prompt_template: str = "{question}"  # the user's turn
    assistant_prefill: str = ""  # the beginning of every answer, given; no part of the completion
    max_prompt_length: int = 512  # tokens, template and prefill included; longer ones are left out
    max_problems: int = 0  # rows taken, 0: all (of an embedded task: as many as it gives)
    shuffle_seed: int = -1  # which rows `max_problems` takes; -1: the first ones


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """The problems that can be used, and the rows that cannot."""

    problems: list[Problem]
    num_loaded: int  # rows taken from the source
    too_long: tuple[int, ...] = ()  # rows whose prompt is longer than max_prompt_length
    without_gold: tuple[int, ...] = ()  # rows whose answer is empty or does not match the pattern

    @property
    def num_too_long(self) -> int:
        return len(self.too_long)

    @property
    def num_without_gold(self) -> int:
        return len(self.without_gold)

    def summary(self) -> str:
        """One line for people: what was read, and what was left out with the first rows' numbers."""
        parts = [f"{len(self.problems)} problems from {self.num_loaded} rows"]
        for rows, reason in (
            (self.too_long, "too long"),
            (self.without_gold, "without a gold answer"),
        ):
            if rows:
                parts.append(f"{len(rows)} {reason} left out ({first_rows(rows)})")
        return ", ".join(parts)


class ProblemBatches:
    """Endless iterator over this process's problems, a list for each step; see `problem_batches`."""

    def __init__(self, iterator: Any, *, fingerprint: dict[str, Any], batches_per_epoch: int):
        self.batches_per_epoch = batches_per_epoch
        self._iterator = iterator
        self._fingerprint = fingerprint

    def __iter__(self) -> ProblemBatches:
        return self

    def __next__(self) -> list[Problem]:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position, and what it is a position in; goes through JSON unchanged."""
        return {"position": self._iterator.get_state(), "fingerprint": dict(self._fingerprint)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called, on any number of processes.

        Raises:
            ValueError: the state belongs to other problems, another seed or another batch size.
        """
        # grain itself would take the position of any other pipeline without a word.
        saved = state.get("fingerprint", {})
        changed = [
            f"{key} was {saved.get(key)!r}, is {now!r}"
            for key, now in self._fingerprint.items()
            if saved.get(key) != now
        ]
        if changed:
            raise ValueError(
                f"the saved data position belongs to other data: {'; '.join(changed)}; "
                "restore these settings, or start in a new output folder"
            )
        self._iterator.set_state(state["position"])


def load_problems(params: DataParams, tokenizer: PreTrainedTokenizerBase) -> ProblemSet:
    """Reads, renders and tokenises the problems of one split.

    Raises:
        FileNotFoundError: no such file or data set.
        ValueError: a field that the data lacks, a setting or template that does not fit, or nothing
            left to train on.
    """
    check_params(params)
    rows = read_rows(params)
    questions = {index: question_text(row, index=index, params=params) for index, row in rows}
    golds = {index: gold_answer(row, index=index, params=params) for index, row in rows}
    usable = [index for index in questions if golds[index]]
    prompts = render_prompts([questions[index] for index in usable], params, tokenizer)
    text.check_round_trip(tokenizer, prompts[:: max(1, len(prompts) // NUM_PROBED)])
    problems, too_long = [], []
    for index, prompt, ids in zip(usable, prompts, text.encode(tokenizer, prompts), strict=True):
        if len(ids) > params.max_prompt_length:
            too_long.append(index)
            continue
        problems.append(Problem(index, questions[index], golds[index], prompt, tuple(ids)))
    found = ProblemSet(
        problems=problems,
        num_loaded=len(rows),
        too_long=tuple(too_long),
        without_gold=tuple(index for index in questions if not golds[index]),
    )
    if not problems:
        raise ValueError(
            f"no problem of {params.dataset!r} can be used: {found.summary()}; look at "
            "config.data.answer_pattern and config.data.max_prompt_length "
            f"(now {params.answer_pattern!r} and {params.max_prompt_length})"
        )
    return found


def render_prompts(
    questions: Sequence[str], params: DataParams, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Puts each question into the prompt template, the chat template, and behind it the prefill.

    Raises:
        ValueError: the chat template drops the system prompt or the question, or refuses them.
    """
    if not questions:
        return []
    system = [{"role": "system", "content": params.system_prompt}] if params.system_prompt else []
    turns = [params.prompt_template.replace("{question}", question) for question in questions]
    chats = [[*system, {"role": "user", "content": turn}] for turn in turns]
    prompts = text.render_chats(tokenizer, chats)
    for message in chats[0]:
        if message["content"].strip() not in prompts[0]:
            raise ValueError(
                f"the chat template leaves out the {message['role']} text; where it knows no system "
                "role, put the text into config.data.prompt_template instead of "
                "config.data.system_prompt"
            )
    return [prompt + params.assistant_prefill for prompt in prompts]


def problem_batches(
    problems: Sequence[Problem],
    *,
    num_prompts: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> ProblemBatches:
    """Deals the problems to steps, without end.

    Every epoch is shuffled anew. The problems that fill no whole batch at its end are left for a
    later epoch, so no step has the same problem twice. Step b's problems are the same for any number
    of processes; process i takes the i-th equal slice of them.

    Args:
        problems: all of them, in the same order on every process.
        num_prompts: problems of one step, over all processes.
        seed: of the shuffle, 0..2**32 - 1.
        process_index, process_count: this process and how many there are.

    Raises:
        ValueError: more prompts than problems, or a number that the processes cannot share equally.
    """
    import grain

    if not 0 < num_prompts <= len(problems):
        raise ValueError(
            f"a step needs between 1 and {len(problems)} different problems, as many as the data has; "
            f"got {num_prompts}; set config.rollout.num_prompts"
        )
    if num_prompts % process_count:
        raise ValueError(
            f"{num_prompts} prompts cannot be shared by {process_count} processes; "
            f"set config.rollout.num_prompts to a multiple of {process_count}"
        )
    share = num_prompts // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    # `.seed` mixes the number first: `.shuffle(seed)` alone adds the epoch to it, so that the second
    # epoch of seed 0 would be the first of seed 1.
    batches = (
        grain.MapDataset.source(list(problems))
        .seed(seed)
        .shuffle()
        .batch(num_prompts, drop_remainder=True, batch_fn=list)
    )
    mine_only = batches.map(lambda batch: batch[mine]).repeat()
    # Reading ahead in threads gains nothing where the problems are in memory already.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return ProblemBatches(
        iter(mine_only.to_iter_dataset(options)),
        fingerprint={
            "seed": seed,
            "num_prompts": num_prompts,
            "num_problems": len(problems),
            "problems": digest(problems),
        },
        batches_per_epoch=len(batches),
    )


def check_disjoint(train: Sequence[Problem], evaluation: Sequence[Problem]) -> None:
    """Raises ValueError where a question of the evaluation is a question of the training data.

    Questions are the same when they differ in letter case or white space only.
    """
    seen = {normalised(problem.question) for problem in train}
    shared = [problem for problem in evaluation if normalised(problem.question) in seen]
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(evaluation)} evaluation problems are training problems too, first "
            f"row {shared[0].index}: {shared[0].question[:200]!r}; "
            "give config.evaluation another data set or split"
        )


def check_params(params: DataParams) -> None:
    if "{question}" not in params.prompt_template:
        raise ValueError(
            "config.data.prompt_template must have {question} where the question goes; "
            f"got {params.prompt_template!r}"
        )
    if params.max_prompt_length < 1 or params.max_problems < 0:
        raise ValueError(
            "config.data.max_prompt_length must be at least 1 and config.data.max_problems at least 0; "
            f"got {params.max_prompt_length} and {params.max_problems}"
        )
    try:
        groups = re.compile(params.answer_pattern).groups
    except re.error as error:
        raise ValueError(
            f"config.data.answer_pattern {params.answer_pattern!r} is no regular expression: {error}"
        ) from error
    if params.answer_pattern and groups != 1:
        raise ValueError(
            "config.data.answer_pattern must have exactly one group, the gold answer; "
            f"got {groups} in {params.answer_pattern!r}"
        )


def read_rows(params: DataParams) -> list[tuple[int, dict[str, Any]]]:
    """(row number in the source, question and answer field) of the rows that are taken."""
    fields = list(dict.fromkeys((params.question_field, params.answer_field)))
    table = sources.read_columns(
        params.dataset, name=params.name, split=params.split, num=params.max_problems
    )
    missing = [field for field in fields if field not in table]
    if missing:
        raise ValueError(
            f"{params.dataset!r} has no field {missing[0]!r}; its fields are {sorted(table)}; "
            "set config.data.question_field and config.data.answer_field"
        )
    order = list(range(len(table[fields[0]])))
    if params.shuffle_seed >= 0:
        random.Random(params.shuffle_seed).shuffle(order)
    taken = order[: params.max_problems or None]
    return [(index, {field: table[field][index] for field in fields}) for index in taken]


def question_text(row: dict[str, Any], *, index: int, params: DataParams) -> str:
    value = row[params.question_field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"row {index} of {params.dataset!r} has no text in {params.question_field!r} but "
            f"{type(value).__name__} {str(value)[:80]!r}; set config.data.question_field to a text field"
        )
    return value


def gold_answer(row: dict[str, Any], *, index: int, params: DataParams) -> str:
    """The gold answer without white space around it; "" where the row has none."""
    value = row[params.answer_field]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(
            f"row {index} of {params.dataset!r} has {type(value).__name__} in {params.answer_field!r}; "
            "a gold answer must be text or a number; set config.data.answer_field"
        )
    if not params.answer_pattern:
        return str(value).strip()
    match = re.search(params.answer_pattern, str(value))
    return (match[1] or "").strip() if match else ""


def first_rows(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:5])
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{', ...' if len(rows) > 5 else ''}"


def digest(problems: Sequence[Problem]) -> str:
    """Changes with any problem's row number, prompt ids or gold answer, and with their order."""
    hashed = hashlib.sha256()
    for problem in problems:
        hashed.update(repr((problem.index, problem.prompt_ids, problem.answer)).encode())
    return hashed.hexdigest()[:16]


def normalised(question: str) -> str:
    return " ".join(question.casefold().split())
