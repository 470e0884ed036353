"""Labels: a value that is one of the words is the word; an index only where nothing else is possible."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks.labels import LabelReader, Target

STARS = ("1", "2", "3", "4", "5")


def read(values: list[Any], words: tuple[str, ...] = ("no", "yes"), **settings: Any) -> list[int | None]:
    targets = [Target(value, words, f"row {i}") for i, value in enumerate(values)]
    return LabelReader("mine", "doc_to_target in mine.yaml", **settings).read(targets)


@pytest.mark.parametrize(
    ("values", "words", "labels"),
    [
        (["no", "yes", " yes", "yes "], ("no", "yes"), [0, 1, 1, 1]),
        ([0, 1, 1.0, "1", "0", "1.0", "+1", " 1 "], ("no", "yes"), [0, 1, 1, 1, 0, 1, 1, 1]),
        ([np.int64(1), np.float32(0.0), np.str_("yes"), np.bool_(True)], ("no", "yes"), [1, 0, 1, 1]),
        ([True, False], ("True", "False"), [0, 1]),
        ([True, False], ("false", "true"), [1, 0]),
        ([True, False, "true", "FALSE"], ("yes", "no"), [0, 1, 0, 1]),
        ([1, 5, 3], STARS, [0, 4, 2]),
        ([1, 2, 3], STARS, [0, 1, 2]),
        ([5.0, "5.0", "5"], STARS, [4, 4, 4]),
        ([1, 2], ("1.0", "2.0"), [0, 1]),
        ([0, 1, 2], ("0", "1", "2+"), [0, 1, 2]),
        ([-1, 0, 1], ("-1", "0", "1"), [0, 1, 2]),
        ([-1, 1], ("negative", "positive"), [None, 1]),
        ([None, math.nan, pd.NA, pd.NaT, "", " ", "nan", "null", "-1", -1.0], ("no", "yes"), [None] * 10),
        (["none", "some"], ("none", "some"), [0, 1]),
        (["A", "a"], ("a", "A"), [1, 0]),
        (["fa\u0308llig", "f\xe4llig "], ("gesperrt", "f\xe4llig"), [1, 1]),
        (["f\xe4llig", "fa\u0308llig"], ("gesperrt", " fa\u0308llig"), [1, 1]),
        (["f\xe4llig", "fa\u0308llig"], ("f\xe4llig", "fa\u0308llig"), [0, 1]),
    ],
)
def test_columns(values: list[Any], words: tuple[str, ...], labels: list[int | None]) -> None:
    assert read(values, words) == labels


@pytest.mark.parametrize(
    ("values", "words", "message"),
    [
        (["Yes"], ("no", "yes"), "The label 'Yes' of row 0 is outside .* Did you mean 'yes'?"),
        ([1, 2], ("no", "yes"), r"The label 2 of row 1 is outside .* counted from 1 take .*\{\{label - 1\}\}"),
        ([-100], ("no", "yes"), "The label -100 of row 0"),
        ([0.5], ("no", "yes"), "The label 0.5 of row 0"),
        ([math.inf], ("no", "yes"), "The label inf of row 0"),
        ([[1]], ("no", "yes"), r"The label \[1\] of row 0"),
        (["9" * 5_000], ("no", "yes"), r"The label '9+… \(5,002 characters\) of row 0"),
        ([10**5_000], ("no", "yes"), "The label a number of thousands of digits of row 0"),
        ([True], ("negative", "positive"), "The label True of row 0 is true or false, but the choices"),
        (["false"], ("negative", "positive"), "'positive' if label | string | lower == 'true' else 'negative'"),
        ([0, 1], STARS, "The label 0 of row 0 is none of the words .* two readings; .*labels_are: words"),
        ([3, 6], STARS, "The label 6 of row 1 is outside"),
        ([0], STARS, "none of the words"),
        ([7], ("0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5"), "none of the words"),
    ],
)
def test_columns_that_are_wrong_or_ambiguous(values: list[Any], words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(values, words)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("reading", "values", "labels"),
    [
        ("indices", [0, 4, 1], [0, 4, 1]),
        ("indices", ["1", None], [1, None]),
        ("words", [1, 5, "3"], [0, 4, 2]),
    ],
)
def test_the_task_file_or_the_data_set_says_what_numbers_are(reading: str, values: list, labels: list) -> None:
    assert read(values, STARS, reading=reading) == labels
    with pytest.raises(InputError, match="The label 0 of row 0 is outside"):
        read([0], STARS, reading="words")
    with pytest.raises(InputError, match="The label 5 of row 0 is outside"):
        read([5], STARS, reading="indices")


def test_numbers_of_a_template_are_indices_unless_the_rows_show_otherwise() -> None:
    assert read(["0", "1", "4"], STARS, from_template=True) == [0, 1, 4]  # {{label - 1}}
    assert read(["1", "2", "5"], STARS, from_template=True) == [0, 1, 4]  # {{label}}
    assert read(["7", "0"], ("0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5"), from_template=True) == [7, 0]
    assert read(["-1", "yes"], from_template=True) == [None, 1]
    with pytest.raises(InputError, match=r"The label '1' of row 0 is one of the words .* and also the index of .*'2'"):
        read(["1", "2"], STARS, from_template=True)
    with pytest.raises(InputError, match="two readings"):
        read(["0", "5", "1"], STARS, from_template=True)


def test_where_rows_have_their_own_choices_all_rows_decide() -> None:
    def rows(*pairs: tuple[Any, tuple[str, ...]]) -> list[int | None]:
        targets = [Target(value, words, f"row {i}") for i, (value, words) in enumerate(pairs)]
        return LabelReader("mine", "doc_to_target", same_choices=False).read(targets)

    assert rows((1, ("2", "1", "0")), (1, ("2", "0", "5"))) == [1, 1]
    assert rows(("0", ("2", "1", "0")), ("12", ("12", "0", "5"))) == [2, 0]
    assert rows((1, ("Rome", "Oslo")), ("Rome", ("Rome", "Oslo"))) == [1, 0]
    with pytest.raises(InputError, match="two readings"):
        rows((0, ("2", "1", "0")))


def test_the_advice_for_labels_that_are_counted_from_1_names_their_column() -> None:
    with pytest.raises(InputError, match=r"\{\{category - 1\}\}"):
        read([1, 2], column="category")
