"""Requests without an answer are sent, several at once; what a row lacks is told from what ends the run."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sinkd_llm.errors import InputError, shown
from sinkd_llm.teachers.answer_texts import choice_words, matched, named_answers
from sinkd_llm.teachers.served.client import (
    BudgetSpent,
    Client,
    NoAnswer,
    OnWait,
    RequestRefused,
    Sleep,
    Unavailable,
)
from sinkd_llm.teachers.served.finding import no_budget
from sinkd_llm.teachers.served.journal import Journal
from sinkd_llm.teachers.served.lists import ListQuestion, list_answers
from sinkd_llm.teachers.served.matching import choices_seen
from sinkd_llm.teachers.served.replies import (
    NoText,
    WrongReply,
    border,
    common_beginning,
    scored_text,
    texts,
    top_tokens,
)
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import COMPLETIONS, Call, Way, continuations, parted, scoring

# So many rows without a choice, and none with one, are no chance: the prompt asks for something else.
WITHOUT_A_CHOICE = 50
# After so many requests in a row that the server refuses, one that it took before is sent again.
_REFUSED_IN_A_ROW = 8
# Of the answers that are no choice, those that the message shows.
_SHOWN = 3


class LeftOut(Exception):
    """
    A request has no answer, and others may have one.

    Args:
        error ([`RequestRefused`] or [`NoAnswer`]): the reason.
    """

    def __init__(self, error: RequestRefused | NoAnswer) -> None:
        self.error = error
        self.why = f"{error.status}: {error}" if isinstance(error, RequestRefused) else error.why
        super().__init__(self.why)


@dataclass
class Sending:
    """
    Sends what a journal lacks.

    Args:
        server ([`Server`]), way ([`Way`]): who is asked, and how.
        journal ([`Journal`]): open.
        every (`dict[str, Call]`): all requests, by their keys in the journal.
        on_progress (`Callable`): is called with the numbers of requests that are done and of all.
        on_wait (`Callable`): is told why a request is repeated.

    Attributes:
        left (`dict[str, str]`): of requests that were left out, why; other requests of their rows are not sent.
    """

    server: Server
    way: Way
    journal: Journal
    every: dict[str, Call]
    on_progress: Callable[[int, int], None]
    on_wait: OnWait = lambda text: None
    left: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._answered = self._skipped = 0
        self._left_rows: set[str] = set()
        self._taken: Call | None = None  # a request that the server took
        self._in_a_row, self._again_at = 0, _REFUSED_IN_A_ROW
        self._last: LeftOut | None = None
        self._last_name = ""
        self._any_choice = self.way.name == "scores"
        self._rows_seen, self._no_choice = 0, Counter[str]()
        for key, call in self.every.items():
            if key in self.journal:
                self._look(call, self.journal.said(key))
        # A server that was set up anew for the same prompts is tried again, with as many rows.
        self._rows_seen = 0
        self._no_choice.clear()

    async def all(self, sleep: Sleep) -> None:
        """
        Sends the requests, and keeps what is said. Where one fails for good, those under way are waited for.

        Raises:
            InputError: as [`~sinkd_llm.teachers.served.asking.ask`].
        """
        missing = {key: call for key, call in self.every.items() if key not in self.journal}
        waiting = iter(missing.items())
        tasks: dict[asyncio.Task[dict[str, Any]], tuple[str, Call]] = {}
        failure: Exception | None = None
        budget = self.server.max_requests
        if missing and budget is not None and budget <= self.way.tests:
            raise no_budget(self.server)
        budget = None if budget is None else budget - self.way.tests
        async with Client(self.server, sleep, budget, known=True, on_wait=self.on_wait) as client:
            try:
                while True:
                    while failure is None and len(tasks) < self.server.concurrency:
                        if (entry := next(waiting, None)) is None:
                            break
                        if entry[1].question.name in self._left_rows:
                            self._skipped += 1
                            continue
                        tasks[asyncio.create_task(self._said(client, entry[1]))] = entry
                    if not tasks:
                        break
                    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    failed = self._keep({task: tasks.pop(task) for task in ended})
                    if failure is None:
                        failure = failed or self._without_choices() or await self._refused(client)
                        if failure is not None:
                            client.end()
            finally:
                for task in tasks:
                    task.cancel()
                self._keep({task: entry for task, entry in tasks.items() if task.done()})
            if failure is None and self.left and self._taken is None:
                failure = await self._explained(client)
            sent = client.sent
        self._raise(failure, sent)

    def _raise(self, failure: Exception | None, sent: int) -> None:
        if failure is None:
            return
        kept = f"{self._answered:,} of {len(self.every):,} are answered; they are kept in {self.journal.path}."
        if isinstance(failure, BudgetSpent):
            tests = f" ({self.way.tests:,} of them to find out how it answers)" if self.way.tests else ""
            raise InputError(
                f"{sent + self.way.tests:,} requests are sent{tests}, as many as teacher_max_requests allows, and "
                f"{kept} Raise it, or start the same command again to go on with as many."
            )
        if isinstance(failure, InputError) and self._answered:
            raise InputError(f"{failure} Of the requests, {kept}") from failure
        raise failure

    def _keep(self, ended: dict[asyncio.Task[dict[str, Any]], tuple[str, Call]]) -> Exception | None:
        """Takes what requests that ended have brought; the first error that ends the run, if there is one."""
        failure: Exception | None = None
        fault: BaseException | None = None
        answered: list[tuple[str, Call, dict[str, Any]]] = []
        for task, (key, call) in ended.items():
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                answered.append((key, call, task.result()))
            elif isinstance(error, LeftOut):
                self.left[key], self._last, self._last_name = error.why, error, call.question.name
                self._left_rows.add(call.question.name)
                self._in_a_row += 1
            elif isinstance(error, (InputError, BudgetSpent)):
                failure = failure or error
            else:
                fault = error
        self.journal.add(answered)
        for _, call, said in answered:
            self._look(call, said)
        if answered:
            self._in_a_row = 0
            self.on_progress(self._answered + len(self.left) + self._skipped, len(self.every))
        if fault is not None:
            raise fault
        return failure

    def _look(self, call: Call, said: Any) -> None:
        """Takes note of an answer."""
        self._answered += 1
        self._taken = self._taken or call
        if self._any_choice:
            return
        question = call.question
        self._rows_seen += len(question.rows) if isinstance(question, ListQuestion) else 1
        if self.way.name == "top_logprobs":
            top = [(token, logprob) for token, logprob in said["top"]]
            self._any_choice = (
                choices_seen(top, continuations(question), continued=not self.way.chat).scores_C is not None
            )
            self._no_choice[top[0][0]] += 1
        elif isinstance(question, ListQuestion):
            read = [list_answers(text, question.choices, len(question.rows)) for text in said["texts"]]
            self._any_choice = any(index is not None for one in read for index in one.choices)
            self._no_choice.update(text.strip() for text in said["texts"])
        else:
            self._any_choice = any(matched(text, question.choices) is not None for text in said["texts"])
            self._no_choice.update(text.strip() for text in said["texts"])

    def _without_choices(self) -> InputError | None:
        """What is wrong where the first answers hold no choice at all."""
        if self._any_choice or self._rows_seen < WITHOUT_A_CHOICE or self._taken is None:
            return None
        return InputError(
            f"The first {self._rows_seen:,} rows that {self.way.model} on {self.server.shown_url} answered have no "
            f"choice: it said {named_answers(self._no_choice, _SHOWN)}, where the choices are "
            f"{choice_words(self._taken.question.choices, 4)}. Nothing more is asked: let the prompt name the choices "
            "and ask for one of them alone, as it is written. Where the server was at fault and not the prompt, "
            "delete the answers, which are kept, and ask again."
        )

    async def _refused(self, client: Client) -> Exception | None:
        """Whether the server takes no request any more, where it has refused several in a row."""
        if self._in_a_row < self._again_at:
            return None
        if self._taken is not None:
            try:
                await self._said(client, self._taken)
            except LeftOut:
                pass
            except (InputError, BudgetSpent) as error:
                return error
            else:
                # Rows that are sorted by length are refused one after the other; then this is asked seldom.
                self._in_a_row, self._again_at = 0, 2 * self._again_at
                return None
        return await self._explained(client)

    async def _explained(self, client: Client) -> InputError:
        assert self._last is not None
        return await client.explained(self._last.error, self._last_name, self.way.asked_model)

    async def _said(self, client: Client, call: Call) -> dict[str, Any]:
        """What the reply to a call says, in the form of the journal."""
        name = call.question.name
        try:
            reply = await self._reply(client, call.path, call.body, name, call.count)
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
            if isinstance(error, NoAnswer) or (isinstance(error, RequestRefused) and error.of_one_request):
                raise LeftOut(error) from error
            raise await client.explained(error, name, self.way.asked_model) from error
        except WrongReply as error:
            raise InputError(
                f"The server {self.server.shown_url} gives an unusable reply for {name}: {error}. Look into the "
                "server's log; the same command goes on from there."
            ) from error

    async def _reply(
        self, client: Client, path: str, body: dict[str, Any], name: str, count: int = 1
    ) -> dict[str, Any]:
        def has_text(reply: dict[str, Any]) -> None:
            try:
                texts(reply, count)
            except NoText as error:
                raise NoAnswer(str(error)) from error
            except WrongReply:
                pass  # is said where the reply is read

        reply = await client.post(path, body, name, *([has_text] if self.way.name == "answers" else []))
        model = reply.get("model")
        if isinstance(model, str) and model and model != self.way.model:
            raise InputError(
                f"The server {self.server.shown_url} answers for {name} with the model {shown(model)}, and before "
                f"with {shown(self.way.model)}. Two teachers are not mixed: start the server with the first one "
                "again, or give the name of the other one as teacher_model to begin anew."
            )
        return reply
