"""What a sampling call did, against what the device could have done.

A decode step must read the weights once and the keys and values of every row that is still running; at
best it takes as long as the device needs to move those bytes. `roofline_share` is that best time over the
time that was taken. Bytes that are moved without need (empty slots, unused columns) count as loss.
"""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import numpy as np

from grpo_jax import chips


@dataclasses.dataclass
class Counters:
    """Sums of one sampling call on this process."""

    num_devices: int
    weight_bytes: int  # read by one decode step, over this process's devices
    kv_token_bytes: int  # keys and values of one token, all layers
    seconds: float = 0.0
    num_tokens: int = 0  # emitted
    num_windows: int = 0
    num_steps: int = 0  # decode steps until the window's last row ended
    num_slot_steps: int = 0  # slots x steps that were computed
    kv_bytes: int = 0  # of running rows

    def add_window(self, tokens_of_rows: np.ndarray, lengths: np.ndarray, *, slots: int, steps: int) -> None:
        """Counts one window.

        Args:
            tokens_of_rows: tokens that each running row emitted in it.
            lengths: columns that each of them had filled before it.
            slots: computed, on this process.
            steps: the window's.
        """
        self.num_windows += 1
        self.num_slot_steps += slots * steps
        if len(tokens_of_rows):
            self.num_tokens += int(tokens_of_rows.sum())
            self.num_steps += int(tokens_of_rows.max())
            read = tokens_of_rows * lengths + tokens_of_rows * (tokens_of_rows + 1) // 2
            self.kv_bytes += int(read.sum()) * self.kv_token_bytes

    @property
    def occupancy(self) -> float:
        """Tokens emitted over slot steps computed, 0 to 1."""
        return self.num_tokens / max(self.num_slot_steps, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / max(self.seconds, 1e-9)

    @property
    def needed_bytes(self) -> int:
        """Bytes that had to move, over this process's devices."""
        return self.num_steps * self.weight_bytes + self.kv_bytes

    @property
    def roofline_share(self) -> float:
        """Best possible seconds over those taken, 0 to 1."""
        best = self.needed_bytes / (self.num_devices * memory_bandwidth())
        return best / max(self.seconds, 1e-9)

    def metrics(self) -> dict[str, float]:
        return {
            "sampling/occupancy": self.occupancy,
            "sampling/roofline_share": self.roofline_share,
            "sampling/tokens_per_second_per_device": self.tokens_per_second / self.num_devices,
        }


@functools.cache
def memory_bandwidth() -> float:
    """Bytes a second that one device can read; measured where the table does not know it."""
    device = jax.local_devices()[0]
    if chip := chips.of_kind(device.device_kind):
        return chip.bandwidth
    return _measured_bandwidth() / (jax.local_device_count() if device.platform == "cpu" else 1)


def _measured_bandwidth(num_bytes: int = 1 << 27) -> float:
    """Sums an array larger than the caches a few times; the best run counts."""
    total = jax.jit(lambda x: x.sum())
    array = jax.device_put(np.ones(num_bytes // 4, np.float32))
    total(array).block_until_ready()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        total(array).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return num_bytes / min(seconds)
