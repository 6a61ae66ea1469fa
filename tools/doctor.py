"""Is everything there that a run needs? Each line says passed, failed with the cure, or skipped.

    python tools/doctor.py                                        # the machine, by the embedded tiny config
    python tools/doctor.py --config CONFIG [--config.x.y=z ...]   # a run, as `python -m grpo_jax.train` would start it

Packages, devices, memory, disk, config, rewards, model folder, tokenizer, data, whether it fits, and whether sampler
and trainer agree on the real weights. Nothing is written into the run's folder. `--debug` shows tracebacks.

Exit status: 0 nothing failed, 2 something did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_jax import command_line
from grpo_jax.doctor import table
from grpo_jax.doctor.checkup import FAILED

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # configs are found beside tools/

TINY = (
    "--config",
    str(ROOT / "configs" / "tiny.py"),
    f"--config.model.path={ROOT / 'configs' / 'tiny_qwen'}",
)


def main(arguments: Sequence[str]) -> None:
    """Examines, tells, and ends with the status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    named = any(argument == "--config" or argument.startswith("--config=") for argument in arguments)
    findings = table.diagnose(
        arguments if named else [*TINY, *arguments],
        tell=lambda line: print(line, flush=True),
        say=lambda line: print(f"         {line}", file=sys.stderr, flush=True),
        debug="--debug" in sys.argv,
    )
    command_line.leave(2 if any(finding.status == FAILED for finding in findings) else 0)


if __name__ == "__main__":
    command_line.run_program(main)
