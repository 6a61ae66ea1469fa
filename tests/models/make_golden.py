"""What transformers computes for the small models, and the file that keeps it for machines without torch.

    python tests/models/make_golden.py        # writes golden.npz beside it; needs torch and transformers

The same functions serve the live comparison in `test_parity.py`.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # when it runs as a program

from tests.models import small_models

GOLDEN_PATH = Path(__file__).resolve().parent / "golden.npz"
ROW_LENGTHS = (2000, 1, 100, 1337, 99, 37)
PROMPT_LENGTHS = (1, 5, 12, 3, 9, 7)
MAX_NEW_TOKENS = 32
VOCABULARY = 300


def rows() -> list[np.ndarray]:
    """The token rows of every comparison of logits."""
    random = np.random.RandomState(1)
    return [random.randint(1, VOCABULARY, length) for length in ROW_LENGTHS]


def prompts() -> list[np.ndarray]:
    """The prompts of every greedy comparison."""
    random = np.random.RandomState(2)
    return [random.randint(3, VOCABULARY, length) for length in PROMPT_LENGTHS]


def kept_positions(length: int) -> np.ndarray:
    """Positions whose logits are stored: the first, the last and two between."""
    return np.unique(np.linspace(0, length - 1, 4).astype(int))


@functools.cache
def load_reference(folder: Path) -> Any:
    """transformers' model of a folder, in float32."""
    import torch
    import transformers

    torch.set_num_threads(1)  # its threads spin while others work: ten times slower on a busy machine
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def reference_logits(folder: Path) -> list[np.ndarray]:
    """Logits float32 `[length, V]` of each row on its own, without any padding."""
    import torch

    model = load_reference(folder)
    with torch.no_grad():
        return [model(torch.from_numpy(row)[None]).logits[0].numpy() for row in rows()]


def reference_completions(folder: Path, *, end_ids: list[int]) -> list[list[int]]:
    """Greedy tokens of `generate` on left-padded prompts, up to and with the first end id."""
    import torch

    tokens, mask = np.zeros((2, len(PROMPT_LENGTHS), max(PROMPT_LENGTHS)), np.int64)
    for row, prompt in enumerate(prompts()):
        tokens[row, -len(prompt) :] = prompt
        mask[row, -len(prompt) :] = 1
    output = load_reference(folder).generate(
        torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(mask),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=end_ids,
        pad_token_id=0,
    )
    completions = []
    for row in output.numpy()[:, max(PROMPT_LENGTHS) :].tolist():
        ends = [i for i, token in enumerate(row) if token in end_ids]
        completions.append(row[: ends[0] + 1] if ends else row)
    return completions


def chosen_end_ids(folder: Path) -> list[int]:
    """Two ids that the model says along the way, so that rows end early, and at different ids."""
    free = reference_completions(folder, end_ids=[VOCABULARY + 1])
    return [free[1][6], free[2][11]]


def main() -> None:
    """Writes `golden.npz`."""
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as parent:
        for name, config in small_models.CONFIGS.items():
            folder = small_models.write_folder(Path(parent) / name, config)
            end_ids = chosen_end_ids(folder)
            about = {
                "config": config,
                "end_ids": end_ids,
                "completions": reference_completions(folder, end_ids=end_ids),
            }
            arrays[f"{name}/about"] = np.array(json.dumps(about))
            for i, logits in enumerate(reference_logits(folder)):
                arrays[f"{name}/logits{i}"] = logits[kept_positions(len(logits))].astype(np.float32)
    np.savez_compressed(GOLDEN_PATH, **arrays)
    print(f"{GOLDEN_PATH.name}: {GOLDEN_PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
