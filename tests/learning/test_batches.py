"""How completions become lines, lines pieces, and pieces arrays, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_jax.learning import batches, packing
from grpo_jax.structs import Completion, Problem, Rollout
from tests.learning import small_batches

COLUMNS = 4


def completion(*ids: int, ended: bool = True) -> Completion:
    return Completion(np.array(ids, np.int32), -np.array(ids, np.float32) / 100, ended)


def rollout(prompts: list[tuple[int, ...]], completions: list[list[Completion]]) -> Rollout:
    problems = [Problem(i, "", "", "", prompt) for i, prompt in enumerate(prompts)]
    return Rollout(problems, completions, [], [], np.zeros((0, 0)), {})


def pack(rows: Rollout, advantages_PG, *, num_columns: int = COLUMNS, **changes) -> list[batches.Minibatch]:
    settings = {"max_prompt_length": 3, "rows_per_device": 2, **changes}
    return small_batches.pack(rows, np.array(advantages_PG, np.float32), num_columns=num_columns, **settings)


TWO_GROUPS = rollout(
    [(1, 2), (3, 4, 5)],
    [[completion(10, 11), completion(12, 13, 14, 15, ended=False)], [completion(16), completion(17, 18, 19)]],
)
ADVANTAGES = [[1.0, -1.0], [0.5, -0.5]]


def test_a_line_each_and_a_groups_prompt_once():
    (minibatch,) = pack(TWO_GROUPS, ADVANTAGES)
    batch, packed = minibatch.batch, minibatch.batch.packed
    np.testing.assert_array_equal(packed.prompts_UYZ, [[[[1, 2, 0]]], [[[3, 4, 5]]]])
    np.testing.assert_array_equal(packed.prompt_length_UY, [[[2]], [[3]]])
    lines = [[[[10, 11, 0, 0], [12, 13, 14, 15]]], [[[16, 0, 0, 0], [17, 18, 19, 0]]]]
    np.testing.assert_array_equal(packed.lines_UEW, lines)
    np.testing.assert_array_equal(packed.segments_UEW, (np.array(lines) > 0).astype(int))
    np.testing.assert_array_equal(
        packed.positions_UEW, [[[[2, 3, 0, 0], [2, 3, 4, 5]]], [[[3, 0, 0, 0], [3, 4, 5, 0]]]]
    )
    np.testing.assert_array_equal(packed.prompt_of_line_UE, np.zeros((2, 1, 2)))
    # of 3 + 2 x 4 positions: the prompt's last token predicts each completion's first
    np.testing.assert_array_equal(batch.source_AUQ, [[[1, 3, 0, 0, 1, 7, 8, 9]], [[2, 0, 0, 0, 2, 7, 8, 0]]])
    np.testing.assert_array_equal(batch.targets_AUQ, np.array(lines).reshape(2, 1, 8))
    np.testing.assert_array_equal(batch.start_AUS, [[[0, 4]], [[0, 4]]])
    np.testing.assert_array_equal(
        batch.completion_mask_AUSC, [[[[1, 1, 0, 0], [1, 1, 1, 1]]], [[[1, 0, 0, 0], [1, 1, 1, 0]]]]
    )
    np.testing.assert_array_equal(batch.advantages_AUS, [[[1.0, -1.0]], [[0.5, -0.5]]])
    np.testing.assert_allclose(batch.sampler_logprobs_AUSC, -np.array(lines) / 100, rtol=1e-6)
    assert batch.old_logprobs_AUSC is None
    assert batch.ref_logprobs_AUSC is None
    assert (minibatch.num_active, minibatch.num_rows) == (2, 4)
    assert minibatch.places == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]


def test_packed_lines_hold_several_completions_longest_first():
    (minibatch,) = pack(TWO_GROUPS, ADVANTAGES, packing=2)  # one line of 8 columns, and its prompt
    batch, packed = minibatch.batch, minibatch.batch.packed
    first, second = packed.lines_UEW[:2, 0, 0], packed.segments_UEW[:2, 0, 0]
    np.testing.assert_array_equal(first, [[12, 13, 14, 15, 10, 11, 0, 0], [17, 18, 19, 16, 0, 0, 0, 0]])
    np.testing.assert_array_equal(second, [[1, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(
        packed.positions_UEW[:2, 0, 0], [[2, 3, 4, 5, 2, 3, 0, 0], [3, 4, 5, 3, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.start_AUS[:2, 0, :2], [[0, 4], [0, 3]])
    np.testing.assert_array_equal(batch.source_AUQ[0, 0], [1, 3, 4, 5, 1, 7, 0, 0])
    np.testing.assert_array_equal(batch.advantages_AUS[:2, 0, :2], [[-1.0, 1.0], [-0.5, 0.5]])
    assert minibatch.num_active == 2
    assert not batch.completion_mask_AUSC[2:].any()  # room for other lengths, never computed


def test_unshared_lines_hold_prompt_and_completion_of_any_group():
    (minibatch,) = pack(TWO_GROUPS, ADVANTAGES, packing=2, share_prompts=False)  # lines of 2 x (3 + 4)
    batch, packed = minibatch.batch, minibatch.batch.packed
    assert packed.prompts_UYZ.size == 0
    np.testing.assert_array_equal(
        packed.lines_UEW[0, 0, 0], [1, 2, 12, 13, 14, 15, 3, 4, 5, 17, 18, 19, 0, 0]
    )
    np.testing.assert_array_equal(packed.positions_UEW[0, 0, 0], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 0])
    np.testing.assert_array_equal(batch.source_AUQ[0, 0], [1, 2, 3, 4, 8, 9, 10, 0])
    np.testing.assert_array_equal(batch.targets_AUQ[0, 0], [12, 13, 14, 15, 17, 18, 19, 0])


def test_completions_that_were_cut_off_are_not_trained_on_when_asked():
    (minibatch,) = pack(TWO_GROUPS, ADVANTAGES, mask_truncated_completions=True)
    np.testing.assert_array_equal(
        minibatch.batch.completion_mask_AUSC, [[[[1, 1, 0, 0], [0, 0, 0, 0]]], [[[1, 0, 0, 0], [1, 1, 1, 0]]]]
    )
    assert (minibatch.batch.packed.segments_UEW[0, 0, 1] == 1).all()  # still read, with the others


def first_tokens(minibatch: batches.Minibatch) -> list[int]:
    """The first completion token of each row that is there: a name for it."""
    used = minibatch.batch.completion_mask_AUSC.any(axis=-1)
    start, targets = minibatch.batch.start_AUS, minibatch.batch.targets_AUQ
    return np.take_along_axis(targets, start, axis=-1)[used].tolist()


def eight_rows(advantages: list[float], **changes) -> list[batches.Minibatch]:
    """Four groups of two; row i says token 10 + i."""
    rows = rollout(
        [(1 + p,) for p in range(4)], [[completion(10 + 2 * p), completion(11 + 2 * p)] for p in range(4)]
    )
    return pack(rows, np.reshape(advantages, (4, 2)), num_columns=1, **changes)


def test_rows_without_signal_are_left_out_and_counted():
    (minibatch,) = eight_rows([0, 0, 1, -1, 0, 0, 0, 2], keep_rows_without_signal=False)
    assert first_tokens(minibatch) == [12, 13, 17]
    assert (minibatch.num_active, minibatch.num_rows) == (2, 8)


def test_rows_without_signal_stay_where_they_have_a_gradient():
    (minibatch,) = eight_rows([0, 0, 1, -1, 0, 0, 0, 2], keep_rows_without_signal=True)
    assert first_tokens(minibatch) == list(range(10, 18))
    assert minibatch.num_active == 4


def test_a_minibatch_without_any_signal_still_measures_one_completion():
    (minibatch,) = eight_rows([0] * 8, keep_rows_without_signal=False)
    assert (minibatch.num_active, first_tokens(minibatch)) == (1, [10])


def test_minibatches_are_cut_in_order():
    first, second = eight_rows([0, 1, 0, 1, 1, 1, 0, 0], num_minibatches=2, keep_rows_without_signal=False)
    assert (first_tokens(first), first_tokens(second)) == ([11, 13], [14, 15])


def test_pieces_go_to_shards_in_turn():
    (minibatch,) = eight_rows([1] * 8, num_shards=2)
    assert minibatch.num_active == 2
    assert first_tokens(minibatch) == list(range(10, 18))
    assert minibatch.batch.start_AUS.shape[:2] == (2, 2)


def test_rows_that_do_not_divide_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="8 rows do not divide into 3 minibatches"):
        eight_rows([0] * 8, num_minibatches=3)


def test_a_token_budget_sets_the_lines_of_a_piece():
    sizes = small_batches.batch_params(max_tokens_per_microbatch=100, packing=2, max_completion_length=10)
    wide, narrow = sizes.piece_shape(10), sizes.piece_shape(5)
    assert (wide.num_lines, wide.line_columns) == (4, 20)
    assert (narrow.num_lines, narrow.line_columns) == (7, 10)
    assert narrow.num_positions <= 100 + sizes.max_prompt_length  # prompts come in whole ones


@pytest.mark.parametrize("pack_by", [0, 1, 2, 4])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("lines", [1, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_any_lengths_fit_and_every_completion_is_there_once(pack_by, share, lines, seed):
    rows, advantages_PG = small_batches.random_rollout(seed, num_problems=7, num_generations=6)
    (minibatch,) = small_batches.pack(
        rows, advantages_PG, packing=pack_by, share_prompts=share, rows_per_device=lines, num_shards=2
    )
    batch = minibatch.batch
    assert minibatch.num_active <= len(batch.start_AUS)
    places = [place for piece in minibatch.places for place in piece]
    assert sorted(places) == [(p, g) for p in range(7) for g in range(6)]
    told = [
        batch.targets_AUQ[a, u, start : start + count].tolist()
        for a, u, s in np.argwhere(batch.completion_mask_AUSC.any(-1))
        for start, count in [(batch.start_AUS[a, u, s], int(batch.completion_mask_AUSC[a, u, s].sum()))]
    ]
    ordered = [(i, p, g) for i, (p, g) in enumerate(places)]
    for i, p, g in ordered:
        assert told[i] == rows.completions[p][g].ids.tolist()


def test_minibatches_may_cut_groups():
    """Three rows of groups of four: the second minibatch has the ends of two groups, a piece each."""
    rows, advantages_PG = small_batches.random_rollout(0, num_problems=3, num_generations=4)
    made = small_batches.pack(rows, advantages_PG, num_minibatches=4, rows_per_device=4)
    assert [minibatch.num_active for minibatch in made] == [1, 2, 2, 1]


def test_equal_lengths_leave_no_padding():
    shape = small_batches.batch_params(rows_per_device=6).piece_shape(10)
    assert (shape.num_prompts, shape.num_lines, shape.num_positions) == (1, 6, 6 + 60)


def test_packing_leaves_less_padding():
    rows, advantages_PG = small_batches.random_rollout(0, num_problems=20, num_generations=6)
    computed = {}
    for pack_by in (0, 2, 4):
        sizes = small_batches.batch_params(packing=pack_by, rows_per_device=8, num_rows=120)
        (minibatch,) = batches.pack(rows, advantages_PG, num_columns=10, params=sizes)
        computed[pack_by] = minibatch.num_active * sizes.piece_shape(10).num_positions
    assert computed[4] < computed[0] * 0.8


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


def test_lines_are_filled_first_fit():
    shape = small_batches.batch_params(packing=2, num_generations=6).piece_shape(5)
    counts = [3, 7, 2, 5, 3, 6]
    rows = [
        packing.Row(Problem(0, "", "", "", (1,)), completion(*range(1, count + 1)), 1.0) for count in counts
    ]
    made = packing.lines(rows, shape, pack=True)
    assert [[row.completion.num_tokens for row in line] for line in made] == [[7, 3], [6, 3], [5, 2]]
