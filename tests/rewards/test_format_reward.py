"""The strict think/answer format, rule by rule."""

from __future__ import annotations

import pytest

from grpo_jax.rewards import format_reward
from grpo_jax.structs import Attempt


def _score(completion: str) -> float:
    return format_reward.format_reward(Attempt(completion, "", "5", 1, True))


@pytest.mark.parametrize(
    "completion",
    [
        "<think>a</think><answer>5</answer>",
        "<think>a</think>\n<answer>5</answer>",
        "\n <think>\na\nb\n</think>\n\n<answer>\n\\boxed{5}\n</answer> \n",
    ],
)
def test_the_format_earns_one(completion: str) -> None:
    assert _score(completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "5",
        "<answer>5</answer>",
        "<think>a</think>",
        "<think>a</think><answer>5",
        "<think>a<answer>5</answer></think>",
        "<answer>5</answer><think>a</think>",
        "<think></think><answer>5</answer>",
        "<think>a</think><answer> \n</answer>",
        "so <think>a</think><answer>5</answer>",
        "<think>a</think> so <answer>5</answer>",
        "<think>a</think><answer>5</answer> done",
        "<think>a</think>\n<answer>5</answer>\nmore",
        "<think>a</think><answer>5</answer><answer>5</answer>",
        "<think>a</think><think>a</think><answer>5</answer>",
        "<Think>a</Think><Answer>5</Answer>",
    ],
)
def test_anything_else_earns_nothing(completion: str) -> None:
    assert _score(completion) == 0.0
