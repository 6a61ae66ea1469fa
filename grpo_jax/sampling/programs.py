"""Every compiled program of a sampler, made ahead of its first use in background threads.

All shapes that a sampler can meet are known from its plan. Compiling starts, at the first call, with the
programs that are needed first; later ones are compiled while the first already run. Nothing is compiled
after the first call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import kv_cache
from grpo_jax.models.decoder import Model, Params
from grpo_jax.sampling import decode
from grpo_jax.sampling.plan import Plan

Name = Hashable
"""A program's name, or its name and the rung or the columns it is for."""


class SamplerPrograms:
    """A dictionary of programs whose values are still being compiled; looking one up waits for it.

    Programs: `empty` and `store` (fresh arrays), `("prefill", columns)`, `("arrive", rung)`,
    `("window", rung)`, `("move", rung)` to the rung above it; and `grow`.

    Args:
        stops: rows may be ended by the host, at any rung.
    """

    def __init__(
        self,
        model: Model,
        *,
        mesh: jax.sharding.Mesh,
        plan: Plan,
        settings: decode.DecodeSettings,
        stops: bool,
    ):
        self.model, self.mesh, self.plan, self.settings, self.stops = model, mesh, plan, settings, stops
        self._rows = mesh_lib.rows(mesh)
        self._futures: dict[Name, Future] = {}

    def compile(self, params: Params) -> None:
        """Starts compiling for parameters of these shapes; does nothing the second time."""
        if self._futures:
            return
        pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="compile")
        for name, make in self.makers(params).items():
            self._futures[name] = pool.submit(make)
        pool.shutdown(wait=False)

    def __getitem__(self, name: Name) -> Any:
        return self._futures[name].result()

    def wait(self) -> None:
        """Returns when all are compiled; raises what a compilation raised."""
        for future in self._futures.values():
            future.result()

    def grow(self, state: decode.DecodeState, rung: int) -> decode.DecodeState:
        """The cache of the next rung; array by array, so that old and new never stand there twice."""

        def grown(name: str, x: jax.Array) -> jax.Array:
            larger = self[name, rung](x)
            x.delete()
            return larger

        k = tuple(grown("grow_k", x) for x in state.cache.k)
        v = tuple(grown("grow_v", x) for x in state.cache.v)
        return state._replace(cache=kv_cache.Cache(k, v))

    def makers(self, params: Params) -> dict[Name, Callable[[], Any]]:
        """What compiles each program, in the order in which they are needed."""
        plan = self.plan
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.format), params)
        first: dict[Name, Callable[[], Any]] = {
            "empty": lambda: self._empty_state(plan.rungs[0]).lower().compile(),
            "store": lambda: self._empty_store().lower().compile(),
        }
        for columns in reversed(plan.prompt_columns):
            first["prefill", columns] = partial(self._prefill, params, columns)
        for i, rung in enumerate(plan.rungs):
            if rung.slots == plan.slots or self.stops:
                first["arrive", i] = partial(self._arrive, rung)
            first["window", i] = partial(self._window, params, rung)
            if i + 1 < len(plan.rungs):
                first |= self._changes(i)
        return first

    def _prefill(self, params: Params, columns: int) -> Any:
        def run(params, store, rows_PX):
            tokens_PT, length_P, place_P = rows_PX[:, :-2], rows_PX[:, -2], rows_PX[:, -1]
            return decode.prefill(
                self.model,
                params,
                store,
                tokens_PT,
                length_P,
                place_P,
                num_shards=self.plan.num_shards,
                dtype=self.settings.dtype,
            )

        store = self._shapes(self._empty_store())
        rows = self._ints(self.plan.prompts_at_once(columns), columns + 2)
        jitted = jax.jit(run, donate_argnums=1, out_shardings=self._shardings(store))
        return jitted.lower(params, store, rows).compile()

    def _arrive(self, rung: Any) -> Any:
        def run(state, store, news_BX, temperature, step_key_2):
            return decode.arrive(
                state,
                store,
                decode.Arrivals(*news_BX.T),
                temperature,
                jax.random.wrap_key_data(step_key_2),
                num_shards=self.plan.num_shards,
            )

        state, store = self._shapes(self._empty_state(rung)), self._shapes(self._empty_store())
        news = self._ints(rung.slots, len(decode.Arrivals._fields))
        scalars = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.uint32)
        jitted = jax.jit(run, donate_argnums=0, out_shardings=self._shardings(state))
        return jitted.lower(state, store, news, *scalars).compile()

    def _window(self, params: Params, rung: Any) -> Any:
        state = self._shapes(self._empty_state(rung))
        run = partial(
            decode.decode_window,
            self.model,
            num_steps=self.plan.window,
            settings=self.settings,
            mesh=self.mesh,
        )
        output = decode.WindowOutput(self._rows, self._rows, self._rows)
        jitted = jax.jit(run, donate_argnums=1, out_shardings=(self._shardings(state), output))
        return jitted.lower(params, state).compile()

    def _changes(self, here: int) -> dict[Name, Callable[[], Any]]:
        """Programs that lead from one rung to the next."""
        below, above = self.plan.rungs[here], self.plan.rungs[here + 1]
        old, new = self._shapes(self._empty_state(below)), self._shapes(self._empty_state(above))
        if above.slots < below.slots:
            run = partial(decode.move, num_shards=self.plan.num_shards)
            jitted = jax.jit(run, out_shardings=self._shardings(new))
            return {("move", here): lambda: jitted.lower(old, self._ints(above.slots)).compile()}

        def growing(leaf: jax.ShapeDtypeStruct, axis: int) -> Callable[[], Any]:
            run = partial(kv_cache.grow, num_positions=above.columns + self.plan.window, axis=axis)
            jitted = jax.jit(run, out_shardings=leaf.sharding)
            return lambda: jitted.lower(leaf).compile()

        return {
            ("grow_k", here): growing(old.cache.k[0], 3),
            ("grow_v", here): growing(old.cache.v[0], 2),
        }

    def _empty_state(self, rung: Any) -> Any:
        """Jitted; makes slots without rows."""
        run = partial(
            decode.empty_state,
            self.model,
            num_slots=rung.slots * self.plan.num_shards,
            num_positions=rung.columns + self.plan.window,
            dtype=self.settings.dtype,
        )
        return jax.jit(run, out_shardings=self._of_rows(jax.eval_shape(run)))

    def _empty_store(self) -> Any:
        run = partial(
            decode.empty_cache,
            self.model,
            num_rows=self.plan.places * self.plan.num_shards,
            num_positions=self.plan.prompt_columns[-1],
            dtype=self.settings.dtype,
        )
        return jax.jit(run, out_shardings=self._of_rows(jax.eval_shape(run)))

    def _of_rows(self, tree: Any) -> Any:
        """Shardings: caches (the arrays of four axes) are cut over heads too."""
        cache = mesh_lib.cache_rows(self.mesh, self.model.spec.num_kv_heads)
        return jax.tree.map(lambda x: cache if x.ndim == 4 else self._rows, tree)

    def _shapes(self, jitted: Any) -> Any:
        """What a jitted function without arguments gives, as shapes with shardings."""
        out = jax.eval_shape(jitted)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), out, self._of_rows(out)
        )

    def _shardings(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.sharding, tree)

    def _ints(self, rows: int, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows * self.plan.num_shards, *more), jnp.int32, sharding=self._rows)
