"""Columns of the data that rows keep: ids of their own, and others as text."""

import json
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm import load_task
from sinkd_llm.errors import InputError
from tests.support.task_files import write_task


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [
        {"uid": f"r{i}", "bag": i // 2 if i < 4 else None, "text": f"film {i}", "label": i % 2, "choices": "x"}
        for i in range(6)
    ]
    for split in ("train", "validation"):
        lines = "".join(json.dumps({**row, "uid": f"{split[0]}{row['uid']}"}) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    (tmp_path / "raw.jsonl").write_text('{"text": "food", "bag": " b "}\n{"text": "drink"}\n')
    return write_task(tmp_path / "opinions.yaml")


def test_kept_columns_and_own_ids(task: Path) -> None:
    own = load_task(task, keep=["bag"], id_column="uid")
    rows = own.load("train", limit=4, seed=1)
    plain: Any = load_task(task).load("train", limit=4, seed=1)
    assert rows["id"][:] == [f"tr{name.split('-')[2]}" for name in plain["id"]]
    assert rows.remove_columns(["id", "bag"]).to_dict() == plain.remove_columns("id").to_dict()
    by_id = dict(zip(own.load("train")["id"], own.load("train")["bag"], strict=True))
    assert by_id == {"tr0": "0", "tr1": "0", "tr2": "1", "tr3": "1", "tr4": None, "tr5": None}
    assert own.load_unlabelled(task.parent / "raw.jsonl")["bag"][:] == ["b", None]


def test_wrong_columns(task: Path) -> None:
    with pytest.raises(InputError, match=r"have no column 'uids', only 'uid', .*Did you mean 'uid'"):
        load_task(task, id_column="uids").load("train")
    with pytest.raises(InputError, match=r"have no column 'bags', only"):
        load_task(task, keep=["bags"]).load("train")
    with pytest.raises(InputError, match=r"The id '0' of line 2 of .*train\.jsonl is also the id of line 1 of"):
        load_task(task, id_column="bag").load("train", limit=3)
    with pytest.raises(InputError, match=r"There is no id in the column 'bag' on line 5 of"):
        load_task(task, id_column="bag").load("train")
    with pytest.raises(InputError, match=r"The column 'choices' .* rows have a column of this name already"):
        load_task(task, keep=["choices"]).load("train")


@pytest.mark.parametrize("keep", ["bag", 5, [1], None])
def test_what_is_no_list_of_columns(keep: Any, task: Path) -> None:
    with pytest.raises(
        InputError, match=r"keep is .*, which is no list of columns[;,] (for one column give \['bag'\]|such)"
    ):
        load_task(task, keep=keep)


def test_a_kept_column_is_no_scoring_column(tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": i % 2, "group": "all"} for i in range(4)]
    file = write_task(tmp_path / "opinions.yaml", rows, metadata={"metrics": ["em"]})
    task = load_task(file, keep=["group"])
    loaded = task.load("train")
    assert loaded["group"][:] == ["all"] * 4
    # Were the group a question, one wrong row would make all of it wrong.
    for scored in (loaded, loaded.to_dict()):
        assert task.compute_metrics([0, 1, 0, 0], loaded["label"][:], rows=scored)["em"] == 0.75
    assert "group" not in task.as_scored(loaded).column_names
    assert load_task(file).as_scored(loaded) is loaded
