"""Text and token ids: the only door to `transformers`' tokenizers.

A tokenizer folder is loaded as what it says it is: the class named in `tokenizer_config.json` decides,
not the model's type beside it. What was loaded is tried at once: a rendered prompt, encoded and decoded,
must be its text again. For export the files are copied, never written anew. Nothing of a folder is run:
code that a tokenizer brings along is not loaded.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_jax import hub, json_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
TEMPLATE_S = 3.0  # for the chat template's first rendering, of one message; a good one takes milliseconds
PROBE = "Tom has 47 apples.\n  He pays $1.50 (2 coins), buys 35 more: how many?\n\n#### x_1 = \\frac{1}{2}"


def load_tokenizer(source: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder, or of a hub id where the hub can be reached.

    Args:
        source: a folder with `tokenizer.json` and `tokenizer_config.json` (or the older
            `vocab.json` and `merges.txt`), or a hub id such as `Qwen/Qwen2.5-0.5B`.

    Raises:
        FileNotFoundError: no such folder or hub id, or no tokenizer in it.
        ValueError: files that cannot be read, a class that this version of `transformers` does not have, a
            chat template that cannot be rendered, or text that does not come back from its ids.
    """
    folder = tokenizer_folder(source)
    tokenizer = read_tokenizer(folder)
    probe = PROBE
    if tokenizer.chat_template:
        (probe,) = within(
            TEMPLATE_S,
            lambda: render_chats(tokenizer, [[{"role": "user", "content": PROBE}]]),
            late=f"the chat template of the tokenizer at {str(folder)!r} was not done with one message after "
            f"{TEMPLATE_S:g} s: it may be without end; mend `chat_template` in its tokenizer_config.json",
        )
    check_round_trip(tokenizer, [probe])
    return tokenizer


def render_chats(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Mapping[str, str]]],
    *,
    enable_thinking: bool | None = None,
) -> list[str]:
    """Renders conversations through the tokenizer's chat template, ready for the assistant's turn.

    Args:
        chats: one list of messages, each `{"role", "content"}`, a conversation.
        enable_thinking: told to a template that knows it, such as Qwen3's; None: nothing is told.

    Raises:
        ValueError: the tokenizer has no chat template, its template refuses these messages, or it knows no
            `enable_thinking`.
    """
    import jinja2

    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path!r} has no chat template; "
            "add `chat_template` to its tokenizer_config.json"
        )
    if enable_thinking is not None and "enable_thinking" not in str(tokenizer.chat_template):
        raise ValueError(
            f"the chat template of the tokenizer at {tokenizer.name_or_path!r} knows no enable_thinking; "
            "set config.data.enable_thinking to 'auto'"
        )
    thinking: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    try:
        return tokenizer.apply_chat_template(  # type: ignore[return-value]
            [list(chat) for chat in chats],  # type: ignore[arg-type]
            tokenize=False,
            add_generation_prompt=True,
            **thinking,
        )
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template of the tokenizer at {tokenizer.name_or_path!r} is broken in its line {error.lineno}: "
            f"{error.message}; mend `chat_template` in its tokenizer_config.json"
        ) from error
    except jinja2.TemplateError as error:
        roles = [message["role"] for message in chats[0]]
        raise ValueError(
            f"the chat template refuses the roles {roles}: {error}; where it knows no system role, "
            "put the text into config.data.prompt_template and leave config.data.system_prompt empty"
        ) from error
    except Exception as error:  # a template is a program of somebody else's
        raise ValueError(
            f"the chat template of the tokenizer at {tokenizer.name_or_path!r} fails: {type(error).__name__}: "
            f"{error}; mend `chat_template` in its tokenizer_config.json"
        ) from error


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of finished texts: nothing is put before or behind, nothing is cut."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]  # type: ignore[return-value]


def decode_completions(tokenizer: PreTrainedTokenizerBase, completions: Iterable[np.ndarray]) -> list[str]:
    """Text of each int32 array of ids, without special tokens; tags that are not special stay."""
    return decode(tokenizer, [ids.tolist() for ids in completions], skip_special_tokens=True)


def check_round_trip(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Encodes and decodes each text.

    Raises:
        ValueError: a text that comes back changed. Unicode composition (NFC) is allowed to differ,
            because Qwen's tokenizers compose.
    """
    decoded = decode(tokenizer, encode(tokenizer, texts), skip_special_tokens=False)
    for text, back in zip(texts, decoded, strict=True):
        if unicodedata.normalize("NFC", back) == unicodedata.normalize("NFC", text):
            continue
        differ = (at for at, pair in enumerate(zip(text, back, strict=False)) if pair[0] != pair[1])
        at = next(differ, min(len(text), len(back)))
        around = slice(max(0, at - 20), at + 20)
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path!r} changes text: {text[around]!r} comes back as "
            f"{back[around]!r}; its class is {type(tokenizer).__name__}, check `tokenizer_class` in "
            "tokenizer_config.json"
        )


def save_tokenizer(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[str]:
    """Copies the tokenizer files of a folder or hub id as they are; returns their names.

    Raises:
        FileNotFoundError: no tokenizer in `source`.
    """
    origin, target = tokenizer_folder(source), pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    names = [name for name in TOKENIZER_FILES if (origin / name).is_file()]
    for name in names:
        if (origin / name).resolve() != (target / name).resolve():
            shutil.copyfile(origin / name, target / name)
    return names


def tokenizer_folder(source: str | os.PathLike[str]) -> pathlib.Path:
    """The folder that holds the tokenizer: `source` itself, or the hub's copy of that id."""
    folder = pathlib.Path(source)
    if not folder.is_dir():
        folder = fetched_from_hub(str(source))
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise FileNotFoundError(
            f"no tokenizer in {str(folder)!r}: neither tokenizer.json nor vocab.json is there"
        )
    return folder


def fetched_from_hub(repository: str) -> pathlib.Path:
    from huggingface_hub import snapshot_download

    trouble = hub.trouble()
    try:
        return pathlib.Path(snapshot_download(repository, allow_patterns=list(TOKENIZER_FILES)))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repository!r} is no folder here, and no tokenizer could be fetched from the hub under "
            f"that name: {trouble or str(error).splitlines()[0]}"
        ) from error


def read_tokenizer(folder: pathlib.Path) -> PreTrainedTokenizerBase:
    """Raises: ValueError, naming the file where it can be told, for what the library cannot read."""
    found = tokenizer_class(folder)
    try:
        return found.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of whatever type the library ends in
        for name in TOKENIZER_FILES:
            if name.endswith(".json") and (folder / name).is_file():
                json_files.read(folder / name)
        raise ValueError(
            f"the tokenizer in {str(folder)!r} cannot be read: {type(error).__name__}: {str(error)[:300]}; its files, "
            "tokenizer.json first of all, are damaged or of another version: fetch them again"
        ) from error


def within(seconds: float, function: Callable[[], Any], *, late: str) -> Any:
    """What a function returns or raises. Raises: ValueError, with `late`, where it takes longer.

    The thread in which it then still runs ends with the process.
    """
    ended: list[tuple[Any, BaseException | None]] = []

    def call() -> None:
        try:
            ended.append((function(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise ValueError(late)
    result, error = ended[0]
    if error is not None:
        raise error
    return result


def tokenizer_class(folder: pathlib.Path) -> type[PreTrainedTokenizerBase]:
    """The class that `tokenizer_config.json` names; the general one where it names none."""
    # Set before the first import: a line about PyTorch, which we do not use, is of no help to users.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    path = folder / "tokenizer_config.json"
    config = json_files.read(path) if path.is_file() else {}
    name = str(config.get("tokenizer_class") or "PreTrainedTokenizerFast")
    found = getattr(transformers, name, None) if "Tokenizer" in name else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedTokenizerBase):
        raise ValueError(
            f"{str(path)!r} names the tokenizer class {name!r}, which transformers "
            f"{transformers.__version__} does not have; code of a model folder is never run"
        )
    return found


def decode(
    tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], *, skip_special_tokens: bool
) -> list[str]:
    if not ids:  # transformers takes an empty list for one empty text
        return []
    return tokenizer.batch_decode(
        ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
