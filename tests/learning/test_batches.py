"""How rows are laid out, cut and ordered, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_jax.learning import batches
from grpo_jax.structs import Completion, Problem, Rollout
from tests.learning import small_batches

COLUMNS = 4


def completion(*ids: int, ended: bool = True) -> Completion:
    return Completion(np.array(ids, np.int32), -np.array(ids, np.float32) / 100, ended)


def rollout(prompts: list[tuple[int, ...]], completions: list[list[Completion]]) -> Rollout:
    problems = [Problem(i, "", "", "", prompt) for i, prompt in enumerate(prompts)]
    return Rollout(problems, completions, [], [], np.zeros((0, 0)), {})


def params(**changes) -> batches.BatchParams:
    return small_batches.batch_params(**{"max_prompt_length": 3, "microbatch_rows": 2, **changes})


TWO_GROUPS = rollout(
    [(1, 2), (3, 4, 5)],
    [[completion(10, 11), completion(12, 13, 14, 15, ended=False)], [completion(16), completion(17, 18, 19)]],
)
ADVANTAGES = np.array([[1.0, -1.0], [0.5, -0.5]], np.float32)


def test_prompts_are_padded_left_and_completions_right_of_one_column():
    (minibatch,) = batches.pack(TWO_GROUPS, ADVANTAGES, num_columns=COLUMNS, params=params())
    batch = minibatch.batch
    np.testing.assert_array_equal(
        batch.tokens_ABT,
        [
            [[0, 1, 2, 10, 11, 0, 0], [0, 1, 2, 12, 13, 14, 15]],
            [[3, 4, 5, 16, 0, 0, 0], [3, 4, 5, 17, 18, 19, 0]],
        ],
    )
    np.testing.assert_array_equal(
        batch.valid_ABT.astype(int),
        [
            [[0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]],
            [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]],
        ],
    )
    np.testing.assert_array_equal(
        batch.completion_mask_ABC, [[[1, 1, 0, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 1, 0]]]
    )
    np.testing.assert_array_equal(batch.advantages_AB, [[1.0, -1.0], [0.5, -0.5]])
    expected = [[[0.1, 0.11, 0, 0], [0.12, 0.13, 0.14, 0.15]], [[0.16, 0, 0, 0], [0.17, 0.18, 0.19, 0]]]
    np.testing.assert_allclose(batch.sampler_logprobs_ABC, -np.array(expected), rtol=1e-6)
    assert batch.old_logprobs_ABC is None
    assert batch.ref_logprobs_ABC is None
    dtypes = [x.dtype for x in batch[:5]]
    assert dtypes == [np.int32, bool, np.float32, np.float32, np.float32]


def test_completions_that_were_cut_off_are_not_trained_on_when_asked():
    (minibatch,) = batches.pack(
        TWO_GROUPS, ADVANTAGES, num_columns=COLUMNS, params=params(mask_truncated_completions=True)
    )
    np.testing.assert_array_equal(
        minibatch.batch.completion_mask_ABC, [[[1, 1, 0, 0], [0, 0, 0, 0]], [[1, 0, 0, 0], [1, 1, 1, 0]]]
    )
    assert minibatch.batch.valid_ABT[0, 1].sum() == 6  # still read, with the other rows' shapes


def first_tokens(minibatch: batches.Minibatch) -> list[int]:
    """The first completion token of each row: a name for it."""
    return minibatch.batch.tokens_ABT[:, :, 3].reshape(-1).tolist()


def eight_rows(advantages: list[float], **changes) -> list[batches.Minibatch]:
    """Four groups of two; row i says token 10 + i."""
    rows = rollout([(1,)] * 4, [[completion(10 + 2 * p), completion(11 + 2 * p)] for p in range(4)])
    return batches.pack(
        rows, np.array(advantages, np.float32).reshape(4, 2), num_columns=1, params=params(**changes)
    )


def test_rows_without_signal_go_last_and_whole_microbatches_of_them_are_left_out():
    (minibatch,) = eight_rows([0, 0, 1, -1, 0, 0, 0, 2], keep_rows_without_signal=False)
    assert first_tokens(minibatch) == [12, 13, 17, 10, 11, 14, 15, 16]  # otherwise in order
    assert minibatch.num_active == 2  # three rows in microbatches of two
    np.testing.assert_array_equal(minibatch.batch.advantages_AB, [[1, -1], [2, 0], [0, 0], [0, 0]])


def test_rows_without_signal_stay_in_place_where_they_have_a_gradient():
    (minibatch,) = eight_rows([0, 0, 1, -1, 0, 0, 0, 2], keep_rows_without_signal=True)
    assert first_tokens(minibatch) == list(range(10, 18))
    assert minibatch.num_active == 4


def test_a_minibatch_without_any_signal_still_measures_one_microbatch():
    (minibatch,) = eight_rows([0] * 8, keep_rows_without_signal=False)
    assert minibatch.num_active == 1


def test_minibatches_are_cut_in_order_and_sorted_each_on_its_own():
    first, second = eight_rows([0, 1, 0, 1, 1, 1, 0, 0], num_minibatches=2, keep_rows_without_signal=False)
    assert (first_tokens(first), first.num_active) == ([11, 13, 10, 12], 1)
    assert (first_tokens(second), second.num_active) == ([14, 15, 16, 17], 1)


@pytest.mark.parametrize("changes", [{"num_minibatches": 3}, {"microbatch_rows": 3}])
def test_rows_that_do_not_divide_are_refused_with_the_numbers(changes):
    with pytest.raises(
        ValueError, match=r"8 rows do not divide into . minibatches of microbatches of . rows"
    ):
        eight_rows([0] * 8, **changes)


@pytest.mark.parametrize(("longest", "width"), [(1, 25), (25, 25), (26, 50), (50, 50), (51, 100), (100, 100)])
def test_completions_get_the_narrowest_of_three_widths(longest, width):
    assert batches.completion_columns(longest, max_completion_length=100) == width


def test_widths_round_up():
    assert [batches.completion_columns(n, max_completion_length=10) for n in (3, 4, 5, 6, 10)] == [
        3,
        5,
        5,
        10,
        10,
    ]
    assert batches.completion_columns(1, max_completion_length=1) == 1
