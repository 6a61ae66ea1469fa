"""How good a model is on a task, on several, or on problems of your own.

    python tools/evaluate.py --model DIR --task gsm8k --output OUT
    python tools/evaluate.py --model RUN/checkpoints/STEP --task gsm8k,math500 --output OUT     # a suite
    python tools/evaluate.py --model DIR --data test.jsonl --answer-pattern '####\\s*(.+)$' --output OUT
    python tools/evaluate.py --compare OUT_A OUT_B

Greedy by default; `--samples 8 --temperature 1` adds pass@k and majority@k. OUT gets `problems.jsonl` (one object
a problem, with every completion and what the judge said), `metrics.json`, `report.md` and `report.html`; of a
suite each task has a folder in OUT, beside `summary.md`. The same command goes on where it was interrupted and
ends with the same `problems.jsonl`. `--compare` pairs two finished evaluations problem by problem.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_jax import command_line, restored, suite, whole_files
from grpo_jax import mesh as mesh_lib
from grpo_jax.data import problem_sets, tasks
from grpo_jax.data.data_params import DataParams
from grpo_jax.data.problems import ProblemSet
from grpo_jax.evaluation import comparison, evaluation_folder
from grpo_jax.evaluation.evaluation_report import numbers
from grpo_jax.rewards import registry
from grpo_jax.suite import EvaluatedSet, SamplingParams

DATA_OPTIONS = (  # what is told to `data` and decides the problems
    *("data", "name", "split", "question_field", "answer_field", "answer_pattern", "template"),
    *("system_prompt", "prompt_template", "assistant_prefill", "enable_thinking"),
    *("max_prompt_length", "max_problems"),
)

LEAST = dict.fromkeys(("samples", "chunk", "max_completion_length", "max_prompt_length"), 1)
LEAST |= dict.fromkeys(("temperature", "top_k", "max_problems", "slots", "workers", "seed"), 0)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, evaluates or compares, writes."""
    options = parse(arguments)
    if options.compare:
        compare(options)
        return
    check(options)
    names = task_names(options)
    asked = {name: getattr(options, name) for name in ("model", *DATA_OPTIONS, "dtype")}
    if len(names) == 1:  # before anything is loaded
        evaluation_folder.check(Path(options.output), asked)
    mesh_lib.use_cpu_devices(0)
    opened = restored.open_model(options.model, compute_dtype=options.dtype)
    sets = [load_set(name, options, opened.policy.tokenizer) for name in names]
    suite.longest_prompt(opened, sets, sampling_params(options))  # before judges start and weights are read
    command = f"python tools/evaluate.py {shlex.join(arguments)}"
    with suite.Judges(num_workers=options.workers, timeout_s=options.timeout) as judges:
        sets = [suite.readable(found, judges.of(found), say) for found in sets]
        evaluate(options, opened, sets, judges, asked=asked, command=command)


def evaluate(
    options: argparse.Namespace,
    opened: restored.Opened,
    sets: list[EvaluatedSet],
    judges: suite.Judges,
    *,
    asked: dict[str, Any],
    command: str,
) -> None:
    """Evaluates one set after the other; no folder is touched before all are known to be right."""
    output, params, results = Path(options.output), sampling_params(options), {}
    folders = {found.name: suite.folder_of(output, found.name, num_tasks=len(sets)) for found in sets}
    decided = {found.name: suite.decides(opened, found, params, asked) for found in sets}
    for name, folder in folders.items():
        evaluation_folder.check(folder, decided[name])
    mesh = mesh_lib.create(data=-1, fsdp=1, tensor=1)
    sampler = suite.make_sampler(opened, sets, params, mesh=mesh)
    say(sampler.engine.plan.describe())
    for found in sets:
        results[found.name] = suite.evaluate_task(
            folders[found.name],
            found,
            sampler,
            params,
            options=decided[found.name],
            command=command,
            judge=judges.of(found),
            say=say,
        )
        tell(found.name, results[found.name], folders[found.name])
    if len(sets) > 1:
        summary = suite.table(results)
        whole_files.write_text(output / "summary.md", summary + "\n")
        print(summary)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--model", default="", help="Hugging Face folder, hub id, or RUN/checkpoints/STEP")
    parser.add_argument("--task", default="", help=f"some of {', '.join(tasks.TASKS)}, or file.py:NAME")
    parser.add_argument("--output", default="", help="folder for the results")
    parser.add_argument("--compare", nargs=2, metavar=("OUT_A", "OUT_B"), help="two finished evaluations")
    parser.add_argument("--data", default="", help="hub id or file: own problems, or the task's from there")
    parser.add_argument("--name", default="", help="configuration of a hub data set")
    parser.add_argument("--split", default="", help="of --data; as in 'test[:100]'")
    parser.add_argument("--question-field", default="")
    parser.add_argument("--answer-field", default="")
    parser.add_argument("--answer-pattern", default="", help="regular expression; its one group is the gold")
    parser.add_argument("--template", default="", help="as config.data.template; the task's if not given")
    parser.add_argument("--system-prompt", default="")
    parser.add_argument("--prompt-template", default="", help="the user's turn, with {question} in it")
    parser.add_argument("--assistant-prefill", default="")
    parser.add_argument("--enable-thinking", default="auto", help="auto, on, off: told to the chat template")
    parser.add_argument("--reward-funcs", default="", help="the task's if not given; the first grader grades")
    parser.add_argument("--format-reward", default="", help="the template's if not given")
    parser.add_argument("--max-problems", type=int, default=0, help="of each task; 0: all")
    parser.add_argument("--max-prompt-length", type=int, default=1024, help="tokens")
    parser.add_argument("--max-completion-length", type=int, default=1024, help="tokens")
    parser.add_argument("--samples", type=int, default=1, help="completions a problem")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token always")
    parser.add_argument("--top-k", type=int, default=0, help="0: all")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument(
        "--stop", action="append", default=[], help="a text that ends a completion; repeat it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=256, help="completions between two writes, about")
    parser.add_argument("--slots", type=int, default=0, help="completions decoded at once; 0: what fits")
    parser.add_argument("--workers", type=int, default=0, help="judging processes; 0: one a core, at most 8")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds an answer may take to judge")
    parser.add_argument("--dtype", default="auto", help="of the computation: auto, float32, bfloat16")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for options that are missing, out of range, or do not go together."""
    if not options.model or not options.output or not (options.task or options.data):
        raise ValueError(
            "an evaluation needs --model DIR, --output DIR, and --task NAME or --data FILE; see --help"
        )
    for name, least in LEAST.items():
        if not getattr(options, name) >= least:
            given = getattr(options, name)
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}; got {given}.")
    if not 0 < options.top_p <= 1 or not options.timeout > 0:
        raise ValueError(
            f"--top-p must be above 0 and at most 1, --timeout above 0 seconds; got {options.top_p} and {options.timeout}."
        )


def task_names(options: argparse.Namespace) -> list[str]:
    """The tasks that are named; "" for own problems. Raises ValueError for what does not go with several."""
    names = [name.strip() for name in options.task.split(",") if name.strip()]
    shown = [name.rpartition(":")[2] for name in names]
    if len(set(shown)) < len(names):
        raise ValueError(f"--task names each task once; got {options.task!r}.")
    for field in ("data", "name", "split", "question_field", "answer_field", "answer_pattern"):
        if len(names) > 1 and getattr(options, field):
            raise ValueError(f"--{field.replace('_', '-')} belongs to one task; --task names {len(names)}.")
    return names or [""]


def load_set(name: str, options: argparse.Namespace, tokenizer: Any) -> EvaluatedSet:
    """The problems of a task, or own ones (""), and what judges them."""
    given = {field: getattr(options, field) for field in DATA_OPTIONS if field != "data"}
    (found,) = problem_sets.load(
        DataParams(task=name, dataset=options.data, **given), tokenizer, held_out=True
    )
    say(f"{found.describe()}: {found.summary()}")
    say(problem_sets.describe_first(found, tokenizer))
    funcs, weights = (options.reward_funcs, "") if options.reward_funcs else tasks.rewards_of(name)
    return with_format(found, funcs, weights, options.format_reward or found.task.template.format_reward)


def with_format(found: ProblemSet, funcs: str, weights: str, format_reward: str) -> EvaluatedSet:
    """The set with its rewards; a format reward that is not among them joins them with weight 0."""
    specs = registry.resolve(funcs, weights)
    if format_reward and format_reward not in [spec.name for spec in specs]:
        funcs = f"{funcs},{format_reward}"
        weights = ",".join([*(str(spec.weight) for spec in specs), "0"])
    return EvaluatedSet(found.name, found.problems, funcs, weights, format_reward)


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        num_generations=options.samples,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        max_completion_length=options.max_completion_length,
        stop_strings=tuple(options.stop),
        chunk=options.chunk,
        num_slots=options.slots,
        seed=options.seed,
    )


def compare(options: argparse.Namespace) -> None:
    """Prints the comparison of two finished evaluations, and writes compare.md where --output is given."""
    text = comparison.compare(*(Path(folder) for folder in options.compare))
    print(text)
    if options.output:
        Path(options.output).mkdir(parents=True, exist_ok=True)
        whole_files.write_text(Path(options.output) / "compare.md", text + "\n")


def tell(name: str, metrics: dict[str, float], folder: Path) -> None:
    print(f"\n{name}")
    for number, value, sure in numbers(metrics):
        print(f"{number:>20}  {value:>8}  {sure}".rstrip())
    say(f"written to {folder}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    command_line.run_program(main)
