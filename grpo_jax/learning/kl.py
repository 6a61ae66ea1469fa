"""Estimators of the KL divergence from the policy to the reference, one number a sampled token.

Each takes `difference_BC`, the reference's log-probability less the policy's, and `ratio_BC`, the policy's
probability over that of the policy that sampled (used by `k3_unbiased` only). In the loss they are
differentiated; in the reward they are numbers of the policy that sampled, whose ratio is 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def k1(difference_BC: jax.Array, ratio_BC: jax.Array, clamp: float) -> jax.Array:
    """`now - ref`: unbiased, of either sign. Its gradient is 0 on average: for the reward only.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return -difference_BC


def k2(difference_BC: jax.Array, ratio_BC: jax.Array, clamp: float) -> jax.Array:
    """`(now - ref)^2 / 2`: biased in value; the gradient is that of the KL, for samples of the policy.

    Source: as `k1`.
    """
    return 0.5 * jnp.square(difference_BC)


def k3(difference_BC: jax.Array, ratio_BC: jax.Array, clamp: float) -> jax.Array:
    """`exp(ref - now) - (ref - now) - 1`: unbiased in value, never negative.

    Differences above `clamp` count as `clamp`, 0: none do.
    Source: as `k1`; Shao et al. 2024 (DeepSeekMath), equation 4.
    """
    limited_BC = jnp.minimum(difference_BC, clamp) if clamp else difference_BC
    return jnp.expm1(limited_BC) - limited_BC


def k3_unbiased(difference_BC: jax.Array, ratio_BC: jax.Array, clamp: float) -> jax.Array:
    """`ratio * k3`, whose gradient, `ratio * (now - ref)` by log-probability, is that of the KL too.

    The ratio is the token's, whatever the policy loss uses. TRL: `use_bias_correction_kl`.
    Source: DeepSeek-AI 2025 (DeepSeek-V3.2), "Unbiased KL estimate".
    """
    return ratio_BC * k3(difference_BC, ratio_BC, clamp)


KL_ESTIMATORS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_unbiased": k3_unbiased,
}


def of_rows(
    old_logprobs_BC: jax.Array,
    ref_logprobs_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    estimator: str,
    clamp: float,
) -> jax.Array:
    """The sum over each completion's tokens, for `advantages.penalised`.

    Args:
        mask_BC: float32; positions where it is 0 may hold anything.
        estimator: key of `KL_ESTIMATORS`.
        clamp: as `log_ratio_clamp`.

    Returns: float32 `[B]`, without a gradient.
    """
    difference_BC = jnp.where(mask_BC > 0, ref_logprobs_BC - old_logprobs_BC, 0.0)
    kl_BC = KL_ESTIMATORS[estimator](difference_BC, jnp.ones_like(difference_BC), clamp)
    return jax.lax.stop_gradient((kl_BC * mask_BC).sum(axis=1))
