"""What is asked of rows: of which split a row is, and where it stands there."""

import pytest
from datasets import Dataset

from sinkd_llm.teachers.questions import questions_of


def places(*ids: str | None) -> list[tuple[str | None, int | None]]:
    columns = {"prompt": [f"row {i}" for i in range(len(ids))], "choices": [["a", "b"]] * len(ids)}
    rows = Dataset.from_dict(columns if None in ids else {"id": list(ids), **columns})
    return [(question.split, question.position) for question in questions_of(rows)]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["mine-train-7-0123abcd", "mine-test-2-0123abcd"], [("train", 7), ("test", 2)]),
        # Of a raw file the rows are counted by themselves, and those with ids of their own stand nowhere.
        (
            ["mine-train-7-0123abcd", "mine-unlabelled-0-0123abcd", "ticket 4"],
            [("train", 7), ("unlabelled", 0), ("unlabelled", None)],
        ),
        (["ticket 4", "a0-train-5", "b1-train-5"], [(None, 0), (None, 1), (None, 2)]),
        ([None, None], [(None, 0), (None, 1)]),
    ],
)
def test_an_id_that_a_task_made_says_where_its_row_stands(
    ids: list[str | None], expected: list[tuple[str | None, int | None]]
) -> None:
    assert places(*ids) == expected
