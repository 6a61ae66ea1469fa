"""The sampler: prompts in, finished completions out, each handed over as soon as its window ends.

The host's part of sampling. Rows run in a fixed number of slots; decoding goes in windows of a fixed number
of steps (`decode.py`). Between windows the host reads the window's tokens, hands finished completions to
whoever waits for them, fills free slots with waiting rows (`schedule.py`) and picks the next shape of the
cache (`plan.py`). A call may have any number of problems and of completions a problem. With several
processes each feeds its own slots, and they agree on the next program between windows.
Enters: the sampling copy of the parameters, `Problem`s, a key. Leaves: `Completion`s.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax import distributed
from grpo_jax import mesh as mesh_lib
from grpo_jax.models.decoder import Model, Params
from grpo_jax.sampling import decode, token_choice
from grpo_jax.sampling.call import Call, FindStop, OnFinished
from grpo_jax.sampling.counters import Counters
from grpo_jax.sampling.plan import Plan
from grpo_jax.sampling.programs import SamplerPrograms
from grpo_jax.sampling.schedule import Prompt
from grpo_jax.structs import AskedToStop, Completion, Problem, Stopped, never


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What a call of the sampler gives back."""

    completions: list[list[Completion]]  # [P_local][G]
    counters: Counters


class Engine:
    """Samples completions.

    Args:
        model: the static model.
        mesh: slots are cut over its row axes, heads over `tensor`.
        plan: the sizes that its programs are compiled for.
        settings: how tokens are chosen and where completions end.
        find_stop: finds where a completion ends for another reason than its end tokens.
    """

    def __init__(
        self,
        model: Model,
        *,
        mesh: jax.sharding.Mesh,
        plan: Plan,
        settings: decode.DecodeSettings,
        find_stop: FindStop | None = None,
    ):
        self.mesh, self.plan, self.settings, self.find_stop = mesh, plan, settings, find_stop
        self.programs = SamplerPrograms(
            model, mesh=mesh, plan=plan, settings=settings, stops=find_stop is not None
        )

    def generate(
        self,
        params: Params,
        problems: Sequence[Problem],
        *,
        num_generations: int,
        temperature: float,
        step_key: jax.Array,
        limits_PG: np.ndarray | None = None,
        on_finished: OnFinished | None = None,
        stop: AskedToStop = never,
    ) -> Sampled:
        """Samples G completions for each of this process's problems.

        Args:
            params: the sampling layout (`weights.SamplingWeights`).
            temperature: 0 takes the likeliest token always.
            step_key: a key that differs from step to step.
            limits_PG: int, tokens at most, 1 to the plan's; None: the plan's. Compiles nothing.
            on_finished: called once a completion, in the order in which they end.
            stop: asked between windows.

        Raises: Stopped, in all processes, when any of them was asked to stop; the completions are lost.
        """
        started = time.perf_counter()
        token_choice.check_temperature(temperature)
        call = Call(
            problems,
            num_generations,
            limits_PG,
            plan=self.plan,
            end_ids=self.settings.end_ids,
            on_finished=on_finished,
            find_stop=self.find_stop,
        )
        self.programs.compile(params)
        counters = self._new_counters()
        begin = (np.float32(temperature), np.asarray(jax.random.key_data(step_key)))
        state, store, rung = self.programs["empty"](), self.programs["store"](), 0
        while True:
            state, store = self._fill(params, state, store, call, rung, begin)
            wanted = self._next_rung(call, rung, stop)
            if wanted is None:
                break
            state, rung = self._climb(state, call, rung, wanted)
            state, output = self.programs["window", rung](params, state)
            tokens_BW, logprobs_BW, done_B = (mesh_lib.local_rows(array) for array in output)
            call.read(tokens_BW, logprobs_BW, done_B, counters)
        self.programs.wait()
        counters.seconds = time.perf_counter() - started
        return Sampled(call.completions(), counters)

    def _new_counters(self) -> Counters:
        count = len(self.mesh.local_devices)
        heads = self.mesh.shape["tensor"]
        return Counters(
            num_devices=count,
            weight_bytes=self.plan.weight_bytes * count,
            kv_token_bytes=self.plan.kv_token_bytes * heads,
        )

    def _fill(
        self, params: Params, state: Any, store: Any, call: Call, rung: int, begin: tuple[Any, ...]
    ) -> tuple[Any, Any]:
        """Reads the prompts of waiting rows and puts the rows into free slots, while both last."""
        while True:
            entering = call.schedule.next_round()
            if not distributed.largest([call.has_news(entering)])[0]:
                return state, store
            store = self._read_prompts(params, store, entering.prompts, call)
            news = self._put(call.arrivals(entering, num_slots=self.plan.rungs[rung].slots))
            state = self.programs["arrive", rung](state, store, news, *begin)

    def _read_prompts(self, params: Params, store: Any, prompts: Sequence[Prompt], call: Call) -> Any:
        """Prefills in batches of like length: the longest first, so that short ones are read in short rows."""
        length = lambda prompt: len(call.problems[prompt.problem].prompt_ids)  # noqa: E731
        waiting = [
            deque(sorted((p for p in prompts if p.shard == shard), key=length, reverse=True))
            for shard in range(len(call.schedule))
        ]
        while longest := distributed.largest([max((length(w[0]) for w in waiting if w), default=0)])[0]:
            columns = next(columns for columns in self.plan.prompt_columns if columns >= longest)
            size = self.plan.prompts_at_once(columns)
            rows = np.zeros((size * len(waiting), columns + 2), np.int32)  # tokens, length, place
            for shard, queue in enumerate(waiting):
                for row in rows[shard * size :][: min(size, len(queue))]:
                    prompt = queue.popleft()
                    row[: length(prompt)] = call.problems[prompt.problem].prompt_ids
                    row[-2:] = length(prompt), prompt.place
            store = self.programs["prefill", columns](params, store, self._put(rows))
        return store

    def _next_rung(self, call: Call, rung: int, stop: AskedToStop) -> int | None:
        """What the next window's shape must be, for all processes; None: nothing is left to run."""
        running, columns, waiting, status = distributed.largest(
            [call.schedule.most_running, call.columns_needed(), call.schedule.num_waiting, stop()]
        )
        if status:
            raise Stopped(status)
        if not running:
            return None
        return self.plan.next_rung(rung, running=running, columns=columns, waiting=waiting > 0)

    def _climb(self, state: Any, call: Call, rung: int, wanted: int) -> tuple[Any, int]:
        """Grows the cache, or gathers the rows in fewer slots, one rung after the other."""
        for here in range(rung, wanted):
            below, above = self.plan.rungs[here], self.plan.rungs[here + 1]
            if above.slots == below.slots:
                state = self.programs.grow(state, here)
            else:
                state = self.programs["move", here](state, self._put(call.move(above.slots)))
        return state, wanted

    def _put(self, rows: np.ndarray) -> jax.Array:
        return mesh_lib.put_rows(self.mesh, rows)
