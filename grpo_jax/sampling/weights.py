"""The sampling copy of the parameters: one jitted cast and relayout a step, on the devices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax

from grpo_jax import mesh as mesh_lib
from grpo_jax.models import decoder
from grpo_jax.models.decoder import Model, Params

FORMS = ("compute", "int8")  # as the trainer computes; matrices as integers, see `models/quantised.py`


class SamplingWeights:
    """Makes the sampling copy: compute dtype, layers apart, cut over `tensor` only.

    Args:
        shapes: the training layout.
        dtype: of the copy.
        form: one of `FORMS`.

    Raises: ValueError for another form.
    """

    def __init__(
        self, model: Model, *, mesh: jax.sharding.Mesh, shapes: Any, dtype: Any, form: str = "compute"
    ):
        if form not in FORMS:
            raise ValueError(f"config.rollout.sampling_weights is {form!r}; known are {list(FORMS)}.")
        unstack = partial(decoder.unstack, num_layers=model.spec.num_layers, dtype=dtype, int8=form == "int8")
        self.shapes = jax.eval_shape(unstack, shapes)
        self.shardings = mesh_lib.sampling_shardings(mesh, self.shapes)
        self._unstack = jax.jit(unstack, out_shardings=self.shardings)

    def __call__(self, params: Params) -> Params:
        return self._unstack(params)

    @property
    def num_bytes(self) -> int:
        """On one device."""
        sizes = jax.tree.map(
            lambda leaf, sharding: leaf.dtype.itemsize * math.prod(sharding.shard_shape(leaf.shape)),
            self.shapes,
            self.shardings,
        )
        return sum(jax.tree.leaves(sizes))
