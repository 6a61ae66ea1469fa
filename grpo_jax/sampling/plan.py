"""How big a sampler is: slots, window, sizes of the cache; from the config, or from the device's memory.

A slot's cache has room for the longest prompt and completion, but only the sizes that are needed are
allocated and read: the cache begins small, and grows when a row in it needs more. When no row waits any
more, slots are given up by halves as rows end. The shapes form a chain, every one of which is compiled once:

    (slots, smallest columns) -> ... -> (slots, all columns) -> (half the slots, all columns) -> ...
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax import mesh as mesh_lib
from grpo_jax.models.spec import ModelSpec

WINDOWS = (16, 64)  # steps of an automatic window: least, most
CPU_SLOTS = 32  # a device: more slots make a CPU no faster, and their cache leaves its own caches
SLOTS_MULTIPLE = 8  # of slots that memory decides: rows of a TPU's smallest tile
CPU_ATTENTION_COST = 4  # seconds of a product in attention over those of one with a weight, measured
WINDOWS_OF_A_SIZE = 4  # that a size of the cache must serve to be worth growing out of it
LEAST_SLOTS = 4  # a shard; fewer are not worth a program
PREFILL_TOKENS = {"cpu": 512}  # a shard and call; enough to keep its multipliers busy
PREFILL_TOKENS_ELSEWHERE = 4096
LEAST_PROMPT_COLUMNS = 128  # shorter prompts are not worth a program of their own
LOGIT_ARRAYS = 3  # of one token's logits, float32, that may be alive at once
MEMORY_SHARE = 0.9  # of what the device has; the rest is for the compiler's temporaries
GIB = 2**30


class NoRoom(ValueError):
    """Not even one slot fits a device."""


@dataclasses.dataclass(frozen=True)
class EngineShape:
    """What a sampler must hold; what is 0 is chosen by `make`."""

    num_rows: int  # of a call, over all processes; a call may have more
    num_generations: int  # completions a prompt, as a rule
    max_prompt_length: int  # tokens
    max_completion_length: int  # tokens, the end token counted
    num_slots: int = 0  # rows decoded at once, over all devices; 0: as many as fit and help
    window: int = 0  # decode steps between two looks of the host; 0: by the length of completions
    halvings: int = 3  # how often slots may be halved when rows run out


class Rung(NamedTuple):
    """One compiled shape of the decode state."""

    slots: int  # a shard
    columns: int  # of the cache


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every static size of a sampler. Slots and places are counted a shard of the row axes."""

    num_shards: int
    slots: int
    places: int  # for prompts that wait for a slot of their rows
    window: int
    max_completion_length: int
    rungs: tuple[Rung, ...]
    prompt_columns: tuple[int, ...]  # of prefill, rising
    prefill_tokens: int  # a shard and call, about
    columns_of_row: float  # what a row costs besides attention, counted in columns of the cache
    weight_bytes: int  # of the sampling copy, on one device
    kv_token_bytes: int  # on one device
    free_bytes: int  # on one device before sampling; 0 where the device does not tell

    @property
    def num_slots(self) -> int:
        """Over all devices."""
        return self.slots * self.num_shards

    @property
    def cache_bytes(self) -> int:
        """Cache and prompts at their largest, on one device."""
        columns = self.slots * (self.rungs[-1].columns + self.window) + self.places * self.prompt_columns[-1]
        return columns * self.kv_token_bytes

    def prompts_at_once(self, columns: int) -> int:
        """Prompts of one prefill call, a shard."""
        return min(max(self.prefill_tokens // columns, 1), self.places)

    def cost(self, rung: Rung) -> float:
        """What a decode step of this shape costs, in columns."""
        return rung.slots * (rung.columns + self.columns_of_row)

    def next_rung(self, now: int, *, running: int, columns: int, waiting: bool) -> int:
        """The cheapest rung from `now` on that holds `running` rows a shard that need `columns`."""
        fits = [
            i
            for i in range(now, len(self.rungs))
            if self.rungs[i].columns >= columns
            and self.rungs[i].slots >= (self.slots if waiting else running)
        ]
        return min(fits, key=lambda i: self.cost(self.rungs[i]))

    def describe(self) -> str:
        """The plan in one sentence for people."""
        sizes = "/".join(str(rung.columns) for rung in self.rungs if rung.slots == self.slots)
        fewer = [str(r.slots * self.num_shards) for r in self.rungs if r.slots < self.slots]
        left = self.free_bytes - self.weight_bytes - self.cache_bytes
        return (
            f"sampling plan, a device: weights {_size(self.weight_bytes)}, keys and values "
            f"{self.kv_token_bytes / 1024:.1f} KiB a token, at most {_size(self.cache_bytes)}"
            + (f", {_size(left)} left" if self.free_bytes else "")
            + f"; {self.num_slots} slots"
            + (f" (then {', '.join(fewer)})" if fewer else "")
            + f", cache of {sizes} columns, windows of {self.window} steps"
        )


def make(
    spec: ModelSpec,
    mesh: jax.sharding.Mesh,
    shape: EngineShape,
    *,
    weight_bytes: int,
    dtype: Any,
    columns_multiple: int = 1,
    free_bytes: int | None = None,
) -> Plan:
    """Chooses what the shape leaves open.

    Args:
        weight_bytes: of the sampling copy on one device, which is not there yet.
        columns_multiple: the cache, with the window's columns, has a multiple of so many.
        free_bytes: on one device; None asks it.

    Raises: NoRoom where not even one slot a device fits.
    """
    num_shards, platform = mesh_lib.num_row_shards(mesh), mesh.devices.flat[0].platform
    heads = spec.num_kv_heads / mesh_lib.num_head_shards(mesh, spec.num_kv_heads)
    kv_token_bytes = int(2 * spec.num_layers * heads * spec.head_dim * jnp.dtype(dtype).itemsize)
    window = shape.window or _automatic_window(shape.max_completion_length)
    free = free_memory(mesh.local_devices[0]) if free_bytes is None else free_bytes
    slots = -(-(shape.num_slots or shape.num_rows) // num_shards)
    if not shape.num_slots:
        slots = min(slots, _fitting_slots(spec, mesh, shape, window, kv_token_bytes, free, weight_bytes))
        slots = min(slots, CPU_SLOTS) if platform == "cpu" else slots
    return Plan(
        num_shards=num_shards,
        slots=slots,
        places=min(slots, -(-slots // shape.num_generations)),
        window=window,
        max_completion_length=shape.max_completion_length,
        rungs=_rungs(shape, slots, window, columns_multiple, _columns_of_row(spec, platform)),
        prompt_columns=_prompt_columns(shape.max_prompt_length),
        prefill_tokens=PREFILL_TOKENS.get(platform, PREFILL_TOKENS_ELSEWHERE),
        columns_of_row=_columns_of_row(spec, platform),
        weight_bytes=weight_bytes,
        kv_token_bytes=kv_token_bytes,
        free_bytes=free,
    )


def _fitting_slots(
    spec: ModelSpec,
    mesh: jax.sharding.Mesh,
    shape: EngineShape,
    window: int,
    kv_token_bytes: int,
    free: int,
    weight_bytes: int,
) -> int:
    """How many slots a device's memory holds; any number where it does not tell.

    A slot takes its columns, its share of a prompt's, its part of the window, and its logits.
    """
    if not free:
        return 10**9
    columns = _longest(shape, window) + window + shape.max_prompt_length / shape.num_generations
    logits = LOGIT_ARRAYS * 4 * spec.vocab_size / mesh.shape["tensor"]
    fitting = int((MEMORY_SHARE * free - weight_bytes) / (kv_token_bytes * columns + logits))
    if fitting < 1:
        raise NoRoom(
            f"A device has {_size(free)} free; the sampling copy takes {_size(weight_bytes)} and one row "
            f"{_size(kv_token_bytes * columns + logits)}: nothing is left. Set config.mesh.tensor higher or "
            "config.rollout.max_completion_length lower."
        )
    return max(fitting // SLOTS_MULTIPLE * SLOTS_MULTIPLE, min(fitting, SLOTS_MULTIPLE))


def free_memory(device: Any) -> int:
    """Bytes that can still be allocated on a device; 0 where it does not tell."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = Path("/proc/meminfo")
    if device.platform != "cpu" or not meminfo.is_file():
        return 0
    available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(available.split()[1]) * 1024 // jax.local_device_count()


def _automatic_window(max_completion_length: int) -> int:
    least, most = WINDOWS
    return min(max(max_completion_length // 32 // 16 * 16, least), most)


def _rungs(
    shape: EngineShape, slots: int, window: int, multiple: int, columns_of_row: float
) -> tuple[Rung, ...]:
    """Room for a quarter, half and all of a completion where that saves; then fewer slots.

    A smaller size must save a tenth of a step and serve enough windows: growing copies the cache.
    """
    rounded = lambda columns: _round_up(columns + window, multiple) - window  # noqa: E731
    whole = rounded(_longest(shape, window))
    columns = [whole]
    for part in (2, 4):
        room = _round_up(shape.max_completion_length / part, window)
        smaller = rounded(shape.max_prompt_length + room)
        saves = smaller + columns_of_row <= 0.9 * (columns[0] + columns_of_row)
        if saves and room >= WINDOWS_OF_A_SIZE * window:
            columns.insert(0, smaller)
    fewer = [slots >> i for i in range(1, shape.halvings + 1) if slots >> i >= LEAST_SLOTS]
    return (*(Rung(slots, size) for size in columns), *(Rung(few, whole) for few in fewer))


def _longest(shape: EngineShape, window: int) -> int:
    """Columns that a row can fill before its last window, which is read where it is written."""
    return shape.max_prompt_length + (shape.max_completion_length - 1) // window * window


def _columns_of_row(spec: ModelSpec, platform: str) -> float:
    """What a row costs besides its cache, in columns of it: on a CPU arithmetic, elsewhere nothing."""
    if platform != "cpu":
        return 0.0
    layer = spec.hidden_size * (
        (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim + 3 * spec.intermediate_size
    )
    weights = spec.num_layers * layer + spec.vocab_size * spec.hidden_size
    products_a_column = 2 * spec.num_layers * spec.num_heads * spec.head_dim
    return weights / (CPU_ATTENTION_COST * products_a_column)


def _prompt_columns(longest: int) -> tuple[int, ...]:
    """A quarter, half and all of the longest prompt, where they are long enough to be worth it."""
    parts = {_round_up(longest / part, 16) for part in (4, 2)}
    return (*sorted(size for size in parts if LEAST_PROMPT_COLUMNS <= size < longest), longest)


def _round_up(number: float, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
