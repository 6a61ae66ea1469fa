"""Mistakes in the command lines of `tools/`, and in the folders that they read and write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.mistakes.harness import ROOT, Mistake, check, ours
from tests.mistakes.test_run_folder_mistakes import begin

TINY = str(ROOT / "configs" / "tiny_qwen")
RECORD = {
    "index": 0,
    "question": "1 + 1?",
    "gold": "2",
    "samples": [{"outcome": "correct", "completion": "2", "parsed": "2", "rewards": {"accuracy": 1.0}}],
}


def tool(name: str, row: str, *words: str, made: Callable[[Path], object] | None = None) -> Mistake:
    """A row of tools/NAME.py. `row` is its name and, behind a colon, its arguments as typed."""
    title, _, typed = row.partition(": ")

    def prepare(own: Path) -> Sequence[str]:
        if made:
            made(own)
        return [text for text in typed.replace("TINY", TINY).split(" ") if text]

    return Mistake(f"{name}_{title}", prepare, words, program=f"tools/{name}.py")


def step_folder(own: Path) -> None:
    """A run that has begun, with something in it that is called a checkpoint and is none."""
    (begin(own) / "checkpoints" / "3").mkdir(parents=True)


def run_of_another_version(own: Path) -> None:
    step_folder(own)
    path = own / "run" / "config.json"
    content = json.loads(path.read_text())
    content["grpo"]["magic"] = 3
    path.write_text(json.dumps(content))


def run_with_a_cut_config(own: Path) -> None:
    step_folder(own)
    (own / "run" / "config.json").write_text('{"seed":')


def there(own: Path) -> None:
    (own / "out").mkdir()
    (own / "out" / "thesis.tex").write_text("years of work")


def evaluation(own: Path, name: str = "out", **changes: object) -> Path:
    """The folder of a finished evaluation of one problem."""
    folder = own / name
    folder.mkdir()
    (folder / "options.json").write_text(json.dumps({"model": TINY, "task": ""}))
    (folder / "problems.jsonl").write_text(json.dumps({**RECORD, **changes}) + "\n")
    (folder / "metrics.json").write_text(json.dumps({"options": {}, "metrics": {"accuracy": 1.0}}))
    return folder


def two_evaluations(own: Path) -> None:
    evaluation(own, "a")
    evaluation(own, "b", question="2 + 2?")


def one_unfinished(own: Path) -> None:
    evaluation(own, "a")
    (evaluation(own, "b") / "metrics.json").unlink()


def one_torn(own: Path) -> None:
    evaluation(own, "a")
    (evaluation(own, "b") / "problems.jsonl").write_text('{"index": 0, "quest')


def one_of_another_version(own: Path) -> None:
    evaluation(own, "a")
    (evaluation(own, "b") / "problems.jsonl").write_text('{"index": 0}\n')


def cut_options(own: Path) -> None:
    (evaluation(own) / "options.json").write_text('{"model"')


def a_file(own: Path) -> None:
    (own / "out").write_text("a file")


def broken_model(own: Path) -> None:
    shutil.copytree(TINY, own / "model")
    (own / "model" / "model.safetensors").write_bytes(b"")


def no_solutions(own: Path) -> None:
    (own / "rows.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")


EVALUATE = "--model TINY --output {folder}/new"
ROWS = (
    tool("export", "nothing: ", "--checkpoint", "--help"),
    tool("export", "unknown_option: --chekpoint x", "--checkpoint"),
    tool(
        "export",
        "no_such_run: --checkpoint {folder}/run/checkpoints/3 --output {folder}/new",
        "RUN/checkpoints/STEP",
    ),
    tool(
        "export",
        "a_run_and_no_step: --checkpoint {folder}/run --output {folder}/new",
        "RUN/checkpoints/STEP",
        made=step_folder,
    ),
    tool(
        "export",
        "no_such_step: --checkpoint {folder}/run/checkpoints/7 --output {folder}/new",
        "no checkpoint of step 7",
        made=step_folder,
    ),
    tool(
        "export",
        "output_exists: --checkpoint {folder}/run/checkpoints/3 --output {folder}/out",
        "out exists",
        "new folder",
        made=lambda own: (step_folder(own), there(own)),
    ),
    tool(
        "export",
        "output_below_a_file: --checkpoint {folder}/run/checkpoints/3 --output {folder}/out/x",
        "out is no folder",
        made=lambda own: (step_folder(own), a_file(own)),
    ),
    tool(
        "export",
        "unknown_dtype: --checkpoint {folder}/run/checkpoints/3 --output {folder}/new --dtype fp8",
        "'fp8'",
        "bfloat16",
        made=step_folder,
    ),
    tool(
        "export",
        "another_version: --checkpoint {folder}/run/checkpoints/3 --output {folder}/new",
        "another version",
        "magic",
        made=run_of_another_version,
    ),
    tool(
        "export",
        "cut_config: --checkpoint {folder}/run/checkpoints/3 --output {folder}/new",
        "config.json is no JSON",
        made=run_with_a_cut_config,
    ),
    tool("evaluate", "nothing: ", "--model DIR", "--output DIR", "--task NAME"),
    tool("evaluate", "unknown_option: --modell TINY", "--modell"),
    tool("evaluate", "a_number_is_text: --samples many", "--samples", "'many'"),
    tool(
        "evaluate",
        "no_such_model: --model {folder}/none --task word_problems --output {folder}/new",
        "none' is no folder",
    ),
    tool(
        "evaluate",
        "a_broken_model: --model {folder}/model --task word_problems --output {folder}/new",
        "no whole safetensors file",
        made=broken_model,
    ),
    tool(
        "evaluate",
        "checkpoint_of_no_run: --model {folder}/checkpoints/3 --task word_problems --output {folder}/new",
        "is no folder",
    ),
    tool(
        "evaluate",
        "no_such_step: --model {folder}/run/checkpoints/7 --task word_problems --output {folder}/new",
        "step 7",
        made=step_folder,
    ),
    tool("evaluate", f"unknown_task: {EVALUATE} --task gsm9k", "'gsm9k'", "gsm8k"),
    tool("evaluate", f"a_task_twice: {EVALUATE} --task gsm8k,gsm8k", "each task once"),
    tool(
        "evaluate",
        f"data_of_two_tasks: {EVALUATE} --task gsm8k,math500 --data x.jsonl",
        "--data belongs to one task",
    ),
    tool("evaluate", f"no_such_data: {EVALUATE} --data {{folder}}/none.jsonl", "none.jsonl"),
    tool(
        "evaluate", f"no_samples: {EVALUATE} --task word_problems --samples 0", "--samples must be at least 1"
    ),
    tool(
        "evaluate",
        f"no_number: {EVALUATE} --task word_problems --temperature nan",
        "--temperature must be at least 0",
    ),
    tool("evaluate", f"top_p_of_two: {EVALUATE} --task word_problems --top-p 2", "top-p", "2"),
    tool(
        "evaluate",
        f"negative_problems: {EVALUATE} --task word_problems --max-problems -1",
        "max-problems",
        "-1",
    ),
    tool("evaluate", f"negative_slots: {EVALUATE} --task word_problems --slots -1", "slots", "-1"),
    tool("evaluate", f"unknown_dtype: {EVALUATE} --task word_problems --dtype fp8", "'fp8'", "bfloat16"),
    tool("evaluate", f"unknown_reward: {EVALUATE} --task word_problems --reward-funcs acuracy", "'accuracy'"),
    tool("evaluate", f"unknown_template: {EVALUATE} --task word_problems --template boxd", "'boxd'"),
    tool("evaluate", f"no_time: {EVALUATE} --task word_problems --timeout 0", "timeout", "0"),
    tool(
        "evaluate",
        f"no_room: {EVALUATE} --task word_problems --max-completion-length 2000",
        "--max-completion-length 2000",
    ),
    tool(
        "evaluate",
        "foreign_output: --model TINY --task word_problems --output {folder}/out",
        "it is no evaluation's folder",
        "--output",
        made=there,
    ),
    tool(
        "evaluate",
        "output_is_a_file: --model TINY --task word_problems --output {folder}/out",
        "out",
        "--output",
        made=a_file,
    ),
    tool(
        "evaluate",
        "another_evaluation: --model TINY --task word_problems --output {folder}/out --seed 3",
        "other options",
        "--output",
        made=evaluation,
    ),
    tool(
        "evaluate",
        "cut_options: --model TINY --task word_problems --output {folder}/out",
        "options.json is no JSON",
        made=cut_options,
    ),
    tool("evaluate", "compare_with_nothing: --compare {folder}/a {folder}/b", "a has no options.json"),
    tool("evaluate", "compare_one: --compare {folder}/a", "--compare", "2"),
    tool(
        "evaluate",
        "compare_unfinished: --compare {folder}/a {folder}/b",
        "b has no metrics.json",
        made=one_unfinished,
    ),
    tool(
        "evaluate",
        "compare_other_problems: --compare {folder}/a {folder}/b",
        "line 1",
        "question",
        "2 + 2?",
        made=two_evaluations,
    ),
    tool(
        "evaluate",
        "compare_a_torn_one: --compare {folder}/a {folder}/b",
        "line 1 of",
        "b/problems.jsonl",
        made=one_torn,
    ),
    tool(
        "evaluate",
        "compare_another_version: --compare {folder}/a {folder}/b",
        "line 1 of",
        "question",
        made=one_of_another_version,
    ),
    tool("plan", "nothing: ", "--topology v5e:4x4", "--devices 8"),
    tool("plan", "no_config: --devices 2", "name a config"),
    tool("plan", "unknown_chip: --config configs/tiny.py --devices 2 --chip h999", "'h999'", "h100"),
    tool("plan", "unknown_topology: --config configs/tiny.py --topology v9z:4x4", "v9z"),
    tool("plan", "both: --config configs/tiny.py --topology v5e:2x2 --devices 2", "--devices", "--topology"),
    tool(
        "plan",
        "unknown_shape: --config configs/tiny.py --devices 2 --shape qwen9-1b",
        "'qwen9-1b'",
        "qwen2.5-0.5b",
    ),
    tool("plan", "negative: --config configs/tiny.py --devices -2", "--devices 8"),
    tool(
        "random_model",
        "unknown_shape: --shape qwen9-1b --tokenizer TINY --output {folder}/new",
        "'qwen9-1b'",
        "qwen2.5-0.5b",
    ),
    tool(
        "random_model",
        "no_tokenizer: --shape bench-tiny --tokenizer {folder}/none --output {folder}/new",
        "none' is no folder",
    ),
    tool(
        "random_model",
        "output_exists: --shape qwen2.5-0.5b --tokenizer TINY --output {folder}/out",
        "out exists",
        made=there,
    ),
    tool(
        "random_model",
        "unknown_dtype: --shape bench-tiny --tokenizer TINY --output {folder}/new --dtype fp8",
        "'fp8'",
        "bfloat16",
    ),
    tool("make_tiny", "output_exists: --output {folder}/out", "out exists", made=there),
    tool("make_tiny", "no_layers: --output {folder}/new --layers 0", "--layers must be 1 or more"),
    tool("make_tiny", "no_steps: --output {folder}/new --steps 0", "--steps", "0"),
    tool("bench", "nothing: ", "COMMAND", "--help"),
    tool("bench", "unknown_command: rolout", "'rolout'", "rollout"),
    tool("bench", "unknown_shape: rollout --shape qwen9", "'qwen9'", "bench-tiny"),
    tool("bench", "unknown_peer: rollout --shape bench-tiny --against vllm", "vllm", "transformers"),
    tool("bench", "no_such_data: judge --data {folder}/none.jsonl", "none.jsonl"),
    tool("bench", "no_prompts: rollout --shape bench-tiny --prompts 0", "--prompts must be 1 or more"),
    tool("stages", "no_config: --seeds 0", "--config"),
    tool("stages", "words_for_seeds: --config configs/tiny.py --seeds one,two", "--seeds", "one,two"),
    tool(
        "stages",
        "sets_the_seed: --config configs/tiny.py --config.seed=3 --output {folder}/new",
        "--config.seed=3",
        "--seeds",
    ),
    tool("stages", "unknown_field: --config configs/tiny.py --config.sead=3 --output {folder}/new", "'sead'"),
    tool(
        "stages",
        "no_evaluation: --config configs/tiny.py --config.evaluation.task= --output {folder}/new",
        "config.evaluation.task",
    ),
    tool("curves", "unknown_option: --run x", "--run"),
    tool(
        "curves", "output_in_no_folder: --runs {folder}/runs --output {folder}/none/x.svg", "none", "--output"
    ),
)


def sft_without_answers(own: Path) -> Sequence[str]:
    no_solutions(own)
    return ours(
        f"data.dataset={own}/rows.jsonl",
        "data.task=",
        "evaluation.task=",
        "data.template=tagged",
        "sft.output_dir={folder}/sft",
        "sft.validation_problems=0",
    )


WITH_GOLDS_S = (
    30.0  # worked answers are those of problems whose gold the judge can read: it has to start first
)
SFT_ROWS = (
    Mistake(
        "sft_without_worked_answers",
        sft_without_answers,
        ("solution_field",),
        within_s=WITH_GOLDS_S,
        program="tools/sft.py",
    ),
    Mistake(
        "sft_more_rows_than_answers",
        ours(
            "data.max_problems=10",
            "sft.num_rows=4000",
            "sft.validation_problems=0",
            "sft.output_dir={folder}/sft",
        ),
        ("config.sft.num_rows is 4000",),
        within_s=WITH_GOLDS_S,
        program="tools/sft.py",
    ),
    Mistake("sft_unknown_field", ours("sft.epochs=2"), ("'sft.epochs'",), program="tools/sft.py"),
)


@pytest.mark.parametrize("mistake", (*ROWS, *SFT_ROWS), ids=lambda mistake: mistake.name)
def test_it_is_told_in_one_line_and_leaves_nothing(mistake, run, tmp_path):
    check(mistake, run, tmp_path)
