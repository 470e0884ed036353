"""Which way works on which server, what it costs, and what it gives when all goes well."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.questions import HARD, Question
from sinkd_llm.teachers.served.asking import ask
from sinkd_llm.teachers.served.finding import find_way
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import projected
from tests.support.language_server import language_server, logprob, tokens_of

QUESTIONS = [
    Question(f"row-{i}", f"Text {i}: a film of {word}.\nIt was", (" good", " very bad indeed"))
    for i, word in enumerate(("joy", "noise", "little wit"))
]


async def at_once(seconds: float) -> None:
    """In place of waiting."""


def likelihood(prompt: str, answer: str) -> list[float]:
    """The made-up model's log-probabilities of an answer's tokens."""
    tokens = ["<s>", *tokens_of(prompt), *tokens_of(answer)]
    first = len(tokens) - len(tokens_of(answer))
    return [logprob(tokens[i - 1], tokens[i]) for i in range(first, len(tokens))]


@pytest.mark.parametrize("style", ["vllm", "sglang", "llama-cpp-python"])
@pytest.mark.parametrize("normalisation", ["sum", "token"])
def test_choices_are_scored_exactly(style: str, normalisation: str, tmp_path: Path) -> None:
    with language_server(style=style) as state:
        server = Server(state.url, choice_normalisation=normalisation)
        way = find_way(server, QUESTIONS[0])
        assert (way.name, way.model, way.remarks) == ("scores", "toy", ())
        said = ask(server, way, QUESTIONS, tmp_path / "journal.jsonl")
    assert said.sentences() == []
    for question in QUESTIONS:
        parts = [likelihood(question.prompt, choice) for choice in question.choices]
        wanted = [sum(part) / (len(part) if normalisation == "token" else 1) for part in parts]
        np.testing.assert_allclose(said.answers[question.name], wanted, atol=1e-6)


def test_white_space_at_the_prompts_end_is_of_the_answer(tmp_path: Path) -> None:
    question = Question("row", "Text: joy.\nIt was ", ("good", "bad"))
    with language_server() as state:
        server = Server(state.url)
        said = ask(server, find_way(server, question), [question], tmp_path / "journal.jsonl")
    wanted = [sum(likelihood("Text: joy.\nIt was", f" {choice}")) for choice in question.choices]
    np.testing.assert_allclose(said.answers["row"], wanted, atol=1e-6)
    assert said.crossed == 0


def test_a_token_over_the_border_is_compared_with_the_prompts_own(tmp_path: Path) -> None:
    question = Question("row", "It was un", ("known", " good"))
    with language_server() as state:
        server = Server(state.url)
        said = ask(server, find_way(server, question), [question], tmp_path / "journal.jsonl")
    crossing = logprob(" was", " unknown") - logprob(" was", " un")
    np.testing.assert_allclose(said.answers["row"], [crossing, logprob(" un", " good")], atol=1e-6)
    assert said.crossed == 1
    assert "crosses the border" in said.sentences()[0]


def test_characters_without_a_token_of_their_own_are_found_by_the_prompt_alone(tmp_path: Path) -> None:
    """A character of several tokens has no text in any of them."""
    question = Question("row", "Café: the café was", (" né d'été", " good"))

    def spoil(number: int, reply: dict[str, Any]) -> None:
        parts = reply["choices"][0]["logprobs"]
        parts["tokens"] = [token.replace("é", "\ufffd\ufffd") for token in parts["tokens"]]

    with language_server(spoil=spoil) as state:
        server = Server(state.url)
        said = ask(server, find_way(server, question), [question], tmp_path / "journal.jsonl")
    wanted = [sum(likelihood(question.prompt, choice)) for choice in question.choices]
    np.testing.assert_allclose(said.answers["row"], wanted, atol=1e-6)
    assert said.crossed == 0


@pytest.mark.parametrize(
    ("style", "why"),
    [
        ("llama-server", "does not repeat the prompt"),
        ("shifted", "of the tokens one place later"),
        ("chat", "404"),
    ],
)
def test_servers_without_scores_of_prompts_are_told_apart(style: str, why: str) -> None:
    with language_server(style=style) as state:
        way = find_way(Server(state.url), QUESTIONS[0], sleep=at_once)
        assert way.name == "answers"
        assert why in way.remarks[0]
        with pytest.raises(InputError, match=r"'scores' does not work .* Give another teacher_way"):
            find_way(Server(state.url, way="scores"), QUESTIONS[0], sleep=at_once)


def test_numbers_of_other_tokens_are_found_where_their_count_is_right() -> None:
    """The shift of llama-cpp-python, where the model ends at once and so generates no token that would be missed."""

    def spoil(number: int, reply: dict[str, Any]) -> None:
        if "echo" in state.requests[number][1]:
            reply["usage"]["completion_tokens"] = 0
            reply["choices"][0]["text"] = state.requests[number][1]["prompt"]

    with language_server(style="shifted", spoil=spoil) as state:
        way = find_way(Server(state.url), QUESTIONS[0], sleep=at_once)
    assert way.name == "answers"
    assert "belong to other tokens" in way.remarks[0]


def test_zeros_are_no_log_probabilities() -> None:
    def spoil(number: int, reply: dict[str, Any]) -> None:
        parts = reply["choices"][0].get("logprobs")
        if parts:
            parts["token_logprobs"] = [0.0 for _ in parts["token_logprobs"]]

    with language_server(spoil=spoil) as state:
        way = find_way(Server(state.url), QUESTIONS[0])
    assert "says 0 for every token" in way.remarks[0]


@pytest.mark.parametrize("style", ["chat", "llama-server"])
def test_likeliest_tokens(style: str, tmp_path: Path) -> None:
    questions = [Question(name, name, (" good", " bad", " odd")) for name in ("seen", "unseen", "split", "other")]
    shown = {
        "seen": {"good": 0.5, " Good": 0.1, "bad": 0.3, "The": 0.05},
        "unseen": {"good": 0.9, "The": 0.04},
        "split": {"good": 0.9, "b": 0.05},
        "other": {"The": 0.9},
    }
    with language_server(style=style, top=shown.__getitem__) as state:
        server = Server(state.url)
        way = find_way(server, questions[0])
        assert (way.name, way.top, way.chat) == ("top_logprobs", 20, style == "chat")
        assert projected(server, way, questions)[0] == 4
        said = ask(server, way, questions, tmp_path / "journal.jsonl")
    np.testing.assert_allclose(said.answers["seen"], np.log([0.6, 0.3, 0.05]), atol=1e-6)
    # 0.06 was not shown: half of it for each of the two, and no more than the smallest that was.
    np.testing.assert_allclose(said.answers["unseen"], np.log([0.9, 0.03, 0.03]), atol=1e-6)
    assert said.without.keys() == {"split", "other"}
    assert "several tokens" in said.without["split"]
    assert "no choice is among the 1" in said.without["other"]
    np.testing.assert_allclose(said.unseen, [0.05, 0.06, 0.05, 0.1], atol=1e-6)
    assert [line.split(";")[0] for line in said.sentences()] == [
        "2 of 4 rows have no teacher",
        "The server did not show 6.50% of the probability on average and 10.00% at most.",
    ]


def test_of_a_continued_prompt_the_choice_with_its_delimiter_counts(tmp_path: Path) -> None:
    """Other tokens of the same word are no answer of a local model, either; they count where there is no other."""
    shown = {
        "It was": {" good": 0.5, "good": 0.2, " Good": 0.1, " bad": 0.1},
        "It is": {" Good": 0.5, "good": 0.2, "bad": 0.1},
    }
    questions = [Question(prompt, f"{prompt} ", ("good", "bad")) for prompt in shown]
    with language_server(style="llama-server", top=shown.__getitem__) as state:
        server = Server(state.url)
        said = ask(server, find_way(server, questions[0]), questions, tmp_path / "journal.jsonl")
    np.testing.assert_allclose(said.answers["It was"], np.log([0.5, 0.1]), atol=1e-6)
    np.testing.assert_allclose(said.answers["It is"], np.log([0.7, 0.1]), atol=1e-6)


def test_choices_of_several_tokens_are_not_guessed_from_the_first() -> None:
    top = {"positive": 0.6, "neg": 0.4}
    question = Question("row", "Well?", (" positive", " negative"))
    with language_server(style="chat", top=lambda prompt: top) as state:
        assert "several tokens" in find_way(Server(state.url), question).remarks[1]
        with pytest.raises(InputError, match="choice 'negative' has several tokens, of which 'neg'"):
            find_way(Server(state.url, way="top_logprobs"), question)


def test_fewer_likeliest_tokens_and_another_word_for_the_limit() -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            text = b'{"error": {"message": "Unsupported \'max_tokens\': use \'max_completion_tokens\' instead."}}'
            return 400, {}, text
        if body.get("top_logprobs", 0) > 5:
            return 400, {}, b'{"error": {"message": "top_logprobs must be at most 5"}}'
        return None

    with language_server(style="chat", top=lambda prompt: {"good": 0.9, "bad": 0.1}, fault=fault) as state:
        way = find_way(Server(state.url), Question("row", "Well?", (" good", " bad")))
    assert (way.name, way.top, way.limit) == ("top_logprobs", 5, "max_completion_tokens")


ANSWERS: dict[str, Callable[[str, int], str]] = {
    "joy": lambda prompt, number: " Good.\n",
    "noise": lambda prompt, number: "very BAD indeed",
    "little wit": lambda prompt, number: "I cannot say.",
}


def test_answers_as_text(tmp_path: Path) -> None:
    def says(prompt: str, number: int) -> str:
        return next(answer(prompt, number) for word, answer in ANSWERS.items() if word in prompt)

    with language_server(style="chat", says=says) as state:
        server = Server(state.url)
        way = find_way(server, QUESTIONS[0])
        said = ask(server, way, QUESTIONS, tmp_path / "journal.jsonl")
        assert state.requests[-1][1]["temperature"] == 0
    assert {name: scores.tolist() for name, scores in said.answers.items()} == {
        "row-0": [0, HARD],
        "row-1": [HARD, 0],
    }
    assert said.no_choice == {"I cannot say.": 1}
    assert "1 of 3 rows have no teacher; the first is row-2" in said.sentences()[0]


@pytest.mark.parametrize("together", [1, 8])
def test_frequencies_of_answers(together: int, tmp_path: Path) -> None:
    drawn = iter(["good", "good", "very bad indeed", "Hm", "good"])

    def says(prompt: str, number: int) -> str:
        return next(drawn) if counting else "good"

    counting = False
    with language_server(style="chat", says=says, most_answers=together) as state:
        server = Server(state.url, samples=5, concurrency=1)
        way = find_way(server, QUESTIONS[0])
        assert way.together == (1 if together == 1 else 5)
        assert projected(server, way, QUESTIONS)[0] == (15 if together == 1 else 3)
        counting = True
        said = ask(server, way, QUESTIONS[:1], tmp_path / "journal.jsonl")
        assert state.requests[-1][1]["temperature"] == 1
    np.testing.assert_allclose(said.answers["row-0"], np.log([0.75, 0.25]), atol=1e-6)
    assert said.no_choice == {"Hm": 1}


def test_a_base_model_without_a_chat_answers_completions(tmp_path: Path) -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        return (404, {}, b'{"detail": "Not Found"}') if "messages" in body else None

    with language_server(style="llama-server", fault=fault) as state:
        server = Server(state.url)
        way = find_way(server, QUESTIONS[0])
        assert (way.name, way.chat) == ("answers", False)
        assert ask(server, way, QUESTIONS, tmp_path / "journal.jsonl").answers["row-0"].tolist() == [0, HARD]


def test_costs_are_known_before_the_first_row() -> None:
    with language_server() as state:
        server = Server(state.url)
        way = find_way(server, QUESTIONS[0])
        tests = len(state.requests)
        requests, tokens = projected(server, way, QUESTIONS)
        assert len(state.requests) == tests <= 10
    counted = [len(tokens_of(q.prompt + choice)) + 2 for q in QUESTIONS for choice in q.choices]
    assert requests == len(counted) == 6
    assert math.isclose(tokens, sum(counted), rel_tol=0.2)
    assert projected(server, replace(way, name="answers"), QUESTIONS)[0] == 3
