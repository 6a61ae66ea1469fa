"""The whole objective a second time: float64 loops over tokens, with nothing of the package in it.

`frozen` is the policy's log-probabilities wherever the formula stops the gradient, so that a difference
quotient over `now` alone is the gradient.
"""

from __future__ import annotations

import math

import numpy as np

POLICIES = {
    "grpo": ("clip", "sequence_mean", "token"),
    "dr_grpo": ("clip", "constant_length", "token"),
    "dapo": ("clip", "token_mean", "token"),
    "bnpo": ("clip", "minibatch_token_mean", "token"),
    "gspo": ("clip", "sequence_mean", "sequence"),
    "cispo": ("cispo", "token_mean", "token"),
    "sapo": ("sapo", "sequence_mean", "token"),
    "rloo": ("clip", "constant_length", "token"),
    "reinforce++": ("clip", "token_mean", "token"),
    "reinforce_with_baseline": ("reinforce", "sequence_mean", "token"),
    "no_baseline": ("reinforce", "sequence_mean", "token"),
}
KL_IN_REWARD = ("rloo", "reinforce++")  # by their papers


def exp(x: float, clamp: float) -> float:
    return math.exp(min(x, clamp) if clamp else x)


def policy_loss(kind: str, ratio: float, ratio_frozen: float, now: float, advantage: float, p) -> float:
    low, high = 1 - p.epsilon, 1 + p.epsilon_high
    if kind == "clip":
        capped = min(ratio, p.delta) if p.delta else ratio
        return -min(capped * advantage, min(max(ratio, low), high) * advantage)
    if kind == "cispo":
        return -min(ratio_frozen, high) * advantage * now
    if kind == "sapo":
        tau = p.sapo_temperature_pos if advantage > 0 else p.sapo_temperature_neg
        return -4 / tau / (1 + math.exp(-tau * (ratio - 1))) * advantage
    return -advantage * now


def kl(name: str, now: float, ref: float, ratio: float, clamp: float) -> float:
    d = ref - now
    limited = min(d, clamp) if clamp else d
    k3 = math.exp(limited) - limited - 1
    return {"k1": -d, "k2": d * d / 2, "k3": k3, "k3_unbiased": ratio * k3}[name]


def loss(now, frozen, old, sampler, ref, entropy, mask, kept, advantages, totals, p) -> float:
    """The loss of one microbatch; every array `[B, C]` float64 but `advantages` `[B]`."""
    kind, aggregation, level = POLICIES[p.loss_type]
    aggregation = aggregation if p.aggregation == "auto" else p.aggregation
    level = level if p.importance_sampling_level == "auto" else p.importance_sampling_level
    kl_in = p.kl_in if p.kl_in != "auto" else "reward" if p.loss_type in KL_IN_REWARD else "loss"
    total = 0.0
    for b in range(len(now)):
        tokens = [c for c in range(now.shape[1]) if mask[b, c]]
        if not tokens:
            continue
        mean = sum(now[b, c] - old[b, c] for c in tokens) / len(tokens)
        mean_frozen = sum(frozen[b, c] - old[b, c] for c in tokens) / len(tokens)
        gap = sum(old[b, c] - sampler[b, c] for c in tokens)
        share = {
            "sequence_mean": 1 / len(tokens) / totals.num_rows,
            "constant_length": 1 / (totals.num_rows * p.max_completion_length),
            "token_mean": 1 / totals.rollout_tokens,
            "minibatch_token_mean": 1 / totals.minibatch_tokens,
        }[aggregation]
        for c in tokens:
            token_ratio = exp(now[b, c] - old[b, c], p.log_ratio_clamp)
            frozen_ratio = exp(frozen[b, c] - old[b, c], p.log_ratio_clamp)
            of_sequence = exp(mean, p.log_ratio_clamp)
            of_sequence_frozen = exp(mean_frozen, p.log_ratio_clamp)
            ratio = {
                "token": token_ratio,
                "sequence": of_sequence,
                "sequence_token": of_sequence_frozen * math.exp(now[b, c] - frozen[b, c]),
            }[level]
            ratio_frozen = frozen_ratio if level == "token" else of_sequence_frozen
            of_policy = policy_loss(kind, ratio, ratio_frozen, now[b, c], advantages[b], p)
            if p.sampler_correction != "none":
                over, limit = p.sampler_correction.split("_")
                weight = exp(gap if over == "sequence" else old[b, c] - sampler[b, c], p.log_ratio_clamp)
                if weight > p.sampler_correction_cap:
                    weight = p.sampler_correction_cap if limit == "truncate" else 0.0
                of_policy *= weight
            value = of_policy * kept[b, c]
            if p.beta and kl_in == "loss":
                value += p.beta * kl(p.kl_estimator, now[b, c], ref[b, c], token_ratio, p.log_ratio_clamp)
            total += share * value
            total -= p.entropy_coef * entropy[b, c] * kept[b, c] / totals.minibatch_tokens
    return total


def gradient(now, *rest) -> np.ndarray:
    """d loss / d now by central differences: exact to about 1e-8 in float64."""
    result, step = np.zeros_like(now), 1e-6
    for index in np.ndindex(now.shape):
        above, below = now.copy(), now.copy()
        above[index] += step
        below[index] -= step
        result[index] = (loss(above, now, *rest) - loss(below, now, *rest)) / (2 * step)
    return result
