"""The queue: every row runs once, reads its own prompt, and no shard idles while rows wait."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from grpo_jax.sampling.schedule import Row, Schedule


def running(schedule: Schedule) -> list[tuple[int, Row]]:
    """Slots with a row and the row, by position among all shards' slots."""
    slots = [row for shard in schedule._shards for row in shard.slots]
    return [(position, row) for position, row in enumerate(slots) if row is not None]


def run(schedule: Schedule, rng: np.random.Generator, *, slots: int, places: int) -> list[Row]:
    """Runs all rows, each for a random while; checks prompts on the way. Returns rows as they entered."""
    held: dict[tuple[int, int], int] = {}  # (shard, place) -> problem that was read into it
    entered: list[Row] = []
    while True:
        while (now := schedule.next_round()).arrivals:
            for prompt in now.prompts:
                assert prompt.place < places
                held[prompt.shard, prompt.place] = prompt.problem
            for arrival in now.arrivals:
                assert held[arrival.shard, arrival.place] == arrival.row.problem
                assert arrival.slot < slots
            entered += [arrival.row for arrival in now.arrivals]
        slots_in_use = running(schedule)
        if not slots_in_use:
            return entered
        for position, _ in slots_in_use:
            if rng.random() < 0.4:
                schedule.leave(position)


@pytest.mark.parametrize(
    ("problems", "generations", "shards", "slots", "places"),
    itertools.product([1, 3, 8], [1, 4, 5], [1, 3], [1, 4, 9], [1, 2]),
)
def test_every_row_runs_once_and_reads_its_own_prompt(rng, problems, generations, shards, slots, places):
    schedule = Schedule(problems, generations, num_shards=shards, slots=slots, places=places)
    assert schedule.num_waiting == problems * generations
    entered = run(schedule, rng, slots=slots, places=places)
    assert sorted(entered) == [Row(p, g) for p in range(problems) for g in range(generations)]
    assert schedule.num_waiting == 0


def test_rows_spread_evenly_over_shards_even_with_one_problem():
    schedule = Schedule(1, 8, num_shards=4, slots=8, places=1)
    schedule.next_round()
    assert schedule.most_running == 2


def test_a_problem_is_read_once_where_its_rows_fit_one_shard():
    schedule = Schedule(8, 4, num_shards=2, slots=16, places=4)
    now = schedule.next_round()
    assert sorted(prompt.problem for prompt in now.prompts) == list(range(8))
    assert len(now.arrivals) == 32


def test_no_slot_stays_free_while_rows_wait():
    schedule = Schedule(6, 2, num_shards=2, slots=2, places=1)
    schedule.next_round()
    for _ in range(3):
        schedule.leave(0)  # only the first slot ever frees: the first shard must take all that waits
        before = schedule.num_waiting
        assert len(schedule.next_round().arrivals) == 1
        assert schedule.num_waiting == before - 1


def test_moving_gathers_rows_in_the_first_slots_of_their_shard():
    schedule = Schedule(2, 4, num_shards=2, slots=4, places=1)
    schedule.next_round()
    before = dict(running(schedule))
    for position in (0, 2, 5, 6):
        schedule.leave(position)
    origin = schedule.move(2)
    assert len(origin) == 4
    for position, row in running(schedule):
        shard = position // 2
        assert before[shard * 4 + origin[position]] == row
    assert len(running(schedule)) == 4
