"""All rows are asked of a server, several at once, and each answer is kept before the next ones are asked.

Shape suffixes: C choices of a row.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sinkd_llm.teachers.answer_texts import named_answers
from sinkd_llm.teachers.questions import Answers, Question
from sinkd_llm.teachers.served.client import OnWait, Sleep
from sinkd_llm.teachers.served.finding import run
from sinkd_llm.teachers.served.journal import Journal
from sinkd_llm.teachers.served.listed_answers import ListedAnswers, left_out
from sinkd_llm.teachers.served.lists import ListQuestion
from sinkd_llm.teachers.served.matching import choices_seen, frequencies
from sinkd_llm.teachers.served.sending import Sending
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import Call, Way, calls, continuations, projected
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
        refused (`dict[str, str]`): rows that have no answer, because the server refused them or gave no text, and why.
    """

    answers: Answers
    rows: int
    crossed: int = 0
    unseen: list[float] = field(default_factory=list)
    no_choice: Counter[str] = field(default_factory=Counter)
    without: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What a user should know of these answers, a sentence each."""
        said = left_out(self.refused, f"of {self.rows:,} rows")
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
    on_wait: OnWait = lambda text: None,
) -> ServedAnswers:
    """
    Asks a server for its scores of the choices of all rows.

    At most `server.concurrency` requests are under way. Before another one is sent, the answers to those that ended
    are on disk, in `journal`. Called again with the same file, it asks for what is missing there: also for rows that
    the server refused by themselves (a prompt is too long), or gave no text to, which have no answer in this call.

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
        on_progress (`Callable`, *optional*): is called with the numbers of requests that are done and of all.
        sleep (`Callable`, *optional*): waits between two tries.
        on_wait (`Callable`, *optional*): is told now and then why a request is repeated.

    Returns:
        [`ServedAnswers`]: with `answers`.

    Raises:
        InputError: naming the row, for a reply that cannot be used; if the server stays away, takes no request, has
            another model than before, or `server.max_requests` are sent; if the first
            [`~sinkd_llm.teachers.served.sending.WITHOUT_A_CHOICE`] rows with an answer have no choice. What was
            answered is kept.
    """
    with _answered(server, way, questions, journal, on_progress, sleep, on_wait) as (kept, left):
        return _read(server, way, questions, kept, left)


def ask_lists(
    server: Server,
    way: Way,
    lists: Sequence[ListQuestion],
    journal: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    sleep: Sleep = asyncio.sleep,
    on_wait: OnWait = lambda text: None,
) -> ListedAnswers:
    """
    Asks a server about several rows in each request; otherwise as [`ask`].

    Args:
        server, way, journal, on_progress, sleep, on_wait: see [`ask`]; the way is `"answers"`.
        lists (`Sequence[ListQuestion]`): the rows, [`~sinkd_llm.teachers.served.lists.list_questions`].

    Returns:
        [`ListedAnswers`]

    Raises:
        InputError: as [`ask`].
    """
    with _answered(server, way, lists, journal, on_progress, sleep, on_wait) as (kept, left):
        found = ListedAnswers([], len(lists), sum(len(one.rows) for one in lists))
        for one in lists:
            keys = [kept.key(call) for call in calls(server, way, one)]
            if (why := _why_left(keys, kept, left)) is not None:
                found.refused[one.name] = why
            else:
                found.add(one, [text for key in keys for text in kept.said(key)["texts"]])
        return found


def costs(server: Server, way: Way, questions: Sequence[Question], journal: Path) -> tuple[int, int, int]:
    """
    What asking all questions will cost, before the first is asked.

    Args:
        server, way, questions, journal: as for [`ask`].

    Returns:
        `tuple`: requests of which the journal has the answers; and of the others their number and about how many
        tokens they take, as [`~sinkd_llm.teachers.served.ways.projected`].
    """
    with Journal(journal, server, way) as kept:
        known = sum(kept.key(call) in kept for call in _all_calls(server, way, questions))
        return known, *projected(server, way, questions, lambda call: kept.key(call) not in kept)


@contextmanager
def _answered(
    server: Server,
    way: Way,
    questions: Sequence[Question],
    journal: Path,
    on_progress: Callable[[int, int], None],
    sleep: Sleep,
    on_wait: OnWait,
) -> Iterator[tuple[Journal, dict[str, str]]]:
    """The journal, after what is missing there has been asked; and the requests that have no answer, and why."""
    with Journal(journal, server, way) as kept:
        every = {kept.key(call): call for call in _all_calls(server, way, questions)}
        kept.refuse_change(every.keys())
        sending = Sending(server, way, kept, every, on_progress, on_wait)
        if any(key not in kept for key in every):
            run(sending.all(sleep))
        yield kept, sending.left


def _all_calls(server: Server, way: Way, questions: Sequence[Question]) -> Iterator[Call]:
    return (call for question in questions for call in calls(server, way, question))


def _why_left(keys: Sequence[str], journal: Journal, left: Mapping[str, str]) -> str | None:
    """Why a row has no answer; `None`: all of its requests have one."""
    if all(key in journal for key in keys):
        return None
    return next((left[key] for key in keys if key in left), "it was not asked")


def _read(
    server: Server, way: Way, questions: Sequence[Question], journal: Journal, left: Mapping[str, str]
) -> ServedAnswers:
    """The scores of all rows, from what the journal holds of them."""
    found = ServedAnswers(Answers(), len(questions))
    for question in questions:
        keys = [journal.key(call) for call in calls(server, way, question)]
        if (refused := _why_left(keys, journal, left)) is not None:
            found.refused[question.name] = refused
            continue
        said = [journal.said(key) for key in keys]
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
