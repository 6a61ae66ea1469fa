"""Secrets of the environment: in no line, no file and no traceback, whatever says them."""

from __future__ import annotations

import http.server
import io
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from grpo_jax import secret_values
from tests import micro_run

PLANTED = {
    "HF_TOKEN": "hf_PlantedByATest0123456789abcdef",
    "HUGGING_FACE_HUB_TOKEN": "planted-old-hub-token-77",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "OPENAI_API_KEY": "sk-planted/with+signs==",
    "MY_DATABASE_PASSWORD": 'two words "quoted" and more',
    "SIGNING_SECRET": "-----BEGIN-----\nc2VjcmV0IGxpbmVz\n-----END-----",
    "SOME_CREDENTIALS": '{"user": "me", "private": "planted"}',
}
LOUD = {  # the logs at the highest level that their libraries have
    "TF_CPP_MIN_LOG_LEVEL": "0",
    "JAX_LOGGING_LEVEL": "DEBUG",
    "HF_HUB_VERBOSITY": "debug",
    "HF_DEBUG": "1",
    "TRANSFORMERS_VERBOSITY": "debug",
    "DATASETS_VERBOSITY": "debug",
    "WANDB_DEBUG": "true",
}
TELLTALE = """
import os, sys
from grpo_jax.rewards.grade import Grade

print("loaded with", dict(os.environ), file=sys.stderr)

def columns(attempt):
    return Grade(len(attempt.completion), columns={f"all {i}": text for i, text in enumerate(os.environ.values())
                                                   if "lanted" in text or "0123456789" in text},
                 parsed=os.environ["OPENAI_API_KEY"])

def raises(attempt):
    if len(attempt.completion) % 2:
        raise ValueError("x" * 250 + os.environ["WANDB_API_KEY"] + str(dict(os.environ)))
    return 1.0
"""


def spellings() -> list[bytes]:
    """What may not be found: each value as it is, in JSON, its longest line, and its beginning."""
    found = set()
    for value in PLANTED.values():
        found |= {value, json.dumps(value)[1:-1], value[:12], max(value.split("\n"), key=len)}
    return [text.encode() for text in found]


def leaks(content: bytes) -> list[bytes]:
    return [spelling for spelling in spellings() if spelling in content]


@pytest.mark.parametrize("name", PLANTED)
def test_a_value_is_replaced_by_its_name_however_it_is_written(name):
    value = PLANTED[name]
    for written in (value, json.dumps(value), repr({"x": value}), " ".join(value.split())):
        clean = secret_values.redacted(f"before {written} after", PLANTED)
        assert f"<{name}>" in clean and clean.startswith("before ") and clean.endswith(" after")
        assert not leaks(clean.encode())


def test_the_longest_secret_goes_first():
    environ = {"SHORT_KEY": "abcdefgh", "LONG_KEY": "abcdefgh-and-more"}
    assert secret_values.redacted("abcdefgh-and-more abcdefgh", environ) == "<LONG_KEY> <SHORT_KEY>"


@pytest.mark.parametrize(
    "environ",
    [
        {"HOME": "/home/somebody", "LANG": "en_GB.UTF-8"},  # no names of secrets
        {"A_KEY": "seven77", "B_TOKEN": "", "C_SECRET": "   "},  # shorter than any secret
        {"SERVICE_CREDENTIALS": str(Path(__file__).resolve())},  # where a secret is, not what it is
    ],
)
def test_what_is_no_secret_stays(environ):
    text = " ".join(environ.values())
    assert secret_values.redacted(text, environ) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at https://me:pass@host/x", "at https://<PASSWORD>@host/x"),
        ("at https://mytoken@host/x", "at https://<PASSWORD>@host/x"),
        ("at ssh://git@host/x and a@b", "at ssh://git@host/x and a@b"),
        ("key hf_abcdefghijklmnopqrstuvwx.", "key <HF_TOKEN>."),
        ("key sk-proj-abcdefghijklmnopqrstuvwx", "key <API_KEY>"),
        ("hf_files.py, sk-learn, 12:30, x://y", "hf_files.py, sk-learn, 12:30, x://y"),
    ],
)
def test_what_nobody_put_into_the_environment_is_known_by_its_form(text, clean):
    assert secret_values.redacted(text, {}) == clean


def test_a_config_that_holds_one_is_refused_and_the_value_not_shown():
    config = {"config": {"data": {"dataset": "https://me:swordfish@host/rows.jsonl"}, "seed": 3}}
    with pytest.raises(ValueError, match=r"^config\.data\.dataset holds a secret, <PASSWORD>") as caught:
        secret_values.check(config, {})
    assert "swordfish" not in str(caught.value)
    with pytest.raises(ValueError, match=r"config\.rollout\.stop_strings holds a secret, <A_KEY>"):
        secret_values.check(
            {"config": {"rollout": {"stop_strings": ("a", "b 12345678")}}}, {"A_KEY": "12345678"}
        )
    secret_values.check({"config": {"seed": 3, "data": {"dataset": "openai/gsm8k"}}}, PLANTED)


def test_handlers_that_libraries_made_before_are_covered_too(monkeypatch):
    monkeypatch.setattr(secret_values, "_own", lambda: secret_values.of_environment(PLANTED))
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    logger = logging.getLogger("made before")
    logger.addHandler(logging.StreamHandler())
    with secret_values.hidden():
        logger.error("the token is %s", PLANTED["HF_TOKEN"])
        print(PLANTED["WANDB_API_KEY"], file=sys.stderr)
    assert plain.getvalue() == "the token is <HF_TOKEN>\n<WANDB_API_KEY>\n"
    assert sys.stderr is plain and logger.handlers[0].stream is plain  # type: ignore[attr-defined]


def run(command: list[str], **more: str) -> subprocess.CompletedProcess[bytes]:
    environ = micro_run.ENVIRONMENT | LOUD | PLANTED | more
    return subprocess.run(command, cwd=micro_run.ROOT, env=environ, capture_output=True, timeout=600)


def test_a_run_keeps_and_tells_no_secret(tmp_path, micro_model):
    """Even where the user's reward puts all of the environment into columns, messages and its own prints."""
    (tmp_path / "telltale.py").write_text(TELLTALE)
    funcs = ",".join(f"{tmp_path / 'telltale.py'}:{name}" for name in ("columns", "raises"))
    folder = tmp_path / "run"
    command = micro_run.command(
        micro_model,
        folder,
        max_steps=2,
        reward__reward_funcs=f"accuracy,{funcs}",
        telling__tensorboard=True,
        telling__completions_every_steps=1,
    )
    done = run(command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert leaks(done.stdout) == leaks(done.stderr) == []
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".jsonl", ".json", ".html", ".safetensors"}
    assert [(path.name, found) for path in files if (found := leaks(path.read_bytes()))] == []
    # it was said all the same, with its name in its place
    assert b"<OPENAI_API_KEY>" in (folder / "samples.jsonl").read_bytes()
    assert b"<HF_TOKEN>" in done.stderr and b"could not be judged" in done.stdout


class Refusing(http.server.BaseHTTPRequestHandler):
    """A hub that lets nobody in; remembers with what it was asked."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.headers.get("Authorization", ""))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None: ...


def test_a_hub_that_refuses_the_token_does_not_make_it_public(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        done = run(micro_run.command(Path("some/model"), tmp_path / "run", "--debug"), **hub)
        server.shutdown()
    assert f"Bearer {PLANTED['HF_TOKEN']}" in Refusing.asked  # it was sent where it belongs
    assert done.returncode == 2 and b"'some/model' is no folder here and could not be fetched" in done.stderr
    assert leaks(done.stderr) == leaks(done.stdout) == []


@pytest.mark.parametrize("status", [2, 1])
def test_a_forced_traceback_tells_no_secret(tmp_path, status):
    error = {2: "ValueError", 1: "AssertionError"}[status]
    program = (
        "import os\nfrom grpo_jax import command_line\n"
        f"def main(arguments):\n    raise {error}(str(dict(os.environ)))\n"
        "command_line.run_program(main)\n"
    )
    done = run([sys.executable, "-c", program, "--debug"])
    assert done.returncode == status
    assert done.stderr.startswith(b"Traceback") and b"<SIGNING_SECRET>" in done.stderr
    assert leaks(done.stderr) == []


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("--config.data.dataset=https://me:swordfish-1@host/rows.jsonl", "--config.data.dataset"),
        (f"--config.telling.run_name=by {PLANTED['WANDB_API_KEY']}", "--config.telling.run_name"),
        (
            f'--config.reward.reward_funcs=llm_judge(api_key="{PLANTED["OPENAI_API_KEY"]}")',
            "--config.reward.reward_funcs",
        ),
    ],
)
def test_a_secret_on_the_command_line_is_refused_before_a_file_is_written(
    tmp_path, micro_model, override, field
):
    done = run(micro_run.command(micro_model, tmp_path / "run", override))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {field} holds a secret, <".encode())
    assert leaks(done.stderr) == [] and b"swordfish" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_secret_in_a_config_file_is_refused_before_a_file_is_written(tmp_path, micro_model):
    config = tmp_path / "mine.py"
    config.write_text(
        "import os\nfrom configs import tiny\n"
        "def get_config():\n    config = tiny.get_config()\n"
        "    config.telling.project = 'of ' + os.environ['HF_TOKEN']\n    return config\n"
    )
    command = [
        part if part != "configs/tiny.py" else str(config)
        for part in micro_run.command(micro_model, tmp_path / "run")
    ]
    done = run(command)
    assert done.returncode == 2, done.stderr
    assert b"error: config.telling.project holds a secret, <HF_TOKEN>" in done.stderr
    assert leaks(done.stderr) == [] and not (tmp_path / "run").exists()
