"""All rows are asked of a server, several at once, and each answer is kept before the next ones are asked.

Shape suffixes: C choices of a row.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError, shown
from sinkd_llm.teachers.answer_texts import named_answers
from sinkd_llm.teachers.questions import Answers, Question
from sinkd_llm.teachers.served.client import BudgetSpent, Client, RequestRefused, Sleep, Unavailable
from sinkd_llm.teachers.served.finding import run
from sinkd_llm.teachers.served.journal import Journal
from sinkd_llm.teachers.served.listed_answers import ListedAnswers
from sinkd_llm.teachers.served.lists import ListQuestion
from sinkd_llm.teachers.served.matching import choices_seen, frequencies
from sinkd_llm.teachers.served.replies import WrongReply, border, common_beginning, scored_text, texts, top_tokens
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import COMPLETIONS, Call, Way, calls, continuations, parted, scoring
from sinkd_llm.values import listed


@dataclass
class ServedAnswers:
    """
    What a server said of rows.

    Attributes:
        answers ([`Answers`]): log-scores of the choices of each row that has any.
        rows (`int`): that were asked.
        crossed (`int`): choices with a token that crosses the border to the prompt.
        unseen (`list[float]`): of rows asked by `"top_logprobs"` the mass of the tokens that were not shown.
        no_choice (`Counter[str]`): answers that are no choice.
        without (`dict[str, str]`): rows without scores, and why.
    """

    answers: Answers
    rows: int
    crossed: int = 0
    unseen: list[float] = field(default_factory=list)
    no_choice: Counter[str] = field(default_factory=Counter)
    without: dict[str, str] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What a user should know of these answers, a sentence each."""
        said = []
        if self.without:
            name, why = next(iter(self.without.items()))
            said.append(f"{len(self.without):,} of {self.rows:,} rows have no teacher; the first is {name}: {why}.")
        if self.no_choice:
            named = named_answers(self.no_choice)
            said.append(f"{self.no_choice.total():,} answers are no choice of their row: {named}.")
        if self.unseen:
            mean, most_unseen = float(np.mean(self.unseen)), max(self.unseen)
            said.append(
                f"The server did not show {mean:.2%} of the probability on average and {most_unseen:.2%} at most."
            )
        if self.crossed:
            said.append(
                f"{self.crossed:,} choices have a token that crosses the border to the prompt; their scores are "
                "likelihoods of the whole text over that of the prompt, and differ from those of a local model."
            )
        return said


def ask(
    server: Server,
    way: Way,
    questions: Sequence[Question],
    journal: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    sleep: Sleep = asyncio.sleep,
) -> ServedAnswers:
    """
    Asks a server for its scores of the choices of all rows.

    At most `server.concurrency` requests are under way. Before another one is sent, the answers to those that ended
    are on disk, in `journal`. Called again with the same file, it asks for what is missing there.

    What is exact, with `way.name == "scores"`: where the answer's tokens are tokens of their own, the number is the
    one that a local model gives ([`~sinkd_llm.models.kinds.choices.score_choices`]), up to the arithmetic of the
    server. Where a token crosses the border between prompt and answer, a local model reads the answer's tokens alone
    after those of the prompt, and a server cannot be asked for that by text: the log-likelihood of the tokens in
    which both texts differ is taken, minus the log-likelihood of the prompt's own tokens at that place. Such
    choices are counted.

    Args:
        server ([`Server`]): the server.
        way ([`Way`]): as [`~sinkd_llm.teachers.served.finding.find_way`] found it.
        questions (`Sequence[Question]`): the rows.
        journal (`Path`): JSON lines, made if it is not there.
        on_progress (`Callable`, *optional*): is called with the numbers of requests that are answered and of all.
        sleep (`Callable`, *optional*): waits between two tries.

    Returns:
        [`ServedAnswers`]: with `answers`.

    Raises:
        InputError: naming the row, for a reply that cannot be used; if the server stays away, has another model than
            before, or `server.max_requests` are sent. What was answered is kept.
    """
    with _answered(server, way, questions, journal, on_progress, sleep) as kept:
        return _read(server, way, questions, kept)


def ask_lists(
    server: Server,
    way: Way,
    lists: Sequence[ListQuestion],
    journal: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    sleep: Sleep = asyncio.sleep,
) -> ListedAnswers:
    """
    Asks a server about several rows in each request; otherwise as [`ask`].

    Args:
        server, way, journal, on_progress, sleep: see [`ask`]; the way is `"answers"`.
        lists (`Sequence[ListQuestion]`): the rows, [`~sinkd_llm.teachers.served.lists.list_questions`].

    Returns:
        [`ListedAnswers`]

    Raises:
        InputError: as [`ask`].
    """
    with _answered(server, way, lists, journal, on_progress, sleep) as kept:
        found = ListedAnswers([], len(lists), sum(len(one.rows) for one in lists))
        for one in lists:
            found.add(one, [text for call in calls(server, way, one) for text in kept.said(kept.key(call))["texts"]])
        return found


@contextmanager
def _answered(
    server: Server,
    way: Way,
    questions: Sequence[Question],
    journal: Path,
    on_progress: Callable[[int, int], None],
    sleep: Sleep,
) -> Iterator[Journal]:
    """The journal, after what is missing there has been asked."""
    with Journal(journal, server, way) as kept:
        every = {kept.key(call): call for call in _all_calls(server, way, questions)}
        kept.refuse_change(every.keys())
        missing = {key: call for key, call in every.items() if key not in kept}
        if missing:
            asking = _Asking(server, way, kept, len(every) - len(missing), len(every), on_progress)
            run(asking.all(missing, sleep))
        yield kept


def _all_calls(server: Server, way: Way, questions: Sequence[Question]) -> Iterator[Call]:
    return (call for question in questions for call in calls(server, way, question))


@dataclass
class _Asking:
    server: Server
    way: Way
    journal: Journal
    done: int
    total: int
    on_progress: Callable[[int, int], None]

    async def all(self, missing: dict[str, Call], sleep: Sleep) -> None:
        """Sends the requests, and keeps what is said. Where one fails for good, those under way are waited for."""
        waiting = iter(missing.items())
        tasks: dict[asyncio.Task[dict[str, Any]], tuple[str, Call]] = {}
        failure: Exception | None = None
        async with Client(self.server, sleep, self.server.max_requests) as client:
            try:
                while True:
                    while failure is None and len(tasks) < self.server.concurrency:
                        if (entry := next(waiting, None)) is None:
                            break
                        tasks[asyncio.create_task(self._said(client, entry[1]))] = entry
                    if not tasks:
                        break
                    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    failed = [task for task in ended if task.exception() is not None]
                    self._keep({task: tasks.pop(task) for task in ended})
                    if failed and failure is None:
                        error = failed[0].exception()
                        if not isinstance(error, (InputError, BudgetSpent)):
                            assert error is not None
                            raise error
                        failure = error
                        client.end()
            finally:
                for task in tasks:
                    task.cancel()
                self._keep({task: entry for task, entry in tasks.items() if task.done()})
        if isinstance(failure, BudgetSpent):
            raise InputError(
                f"{client.sent:,} requests are sent, as many as teacher_max_requests allows, and {self.done:,} of "
                f"{self.total:,} are answered; they are kept in {self.journal.path}. Raise it, or start the same "
                "command again to go on with as many."
            )
        if failure is not None:
            raise failure

    def _keep(self, ended: dict[asyncio.Task[dict[str, Any]], tuple[str, Call]]) -> None:
        answered = {task: entry for task, entry in ended.items() if not task.cancelled() and task.exception() is None}
        self.journal.add((key, call, task.result()) for task, (key, call) in answered.items())
        if answered:
            self.done += len(answered)
            self.on_progress(self.done, self.total)

    async def _said(self, client: Client, call: Call) -> dict[str, Any]:
        """What the reply to a call says, in the form of the journal."""
        name = call.question.name
        try:
            reply = await self._reply(client, call.path, call.body, name)
            if self.way.name == "answers":
                return {"texts": texts(reply, call.count)}
            if self.way.name == "top_logprobs":
                return {"top": top_tokens(reply)}
            prompt, answer = parted(call.question, call.part)
            scored = scored_text(reply, prompt + answer)
            place = border(scored, answer)
            if place is not None:
                return {"logprobs": scored.numbers(place), "prompt": []}
            reply = await self._reply(client, COMPLETIONS, scoring(self.way, prompt), name)
            alone = scored_text(reply, prompt)
            place = common_beginning(scored, alone, answer)
            return {"logprobs": scored.numbers(place), "prompt": alone.numbers(place)}
        except (RequestRefused, Unavailable) as error:
            raise await client.explained(error, name, self.way.asked_model) from error
        except WrongReply as error:
            raise InputError(
                f"The server {self.server.shown_url} gives an unusable reply for {name}: {error}. Look into the "
                "server's log; answers until here are kept, and the same command goes on from there."
            ) from error

    async def _reply(self, client: Client, path: str, body: dict[str, Any], name: str) -> dict[str, Any]:
        reply = await client.post(path, body, name)
        model = reply.get("model")
        if isinstance(model, str) and model and model != self.way.model:
            raise InputError(
                f"The server {self.server.shown_url} answers for {name} with the model {shown(model)}, and before "
                f"with {shown(self.way.model)}. Two teachers are not mixed: start the server with the first one "
                "again, or give the name of the other one as teacher_model to begin anew."
            )
        return reply


def _read(server: Server, way: Way, questions: Sequence[Question], journal: Journal) -> ServedAnswers:
    """The scores of all rows, from what the journal holds of them."""
    found = ServedAnswers(Answers(), len(questions))
    for question in questions:
        said = [journal.said(journal.key(call)) for call in calls(server, way, question)]
        scores: list[float] | None
        if way.name == "scores":
            found.crossed += sum(bool(entry["prompt"]) for entry in said)
            divided = server.choice_normalisation == "token"
            scores = [
                (sum(entry["logprobs"]) - sum(entry["prompt"])) / (len(entry["logprobs"]) if divided else 1)
                for entry in said
            ]
            why = ""
        elif way.name == "top_logprobs":
            top = [(token, logprob) for token, logprob in said[0]["top"]]
            seen = choices_seen(top, continuations(question), continued=not way.chat)
            found.unseen.append(seen.unseen)
            scores, why = seen.scores_C, seen.problem
        else:
            scores, other = frequencies([text for entry in said for text in entry["texts"]], question.choices)
            found.no_choice.update(text.strip() for text in other)
            why = f"it answered {listed([text.strip() for text in other], 3)}"
        if scores is None:
            found.without[question.name] = why
        else:
            found.answers.add(question, np.array(scores, np.float32))
    return found
