"""The sampling copy of the parameters: one jitted cast and relayout a step, on the devices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
from jax.experimental.layout import Format, Layout

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder
from grpo_jax.models.decoder import Model, Params
from grpo_jax.models.lora import Assemble, whole

FORMS = ("compute", "int8")  # as the trainer computes; matrices as integers, see `models/quantised.py`

LAYOUTS = {"tpu": {"gate_up": (1, 0, 2)}}
"""Order of a weight's axes in memory, slowest first, by platform, where the compiler would copy it otherwise.

A TPU multiplies by tiles of the last two axes; with the axis of gate and up between input and output it would
lay all of those weights out anew before every window, and keep both.
"""


def check_form(form: str) -> None:
    """Raises ValueError for a form that there is not."""
    if form not in FORMS:
        raise ValueError(f"config.rollout.sampling_weights is {form!r}; known are {list(FORMS)}.")


class SamplingWeights:
    """Makes the sampling copy: compute dtype, layers apart, cut over `tensor` only.

    Args:
        shapes: the training layout, or what of it is trained.
        frozen_shapes: the rest of it; None: there is none.
        assemble: makes the training layout of the two. Adapters are merged, a quantised base is made dense.
        dtype: of the copy.
        form: one of `FORMS`.

    Raises: ValueError for another form.
    """

    def __init__(
        self,
        model: Model,
        *,
        mesh: jax.sharding.Mesh,
        shapes: Any,
        dtype: Any,
        form: str = "compute",
        frozen_shapes: Any = None,
        assemble: Assemble = whole,
    ):
        check_form(form)
        platform = mesh.devices.flat[0].platform
        unstack = partial(
            decoder.unstack,
            num_layers=model.spec.num_layers,
            dtype=dtype,
            int8=form == "int8",
            turn_head=platform == "cpu",
        )

        def relayout(trained: Params, frozen: Params = None) -> Params:
            return unstack(assemble(trained, frozen, None))

        self.shapes = jax.eval_shape(relayout, shapes, frozen_shapes)
        self._shardings = mesh_lib.sampling_shardings(mesh, self.shapes)
        self.formats = _formats(self._shardings, platform)
        self.relayout = jax.jit(relayout, out_shardings=self.formats)

    def __call__(self, trained: Params, frozen: Params = None) -> Params:
        return self.relayout(trained, frozen)

    @property
    def num_bytes(self) -> int:
        """On one device."""
        sizes = jax.tree.map(
            lambda leaf, sharding: leaf.dtype.itemsize * math.prod(sharding.shard_shape(leaf.shape)),
            self.shapes,
            self._shardings,
        )
        return sum(jax.tree.leaves(sizes))


def _formats(shardings: Any, platform: str) -> Any:
    """Where the weights lie, and in which order of axes where `LAYOUTS` names one."""
    orders = LAYOUTS.get(platform, {})

    def of_weight(path: tuple, sharding: jax.sharding.Sharding) -> Any:
        order = next((orders[key.key] for key in path if getattr(key, "key", None) in orders), None)
        return Format(Layout(order), sharding) if order else sharding

    return jax.tree_util.tree_map_with_path(of_weight, shardings)
