"""The work of a sampling benchmark, and transformers' `generate`, which does it beside our sampler.

All do the same `Work` on the same weights: the same prompts, as many tokens a row. Shape letters are in
`grpo_jax/structs.py`; C counts new tokens. The other peer is in `bare_loop.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tools import measuring

LENGTHS = ("equal", "skewed")
SHORT = (24, 40)  # tokens of a short completion where lengths are skewed: least, most
LONG_EVERY = 4  # one of so many completions is a long one then


@dataclasses.dataclass(frozen=True)
class Work:
    """What every side has to do."""

    prompts_PT: np.ndarray  # int32, all of one length
    limits_PG: np.ndarray  # int32: tokens that each completion gets; nothing ends earlier
    temperature: float  # 0: the likeliest token always

    @property
    def num_generations(self) -> int:
        return self.limits_PG.shape[1]

    @property
    def num_tokens(self) -> int:
        """New tokens of all rows: what every side is credited with."""
        return int(self.limits_PG.sum())

    @property
    def longest(self) -> int:
        return int(self.limits_PG.max())


class Side(Protocol):
    """Whoever does the work."""

    device: str  # for people

    def generate(self, seed: int) -> np.ndarray:
        """Does all of it. Token ids `[B, C]`, C the longest limit; what is behind a row's limit means nothing."""
        ...


def planned_lengths(kind: str, shape: tuple[int, int], longest: int, *, seed: int) -> np.ndarray:
    """Tokens of every completion, int32 `[P, G]`.

    Args:
        kind: "equal": all are `longest`. "skewed": one of four is, spread over the prompts as evenly as it
            goes; the others have `SHORT` tokens, or `longest` where that is less.
    """
    if kind == "equal":
        return np.full(shape, longest, np.int32)
    num_prompts, num_generations = shape
    rng = np.random.default_rng(seed)
    limits_PG = np.minimum(rng.integers(SHORT[0], SHORT[1], shape, np.int32, endpoint=True), longest)
    prompts = rng.permutation(num_prompts)
    order_PG = rng.permuted(np.tile(np.arange(num_generations), (num_prompts, 1)), axis=1)
    for i in range(max(1, round(limits_PG.size / LONG_EVERY))):  # one for each prompt, then a second one, ...
        prompt = prompts[i % num_prompts]
        limits_PG[prompt, order_PG[prompt, i // num_prompts]] = longest
    return limits_PG


class Transformers:
    """`generate` of transformers on all rows at once, on a GPU where torch has one.

    Rows whose limit is reached are carried along until the longest has reached its own: `generate` does
    not drop them.

    Args:
        folder: Hugging Face folder with the weights.
        dtype: "float32" or "bfloat16".
    """

    def __init__(self, folder: Path, *, work: Work, dtype: str):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(measuring.num_cores())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model = model.to(self.device).eval()
        # what `generate` falls back on would bring the model's own end ids back in
        self._model.generation_config = transformers.GenerationConfig(
            max_new_tokens=work.longest,
            use_cache=True,
            pad_token_id=0,
            **_choice(work.temperature),
        )
        self._prompts_PT = torch.tensor(work.prompts_PT, dtype=torch.int64, device=self.device)
        # what `num_return_sequences` does before the prompts are read; greedy decoding refuses that
        self._prompts_BT = self._prompts_PT.repeat_interleave(work.num_generations, dim=0)
        limits_B = torch.tensor(work.limits_PG.reshape(-1), device=self.device)
        self._reached = lambda ids_BT, scores, **_: ids_BT.shape[1] - work.prompts_PT.shape[1] >= limits_B

    def generate(self, seed: int) -> np.ndarray:
        import torch
        from transformers import StoppingCriteriaList

        torch.manual_seed(seed)
        with torch.inference_mode():
            ids_BT = self._model.generate(
                self._prompts_BT,
                attention_mask=torch.ones_like(self._prompts_BT),
                stopping_criteria=StoppingCriteriaList([self._reached]),
            )
        return ids_BT[:, self._prompts_PT.shape[1] :].cpu().numpy()

    def first_logits(self) -> np.ndarray:
        """float32 `[P, V]`: logits of the first new token of every prompt."""
        import torch

        with torch.inference_mode():
            logits_PTV = self._model(self._prompts_PT, logits_to_keep=1).logits
        return logits_PTV[:, -1].float().cpu().numpy()


def _choice(temperature: float) -> dict[str, Any]:
    """What `generate` calls sampling from the whole distribution, or greedy decoding."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
