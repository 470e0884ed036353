"""Several rows in one request: what is asked, and what is made of replies as real models give them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.teachers.questions import HARD, Question
from sinkd_llm.teachers.served.asking import ask_lists
from sinkd_llm.teachers.served.finding import find_way
from sinkd_llm.teachers.served.lists import list_answers, list_questions
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import projected
from tests.support.language_server import language_server

CHOICES = (" card arrival", " change pin", " fee", " 5-day card")
CARD, PIN, FEE, FIVE = range(4)
QUESTIONS = [
    Question(f"row-{i}", f"Customer: text {i}\nTopic:", CHOICES, f"text\n{i} is of {('card', 'pin', 'fee')[i % 3]}", i)
    for i in range(10)
]


async def at_once(seconds: float) -> None:
    """In place of waiting."""


@pytest.mark.parametrize(
    ("reply", "found", "paired"),
    [
        # As asked.
        ("1. card arrival\n2. change pin\n3. fee", [CARD, PIN, FEE], True),
        # Another way to write the same.
        ("**1.** Card Arrival\n\n**2)** `change_pin`\n- 3: fee.", [CARD, PIN, FEE], True),
        ("Text 1: card arrival\nText 2: change pin\nText 3: fee", [CARD, PIN, FEE], True),
        ("1. card arrival 2. change pin 3. fee", [CARD, PIN, FEE], True),
        ("1. Where is it? - card arrival\n2. My code: change pin\n3. text → fee", [CARD, PIN, FEE], True),
        ('```json\n["card arrival", "change pin", "fee"]\n```', [CARD, PIN, FEE], True),
        ('{"answers": ["card arrival", "change pin", "fee"]}', [CARD, PIN, FEE], True),
        ('{"3": "fee", "1": "card arrival", "2": "change pin"}', [CARD, PIN, FEE], True),
        ('[{"number": 2, "answer": "fee", "why": "…"}, {"number": 1, "answer": "change pin", "why": ""},'
         ' {"number": "3", "answer": "fee", "why": "x"}]', [PIN, FEE, FEE], True),
        ("card arrival\nchange pin\n\nfee\n", [CARD, PIN, FEE], True),
        ("- card arrival\n- change pin\n- fee", [CARD, PIN, FEE], True),
        # A sentence before and after the list.
        ("Sure! The 3 answers:\n1. card arrival\n2. change pin\n3. fee\nAnything else?", [CARD, PIN, FEE], True),
        ("Here they are:\ncard arrival\nchange pin\nfee\nGood luck!", [CARD, PIN, FEE], True),
        # Another order, two rows together, the same twice.
        ("3. fee\n1. card arrival\n2. change pin", [CARD, PIN, FEE], True),
        ("1 and 2. fee\n3. card arrival", [FEE, FEE, CARD], True),
        ("1-3: fee", [FEE, FEE, FEE], True),
        ("1. fee\n2. fee\n2. Fee\n3. fee", [FEE, FEE, FEE], True),
        # A choice that looks like a number, and an answer that is no choice.
        ("5-day card\nfee\n5-day card", [FIVE, FEE, FIVE], True),
        ("1. 5-day card\n2. weather\n3. fee", [FIVE, None, FEE], True),
        ('["fee", null, "fee"]', [FEE, None, FEE], True),
        # One is left out, or there is one too many: nobody knows which.
        ("1. card arrival\n2. fee", [CARD, FEE], False),
        ("1. card arrival\n3. fee", [CARD, FEE], False),
        ("1. card arrival\n2. fee\n3. fee\n4. change pin", [CARD, FEE, FEE, PIN], False),
        ("1. card arrival\n2. fee\n2. change pin\n3. fee", [CARD, FEE, PIN, FEE], False),
        ("card arrival\nfee", [CARD, FEE], False),
        ("card arrival\nfee\nfee\nfee", [CARD, FEE, FEE, FEE], False),
        # As many, but the numbers are those of other rows.
        ("1. card arrival\n2. fee\n4. change pin", [CARD, FEE, PIN], False),
        # All on one line, or behind what a model thought.
        ("card arrival, fee, change pin", [CARD, FEE, PIN], True),
        ("card arrival; fee; fee", [CARD, FEE, FEE], True),
        ("card arrival | fee", [CARD, FEE], False),
        ("1: card arrival, 2: fee, 3: change pin", [CARD, FEE, PIN], True),
        ("<think>\n1. fee\n2. fee\n3. fee\n</think>\n1. card arrival\n2. fee\n3. change pin", [CARD, FEE, PIN], True),
        ("1. fee\n2. fee\n</think>\n\ncard arrival\nfee\nchange pin", [CARD, FEE, PIN], True),
        # Two choices for one row are no answer.
        ("1. card arrival or fee\n2. fee\n3. change pin, fee", [None, FEE, None], True),
        ("", [], False),
        ("I cannot do that.", [None], False),
        ("[1, 2, 3]", [None], False),
    ],
)  # fmt: skip
def test_replies_as_models_write_them(reply: str, found: list[int | None], paired: bool) -> None:
    read = list_answers(reply, CHOICES, 3)
    assert [*read.choices] == found
    assert read.paired == paired
    assert len(read.other) == found.count(None)


@pytest.mark.parametrize(
    ("answers", "rows", "copied"),
    [
        ("card arrival|change pin|fee|5-day card", 4, True),
        ("card arrival|change pin|fee|5-day card", 8, True),
        ("card arrival|change pin|fee|5-day card|weather|weather", 6, True),
        ("card arrival|change pin|fee", 3, False),
        ("card arrival|change pin", 2, False),
        ("card arrival|fee|change pin|5-day card", 4, False),
        ("fee|card arrival|change pin|fee", 4, False),
    ],
)
def test_a_list_of_the_choices_is_no_answer(answers: str, rows: int, copied: bool) -> None:
    read = list_answers(numbered(answers.split("|")), CHOICES, rows)
    assert read.copied == copied
    assert read.choices == () if copied else len(read.choices) == rows


def test_a_list_of_one_row_is_an_answer() -> None:
    assert list_answers("fee", CHOICES, 1).paired
    assert list_answers("1. fee", CHOICES, 1).choices == (FEE,)


def test_lists_mix_rows_and_hold_each_once() -> None:
    lists = list_questions(QUESTIONS, 4)
    assert [len(one.rows) for one in lists] == [4, 4, 2]
    assert sorted(row.name for one in lists for row in one.rows) == sorted(question.name for question in QUESTIONS)
    assert list_questions(QUESTIONS[::-1], 4) == lists  # of the names alone
    assert [row.name for one in lists for row in one.rows] != [question.name for question in QUESTIONS]
    prompt = lists[0].prompt
    assert "Below are 4 numbered texts" in prompt
    assert "\ncard arrival\nchange pin\nfee\n5-day card\n" in prompt
    first = lists[0].rows[0]
    assert first.text is not None
    assert f"\n1. {' '.join(first.text.split())}\n2. " in prompt
    # Room for an answer to each.
    assert lists[0].longest_answer() >= 4 * len(" card arrival")
    with pytest.raises(InputError, match="have different choices"):
        list_questions([*QUESTIONS, Question("odd", "", (" yes", " no"))], 4)


def right(prompt: str) -> list[str]:
    """The answers to the texts of a prompt, by the word at their end."""
    words = {"card": "card arrival", "pin": "change pin", "fee": "fee"}
    texts = prompt.split("Texts:\n")[1].split("\n\nAnswers:")[0].splitlines()
    return [words[text.rsplit(" ", 1)[1]] for text in texts]


def numbered(answers: list[str]) -> str:
    return "\n".join(f"{number}. {answer}" for number, answer in enumerate(answers, 1))


def test_pairs_and_sets_come_from_one_run(tmp_path: Path) -> None:
    lists = list_questions(QUESTIONS, 3)
    # The test request, then the lists: as asked; one left out; one twice; and of the last row nothing.
    wrong = [
        lambda said: numbered(said),
        lambda said: "Here they are:\n" + numbered(said),
        lambda said: numbered(said[:-1]),
        lambda said: numbered([said[0], *said]),
        lambda said: "I do not know.",
    ]
    with language_server(style="chat", says=lambda prompt, number: wrong[number](right(prompt))) as state:
        server = Server(state.url, rows_per_request=3, concurrency=1, way="answers")
        way = find_way(server, lists[0])
        said = ask_lists(server, way, lists, tmp_path / "journal.jsonl", sleep=at_once)
        again = ask_lists(server, way, lists, tmp_path / "journal.jsonl", sleep=at_once)
        assert len(state.requests) == 5  # what was answered is not asked again
        assert state.requests[1][1]["max_tokens"] >= 3 * len(" card arrival")
    assert [one.names for one in again.sets] == [one.names for one in said.sets]
    truth = {question.name: question.position % 3 for question in QUESTIONS}
    pairs, fewer, more = said.sets
    assert (pairs.paired, fewer.paired, more.paired) == (True, False, False)
    assert [int(scores_C.argmax()) for scores_C in pairs.scores_MC] == [truth[name] for name in pairs.names]
    assert pairs.scores_MC.min() == HARD
    assert (fewer.times_M.sum(), more.times_M.sum()) == (2, 4)
    assert len(fewer.names) == len(more.names) == 3
    assert {*said.answers()} == {*pairs.names}
    sentences = " ".join(said.sentences())
    assert "1 of 4 lists (10 rows) have an answer for each row" in sentences
    assert "1 with fewer answers than rows; 1 with more answers than rows" in sentences
    assert "1 lists with 1 rows have no answer that is a choice" in sentences
    assert "'I do not know.' (1 ×)" in sentences


def test_rows_whose_answer_is_no_choice_are_left_out_of_their_pairs(tmp_path: Path) -> None:
    lists = list_questions(QUESTIONS[:3], 3)
    with language_server(style="chat", says=lambda prompt, number: "1. fee\n2. weather\n3. change pin") as state:
        server = Server(state.url, rows_per_request=3)
        way = find_way(Server(state.url, way="answers"), lists[0])
        said = ask_lists(server, way, lists, tmp_path / "journal.jsonl")
    (one,) = said.sets
    assert one.paired
    assert one.names == tuple(row.name for row in lists[0].rows if row is not lists[0].rows[1])
    assert said.no_choice == {"weather": 1}


def test_drawn_lists_are_shares_of_pairs_or_one_set(tmp_path: Path) -> None:
    lists = list_questions(QUESTIONS[:2], 2)
    replies = ["1. fee\n2. fee", "1. fee\n2. change pin", "1. card arrival\n2. fee", "1. fee\n2. fee"]

    def asked(last: str, name: str) -> Any:
        says = [replies[0], *replies[:3], last]
        with language_server(style="chat", says=lambda prompt, number: says[number]) as state:
            server = Server(state.url, rows_per_request=2, samples=4, concurrency=1, way="answers")
            way = find_way(server, lists[0])
            # One answer a request is what this server gives: the second test request has failed.
            state.says = lambda prompt, number: [*replies[:3], last][number - 2]
            return ask_lists(server, way, lists, tmp_path / name, sleep=at_once)

    (one,) = asked(replies[3], "pairs").sets
    assert one.paired
    np.testing.assert_allclose(np.exp(one.scores_MC[:, FEE]), [3 / 4, 3 / 4], rtol=1e-5)
    np.testing.assert_allclose(np.exp(one.scores_MC[0, CARD]), 1 / 4, rtol=1e-5)
    (one,) = asked("fee", "set").sets
    assert not one.paired
    assert dict(zip(one.scores_MC.argmax(axis=1).tolist(), one.times_M.tolist(), strict=True)) == {
        FEE: 5,
        PIN: 1,
        CARD: 1,
    }


def test_lists_are_counted_and_limited_as_single_requests(tmp_path: Path) -> None:
    lists = list_questions(QUESTIONS, 4)
    with language_server(style="chat", says=lambda prompt, number: numbered(right(prompt))) as state:
        server = Server(state.url, rows_per_request=4, concurrency=1, max_requests=3, way="answers")
        way = find_way(server, lists[0])
        requests, tokens = projected(server, way, lists)
        assert requests == 3
        assert tokens > sum(len(one.prompt) for one in lists) / 20
        with pytest.raises(
            InputError, match=r"3 requests are sent \(1 of them .* as many as teacher_max_requests allows, and 2 of 3"
        ):
            ask_lists(server, way, lists, tmp_path / "journal.jsonl", sleep=at_once)
        said = ask_lists(server, way, lists, tmp_path / "journal.jsonl", sleep=at_once)
    assert sum(one.paired for one in said.sets) == 3
    assert len(said.answers()) == 10


def test_settings_of_lists_are_checked() -> None:
    with pytest.raises(SettingError, match="teacher_rows_per_request is 0"):
        Server("http://x/v1", rows_per_request=0)
    with pytest.raises(SettingError, match="teacher_way is scores, and teacher_rows_per_request 4 asks for lists"):
        Server("http://x/v1", rows_per_request=4, way="scores")
