"""How many programs were compiled: a number that must stand still after the first steps."""

from __future__ import annotations

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"  # told once a program, also when it comes from a cache


class Counter:
    """Counts the programs that this process compiles from now on."""

    def __init__(self) -> None:
        self.total = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **details: str | int) -> None:
        self.total += event == _EVENT
