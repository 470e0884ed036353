"""Which choice a written answer is."""

from sinkd_llm.teachers.answer_texts import choice_meant, named_answers


def test_what_writers_change_does_not_count() -> None:
    choices = (" card arrival", " IT", " Refund_not_showing_up")
    for answer in ("card arrival", "card_arrival", "  Card  Arrival\n"):
        assert choice_meant(answer, choices) == 0
    assert choice_meant("it", choices) == 1
    assert choice_meant("Cafe\u0301", ("Tee", "caf\u00e9")) == 1  # e and an accent, or one letter
    assert choice_meant("refund not showing up", choices) == 2
    for answer in ("", "card", "card arrival.", "None", "true"):
        assert choice_meant(answer, choices) is None


def test_a_choice_is_itself_before_it_is_like_another() -> None:
    choices = ("US", "us", "a_b", "none")
    assert [choice_meant(answer, choices) for answer in choices] == [0, 1, 2, 3]
    assert choice_meant("Us", choices) is None
    assert choice_meant("None", choices) == 3


def test_answers_are_named_with_their_counts() -> None:
    assert named_answers({"b": 1, "a": 1200}) == "'a' (1,200 ×), 'b' (1 ×)"
    assert named_answers(dict.fromkeys("abcdefg", 1)).endswith("'e' (1 ×), and 2 others")
