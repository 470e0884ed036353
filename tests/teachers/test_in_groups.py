"""Which rows of a cache are whose, where the teacher's rows are known per group."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from sinkd_llm.errors import InputError
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.cache.answers import write_answers
from sinkd_llm.teachers.cache.arrays import map_arrays, write_arrays
from sinkd_llm.teachers.cache.in_groups import found_in, group_numbers
from sinkd_llm.teachers.questions import AnswerSet, Question

ROWS = Dataset.from_dict({"example_id": [f"row {i}" for i in range(8)], "row_print": list(range(8))})
ASKED = [Question(f"row {i}", "", (" no", " yes")) for i in range(8)]
# Rows 6, 1 and 3 have pairs; 0 and 5 have three answers; nothing is known of the others.
SETS = [
    AnswerSet(("row 6", "row 1", "row 3"), np.array([[0, 6], [0, 1], [0, 3]], np.float32), np.ones(3), True),
    AnswerSet(("row 0", "row 5"), np.array([[1, 0], [2, 0], [3, 0]], np.float32), np.array([1.0, 4.0, 1.0])),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_answers(tmp_path / "cache", ROWS, ASKED, SETS, task="made-up", teacher="a table")
    return tmp_path / "cache"


def entries(teacher: CachedTeacher, *rows: int) -> Any:
    keys = {int(value): place for place, value in enumerate(teacher._index["print"])}
    return np.array([keys[row] for row in rows], np.int64)


def test_the_rows_of_a_batch(folder: Path) -> None:
    teacher = CachedTeacher(folder)
    found = found_in(teacher._index, entries(teacher, 3, 2, 5, 6))
    assert found.taught_N.tolist() == [0, 2, 3]
    # Of the pairs those of rows 3 and 6, in this order; of the set all that there is.
    logits = teacher._read(found.row_M)["logits"]
    assert logits[found.paired_M].tolist() == [[0, 3], [0, 6]]
    assert logits[~found.paired_M].tolist() == [[1, 0], [2, 0], [3, 0]]
    assert teacher._read(found.row_M)["times"].tolist() == [1, 1, 1, 4, 1]
    assert found.member_M.tolist() == [0, 0, 2, 2, 2]
    nothing = found_in(teacher._index, entries(teacher, 2, 7))
    assert [len(part) for part in (nothing.taught_N, nothing.row_M, nothing.member_M, nothing.paired_M)] == [0] * 4


def test_groups_have_numbers_and_rows_without_have_their_own(folder: Path) -> None:
    teacher = CachedTeacher(folder)
    numbers = group_numbers(teacher._index, entries(teacher, *range(8))).tolist()
    assert numbers[6] == numbers[1] == numbers[3]
    assert numbers[0] == numbers[5]
    assert len({*numbers}) == 5
    theirs = teacher.groups_of(ROWS)
    assert theirs is not None
    assert theirs.tolist() == numbers
    assert teacher.count({"example_id": ["row 0", "row 2", "row 6"]}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index | {"place": index["place"] + 9}, "the index names pairs that are not there"),
        (lambda index: index | {"first": index["first"] + 4}, "the index names rows that are not there"),
        (lambda index: {k: v for k, v in index.items() if k != "paired"}, "the index has no paired of 8 examples"),
    ],
)
def test_an_index_of_other_rows_is_refused(change: Callable[[Any], Any], message: str, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / manifest["index"]["file"]
    arrays = {name: np.array(array) for name, array in map_arrays(file).arrays.items()}
    manifest["index"] = write_arrays(file, change(arrays))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        CachedTeacher(folder)


def test_a_cache_that_was_begun_goes_on(folder: Path) -> None:
    whole = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".safetensors"}
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / manifest["shards"][0]["file"]).unlink()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "index": None, "complete": False}))
    write_answers(folder, ROWS, ASKED, SETS, task="made-up", teacher="a table")
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".safetensors"} == whole


def test_some_rows_of_pairs_keep_their_own(folder: Path) -> None:
    names = ["row 3", "row 5", "row 6", "row 2"]
    pairs, others = CachedTeacher(folder).sets(names)
    assert pairs.names == ("row 6", "row 3")
    assert pairs.scores_MC.tolist() == [[0, 6], [0, 3]]
    assert pairs.times_M.tolist() == [1, 1]
    assert (others.names, others.times_M.tolist()) == (("row 5",), [1, 4, 1])
