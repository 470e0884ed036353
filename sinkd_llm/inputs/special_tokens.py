"""The special tokens around a text: those that a tokenizer puts there by itself."""

import functools
from typing import TYPE_CHECKING

from sinkd_llm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def bos_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The begin-of-sequence token, where the tokenizer puts one before a text by itself."""
    ids = tokenizer("")["input_ids"]
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids[:1] == [bos] else []


@functools.lru_cache(maxsize=16)
def special_ids(
    tokenizer: "PreTrainedTokenizerBase", *, target: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text (an answer if `target`) by itself."""
    text = {"text_target" if target else "text": "a"}
    whole = tuple(tokenizer(**text)["input_ids"])
    plain = tuple(tokenizer(**text, add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return (), ()


def fitted(
    tokenizer: "PreTrainedTokenizerBase",
    prefix: tuple[int, ...],
    prompt_ids: list[int],
    suffix: tuple[int, ...],
    max_length: int | None,
) -> tuple[list[int], int]:
    """The prompt between its special tokens, without so many of its first tokens that all fits; how many."""
    if not prefix and not prompt_ids and not suffix:
        prompt_ids = [int(tokenizer.eos_token_id)]  # an encoder needs something to read
    room = len(prompt_ids) if max_length is None else max_length - len(prefix) - len(suffix)
    if room < 1 and prompt_ids:
        raise InputError(f"max_length={max_length} leaves no room for a prompt beside the special tokens; raise it.")
    cut = max(0, len(prompt_ids) - room)
    return [*prefix, *prompt_ids[cut:], *suffix], cut
