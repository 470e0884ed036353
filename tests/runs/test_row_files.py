"""Files of prompt-completion rows: each is read right, or refused with the line and what to do."""

import json
from pathlib import Path

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.runs import TaskArguments
from sinkd_llm.runs.data import load_run_data
from sinkd_llm.runs.task_rows import task_split
from sinkd_llm.tasks import load_task

GOOD = '{"prompt": "a", "completion": " b"}\n'


@pytest.fixture
def train(tmp_path: Path):
    """The training rows of a file with the given name and content."""

    def load(name: str, content: str | bytes) -> list[dict]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_run_data(TaskArguments(dataset_name=str(path)), seed=0).train.to_list()

    return load


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "prompt,completion\na, b\n"),
        ("rows.csv", "prompt;completion\na; b\n"),
        ("rows.csv", ",prompt,completion\n0,a, b\n"),
        ("rows.tsv", "prompt\tcompletion\na\t b\n"),
        ("rows.json", '[{"prompt": "a", "completion": " b"}]'),
        ("rows.jsonl", GOOD),
        (
            "rows.jsonl",
            '{"prompt": "a", "completion": " b", "label": -1, "text": null, "prompt_ids": "x", "n": [1, {}]}\n',
        ),
        ("rows.csv", "prompt,completion,label,target\na, b,positive,x\n"),
    ],
)
def test_valid_files(name: str, content: str, train) -> None:
    assert train(name, content) == [{"prompt": "a", "completion": " b"}]


def test_columns_of_several_types_that_are_not_read(train) -> None:
    rows = train(
        "rows.jsonl", "".join(GOOD.replace("}", f', "x": {x}}}') for x in ("1", '"a"', "[1]", "1e999", "9" * 30))
    )
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            GOOD + '{"prompt": null, "completion": " b"}\n',
            "The prompt of line 2 of .* is null",
        ),
        ("rows.jsonl", GOOD + '{"prompt": "a", "completion": 5}\n', r"The completion of line 2 of .* is 5 \(int\)"),
        ("rows.jsonl", GOOD + '{"prompt": "a", "completion": NaN}\n', "The completion of line 2 of .* is NaN"),
        ("rows.jsonl", GOOD + '{"prompt": "a"}\n', "there is no 'completion' on line 2 of"),
        ("rows.jsonl", GOOD + '{"prompt": "\\ud800", "completion": "b"}\n', r"for line 2 of .* cannot be encoded"),
        (
            "rows.jsonl",
            GOOD + '{"prompt": [], "completion": "b"}\n',
            "The prompt of line 2 .* is a conversation and",
        ),
        (
            "rows.jsonl",
            GOOD
            + '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]}\n',
            "do not fit into one table",
        ),
        (
            "rows.jsonl",
            '{"prompt": "a", "completion": "b", "choices": ["b", "c"]}\n',
            "Line 1 of .* has choices, but no label|line 1 of .* has choices, but no label",
        ),
        ("rows.parquet", b"PAR1", "rows.parquet"),
        ("rows.csv.gz", b"\x1f\x8b\x08", "is packed with gzip, not text"),
        ("rows.txt", "prompt,completion\na,b\n", r"ends in .txt; name it by what it holds, .csv"),
        ("rows.csv", "prompt,completion\n", "has no rows"),
    ],
)
def test_files_that_are_refused(name: str, content: str | bytes, message: str, train) -> None:
    with pytest.raises(InputError, match=message):
        train(name, content)


def test_a_row_to_score_without_a_label_is_named_by_its_line(tmp_path: Path) -> None:
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": "dev.jsonl"}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}:",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "label",
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    (tmp_path / "dev.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": null}\n')
    task = load_task(tmp_path / "mine.yaml")
    assert list(task.load("validation")["label"]) == [1, -1]
    with pytest.raises(InputError, match=r"There is no label on line 2 of .*dev.jsonl"):
        task_split(task, "validation", None, None)
