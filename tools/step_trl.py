"""TRL's side of the step's benchmark, in a process of its own: `python -m tools.step_trl WORK RESULT`.

`GRPOTrainer` as it is, with its own sampling through transformers, on the CPU in float32, without gradient
checkpointing, logs or checkpoints. Clocks are put around its methods; none of them is changed:

    step      from its callback `on_step_begin` to `on_step_end`
    sampling  `_generate`: prompts to ids, `generate`, ids to texts
    scoring   the rest of `_generate_and_score_completions`: reference log-probabilities, rewards, advantages
    update    the rest of the step: loss, backward pass and optimizer

No JAX is loaded here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax import command_line
from tools import measuring, step_reward, step_work
from tools.step_work import StepResult, StepWork

END = "<end>"  # gets an id behind the vocabulary, which is never sampled
CHECKED_ROWS = 8  # whose log-probabilities are kept, to be compared with ours


def main(arguments: Sequence[str]) -> None:
    """Reads the work, does it, writes the result and, beside it as .npz, the first log-probabilities."""
    work = step_work.read_work(Path(arguments[0]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = open_trainer(work, folder)
        clock = Clock(trainer, started_at=work.started_at)
        trainer.train()
    check_work(clock.metrics, work)
    result = Path(arguments[1])
    kept = clock.first_logprobs
    np.savez(result.with_suffix(".npz"), tokens_BT=kept["tokens_BT"], logprobs_BC=kept["logprobs_BC"])
    prompts = np.unique(kept["tokens_BT"][:, : work.prompt_length], axis=0)
    found = StepResult(
        seconds=clock.seconds[step_work.WARM_UP_STEPS :],
        warm_up_seconds=[step["step"] for step in clock.seconds[: step_work.WARM_UP_STEPS]],
        first_step_after=clock.first_step_after,
        peak_rss_gb=clock.peak_rss_gb,
        judges_peak_rss_gb=0.0,  # it rewards in its own process
        prompts=prompts.tolist(),
        compilations=None,
    )
    step_work.write(found, result)


def open_trainer(work: StepWork, folder: str) -> Any:
    """TRL's trainer on the work; the data repeat the prompts, so that no epoch ends between steps."""
    import datasets
    import torch
    import transformers
    from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(measuring.num_cores())
    for library in (transformers, datasets):
        library.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    # by its own class: for a qwen2 folder, AutoTokenizer puts another pre-tokenizer in place of the folder's
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
        work.model, eos_token=END, pad_token=END, padding_side="left"
    )
    num_steps = step_work.WARM_UP_STEPS + work.steps
    return GRPOTrainer(
        model=work.model,
        reward_funcs=lambda completions, **_: [step_reward.checksum_of_text(text) for text in completions],
        args=GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=work.trl_batch,
            gradient_accumulation_steps=work.num_rows // work.trl_batch,
            num_generations=work.num_generations,
            max_completion_length=work.new_tokens,
            temperature=1.0,
            beta=work.beta,
            learning_rate=step_work.LEARNING_RATE,
            lr_scheduler_type="constant",
            max_steps=num_steps,
            seed=work.seed,
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": work.questions * num_steps}),
        processing_class=tokenizer,
    )


class Clock:
    """Takes the time of a trainer's steps and of their parts, and keeps the first log-probabilities."""

    def __init__(self, trainer: Any, *, started_at: float):
        self._started_at = started_at
        self.seconds: list[dict[str, float]] = []  # one a step
        self.first_step_after = self.peak_rss_gb = 0.0
        self.first_logprobs: dict[str, np.ndarray] = {}
        self.metrics: dict[str, list[float]] = {}  # as the trainer has them after each step
        self._parts: dict[str, float] = {}
        self._trainer = trainer
        for name, method in (("generate", "_generate"), ("all", "_generate_and_score_completions")):
            setattr(trainer, method, self._timed(name, getattr(trainer, method)))
        score = trainer._get_per_token_logps_and_entropies
        trainer._get_per_token_logps_and_entropies = self._kept(score)
        trainer.add_callback(_callback(self))

    def begin(self) -> None:
        self._parts = {"generate": 0.0, "all": 0.0}
        self._started = time.perf_counter()

    def end(self) -> None:
        whole = time.perf_counter() - self._started
        sampling, made = self._parts["generate"], self._parts["all"]
        parts = (whole, sampling, made - sampling, whole - made)
        self.seconds.append(dict(zip(step_work.TIMES, parts, strict=True)))
        self.first_step_after = self.first_step_after or time.time() - self._started_at
        self.peak_rss_gb = measuring.peak_rss_gb()
        # now: the trainer forgets them when it ends
        self.metrics = {name: list(values) for name, values in self._trainer._metrics["train"].items()}

    def _timed(self, name: str, method: Callable) -> Callable:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            returned = method(*arguments, **named)
            self._parts[name] += time.perf_counter() - started
            return returned

        return timed

    def _kept(self, score: Callable) -> Callable:
        """The first call is made before the first update: by the reference or by the policy, which are equal then."""

        def kept(model: Any, tokens_BT: Any, *arguments: Any, **named: Any) -> Any:
            found = score(model, tokens_BT, *arguments, **named)
            if not self.first_logprobs:
                rows = {"tokens_BT": tokens_BT, "logprobs_BC": found[0].detach()}
                self.first_logprobs = {name: x[:CHECKED_ROWS].numpy().copy() for name, x in rows.items()}
            return found

        return kept


def check_work(metrics: dict[str, list[float]], work: StepWork) -> None:
    """Raises: RuntimeError where a step was less, or more, than what both sides shall do."""
    lengths = {int(x) for name in ("min", "max") for x in metrics[f"completions/{name}_length"]}
    if lengths != {work.new_tokens}:
        raise RuntimeError(
            f"TRL's completions have {sorted(lengths)} tokens, planned were {work.new_tokens}."
        )
    if any(metrics["frac_reward_zero_std"]):
        raise RuntimeError("a group has equal rewards: there would be no signal in it.")


def _callback(clock: Clock) -> Any:
    import transformers

    class Steps(transformers.TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            clock.begin()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.end()

    return Steps()


if __name__ == "__main__":
    command_line.run_program(main)
