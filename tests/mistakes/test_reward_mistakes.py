"""Mistakes in rewards: names, options, weights, files of the user's own, a judge without its key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mistakes.harness import Mistake, Prepare, check, ours

GOOD = "def score(attempt):\n    return 1.0\n"


def own(text: str, name: str = "score") -> Prepare:
    """A run with a reward file of the user's own."""

    def prepare(folder: Path) -> Sequence[str]:
        (folder / "mine.py").write_text(text)
        return ours(f"reward.reward_funcs={folder}/mine.py:{name}")

    return prepare


def named(funcs: str, *overrides: str) -> tuple[str, ...]:
    return ours(f"reward.reward_funcs={funcs}", *overrides)


JUDGE = 'llm_judge(model="m",base_url="http://127.0.0.1:9/v1",cache="{{folder}}/judge.sqlite"{more})'

NAMES = (
    Mistake("misspelt", named("acuracy"), ("unknown reward 'acuracy'", "'accuracy'")),
    Mistake("twice", named("accuracy,accuracy"), ("two rewards are called 'accuracy'",)),
    Mistake("none", named(","), ("no reward is named", "config.reward.reward_funcs")),
    Mistake("unknown_option", named("cosine(max_wron=1)"), ("no option 'max_wron'", "'max_wrong'")),
    Mistake(
        "option_of_text", named("cosine(max_wrong='a')"), ("option 'max_wrong'", "must be a number", "'a'")
    ),
    Mistake(
        "bracket_left_open",
        named("cosine(max_wrong=1"),
        ("the options in 'cosine(max_wrong=1'", "name=value"),
    ),
    Mistake(
        "cache_above_the_length",
        named("accuracy,soft_overlong(cache=1000)"),
        ("soft_overlong", "72 tokens", "1000"),
    ),
    Mistake(
        "weights_too_few", named("accuracy,format", "reward.reward_weights=1"), ("1 numbers", "2 rewards")
    ),
    Mistake(
        "weight_of_words",
        named("accuracy,format", "reward.reward_weights=1,high"),
        ("config.reward.reward_weights", "'high'"),
    ),
    Mistake(
        "weight_nan",
        named("accuracy", "reward.reward_weights=nan"),
        ("config.reward.reward_weights", "'nan'"),
    ),
    Mistake(
        "weights_of_nothing",
        named("accuracy,format", "reward.reward_weights=0,0"),
        ("all 0", "['accuracy', 'format']"),
    ),
    Mistake("no_module", named("nowhere.rewards:score"), ("no module 'nowhere'", "file.py:function")),
)

FILES = (
    Mistake("no_file", named("no.py:score"), ("no reward file 'no.py'", "config.reward.reward_funcs")),
    Mistake("no_function", own(GOOD, "scor"), ("no function 'scor'", "'score'")),
    Mistake("no_python", own("def score(\n"), ("mine.py", "not valid Python", "line 1")),
    Mistake("no_callable", own("score = 3\n"), ("'score'", "is 3, no function")),
    Mistake("raises_at_import", own("1 / 0\n" + GOOD), ("mine.py:1", "ZeroDivisionError")),
    Mistake("imports_nothing", own("import nowhere\n" + GOOD), ("mine.py:1", "'nowhere'")),
    Mistake("no_parameter", own("def score():\n    return 1.0\n"), ("must take one parameter", "takes 0")),
    Mistake(
        "two_parameters",
        own("def score(completion, answer):\n    return 1.0\n"),
        ("must take one parameter", "takes 2"),
    ),
    Mistake(
        "as_trl_calls_it",
        own("def score(completions, **columns):\n    return [1.0]\n"),
        ("`completions`", "TRL", "`attempt`"),
    ),
    Mistake(
        "as_verl_calls_it",
        own("def score(data_source, solution_str, ground_truth):\n    return 1.0\n"),
        ("`data_source`", "verl", "`attempt`"),
    ),
)

JUDGES = (
    Mistake("judge_without_options", named("llm_judge()"), ("llm_judge needs base_url",)),
    Mistake(
        "judge_without_a_key",
        named(JUDGE.format(more=',api_key_env="NO_SUCH_KEY"')),
        ("NO_SUCH_KEY", "not set"),
    ),
    Mistake(
        "judge_slower_than_the_limit",
        named(JUDGE.format(more=',api_key_env=""')),
        ("config.reward.timeout_s is 10", "or more"),
    ),
)


@pytest.mark.parametrize("mistake", (*NAMES, *FILES, *JUDGES), ids=lambda mistake: mistake.name)
def test_it_is_told_in_one_line(mistake, run, tmp_path):
    check(mistake, run, tmp_path)
