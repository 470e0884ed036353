"""Whatever stands in a reply, it is read or told apart; and how answers become choices."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sinkd_llm.teachers.answer_texts import matched
from sinkd_llm.teachers.served.matching import choices_seen, frequencies
from sinkd_llm.teachers.served.replies import WrongReply, scored_text, texts, top_tokens
from tests.support.language_server import LanguageServer

WEIRD: list[Any] = [None, True, -1, 10**400, math.nan, math.inf, "", "x", [], [None], {}, {"x": []}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each part of a reply stands."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = by
    return value


TEXT = "It was good"
SCORED = LanguageServer()._completion({"prompt": TEXT, "logprobs": 1, "echo": True}, 0)
CHAT = LanguageServer(top=lambda prompt: {"good": 0.6, "bad": 0.3})._chat(
    {"messages": [{"content": TEXT}], "logprobs": True, "top_logprobs": 5}, 0
)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (SCORED, lambda reply: scored_text(reply, TEXT).numbers(1)),
        (SCORED, lambda reply: [top and top[1] + 1.0 for top in scored_text(reply, TEXT).likeliest]),
        (CHAT, top_tokens),
        (CHAT, lambda reply: texts(reply, 1)),
    ],
)
def test_any_part_of_a_reply_may_be_anything(reply: Any, read: Callable[[Any], Any]) -> None:
    assert read(reply)
    refused = 0
    for path in places(reply):
        for value in WEIRD:
            try:
                read(replaced(reply, path, value))
            except WrongReply:
                refused += 1
    assert refused > 20


def test_answers_are_choices_by_whole_words() -> None:
    choices = (" no", " note", " card", " card_arrival", " 1", " 10")
    meant = {
        "No": 0,
        "no, because": 0,
        "nothing": None,
        "Note: this": 1,
        "card arrival.": 3,
        "card_arrival": 3,
        "card, arrived": 2,
        "1.": 4,
        "10": 5,
        "100": None,
        "": None,
        "the answer is no": None,
        "**Card Arrival**": 3,
        "“card_arrival”": 3,
        "The answer is: card arrival.": 3,
        "**Topic:** note": 1,
        "Answer:\n`no`": 0,
        "Topic: card, I think": None,
        "Topic: nothing": None,
        "It is a card, not a note: card": None,
        "This is not: card": None,
        "at 7:10": None,
        "1.5": None,
    }
    assert {text: matched(text, choices) for text in meant} == meant
    assert matched("yes.", (" Yes", " yes")) is None


CARDS = (" card", " card payment", " card payment fee charged", " card_lost", " lost")


@pytest.mark.parametrize(
    ("choices", "meant"),
    [
        (
            CARDS,
            {
                **dict.fromkeys(["card-payment", "Card payment because it", "card payment: a card was charged"], 1),
                **dict.fromkeys(["card-payment-fee-charged", "card payment-fee-charged"], 2),
                **dict.fromkeys(["card-lost", "card\\_lost", "card\u2011lost", "card\xad lost", "**card lost**"], 3),
                "card lost: the customer lost a card": 3,
                "card lost, because the card was charged for a card payment": 3,
            },
        ),
        (
            CARDS,
            dict.fromkeys(
                [
                    *("card.lost", "card+lost", "card=lost", "lost-card", "card: no", "card: 10%, lost: 90%"),
                    *("Card: yes. Lost: no", "The answer cannot be: card", "Anything but: card", "wrong: card"),
                    *("I would exclude: card", "isnt: card", "cards", "card is wrong"),
                ]
            ),
        ),
        (
            ("positive", "negative"),
            {
                **dict.fromkeys(
                    ["Positive. The film is not bad.", "Positive – the reviewer loved it", "Positive\nFun"], 0
                ),
                "Positive, because it is not negative": 0,
                **dict.fromkeys(
                    f"positive{between}negative" for between in ("\n", " - ", " vs. ", " & ", " + ", "、")
                ),
                **dict.fromkeys(["positive und negative", "Positive - no, negative", "Positive is wrong"]),
            },
        ),
        (
            ("1", "2", "3", "4", "5"),
            {
                **dict.fromkeys(["1.", "1, because", "1: bad", "1) bad", "1\nbad"], 0),
                **dict.fromkeys(["1-2", "1 to 2", "1..2", "1~2", "1 -> 2", "1&2", "1\n2", "1, but maybe 2", "1:5"]),
                **dict.fromkeys(["1. Because\n2. Foo", "5 - 1", "4 .5", "1,5", "4/5", "1 star"]),
            },
        ),
        (
            ("A", "B", "C"),
            {
                **dict.fromkeys(["A.", "A) cat", "A: a cat", "Answer: A", "A\nbecause it"], 0),
                **dict.fromkeys(["A good answer is B", "A-B", "A & B", "A B", "A cat"]),
            },
        ),
        (("no", "yes"), {"No, the text does not say so.": 0, "no because yes": 0, "No. Yes.": None, "No? Yes!": None}),
        (("entailment", "not_entailment"), {"not entailment": 1, "not-entailment": 1, "Entailment.": 0}),
    ],
)
def test_an_answer_that_could_be_two_choices_is_none(choices: tuple[str, ...], meant: dict[str, int | None]) -> None:
    assert {text: matched(text, choices) for text in meant} == meant


def test_frequencies_are_shares_of_the_answers_that_are_choices() -> None:
    assert frequencies(["a", "b", "A.", "c"], (" a", " b", " d")) == (
        [math.log(2 / 3), math.log(1 / 3), -math.inf],
        ["c"],
    )
    assert frequencies(["c"], (" a", " b")) == (None, ["c"])


def test_a_choice_that_begins_another_one_may_be_its_first_token() -> None:
    top = [("card", math.log(0.7)), ("other", math.log(0.2))]
    assert "several tokens, of which 'card'" in choices_seen(top, (" card", " card arrival")).problem
    assert choices_seen(top, (" card", " other")).scores_C == pytest.approx([math.log(0.7), math.log(0.2)])
    # With next to no probability it says nothing of a choice that was not shown.
    rare = [("card", math.log(0.9)), ("o", math.log(0.001))]
    assert choices_seen(rare, (" card", " other")).scores_C == pytest.approx([math.log(0.9), math.log(0.001)])
