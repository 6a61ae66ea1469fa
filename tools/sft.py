"""Supervised fine-tuning on a task's worked answers, to compare GRPO with.

    python tools/sft.py --config configs/tiny.py [--config.sft.max_steps=20 ...]

Config, model, data, templates, mesh and LoRA are those of `grpo_jax.train`; `config.sft` has the rest. Leaves
in config.sft.output_dir what a GRPO run leaves, `final/` among it: a Hugging Face folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpo_jax import command_line

if __name__ == "__main__":
    command_line.end_on_signals()  # the next import takes seconds

from grpo_jax import sft

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # configs are found beside tools/

if __name__ == "__main__":
    command_line.run_program(sft.main)
