"""A server is asked about all rows of a run: what that costs is said before, and what came of it after."""

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sinkd_llm.errors import InputError
from sinkd_llm.files import cache_dir
from sinkd_llm.teachers.answer_texts import choice_words, named_answers
from sinkd_llm.teachers.cache.answers import Said
from sinkd_llm.teachers.questions import Question
from sinkd_llm.teachers.served.asking import ServedAnswers, ask, ask_lists, costs
from sinkd_llm.teachers.served.finding import find_way
from sinkd_llm.teachers.served.listed_answers import ListedAnswers
from sinkd_llm.teachers.served.lists import ListQuestion, list_questions
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import Way
from sinkd_llm.terminal import progress, say

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig

_Asked = TypeVar("_Asked", bound=Question)

_WAYS = {
    "scores": "for the log-likelihood of each choice",
    "top_logprobs": "for the likeliest first tokens of its answer",
    "answers": "for its answers alone",
}


def ask_server(
    args: "SinKDConfig", questions: Sequence[Question], held_out: Sequence[Question]
) -> tuple[Said, Mapping[str, Any]]:
    """
    What the server that `args` name says of rows. Its answers are kept in a journal of the server.

    Args:
        args ([`SinKDConfig`]): the teacher.
        questions (sequence of [`Question`]): the training rows.
        held_out (sequence of [`Question`]): the rows for evaluation.

    Returns:
        `tuple`: what it says of the training rows, and of the rows for evaluation.

    Raises:
        InputError: as [`~sinkd_llm.teachers.served.asking.ask`]; if no training row has an answer.
    """
    server = Server(
        str(args.teacher_url),
        args.teacher_model,
        samples=args.teacher_samples,
        max_requests=args.teacher_max_requests,
        concurrency=args.teacher_concurrency,
        choice_normalisation=args.choice_normalisation,
        way=args.teacher_way,
        rows_per_request=args.teacher_rows_per_request,
    )
    journal = cache_dir() / "answers" / f"{hashlib.blake2b(server.url.encode(), digest_size=8).hexdigest()}.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    # Both splits may count their ids from 0, and what is asked together is told apart by names.
    apart = _renamed(held_out, {question.name for question in questions})
    if server.rows_per_request > 1:
        return _in_lists(server, questions, held_out, apart, journal)
    way = find_way(server, questions[0], others=_others(questions), on_wait=say)
    every = [*questions, *(apart[question.name] for question in held_out)]
    _say_costs(server, way, every, len(every), journal)
    with progress(f"Asking {way.model}") as on_progress:
        said = ask(server, way, every, journal, on_progress, on_wait=say)
    for sentence in said.sentences():
        say(sentence)
    taught = {question.name: said.answers[question.name] for question in questions if question.name in said.answers}
    if not taught:
        raise _no_answers(way, questions, said)
    return taught, _of_evaluation(said.answers, apart)


def _renamed(held_out: Sequence[Question], taken: AbstractSet[str]) -> dict[str, Question]:
    """Rows by their names; if any of these is taken, the rows have others, of which none is."""
    more = ""
    while any(question.name + more in taken for question in held_out):
        more += " (evaluation)"
    return {question.name: replace(question, name=question.name + more) for question in held_out}


def _of_evaluation(answers: Mapping[str, Any], apart: Mapping[str, Question]) -> dict[str, Any]:
    """What is said of the rows for evaluation, by their own names."""
    return {name: answers[asked.name] for name, asked in apart.items() if asked.name in answers}


def _in_lists(
    server: Server,
    questions: Sequence[Question],
    held_out: Sequence[Question],
    apart: Mapping[str, Question],
    journal: Path,
) -> tuple[Said, Mapping[str, Any]]:
    """The same, several rows in a request."""
    lists = [list_questions(part, server.rows_per_request) if part else [] for part in (questions, held_out)]
    # The names of rows say which of them are asked together, and are changed after that.
    lists[1] = [_with_rows(one, tuple(apart[row.name] for row in one.rows)) for one in lists[1]]
    server = replace(server, way="answers")
    way = find_way(server, lists[0][0], others=_others(lists[0]), on_wait=say)
    every = [*lists[0], *lists[1]]
    _say_costs(server, way, every, len(questions) + len(held_out), journal)
    with progress(f"Asking {way.model}") as on_progress:
        found = ask_lists(server, way, every, journal, on_progress, on_wait=say)
    for sentence in found.sentences():
        say(sentence)
    taught = {question.name for question in questions}
    sets = [one for one in found.sets if one.names[0] in taught]
    if not sets:
        raise _no_answers(way, questions, found)
    return sets, _of_evaluation(found.answers(), apart)


def _with_rows(asked: ListQuestion, rows: tuple[Question, ...]) -> ListQuestion:
    """A list whose rows have other names."""
    return replace(asked, name=asked.name.replace(asked.rows[0].name, rows[0].name, 1), rows=rows)


def _others(questions: Sequence[_Asked]) -> list[_Asked]:
    """Two more rows to find out how a server answers, should it refuse the first one."""
    return [questions[index] for index in sorted({len(questions) // 2, len(questions) - 1} - {0})]


def _say_costs(server: Server, way: Way, questions: Sequence[Question], rows: int, journal: Path) -> None:
    known, requests, tokens = costs(server, way, questions, journal)
    how = _WAYS[way.name] if server.rows_per_request == 1 else f"in lists of {server.rows_per_request}"
    takes = f"That takes at most {requests:,} requests with about {tokens:,} tokens"
    if known:
        takes = f"Of the requests, {known:,} are answered already (they are kept in {journal})"
        takes += (
            f"; the others are at most {requests:,}, with about {tokens:,} tokens" if requests else ": all of them"
        )
    say(f"{way.model} on {server.shown_url} is asked about {rows:,} rows, {how}. {takes}")
    for remark in way.remarks:
        say(remark)


def _no_answers(way: Way, questions: Sequence[Question], said: ServedAnswers | ListedAnswers) -> InputError:
    """Why there is nothing to learn from, and what to do about it."""
    instead = f" It said {named_answers(said.no_choice, 3)}." if said.no_choice else ""
    return InputError(
        f"No answer of {way.model} to the {len(questions):,} training rows is one of their choices "
        f"({choice_words(questions[0].choices, 4)}), so there is nothing to learn from.{instead} Let the prompt name "
        "the choices and ask for one of them alone, as it is written."
    )
