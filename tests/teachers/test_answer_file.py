"""Answers from a file: rows found, what is said of them, and every refusal by its line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.answer_file import FileAnswers, read_answer_file
from sinkd_llm.teachers.questions import HARD, Question

CHOICES = (" negative", " positive")


def question(position: int, name: str | None = None, choices: tuple[str, ...] = CHOICES) -> Question:
    text = f"text number {position}"
    return Question(name or f"t-{position}", f"Review: {text}\nIt is", choices, text, position)


ROWS = [question(i) for i in range(3)]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., FileAnswers]:
    """Reads a file of this content: its bytes or text, or the columns of a Parquet file."""

    def reader(
        content: str | bytes | dict[str, Any], questions: list[Question] = ROWS, name: str = "f.csv", **kwargs: Any
    ) -> FileAnswers:
        path = tmp_path / name
        if isinstance(content, dict):
            pyarrow.parquet.write_table(pa.table(content), path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_answer_file(path, questions, **kwargs)

    return reader


def answered(found: FileAnswers) -> dict[str, Any]:
    """Each row's answer, or its probabilities."""
    return {
        name: int(scores.argmax()) if scores.min() == HARD else np.exp(scores).round(6).tolist()
        for name, scores in found.answers.items()
    }


@pytest.mark.parametrize(
    ("content", "found_by"),
    [
        ("id,answer\nt-2,positive\nt-0,negative\nelse,positive\n", "id"),
        ("ID;Answer\nt-2;Positive \nt-0;NEGATIVE\nelse;positive\n", "ID"),
        ("row,answer\n2,positive\n0,negative\n9,positive\n", "row"),
        ("position\tlabel\n2\t1\n0\t0\n9\t1\n", "position"),
        ("index,prediction\n2.0,1\n0.0,0\n9.0,1\n", "index"),
        ("text,answer\n text number 2 ,positive\ntext number 0,negative\nother,positive\n", "text"),
        (
            'prompt,answer\n"Review: text number 2\nIt is",positive\n"Review: text number 0\nIt is",negative\n"o",\n',
            "prompt",
        ),
        (
            "\ufeffsentence,answer\r\ntext number 2,positive\r\ntext number 0,negative\r\nother,positive\r\n",
            "sentence",
        ),
    ],
)
def test_rows_are_found_by_id_position_or_text(content: str, found_by: str, read: Any) -> None:
    found = read(content)
    assert answered(found) == {"t-2": 1, "t-0": 0}
    assert (found.found_by, found.asked, found.rows, found.unmatched) == (found_by, 3, 3, 1)
    assert found.answers["t-2"].tolist() == [HARD, 0]
    assert "answers 2 of 3 rows" in found.sentences()[0]


def test_words_that_libraries_take_for_missing_are_texts(read: Any) -> None:
    names = ["007", "NA", "null", "None", "true", "nan"]
    choices = ("NA", "null", "None", "true", "nan", "007")
    questions = [question(i, name, choices) for i, name in enumerate(names)]
    rows = "".join(f"{name},{choices[i]}\n" for i, name in enumerate(names))
    expected = {name: i for i, name in enumerate(names)}
    assert answered(read("id,answer\n" + rows, questions)) == expected
    assert answered(read({"id": names, "answer": list(choices)}, questions, "f.parquet")) == expected
    assert answered(read("id,answer\n7,NA\nNA,null\n", questions)) == {"NA": 1}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("id,negative,positive\nt-0,0.25,0.75\nt-1,1,0\n", "f.csv"),
        ("id,p_positive,p_negative,answer\nt-0,0.75,0.25,x\nt-1,0,1,x\n", "f.csv"),
        ("id,prob_1,prob_0\nt-0,0.75,0.25\nt-1,0,1.0\nt-2,,\n", "f.csv"),
        ('id,probabilities\nt-0,"[0.25, 0.75]"\nt-1,"{""Negative"": 1}"\nt-2,\n', "f.csv"),
        ('{"id": "t-0", "probs": [0.25, 0.75]}\n{"id": "t-1", "probs": {"negative": 1}}\n', "f.jsonl"),
        ('[{"id": "t-0", "probs": [0.25, 0.75]},\n{"id": "t-1", "probs": [1, 0]}, {"id": "t-2"}]', "f.json"),
        ({"id": ["t-0", "t-1"], "probabilities": [[0.25, 0.75], [1.0, 0.0]]}, "f.parquet"),
        ({"id": ["t-0", "t-1"], "probs": [{"negative": 0.25, "positive": 0.75}, {"negative": 1.0}]}, "f.parquet"),
        ({"id": ["t-0", "t-1", "t-2"], "prob_0": [0.25, 1, None], "prob_1": [0.75, 0, None]}, "f.parquet"),
    ],
)
def test_probabilities(content: Any, name: str, read: Any) -> None:
    found = read(content, name=name)
    assert {name: np.exp(row).tolist() for name, row in found.answers.items()} == {
        "t-0": [pytest.approx(0.25), pytest.approx(0.75)],
        "t-1": [1, pytest.approx(np.exp(HARD))],
    }
    assert found.said_by.startswith("the probabilities of the column")


def test_sums_near_1_are_normalised(read: Any) -> None:
    for low in (0.299, 0.301):
        (row,) = read(f"id,prob_0,prob_1\nt-0,{low},0.7\n").answers.values()
        assert np.exp(row) == pytest.approx([low / (low + 0.7), 0.7 / (low + 0.7)])
    with pytest.raises(InputError, match=r"on line 3 of .* sum to 0\.998, not to 1 within 0\.001"):
        read("id,prob_0,prob_1\nt-0,0.5,0.5\nt-1,0.298,0.7\n")


def test_sums_that_rounding_explains_are_normalised(read: Any) -> None:
    thirds = [question(0, choices=(" a", " b", " c"))]
    (row,) = read("row,a,b,c\n0,0.33,0.33,0.33\n", thirds).answers.values()
    assert np.exp(row) == pytest.approx([1 / 3] * 3)
    parquet = {"row": [0], "probs": pa.array([[0.33, 0.33, 0.33]], pa.list_(pa.float32()))}
    assert len(read(parquet, thirds, "f.parquet").answers) == 1
    many = [question(0, choices=tuple(f" c{i}" for i in range(77)))]
    for first, message in (("0.85", None), ("0.75", r"sum to 0\.75, not to 1 within 0\.2;")):
        content = f'row,probs\n0,"[{first}{", 0.0" * 76}]"\n'
        if message is None:
            assert len(read(content, many).answers) == 1
        else:
            with pytest.raises(InputError, match=message):
                read(content, many)
    for wrong in ("0.33,0.33,0.30", "0.5,0,0", "1,1,0", "0.3,0.3,0.3"):
        with pytest.raises(InputError, match="sum to"):
            read(f"row,a,b,c\n0,{wrong}\n", thirds)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("-0.1,1.1", r"probability of 'negative' on line 2 of .* is '-0.1'; .* give the exponentials"),
        ("1.1,-0.1", "probability of 'positive' on line 2 of .* is '-0.1'"),
        ("nan,1", "on line 2 of .* is 'nan'"),
        ("inf,0", "on line 2 of .* is 'inf'"),
        ("0.5,many", "probability of 'positive' on line 2 of .* is 'many'"),
        (",1", "is missing; give a number from 0 to 1 for each choice"),
        ("97.5,2.5", "is '97.5'; .* give the hundredth part"),
        ("0,0", "sum to 0, not to 1"),
        ('"0,5","0,5"', "is '0,5'"),
    ],
)
def test_bad_probabilities(row: str, message: str, read: Any) -> None:
    with pytest.raises(InputError, match=message):
        read(f"id,prob_0,prob_1\nt-0,{row}\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[0.5, NaN]", "probability of 'positive' on line 1 of .* is nan"),
        ("[true, false]", "on line 1 of .* is True"),
        ("[1]", r"is \[1\], but the row has 2 choices"),
        ('{"neutral": 0.5, "positive": 0.5}', "has a probability for 'neutral', which is none of the choices"),
        ('{"positive": 0.5, "Positive ": 0.5}', "names the choice 'positive' twice"),
        ('{"positive": NaN, "negative": 1}', "is nan"),
        ("\"{'positive': 1}\"", "is no JSON list of numbers"),
        ('"3"', "is no JSON list of numbers"),
        ("0.5", "is 0.5, but the row has 2 choices"),
        ("{}", "on line 1 of .* says nothing|answers none of them"),
    ],
)
def test_bad_lists_of_probabilities(value: str, message: str, read: Any) -> None:
    with pytest.raises(InputError, match=message):
        read(f'{{"id": "t-0", "probabilities": {value}}}\n', name="f.jsonl")


def test_answers_that_are_no_choice_are_counted_and_named(read: Any) -> None:
    found = read("id,answer\nt-0,Positive\nt-1,I think it is positive\nt-2,\n")
    assert answered(found) == {"t-0": 1}
    assert (found.no_choice, found.empty) == ({"I think it is positive": 1}, 1)
    assert found.sentences()[1:] == [
        "Rows without a teacher because their answer is no choice: 1, with 'I think it is positive' (1 ×).",
        "Among its 3 rows: 1 without an answer.",
    ]
    with pytest.raises(InputError, match=r"answers none of them with a choice: it says 'good' \(2 ×\)"):
        read("id,answer\nt-0,good\nt-1,good\n")


def test_numbers_are_the_choices_or_their_indices(read: Any) -> None:
    ratings = [question(i, choices=(" 1", " 2", " 3")) for i in range(3)]
    words = read("row,answer\n0,1\n1,3\n2,4\n", ratings)
    assert (answered(words), words.no_choice) == ({"t-0": 0, "t-1": 2}, {"4": 1})
    assert "the texts of the column 'answer'" in words.sentences()[0]
    asked = [question(i, choices=("a", "b", "c")) for i in (0, 2)]
    indices = read({"row": [0, 1, 2], "label": [0.0, None, 2.0]}, asked, "f.parquet")
    assert answered(indices) == {"t-0": 0, "t-2": 2}
    assert indices.said_by == "the indices of the column 'label'"
    assert read("row,answer\n0,0\n1,2\n2,-1\n").no_choice == {"2": 1, "-1": 1}
    with pytest.raises(InputError, match=r"The answer '0' .* on line 3 of .* is none of the choices .* two readings"):
        read("row,answer\n0,1\n1,0\n2,2\n", ratings)
    mixed = read("row,answer\n0,1\n1,positive\n")
    assert (answered(mixed), mixed.no_choice) == ({"t-1": 1}, {"1": 1})


@pytest.mark.parametrize("column", ["answer", "label"])
def test_indices_that_count_from_1_are_refused(column: str, read: Any) -> None:
    message = rf"'{column}' count from 1: none is 0, and on line 4 of .* there is 2, .*; subtract 1 from each"
    with pytest.raises(InputError, match=message):
        read(f"row,{column}\n0,1\n1,1\n2,2\n")
    # Where 0 occurs, or the last choice does not, they may count from 0.
    assert read(f"row,{column}\n0,0\n1,1\n2,2\n").no_choice == {"2": 1}
    assert answered(read(f"row,{column}\n0,1\n1,1\n")) == {"t-0": 1, "t-1": 1}


def test_many_indices_without_a_0_are_said(read: Any, caplog: pytest.LogCaptureFixture) -> None:
    asked = [question(i, choices=(" a", " b", " c")) for i in range(20)]
    assert len(answered(read("row,answer\n" + "".join(f"{i},{1 + i % 2}\n" for i in range(20)), asked))) == 20
    assert "None of the 20 indices of the column 'answer' is 0, the choice 'a'; if they count from 1" in caplog.text
    caplog.clear()
    read("row,answer\n" + "".join(f"{i},{i % 3}\n" for i in range(20)), asked)
    assert not caplog.text


def test_an_answer_is_read_as_a_servers(read: Any) -> None:
    found = read('row,answer\n0,"Positive, because it is"\n1,**Negative**\n2,The answer is: positive\n')
    assert answered(found) == {"t-0": 1, "t-1": 0, "t-2": 1}
    ratings = [question(i, choices=(" 1", " 2", " 3")) for i in range(2)]
    assert read("row,answer\n0,1.5\n1,2\n", ratings).no_choice == {"1.5": 1}


def test_choices_that_differ_from_row_to_row(read: Any) -> None:
    questions = [question(0, choices=(" the rain", " the sun")), question(1, choices=(" a", " b", " c"))]
    assert answered(read("row,answer\n0,The sun\n1,c\n", questions)) == {"t-0": 1, "t-1": 2}
    lists = '{"row": 0, "probs": [0.5, 0.5]}\n{"row": 1, "probs": {"b": 0.25, "c": 0.75}}\n'
    assert read(lists, questions, "f.jsonl").answers["t-1"].tolist() == [
        pytest.approx(np.log(0.75) + HARD),
        pytest.approx(np.log(0.25)),
        pytest.approx(np.log(0.75)),
    ]
    with pytest.raises(InputError, match="has 3 choices, but there are 2 columns"):
        read("row,prob_0,prob_1\n0,0.5,0.5\n1,0.5,0.5\n", questions)
    with pytest.raises(
        InputError, match="no column with the probability of 'a', which is a choice of the row of line 3"
    ):
        read("row,the rain,the sun\n0,0.5,0.5\n1,0.5,0.5\n", questions)


def test_rows_that_are_there_twice(read: Any) -> None:
    found = read("id,answer\nt-0,positive\nt-1,negative\nt-0,Positive\n")
    assert (answered(found), found.repeated) == ({"t-0": 1, "t-1": 0}, 1)
    with pytest.raises(InputError, match=r"two things of the row 't-0': 'positive' on line 2 .* 'negative' on line 4"):
        read("id,answer\nt-0,positive\nt-1,negative\nt-0,negative\n")
    with pytest.raises(InputError, match=r"'t-0': 'good' on line 2 of .*, and 'positive' on line 3"):
        read("id,answer\nt-0,good\nt-0,positive\n")
    with pytest.raises(InputError, match=r"\[0.5, 0.5\] on line 2 of .*, and \[0.4, 0.6\] on line 3"):
        read("id,prob_0,prob_1\nt-0,0.5,0.5\nt-0,0.4,0.6\n")
    assert read("id,prob_0,prob_1\nt-0,0.5,0.5\nt-0,0.5,0.5\nt-0,,\n").empty == 1
    twins = [question(0, "a"), question(0, "b"), question(1)]
    assert answered(read("text,answer\ntext number 0,positive\n", twins)) == {"a": 1, "b": 1}


def test_the_wanted_split_alone_is_read(read: Any) -> None:
    content = "split,row,answer\ntrain,0,positive\ntest,0,negative\ntrain,1,negative\n"
    found = read(content, split="Train")
    assert (answered(found), found.rows) == ({"t-0": 1, "t-1": 0}, 2)
    with pytest.raises(InputError, match=r"of the split 'train', 'test', .* are of 'validation'"):
        read(content, split="validation")
    with pytest.raises(InputError, match="are of one that has no name"):
        read(content)
    with pytest.raises(InputError, match=r"of the split 'train', .* are of 'test'"):
        read("split,row,answer\ntrain,0,positive\n", split="test")
    assert answered(read("split,row,answer\ntrain,0,positive\n")) == {"t-0": 1}
    assert answered(read("split,id,answer\npool,t-0,positive\n", split="train")) == {"t-0": 1}


def of_split(split: str, position: int | None, name: str) -> Question:
    return Question(name, f"{split} {position}", CHOICES, f"text {name}", position, split=split)


def test_positions_are_those_of_a_rows_own_split(read: Any) -> None:
    asked = [of_split("train", 0, "a"), of_split("train", 1, "b"), of_split("test", 0, "c"), of_split("test", 1, "d")]
    asked.append(of_split("unlabelled", None, "e"))  # of a raw file with ids of its own
    # Without a column for the split, positions are those of the wanted one.
    assert answered(read("row,answer\n0,positive\n1,negative\n", asked, split="train")) == {"a": 1, "b": 0}
    content = "split,row,answer\ntrain,0,positive\ntest,0,negative\ntest,1,positive\ndev,1,negative\n"
    found = read(content, asked, split="train")
    assert (answered(found), found.rows, found.unmatched) == ({"a": 1, "c": 0, "d": 1}, 3, 0)
    # The file may call the wanted split otherwise than the ids do.
    assert answered(read("split,row,answer\npool,1,positive\n", asked, split="pool")) == {"b": 1}
    with pytest.raises(InputError, match="counts from 1 to 2, but the rows from 0 to 1"):
        read("split,row,answer\ntrain,0,positive\ntest,1,negative\ntest,2,positive\n", asked, split="train")


def test_texts_are_looked_for_where_the_split_is_not_there(read: Any) -> None:
    content = "split,row,text,answer\npool,1,text number 0,positive\n"
    found = read(content, split="train")
    assert (answered(found), found.found_by) == ({"t-0": 1}, "text")


@pytest.mark.parametrize(("column", "of_row"), [("id", 0), ("text", 1)])
def test_another_program_may_write_the_same_letters_in_other_code_points(column: str, of_row: int, read: Any) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    asked = [Question(f"{composed}-{i}", f"{i}", CHOICES, f"{composed} {i}", i) for i in range(2)]
    written = f"{decomposed} 1" if column == "text" else f"{decomposed}-0"
    assert answered(read(f"{column},answer\n{written},positive\n", asked)) == {f"{composed}-{of_row}": 1}
    # Of two rows with the same letters, the one that is written alike.
    both = [*asked, Question(f"{decomposed}-0", "", CHOICES, f"{decomposed} 1")]
    assert answered(read(f"{column},answer\n{written},positive\n", both)) == {f"{decomposed}-0": 1}


def test_columns_that_could_be_two_things_are_said(read: Any) -> None:
    found = read("id,text,label,prediction,answer\nt-0,text number 1,negative,negative,positive\n")
    assert (answered(found), found.not_read) == ({"t-0": 1}, ("text", "prediction", "label"))
    assert "'text', 'prediction', 'label'" in found.sentences()[1]
    both = read("id,answer,negative,positive\nt-0,positive,0.75,0.25\n")
    assert (both.said_by, both.not_read) == ("the probabilities of the columns 'negative', 'positive'", ("answer",))
    by_text = read("id,text,answer\n17,text number 1,positive\n")
    assert (by_text.found_by, answered(by_text)) == ("text", {"t-1": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "id,row,answer\nx1,0,positive\nx2,1,positive\n",
            r"No row of .* 'id' has 'x1', 'x2', the rows have 't-0', 't-1', 't-2'",
        ),
        ("row,answer\n7,positive\n", "'row' has 7, the rows have 0, 1, 2"),
        ("text,answer\nfoo,positive\n", "'text' has 'foo', the rows have 'Review: text number 0"),
        ("number,answer\n1,positive\n", "no column that says which row an answer is for; its columns are 'number'"),
        (
            "group,positive,negative\na,3,2\n",
            "'text'; answers of groups of rows say nothing of single ones, which are",
        ),
        ("id,said\nt-0,positive\n", "no column that says an answer; its columns are 'said'"),
        ("id,positive\nt-0,0.7\n", "no column for 'negative', though it has 'positive'"),
        ("id,prob_0,prob_1,prob_2\nt-0,0.5,0.5,0\n", "'prob_2', but line 2 of .* is for a row of 2 choices"),
        ("row,answer\n0,positive\none,positive\n", "'row' on line 3 of .* is 'one'; give the row's position"),
        ("row,answer\n0,positive\n-1,positive\n", "'row' on line 3 of .* is -1"),
        ("row,answer\n1,positive\n2,negative\n3,negative\n", "counts from 1 to 3, but the rows from 0 to 2"),
        (
            "row,text,answer\n0,text number 1,positive\n",
            "position is 0, which is the row 't-0', but .* is the one of 't-1'",
        ),
        ("id,answer\n", "has no rows"),
        ('id,answer\n"t-0,positive\n', "not valid CSV"),
        ("id,answer\nt-0,positive\n".encode("utf-16"), "is UTF-16"),
        ("id,answer\nt-0,caf\xe9\n".encode("latin1"), "Line 2 of .* is not UTF-8"),
    ],
)
def test_files_that_are_refused(content: str | bytes, message: str, read: Any) -> None:
    with pytest.raises(InputError, match=message):
        read(content)


def test_names_say_what_files_hold(read: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.txt; name it by what it holds: \.csv, \.tsv"):
        read("id,answer\nt-0,positive\n", name="f.txt")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read("id,answer\nt-0,positive\n", name="f.parquet")
    with pytest.raises(InputError, match="There is no file"):
        read_answer_file(tmp_path / "absent.csv", ROWS)
    assert answered(read("id\tanswer\nt-0\tpositive\n", name="f.tsv")) == {"t-0": 1}


def test_the_answers_of_a_real_model(data_dir: Path) -> None:
    folder = data_dir / "Banking77"
    if not folder.is_dir():
        pytest.skip("no Banking77 in the data folder")
    names = json.loads((folder / "categories.json").read_text(encoding="utf-8"))
    choices = tuple(f" {name.replace('_', ' ')}" for name in names)
    right = foreign = rows = 0
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
            gold = list(csv.DictReader(stream))
        questions = [Question(f"{split}-{i}", row["text"], choices, row["text"], i) for i, row in enumerate(gold)]
        found = read_answer_file(folder / "llm_labels.csv", questions, split)
        assert found.unmatched == found.repeated == found.empty == 0
        assert len(found.answers) + sum(found.no_choice.values()) == found.asked == found.rows
        rows, foreign = rows + found.rows, foreign + sum(found.no_choice.values())
        right += sum(
            names[int(found.answers[one.name].argmax())] == row["category"]
            for one, row in zip(questions, gold, strict=True)
            if one.name in found.answers
        )
    assert (rows, foreign) == (13_083, 41)
    assert right / rows == pytest.approx(0.743, abs=5e-4)
