"""Which row runs in which slot: the queue of a sampling call, in plain Python.

Every shard of the mesh's row axes has its own slots and its own few places for prompts, since nothing
moves between devices. Rows wait in one queue, in pieces of one problem's rows, so that a prompt is read
once by the shard that takes its piece; the shard with the most room takes the next piece. What is decided
here changes when a row runs, never which tokens it gets.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import NamedTuple


class Row(NamedTuple):
    """One completion to be sampled: positions in the call."""

    problem: int
    generation: int


class Prompt(NamedTuple):
    """A prompt that must be read before the round's rows arrive."""

    shard: int
    place: int
    problem: int


class Arrival(NamedTuple):
    """A row that enters a slot."""

    shard: int
    slot: int
    place: int  # of its prompt, on the same shard
    row: Row


@dataclasses.dataclass(frozen=True)
class Round:
    """What enters now: first the prompts, then the rows."""

    prompts: list[Prompt]
    arrivals: list[Arrival]


@dataclasses.dataclass
class _Shard:
    slots: list[Row | None]
    pending: deque[Row]  # rows of pieces that this shard has taken
    places: list[int | None]  # the problem in each place for a prompt

    @property
    def room(self) -> int:
        return self.slots.count(None) - len(self.pending)


class Schedule:
    """The rows of one call on this process.

    Args:
        num_problems, num_generations: the rows are all pairs of them.
        num_shards: of this process.
        slots: a shard.
        places: for prompts, a shard.
    """

    def __init__(self, num_problems: int, num_generations: int, *, num_shards: int, slots: int, places: int):
        self._shards = [_Shard([None] * slots, deque(), [None] * places) for _ in range(num_shards)]
        size = max(1, min(num_generations, -(-num_problems * num_generations // num_shards), slots))
        self._waiting: deque[list[Row]] = deque(
            [Row(p, g) for g in range(start, min(start + size, num_generations))]
            for p in range(num_problems)
            for start in range(0, num_generations, size)
        )

    def __len__(self) -> int:
        """Shards of this process."""
        return len(self._shards)

    @property
    def num_waiting(self) -> int:
        """Rows that have no slot yet."""
        pieces = sum(map(len, self._waiting))
        return pieces + sum(len(shard.pending) for shard in self._shards)

    @property
    def most_running(self) -> int:
        """Rows in slots on the shard that has the most."""
        return max(len(shard.slots) - shard.slots.count(None) for shard in self._shards)

    def next_round(self) -> Round:
        """Fills free slots as far as prompts have places; call again until no row arrives."""
        self._deal()
        prompts: list[Prompt] = []
        arrivals: list[Arrival] = []
        for index, shard in enumerate(self._shards):
            free = deque(slot for slot, row in enumerate(shard.slots) if row is None)
            while free and shard.pending:
                problem = shard.pending[0].problem
                if problem not in shard.places:
                    if None not in shard.places:
                        break
                    place = shard.places.index(None)
                    shard.places[place] = problem
                    prompts.append(Prompt(index, place, problem))
                slot = free.popleft()
                shard.slots[slot] = row = shard.pending.popleft()
                arrivals.append(Arrival(index, slot, shard.places.index(problem), row))
            needed = {row.problem for row in shard.pending}
            shard.places = [problem if problem in needed else None for problem in shard.places]
        return Round(prompts, arrivals)

    def leave(self, position: int) -> Row:
        """Frees a slot whose row has ended; returns the row. Slots are counted over this process's shards."""
        shard, slot = divmod(position, len(self._shards[0].slots))
        row, self._shards[shard].slots[slot] = self._shards[shard].slots[slot], None
        assert row is not None
        return row

    def move(self, num_slots: int) -> list[int]:
        """Gathers each shard's rows in its first `num_slots` slots; returns where each slot's row was.

        The answer has `num_slots` entries a shard, each an old slot of that shard.
        """
        origin: list[int] = []
        for shard in self._shards:
            order = sorted(range(len(shard.slots)), key=lambda slot: shard.slots[slot] is None)[:num_slots]
            shard.slots = [shard.slots[slot] for slot in order]
            origin += order
        return origin

    def _deal(self) -> None:
        """Gives waiting pieces to the shards with the most room, while one has any."""
        while self._waiting:
            shard = max(self._shards, key=lambda shard: shard.room)
            if shard.room <= 0:
                return
            shard.pending.extend(self._waiting.popleft())
