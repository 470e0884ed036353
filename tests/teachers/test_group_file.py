"""Files that say something of groups of rows: what is read, what is said of the rest, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.answer_file import file_rows
from sinkd_llm.teachers.group_file import FileSets, finds_groups_by, sets_in
from sinkd_llm.teachers.questions import HARD, Question

CHOICES = (" card", " pin", " fee")
# Rows 0, 2 and 5 are of one group, 1 and 3 of another; 4 has none.
GROUPS = ("a", "b", "a", "b", None, "a")
QUESTIONS = [Question(f"row {i}", f"Say {i}", CHOICES, None, i, group) for i, group in enumerate(GROUPS)]
Read = Callable[..., FileSets]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_content(content: str, name: str = "teacher.csv", questions: Any = QUESTIONS) -> FileSets:
        (tmp_path / name).write_text(content)
        rows = file_rows(tmp_path / name)
        column = finds_groups_by(rows, None, "group")
        assert column is not None
        return sets_in(rows, column, questions, "train")

    return read_content


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def shares(found: FileSets) -> list[tuple[tuple[str, ...], list[list[float]], list[float]]]:
    """Of each group its rows, the teacher's distributions, and how often each is there."""
    said = []
    for one in found.sets:
        probabilities = np.exp(one.scores_MC - np.logaddexp.reduce(one.scores_MC, axis=1, keepdims=True))
        said.append((one.names, np.round(probabilities.astype(float), 6).tolist(), one.times_M.tolist()))
    return said


COUNTED = [
    (("row 0", "row 2", "row 5"), [[1, 0, 0], [0, 0, 1]], [2, 1]),
    (("row 1", "row 3"), [[0, 1, 0]], [2]),
]
ONE_BY_ONE = [
    (("row 0", "row 2", "row 5"), [[1, 0, 0], [0, 0, 1], [1, 0, 0]], [1, 1, 1]),
    (("row 1", "row 3"), [[0, 1, 0], [0, 1, 0]], [1, 1]),
]


@pytest.mark.parametrize(
    ("content", "name", "expected", "said_by"),
    [
        ("group,card,pin,fee\nb,0,2,\na,2,0,1\n", "t.csv", COUNTED, "the counts of the columns 'card', 'pin', 'fee'"),
        (
            jsonl({"group": "b", "counts": {"pin": 2}}, {"group": "a", "counts": {"card": 2, "Fee": 1.0}}),
            "t.jsonl",
            COUNTED,
            "the counts of the column 'counts'",
        ),
        (
            jsonl({"group": "a", "counts": [2, 0, 1]}, {"group": "b", "counts": [0, 2, 0]}),
            "t.jsonl",
            COUNTED,
            "the counts of the column 'counts'",
        ),
        (
            "group,answer,count\na,card,2\nb,pin,2\na,fee,1\na,pin,0\n",
            "t.csv",
            COUNTED,
            "the texts of the column 'answer', each as often as 'count' says",
        ),
        ("group,answer\na,card\nb,pin\na,fee\nb,pin\na,card\n", "t.csv", ONE_BY_ONE, "the texts of the column"),
        # All whole, but each row is one answer: the same in both readings.
        (
            "group,card,pin,fee\na,1,0,0\nb,0,1,0\na,0,0,1\nb,0,1,0\na,1,0,0\n",
            "t.csv",
            ONE_BY_ONE,
            "the probabilities",
        ),
    ],
)
def test_counts_and_answers_in_any_order(content: str, name: str, expected: Any, said_by: str, read: Read) -> None:
    found = read(content, name)
    assert shares(found) == expected
    assert said_by in found.said_by
    assert found.sentences()[0].startswith(found.source)
    assert found.sentences()[1:] == ["Rows without a teacher because they have no group: 1."]


def test_distributions_keep_what_they_say(read: Read) -> None:
    lines = ["group,card,pin,fee", "a,0.5,0.5,0", "b,0.2,0.3,0.5", "a,0,0,1", "a,0.5,0.5,0", "b,0.2,0.3,0.5"]
    found = read("\n".join(lines) + "\n")
    # Two rows of one text each may have equal distributions.
    assert [one[1] for one in shares(found)] == [[[0.5, 0.5, 0], [0, 0, 1], [0.5, 0.5, 0]], [[0.2, 0.3, 0.5]] * 2]
    assert found.sets[0].scores_MC.min() == pytest.approx(np.log(0.5) + HARD)
    assert np.isfinite(found.sets[0].scores_MC).all()


def test_what_does_not_fit_is_said(read: Read) -> None:
    questions = [
        *QUESTIONS,
        Question("row 6", "", CHOICES, None, 6, "c"),
        Question("row 7", "", CHOICES, None, 7, "d"),
    ]
    rows = ["a,card", "a,pin", "b,fee", "b,fee", "b,card", "z,card", "c,maybe", "c,", "a,maybe"]
    found = read("\n".join(["Group,answer", *rows]) + "\n", questions=questions)
    said = " ".join(found.sentences())
    assert "answers 5 of 8 rows, in 2 groups" in said
    assert "because the file says nothing of their group: 2 ('c', 'd')" in said
    assert "Groups with more or fewer answers than rows: 2 (of 'a' 2 for 3)" in said
    assert "Groups of the file that no row is of: 1 ('z')" in said
    assert "left out of their group: 2, with 'maybe' (2 ×)" in said
    assert "Rows of the file without an answer: 1" in said
    # Each teacher row stands for its share of the group.
    assert found.sets[0].mass_M.tolist() == [1.5, 1.5]
    assert found.sets[1].mass_M.tolist() == pytest.approx([2 / 3] * 3)


def test_a_group_is_known_in_every_normal_form_of_its_name(read: Read) -> None:
    composed, decomposed = "F\u00fc\u00dfe", "Fu\u0308\u00dfe"
    questions = [
        Question(f"row {i}", "", CHOICES, None, i, group) for i, group in enumerate((composed, composed, "b"))
    ]
    found = read(f"group,card,pin,fee\n{decomposed},1,1,0\nb,1,0,0\n", questions=questions)
    assert shares(found)[0] == (("row 0", "row 1"), [[1, 0, 0], [0, 1, 0]], [1, 1])
    assert len(found.sentences()) == 1
    with pytest.raises(InputError, match=r"counts the answers of the group .* twice"):
        read(f"group,card,pin,fee\n{decomposed},1,1,0\n{composed},1,1,0\n", questions=questions)
    # Where the rows have both, each is the one that is written like it.
    both = [*questions, Question("row 3", "", CHOICES, None, 3, decomposed)]
    found = read(f"group,card,pin,fee\n{decomposed},0,0,1\n{composed},1,1,0\n", questions=both)
    assert shares(found)[-1] == (("row 3",), [[0, 0, 1]], [1])
    assert shares(found)[0][0] == ("row 0", "row 1")


def test_the_wanted_split_alone_is_read(read: Read) -> None:
    found = read("split,group,answer\ntrain,a,card\ntest,a,pin\ntrain,b,fee\n")
    assert [one[1] for one in shares(found)] == [[[1, 0, 0]], [[0, 0, 1]]]
    # A group of another split may have the name of one of these.
    with pytest.raises(InputError, match=r"rows of the split 'test', .* are of 'train': groups \(column 'group'\)"):
        read("split,group,answer\ntest,a,card\ntest,b,fee\n")


def test_a_file_of_rows_is_none_of_groups(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,group,answer\nrow 0,a,card\n")
    assert finds_groups_by(file_rows(tmp_path / "rows.csv"), None, "group") is None
    (tmp_path / "own.csv").write_text("ticket,team,answer\nrow 0,a,card\n")
    assert finds_groups_by(file_rows(tmp_path / "own.csv"), "ticket", "team") is None
    assert finds_groups_by(file_rows(tmp_path / "own.csv"), None, "Team") == "team"
    (tmp_path / "none.csv").write_text("group,answer\na,card\n")
    with pytest.raises(InputError, match="nothing says of which group a row is: set group_column"):
        finds_groups_by(file_rows(tmp_path / "none.csv"), None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("group,card,pin,fee\na,2,0,-1\n", r"The count of 'fee' on line 2 .*is '-1'; give a whole number"),
        ("group,card,pin,fee\na,2,0,nan\n", r"The count of 'fee' on .*is 'nan'; give a whole number"),
        ("group,card,pin,fee\na,2,0.5,1\n", r"The count of 'pin' on .*is '0.5'; give a whole number"),
        ("group,card,pin,fee\na,0,0,0\nb,1,1,0\n", "All counts on line 2 .* are 0"),
        ("group,card,pin,fee\na,2,0,1\na,2,0,1\n", "counts the answers of the group 'a' twice, on line 2 .* line 3"),
        ("group,card,pin,fee,count\na,2,0,1,3\n", "it is not known which of both counts"),
        ("group,card,pin\na,2,1\n", "no column for 'fee'"),
        ("group,card,pin,fees\na,2,1,1\n", "no column for 'fee', .* Did you mean 'fees'"),
        (
            "group,card,pin,fee\na,0.5,0.5,0\nb,0.1,0.2,0.7\n",
            "one distribution for each group, such as 'a' with 3 rows",
        ),
        # A negative number is named, where it makes another one exceed 1.
        (
            "group,card,pin,fee\na,1.1,-0.2,0.1\na,0.1,0.8,0.1\n",
            r"The probability of 'pin' on line 2 .* is '-0\.2'; give a number from 0 to 1 for each choice",
        ),
        ("group,card,pin,fee\na,1.3,-0.2,0.1\na,0.1,2.8,-0.1\n", r"The probability of 'pin' on line 2"),
        (
            "group,card,pin,fee\na,-1.3,-0.2,-2\na,-0.1,-2,-1\n",
            "'-1.3'; .*Of log-probabilities, give the exponentials",
        ),
        # Percentages of each row look like counts.
        ("group,card,pin,fee\na,80,10,10\na,10,80,10\n", "twice, .*If they are no counts, .* numbers from 0 to 1"),
        ("group,card,pin,fee\na,80.5,9.5,10\na,10,80,10\n", r"'80\.5'; give a whole number .*If they are no counts"),
        ("group,card,pin,fee\na,2,0,1\na,2,0,-1\n", "The count of 'fee' on line 3 .* is '-1'"),
        ("group,answer,count\na,card,2\na,card,1\n", "counts one answer of the group 'a' twice, on line 2"),
        ("group,answer,count\na,card,\n", "The count on line 2 .* is missing"),
        ("group,answer,count\na,card,0\nb,pin,1\n", "All counts of the group 'a' in .* are 0"),
        ("group,answer,count\na,card,1.5\n", "The count on line 2 .* is '1.5'"),
        ("group,answer\nA,card\n", r"No group of the file .* its column 'group' has 'A', the rows have 'a', 'b'"),
        ("group,answer\na,1\na,3\nb,2\n", "'answer' count from 1: none is 0, and on line 3 .* there is 3"),
        ("group,answer,count\na,1,2\na,3,1\n", "count from 1"),
        ("group,answer\na,maybe\n", "but none with a choice: it says 'maybe'"),
        ("group,word\na,card\n", "has no column that says an answer"),
    ],
)
def test_files_that_are_refused(content: str, message: str, read: Read) -> None:
    with pytest.raises(InputError, match=message):
        read(content)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"card": 2, "cheque": 1}, "has a count for 'cheque', which is none of the choices"),
        ([1, 2], "but the row has 3 choices: .*give a count for each"),
        ([1, 2, float("nan")], "The count of 'fee' on .* is nan"),
        ({"card": True}, "The count of 'card' on .* is True"),
    ],
)
def test_lists_of_counts_that_are_refused(counts: Any, message: str, read: Read) -> None:
    with pytest.raises(InputError, match=message):
        read(jsonl({"group": "a", "counts": counts}), "t.jsonl")


def test_groups_of_rows_with_different_choices_are_refused(read: Read) -> None:
    other = Question("row 9", "", (" yes", " no"), None, 9, "a")
    with pytest.raises(InputError, match="The rows row 0 and row 9 have different choices"):
        read("group,answer\na,card\n", questions=[*QUESTIONS, other])
