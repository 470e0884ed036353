"""How a server is asked for its choices: three ways, the calls of each, and how many these are."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sinkd_llm.teachers.questions import Question
from sinkd_llm.teachers.served.server import Server

COMPLETIONS, CHAT = "completions", "chat/completions"
# Characters of a token in English, where a server does not count its tokens.
_CHARACTERS_A_TOKEN = 4.0
# Tokens of an answer beyond one for each byte of the longest choice: quotes, a full stop, "The answer is".
_ANSWER_ROOM = 16


@dataclass(frozen=True)
class Way:
    """
    A way that works on a server; [`~sinkd_llm.teachers.served.finding.find_way`] finds it.

    Attributes:
        name (`str`): `"scores"`: the log-likelihood of each choice after the prompt, a request a choice;
            `"top_logprobs"`: the likeliest tokens after the prompt; `"answers"`: answers as text.
        model (`str`): what the server calls the model in its replies.
        asked_model (`str`): what it is called in requests.
        top (`int`): how many of the likeliest tokens the server gives.
        chat (`bool`): whether answers and their first tokens come from the chat API, or else as completions.
        limit (`str`): the server's word for the most tokens of an answer.
        together (`int`): answers that a request may ask for at once.
        characters_a_token (`float`): of the prompt of the test request.
        tests (`int`): requests that were sent to find it.
        remarks (`tuple[str, ...]`): why other ways were not taken, and what else a user should read, a sentence each.
    """

    name: str
    model: str
    asked_model: str
    top: int = 0
    chat: bool = True
    limit: str = "max_tokens"
    together: int = 1
    characters_a_token: float = _CHARACTERS_A_TOKEN
    tests: int = 0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """
    One request.

    Attributes:
        question ([`Question`]): the row.
        part (`int`): which of the row's calls, from 0; for `"scores"` the choice.
        path (`str`): of the call.
        body (`dict`): what is asked.
        count (`int`): answers that it asks for.
    """

    question: Question
    part: int
    path: str
    body: dict[str, Any]
    count: int = 1


def parted(question: Question, choice: int) -> tuple[str, str]:
    """
    Prompt and answer as local models read them: white space at the prompt's end belongs to the answer.

    In most vocabularies it is part of the answer's first token.
    """
    prompt = question.prompt.rstrip()
    return prompt, question.prompt[len(prompt) :] + question.choices[choice]


def continuations(question: Question) -> tuple[str, ...]:
    """The choices as they continue a prompt that ends without a space."""
    space = question.prompt[len(question.prompt.rstrip(" ")) :]
    return tuple(space + choice for choice in question.choices)


def scoring(way: Way, text: str, *, echo: bool = True) -> dict[str, Any]:
    """
    The body of a completion that scores a text.

    One token is generated, because vLLM and OpenAI take no fewer in some versions, and llama-cpp-python takes 0 for
    as many as fit. At temperature 1 log-probabilities are the model's, whether a server scales them or not.
    """
    body = {"prompt": text, "max_tokens": 1, "temperature": 1.0, "logprobs": 1}
    return {"model": way.asked_model, **body, **({"echo": True} if echo else {})}


def first_tokens(way: Way, question: Question) -> dict[str, Any]:
    """
    The body of a chat or completion that says the likeliest tokens after the prompt.

    A space at the prompt's end is part of the answer's first token in most vocabularies, and left out.
    """
    body: dict[str, Any] = {way.limit: 1, "temperature": 1.0}
    if not way.chat:
        return {"model": way.asked_model, "prompt": question.prompt.rstrip(" "), **body, "logprobs": way.top}
    messages = [{"role": "user", "content": question.prompt}]
    return {"model": way.asked_model, "messages": messages, **body, "logprobs": True, "top_logprobs": way.top}


def answering(way: Way, question: Question, count: int, *, drawn: bool) -> dict[str, Any]:
    """
    The body of a request for `count` answers, `drawn` at temperature 1 or else the likeliest one.

    Its most tokens are one for each byte of the longest choice, and some more.
    """
    longest = question.longest_answer(lambda choice: len(choice.encode()))
    text: dict[str, Any] = {"prompt": question.prompt}
    if way.chat:
        text = {"messages": [{"role": "user", "content": question.prompt}]}
    body = {way.limit: longest + _ANSWER_ROOM, "temperature": 1.0 if drawn else 0.0}
    return {"model": way.asked_model, **text, **body, **({"n": count} if count > 1 else {})}


def calls(server: Server, way: Way, question: Question) -> Iterator[Call]:
    """The requests of a row, in the order of their parts."""
    if way.name == "scores":
        for choice in range(len(question.choices)):
            yield Call(question, choice, COMPLETIONS, scoring(way, question.prompt + question.choices[choice]))
    elif way.name == "top_logprobs":
        yield Call(question, 0, CHAT if way.chat else COMPLETIONS, first_tokens(way, question))
    else:
        left, part = max(server.samples, 1), 0
        while left > 0:
            count = min(left, way.together)
            body = answering(way, question, count, drawn=server.samples > 0)
            yield Call(question, part, CHAT if way.chat else COMPLETIONS, body, count)
            left, part = left - count, part + 1


def projected(
    server: Server,
    way: Way,
    questions: Sequence[Question],
    asked: Callable[[Call], bool] = lambda call: True,
) -> tuple[int, int]:
    """
    What asking all questions will cost, before the first is asked.

    Args:
        server ([`Server`]): the server.
        way ([`Way`]): how it is asked.
        questions (`Sequence[Question]`): the rows.
        asked (`Callable`, *optional*): whether a request will be sent; by default each.

    Returns:
        `tuple`: requests, without repeated ones; and about how many
        tokens they read and write together, by the length of a token in the test request. A server that keeps the
        beginning of a prompt reads fewer.
    """
    requests, characters, written = 0, 0, 0
    for question in questions:
        for call in filter(asked, calls(server, way, question)):
            requests += 1
            characters += len(call.body.get("prompt", question.prompt))
            # An answer is a choice and little more, whatever room it has.
            longest = question.longest_answer() if way.name == "answers" else 0
            written += call.count * max(1, math.ceil(longest / way.characters_a_token))
    return requests, math.ceil(characters / way.characters_a_token) + written
