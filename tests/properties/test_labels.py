"""Labels: what stands in a file is what is trained on, or the file is refused."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from sinkd_llm import load_task
from tests.support.properties import attempt, examples
from tests.support.task_files import TASK

CHOICES = (
    *(("negative", "positive"), ("False", "True"), ("True", "False"), ("true", "false"), ("no", "yes")),
    *(("yes", "no"), ("01", "1"), ("0", "1"), ("1", "0"), ("1", "2"), ("1", "2", "3", "4", "5"), ("0", "1", "2")),
    *(("2", "0", "1"), ("-1", "1"), ("1.0", "2.0", "3.0"), ("0.5", "1.5"), ("a", "b", "c"), ("A", "a")),
    *(("null", "none"), ("nan", "ok"), ("1 star", "2 stars"), ("one", "two", "three"), ("N/A", "yes")),
    ("card_refund", "card_delivery"),
)
FLOATS = st.sampled_from([0.0, 1.0, 2.0, 0.5, 1.5, 5.0, math.nan, -1.0])
LABELS = st.none() | st.booleans() | st.integers(-2, 6) | FLOATS
FORMS = st.sampled_from(["json", "csv"])
# JSON's truth values, where the choices say them as yes and no.
TRUTH = {"true": "yes", "false": "no"}
MISSING = st.lists(st.sampled_from([None, "", " ", math.nan, -1]), min_size=1, max_size=4)


@st.composite
def files(draw: st.DrawFn) -> tuple[tuple[str, ...], list[Any], str]:
    """Choices, a column of labels, and the format of the file."""
    choices = draw(st.sampled_from(CHOICES))
    word = st.sampled_from(choices) | st.sampled_from(choices).map(lambda text: f" {text}")
    index = st.integers(0, len(choices) - 1)
    indices = draw(st.sampled_from([index, index.map(str), index.map(float)]))
    value = draw(st.sampled_from([word, indices, LABELS | word | index | LABELS.map(str)]))
    return choices, draw(st.lists(value, min_size=1, max_size=6)), draw(FORMS)


def write_rows(folder: Path, split: str, labels: list[Any], form: str) -> None:
    rows = [{"text": f"text {index}", "label": label} for index, label in enumerate(labels)]
    if form == "json":
        (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["text", "label"])
    writer.writeheader()
    writer.writerows(rows)
    (folder / f"{split}.csv").write_text(stream.getvalue(), encoding="utf-8")


def load(folder: Path, choices: tuple[str, ...], form: str, split: str = "train") -> Any:
    data = {"data_files": {split: f"{split}.{form}"}}
    config = {**TASK, "dataset_path": form, "dataset_kwargs": data, "doc_to_choice": list(choices)}
    config["test_split"] = "test"
    (folder / "mine.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return load_task(str(folder / "mine.yaml")).load(split)


def written(label: Any, form: str) -> str:
    """How a label looks to somebody who reads the file."""
    if form == "csv":
        return "" if label is None else str(label).strip()
    return label.strip() if isinstance(label, str) else json.dumps(label)


def as_index(text: str, size: int) -> int | None:
    """The choice that `text` counts to, if it is a whole number of the range."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number < size else None


def same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False


@examples(100, 300)
@example(drawn=(("True", "False"), [True, False], "json"))
@example(drawn=(("1", "2", "3", "4", "5"), [4, 1, 3], "csv"))
@example(drawn=(("1", "2", "3", "4", "5"), [0, 1, 4], "csv"))
@example(drawn=(("1.0", "2.0"), [1, 0], "json"))
@given(drawn=files())
def test_a_label_that_is_a_word_is_that_word(drawn: Any, folder: Callable[[], Path], count: Any) -> None:
    choices, labels, form = drawn
    where = folder()
    write_rows(where, "train", labels, form)
    data, message = attempt(lambda: load(where, choices, form))
    texts = [written(label, form) for label in labels]
    if message is not None:
        # A column of nothing but the exact words can be read one way only, unless they are also numbers or gaps.
        plain = all(isinstance(label, str) or form == "csv" for label in labels) and set(texts) <= set(choices)
        numeric = any(as_index(choice, len(choices)) is not None for choice in choices)
        gaps = {"", "null", "none", "nan", "n/a", "-1"} & {choice.lower() for choice in choices}
        assert not plain or numeric or gaps, (choices, labels, form, message)
        count("refused")
        return
    count("answered")
    got = [completion.strip() for completion in data["completion"]]
    assert len(got) == len(labels)
    by_index = False
    for text, answer in zip(texts, got, strict=True):
        if text in choices:
            assert answer == text, (choices, labels, form, got)
        elif not (answer.lower() == text.lower() or same_number(answer, text) or TRUTH.get(text) == answer):
            index = as_index(text, len(choices))
            assert index is not None, (choices, labels, form, got)
            assert answer == choices[index], (choices, labels, form, got)
            by_index = True
    # One column is read one way: a word in one row and an index in another would be a guess.
    for text, answer in zip(texts, got, strict=True):
        index = as_index(text, len(choices))
        assert not by_index or index is None or answer == choices[index], (choices, labels, form, got)


@examples(20, 80)
@given(missing=MISSING, form=FORMS)
def test_missing_labels_are_unlabelled_in_test_and_refused_in_train(
    missing: list[Any], form: str, folder: Callable[[], Path], count: Any
) -> None:
    where = folder()
    write_rows(where, "test", [0, *missing], form)
    data = load(where, ("negative", "positive"), form, "test")
    assert list(data["label"]) == [0] + [-1] * len(missing)
    count("answered")
    write_rows(where, "train", [0, *missing], form)
    data, message = attempt(lambda: load(where, ("negative", "positive"), form))
    if message is not None:
        assert "train" in message
        assert "label" in message
        count("refused")
    else:
        # `-1` says on purpose that a row has no label; whoever trains on it is refused there, by row.
        assert all(value == -1 for value in missing), missing
        assert list(data["label"]) == [0] + [-1] * len(missing)
        count("answered")
