"""Which way works on a server: found by test requests before the first row is asked."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.questions import Question
from sinkd_llm.teachers.served.client import BudgetSpent, Client, OnWait, RequestRefused, Sleep, Unavailable
from sinkd_llm.teachers.served.matching import choices_seen
from sinkd_llm.teachers.served.replies import (
    NoText,
    WrongReply,
    border,
    common_beginning,
    likeliest_first,
    prompt_tokens,
    scored_text,
    texts,
    top_tokens,
)
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import (
    CHAT,
    COMPLETIONS,
    Way,
    answering,
    continuations,
    first_tokens,
    parted,
    scoring,
)
from sinkd_llm.values import listed

_T = TypeVar("_T")

# The most that servers commonly allow, and what the others do.
_TOP = (20, 5)
# A server that is not there is found soon; one that fails a request may fail it for what is asked.
_TRIES = 3
# Answers of one request, where the server gives several: more are lost together when a reply is.
_MOST_TOGETHER = 8
# In nats: by how much the largest log-probability may differ when it is computed again beside another text; and where
# two tokens are as likely as each other, which are then the likeliest by turns.
_SAME, _TIED = 0.25, 0.02


def find_way(
    server: Server,
    question: Question,
    *,
    others: Sequence[Question] = (),
    sleep: Sleep = asyncio.sleep,
    on_wait: OnWait = lambda text: None,
) -> Way:
    """
    Which of three ways works, by some requests about one row (at most a dozen).

    - `"scores"`: the completions API repeats the prompt with log-probabilities (`echo` and `logprobs`; vLLM, SGLang,
      llama-cpp-python). Log-likelihoods of choices are then exact, up to the server's arithmetic.
    - `"top_logprobs"`: the completions or the chat API says the likeliest tokens after the prompt. Exact up to what is
      not among them, for choices of one token; others are not guessed from their first token.
    - `"answers"`: the API only answers.

    The completions API puts the prompt to the model as it is, the chat API inside the server's chat template.

    Whether log-probabilities belong to the tokens beside them is tested: the likeliest token after the prompt must be
    the same where the choice follows and where the model goes on by itself.

    Args:
        server ([`Server`]): its `way` is the one that is tried, or `"auto"`.
        question ([`Question`]): a row, best one of the usual length.
        others (sequence of [`Question`], *optional*): rows to try one after the other, where the server refuses the
            row before.
        sleep (`Callable`, *optional*): waits between two tries.
        on_wait (`Callable`, *optional*): is told now and then why a request is repeated.

    Raises:
        InputError: if the server is down, asks for a key, has no such model or several and none was named; if the way
            that was asked for does not work, with the reason; if `server.max_requests` are sent.
    """
    return run(_find(server, [question, *others], sleep, on_wait))


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine to its end, in a thread of its own where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def _find(server: Server, questions: Sequence[Question], sleep: Sleep, on_wait: OnWait) -> Way:
    question, *others = questions
    tests = {"scores": _scores, "top_logprobs": _top_logprobs, "answers": _answers}
    patient = replace(server, retries=min(server.retries, _TRIES - 1))
    async with Client(patient, sleep, server.max_requests, on_wait=on_wait) as client:
        asked, remarks = await _model(client)
        way, refused = Way("", asked, asked), False
        for name in tests if server.way == "auto" else (server.way,):
            try:
                found = await tests[name](client, replace(way, name=name), question)
                return replace(found, tests=client.sent, remarks=(*remarks, *found.remarks))
            except BudgetSpent:
                raise no_budget(server) from None
            except WrongReply as error:
                reason, refused = str(error), False
            except (RequestRefused, Unavailable) as error:
                reason, refused = _of_this_way(error), isinstance(error, RequestRefused) and error.of_one_request
                if not reason and refused and others:
                    break
                if not reason:
                    raise await client.explained(error, question.name, asked) from error
            remarks.append(f"The way {name!r} does not work on {server.shown_url}: {reason}.")
        sent = client.sent
    if refused and others:  # it may be the row that the server does not take, and not the way
        left = None if server.max_requests is None else server.max_requests - sent
        if left is not None and left < 1:
            raise no_budget(server)
        found = await _find(replace(server, max_requests=left), others, sleep, on_wait)
        return replace(found, tests=found.tests + sent)
    raise InputError(f"{' '.join(remarks)} Give another teacher_way or server.")


def no_budget(server: Server) -> InputError:
    """What is wrong where `server.max_requests` are sent before the first row is asked."""
    return InputError(
        f"teacher_max_requests is {server.max_requests}, and as many were sent to find out how the server "
        f"{server.shown_url} answers, which takes up to a dozen; raise it, or name the way as teacher_way."
    )


async def _model(client: Client) -> tuple[str, list[str]]:
    """What the model is called in requests, and what there is to say of it."""
    server = client.server
    try:
        names = await client.models()
    except Unavailable as error:
        if error.status is None or error.status == 429:
            raise InputError(
                f"The server {server.shown_url} does not answer: {error.why}. Start it, or give its address as "
                "teacher_url (mostly http://HOST:PORT/v1)."
            ) from error
        names = []
    if server.model is not None:
        known = not names or server.model in names
        remark = f"The server {server.shown_url} does not list the model {server.model!r}; it lists {listed(names)}."
        return server.model, [] if known else [remark]
    if len(names) == 1:
        return names[0], []
    if names:
        raise InputError(
            f"The server {server.shown_url} has several models: {listed(names)}; give the name of one as "
            "teacher_model."
        )
    raise InputError(
        f"The server {server.shown_url} lists no models: either this is not the address of its API (mostly "
        "http://HOST:PORT/v1), or it needs the name of a model as teacher_model."
    )


async def _scores(client: Client, way: Way, question: Question) -> Way:
    prompt, answer = parted(question, 0)
    reply = await client.post(COMPLETIONS, scoring(way, prompt + answer), question.name)
    scored = scored_text(reply, prompt + answer)
    place = border(scored, answer)
    if place is None:
        alone = scored_text(await client.post(COMPLETIONS, scoring(way, prompt), question.name), prompt)
        place = common_beginning(scored, alone, answer)
    elif (shown := scored.likeliest[place]) is not None:
        going_on = likeliest_first(await client.post(COMPLETIONS, scoring(way, prompt, echo=False), question.name))
        if going_on is not None and abs(shown[1] - going_on[1]) > (_SAME if shown[0] == going_on[0] else _TIED):
            raise WrongReply(
                f"its log-probabilities belong to other tokens: after the prompt {going_on[0]!r} is the likeliest by "
                f"{going_on[1]:.2f}, and where a choice follows {shown[0]!r} by {shown[1]:.2f}"
            )
    scored.numbers(place)
    return _named(way, reply, len(prompt + answer))


def _of_this_way(error: RequestRefused | Unavailable) -> str:
    """Why a way does not work, as the end of a sentence; empty for an error that every other way would meet, too."""
    if isinstance(error, RequestRefused):
        return "" if error.too_long or error.no_model else f"it refuses the request ({error.status}: {error})"
    return "" if error.status in (None, 429) else error.why


async def _top_logprobs(client: Client, way: Way, question: Question) -> Way:
    """With completions, which read the prompt as it is, or else with chats."""
    reasons = []
    for chat, name in ((False, "completions"), (True, "chats")):
        try:
            reply, found = await _first_tokens(client, replace(way, chat=chat), question)
            seen = choices_seen(top_tokens(reply), continuations(question), continued=not chat)
            if seen.scores_C is not None:
                return _named(found, reply, len(question.prompt))
            reason = seen.problem
        except WrongReply as error:
            reason = str(error)
        except (RequestRefused, Unavailable) as error:
            reason = _of_this_way(error)
            if not reason:
                raise
        reasons.append(f"with {name} {reason}")
    raise WrongReply("; ".join(reasons))


async def _first_tokens(client: Client, way: Way, question: Question) -> tuple[dict[str, Any], Way]:
    """The reply with as many likeliest tokens as the server gives."""
    path = CHAT if way.chat else COMPLETIONS
    for top in _TOP:
        try:
            return await _limited(
                client, replace(way, top=top), question, path, lambda way: first_tokens(way, question)
            )
        except RequestRefused as error:
            if top == _TOP[-1] or "logprobs" not in error.message:
                raise
    raise AssertionError("the last number of tokens returns or raises")


async def _answers(client: Client, way: Way, question: Question) -> Way:
    drawn = client.server.samples > 0

    def one(way: Way) -> dict[str, Any]:
        return answering(way, question, 1, drawn=drawn)

    try:
        reply, way = await _limited(client, way, question, CHAT, one)
    except RequestRefused as error:
        if error.status not in (404, 405):
            raise
        reply, way = await _limited(client, replace(way, chat=False), question, COMPLETIONS, one)
    with suppress(NoText):  # of this row; others may have an answer
        texts(reply, 1)
    if client.server.samples > 1:
        path = CHAT if way.chat else COMPLETIONS
        try:
            two = await client.post(path, answering(way, question, 2, drawn=True), question.name)
            texts(two, 2)
            way = replace(way, together=min(client.server.samples, _MOST_TOGETHER))
        except (RequestRefused, WrongReply, Unavailable):
            pass  # one answer a request
    return _named(way, reply, len(question.prompt))


async def _limited(
    client: Client, way: Way, question: Question, path: str, body: Callable[[Way], dict[str, Any]]
) -> tuple[dict[str, Any], Way]:
    """The reply to a call, and the way with the server's word for the most tokens."""
    try:
        return await client.post(path, body(way), question.name), way
    except RequestRefused as error:
        if "max_completion_tokens" not in error.message:
            raise
        way = replace(way, limit="max_completion_tokens")
        return await client.post(path, body(way), question.name), way


def _named(way: Way, reply: dict[str, Any], characters: int) -> Way:
    name, tokens = reply.get("model"), prompt_tokens(reply)
    return replace(
        way,
        model=name if isinstance(name, str) and name else way.asked_model,
        characters_a_token=characters / tokens if tokens else way.characters_a_token,
    )
