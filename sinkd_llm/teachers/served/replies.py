"""What a reply holds: the tokens of a scored text, the likeliest first tokens of an answer, answers as text.

Servers agree on the fields and not on what stands in them. What is read here was looked up in each:

- vLLM, SGLang and llama-cpp-python give, for `echo` with `logprobs`, the tokens of the prompt and then those that they
  generated. `text_offset` counts characters of a begin token that is not in the text (vLLM), or is -1 (SGLang), so
  that the places of tokens are found by their texts here.
- A character of several tokens has no text in any of them, or a replacement character.
- llama.cpp's own server takes `echo` and gives the generated tokens alone.
- llama-cpp-python gives each token the number of the place after it, where the model's tokenizer puts no begin token
  before a text: the number of the last one is missing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from sinkd_llm.values import shown

_T = TypeVar("_T")

# Above 0 by rounding alone.
_ROUNDING = 1e-3
# No log-probability is as large; -9999 stands for minus infinity in some servers.
_NO_NUMBER = 1e6
# Of a sum of probabilities that a server computed in half precision.
_MASS_ROUNDING = 0.01


class WrongReply(Exception):
    """A reply that does not hold what was asked; the message is the end of a sentence about the server."""


class NoText(WrongReply):
    """A reply without any text where an answer was asked for: a content filter took it, or a gateway is overloaded."""


@dataclass(frozen=True)
class ScoredText:
    """
    The tokens of a text and their log-probabilities.

    Attributes:
        tokens (`tuple[str, ...]`): their texts.
        logprobs (`tuple[float | None, ...]`): of each token after those before it, in nats; the first may have none.
        likeliest (`tuple[tuple[str, float] | None, ...]`): at each place the likeliest token, where that is known.
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    likeliest: tuple[tuple[str, float] | None, ...]

    def numbers(self, start: int) -> list[float]:
        """
        The log-probabilities from a token on.

        Raises:
            WrongReply: if one of them is missing or no log-probability.
        """
        return [
            _logprob(value, token) for value, token in zip(self.logprobs[start:], self.tokens[start:], strict=True)
        ]


def scored_text(reply: Any, text: str) -> ScoredText:
    """
    The tokens of `text` in the reply to a completion with `echo` and `logprobs`, without those that were generated.

    Raises:
        WrongReply: if they are not there.
    """
    choice = _first(reply)
    parts = _object(choice.get("logprobs"), "its reply has no log-probabilities")
    tokens, values = parts.get("tokens"), parts.get("token_logprobs")
    if not _is_list_of(tokens, str) or not isinstance(values, list):
        raise WrongReply("its log-probabilities are without tokens")
    if len(tokens) != len(values):
        raise WrongReply(f"its reply has {len(tokens)} tokens and {len(values)} log-probabilities")
    said = choice.get("text")
    if not isinstance(said, str) or not said.startswith(text):
        raise WrongReply("it does not repeat the prompt (echo), so the prompt's tokens have no log-probabilities")
    generated = _generated(reply, tokens, said[len(text) :])
    whole = "".join(tokens)
    if generated and whole.endswith(text) and not whole.endswith(said):
        raise WrongReply(
            "its log-probabilities are those of the tokens one place later (llama-cpp-python gives these to models "
            "whose tokenizer puts no begin token before a text: let prompts begin with this token, as chat templates "
            "do, or start the server with --kv_overrides tokenizer.ggml.add_bos_token=bool:true)"
        )
    count = len(tokens) - generated
    if count < 1:
        raise WrongReply("its reply has the generated tokens alone, so the prompt's tokens have no log-probabilities")
    if all(value == 0 for value in values[1:count]) and count > 2:
        raise WrongReply("it says 0 for every token of the prompt, and computes no log-probabilities there")
    top = parts.get("top_logprobs")
    likeliest = [_likeliest(entry) for entry in top] if isinstance(top, list) and len(top) == len(tokens) else []
    return ScoredText(
        tuple(tokens[:count]), tuple(values[:count]), tuple(likeliest[:count]) if likeliest else (None,) * count
    )


def border(scored: ScoredText, answer: str) -> int | None:
    """
    The place of the answer's first token, if the last tokens are the answer to the character; `None`: a token crosses
    the border, or has no text of its own.
    """
    place, found = len(scored.tokens), ""
    while place > 0 and len(found) < len(answer):
        place -= 1
        found = scored.tokens[place] + found
    return place if found == answer else None


def common_beginning(scored: ScoredText, prompt: ScoredText, answer: str) -> int:
    """
    How many tokens a text and its prompt alone begin with in common.

    Raises:
        WrongReply: if the tokens after these cannot be those of the answer.
    """
    same = 0
    for a, b in zip(scored.tokens, prompt.tokens, strict=False):
        if a != b:
            break
        same += 1
    crossed, asked = "".join(scored.tokens[same:]), "".join(prompt.tokens[same:]) + answer
    if _letters(crossed) != _letters(asked) or same == len(scored.tokens):
        raise WrongReply(f"its reply has other tokens than it was asked for: {crossed!r} instead of {asked!r}")
    return same


def likeliest_first(reply: Any) -> tuple[str, float] | None:
    """The likeliest first token of a completion without `echo`, if the reply says it."""
    parts = _first(reply).get("logprobs")
    top = parts.get("top_logprobs") if isinstance(parts, dict) else None
    return _likeliest(top[0]) if isinstance(top, list) and top else None


def top_tokens(reply: Any) -> list[tuple[str, float]]:
    """
    The likeliest first tokens of an answer and their log-probabilities, of a chat or of a completion.

    Raises:
        WrongReply: if the reply has none, or numbers that are no log-probabilities.
    """
    parts = _object(_first(reply).get("logprobs"), "its reply has no log-probabilities")
    content, top = parts.get("content"), parts.get("top_logprobs")
    if _is_list_of(content, dict) and content:
        entries = content[0].get("top_logprobs")
        pairs = [(e.get("token"), e.get("logprob")) for e in entries] if _is_list_of(entries, dict) else []
    else:
        pairs = list(top[0].items()) if _is_list_of(top, dict) and top else []
    if not pairs:
        raise WrongReply("it gives no likeliest tokens (top_logprobs)")
    numbers = [(token, _logprob(value, token)) for token, value in pairs if isinstance(token, str)]
    if len(numbers) != len(pairs):
        raise WrongReply("its likeliest tokens are without text")
    # Two tokens may have one text. The same number as well is the token that was drawn, listed again.
    found = list(dict.fromkeys(numbers))
    if sum(math.exp(logprob) for _, logprob in found) > 1 + _MASS_ROUNDING:
        raise WrongReply("the probabilities of its likeliest tokens add up to more than 1")
    return found


def texts(reply: Any, count: int) -> list[str]:
    """
    The answers in a reply, of a chat or a completion. An empty text is an answer; null is none.

    Raises:
        WrongReply: if there are not `count` of them.
        NoText: if none of them has a text.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not _is_list_of(choices, dict) or len(choices) != count:
        there = len(choices) if isinstance(choices, list) else "no"
        if not choices:
            raise NoText(f"its reply has {there} answers")
        raise WrongReply(f"its reply has {there} answers where {count} {'was' if count == 1 else 'were'} asked for")
    found = []
    for choice in choices:
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        # Null where a model has only thought, or a filter took the text; some filters leave an empty one.
        if isinstance(text, str) and (text or choice.get("finish_reason") != "content_filter"):
            found.append(text)
    if not found:
        why = choices[0].get("finish_reason")
        raise NoText("its reply has no text" + (f" (finish_reason {shown(why)})" if isinstance(why, str) else ""))
    return found


def prompt_tokens(reply: Any) -> int | None:
    """Tokens of the prompt that the server counts, if it says so."""
    return _usage(reply, "prompt_tokens")


def _first(reply: Any) -> dict[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not _is_list_of(choices, dict) or len(choices) != 1:
        there = len(choices) if isinstance(choices, list) else "no"
        raise WrongReply(f"its reply has {there} answers where 1 was asked for")
    return dict(choices[0])


def _object(value: Any, otherwise: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WrongReply(otherwise)
    return value


def _is_list_of(value: Any, kind: type[_T]) -> TypeGuard[list[_T]]:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _usage(reply: Any, name: str) -> int | None:
    usage = reply.get("usage") if isinstance(reply, dict) else None
    number = usage.get(name) if isinstance(usage, dict) else None
    return number if isinstance(number, int) and number >= 0 else None


def _generated(reply: Any, tokens: Sequence[str], text: str) -> int:
    """How many of the last tokens were generated: as the server counts, else those of the text after the prompt."""
    counted = _usage(reply, "completion_tokens")
    if counted is not None:
        return min(counted, len(tokens))
    number = 0
    while number < len(tokens) and len("".join(tokens[len(tokens) - number :])) < len(text):
        number += 1
    return number


def _likeliest(entry: Any) -> tuple[str, float] | None:
    if not isinstance(entry, dict):
        return None
    items = [(token, value) for token, value in entry.items() if isinstance(value, int | float)]
    numbers = {token: float(value) for token, value in items if -_NO_NUMBER < value < _NO_NUMBER}
    return max(numbers.items(), key=lambda item: item[1]) if numbers else None


def _logprob(value: Any, token: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongReply(f"its log-probability of {token!r} is {shown(value)}")
    if not -_NO_NUMBER < value < _NO_NUMBER:  # true of NaN, too
        raise WrongReply(f"its log-probability of {token!r} is {'infinite' if value == value else 'NaN'}")
    if value > _ROUNDING:
        raise WrongReply(f"its log-probability of {token!r} is {value:g}, above 0")
    return min(float(value), 0.0)


def _letters(text: str) -> str:
    """What a text has in common with its tokens, however these write spaces and parts of characters."""
    return "".join(c for c in text if c.isascii() and c.isalnum())
