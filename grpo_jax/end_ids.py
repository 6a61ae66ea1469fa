"""Which tokens end a completion.

Enters: a tokenizer and the configs of a model folder. Leaves: ids. A base model's files often name its end of text
alone, while its chat template closes every answer with another token: completions would run on behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grpo_jax import text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER = "The answer is 47."


def find(
    tokenizer: PreTrainedTokenizerBase,
    generation_config: Mapping[str, Any],
    model_config: Mapping[str, Any],
) -> tuple[int, ...]:
    """Every id that ends a completion, each once.

    All of `generation_config.json`; where it names none, those of `config.json`; the tokenizer's own end
    token; and that which its chat template puts behind an answer. Pass `{}` for a file that is not there.

    Raises:
        ValueError: the files name none, or one that is no token id.
    """
    named = generation_config.get("eos_token_id")
    if named is None:
        named = model_config.get("eos_token_id")
    listed = list(named) if isinstance(named, list | tuple) else [named]
    found = [index for index in (*listed, tokenizer.eos_token_id) if index is not None]
    ids = [index for index in found if type(index) is int and index >= 0]
    if ids != found or not ids:
        raise ValueError(
            f"end tokens must be at least one id of 0 or more; got {found}; "
            "set eos_token_id in generation_config.json or eos_token in tokenizer_config.json"
        )
    behind = behind_answers(tokenizer)
    return tuple(dict.fromkeys([*ids, *([] if behind is None else [behind])]))


def behind_answers(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts behind an answer; None where there is none."""
    try:
        _, behind = around_answer(tokenizer)
        ids = text.encode(tokenizer, [behind])[0]
    except Exception:  # the doctor says what is wrong with it; many a template knows no answers
        return None
    return ids[0] if ids and ids[0] in special_ids(tokenizer) else None


def around_answer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template makes of a question and `ANSWER`: the text before the answer, and that behind it.

    Raises: ValueError if the answer is not in it; else whatever a template, a program of somebody else's, fails with.
    """
    asked = [{"role": "user", "content": text.PROBE}, {"role": "assistant", "content": ANSWER}]
    whole = text.within(
        text.TEMPLATE_S,
        lambda: tokenizer.apply_chat_template(asked, tokenize=False),
        late=f"the chat template was not done with two messages after {text.TEMPLATE_S:g} s",
    )
    before, answer, behind = whole.rpartition(ANSWER)
    if not answer:
        raise ValueError(f"the chat template loses an answer: of {ANSWER!r} it makes {whole[-80:]!r}")
    return before, behind


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that no ordinary text has."""
    return {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
