"""Rows without labels: raw files become the rows of a task, and rows that are also scored are found."""

import json
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks import Task, load_task
from sinkd_llm.tasks import task as tasks_task
from sinkd_llm.tasks.unlabelled import repeated_rows

ROWS = [{"text": "Is 'it' cold?", "label": 7}, {"text": ' "So" said\tnobody, ever.', "label": None}]


@pytest.fixture
def mine(write_task) -> Task:
    return Task(write_task())


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the file's name says."""
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        mark = "," if file.suffix == ".csv" else "\t"
        quoted = [['"' + str(value or "").replace('"', '""') + '"' for value in row.values()] for row in rows]
        file.write_text("".join(mark.join(fields) + "\n" for fields in [list(rows[0]), *quoted]))
    return file


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("columns", [("text",), ("text", "label")])
def test_every_format_gives_the_same_rows_with_labels_or_without(
    mine: Task, tmp_path: Path, suffix: str, columns: tuple[str, ...]
) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n')
    file = write(tmp_path / f"raw{suffix}", [{name: row[name] for name in columns} for row in ROWS])
    data = mine.load_unlabelled(file)
    assert data.features == mine.load("train").features
    assert data["prompt"] == [f"Q: {row['text']}\nA:" for row in ROWS]
    assert data["completion"] == ["", ""]
    assert data["choices"] == [[" no", " yes"]] * 2
    assert data["label"] == [-1, -1]
    assert [re.fullmatch(rf"mine-unlabelled-{i}-[0-9a-f]{{8}}", name) is not None for i, name in enumerate(data["id"])]
    assert len(set(data["id"])) == 2


def test_lines_of_text(mine: Task, make_task: Callable[..., Task], tmp_path: Path) -> None:
    (tmp_path / "raw.txt").write_bytes('\ufeff"One", \ttwo\u2028three\r\n 4 \r\n\r\n'.encode())
    assert mine.load_unlabelled(tmp_path / "raw.txt")["prompt"] == ['Q: "One", \ttwo\u2028three\nA:', "Q:  4 \nA:"]
    named = make_task(metadata={"texts": ["text"]}, doc_to_text="text")
    assert named.load_unlabelled(tmp_path / "raw.txt")["text"] == ['"One", \ttwo\u2028three', "4"]
    with pytest.raises(InputError, match="task 'mine' reads the columns text, title of a row; give rows"):
        make_task(doc_to_text="{{title}}: {{text}}").load_unlabelled(tmp_path / "raw.txt")
    with pytest.raises(InputError, match="task 'mine' reads the columns other, text of a row"):
        make_task(metadata={"texts": ["text", "other"]}).load_unlabelled(tmp_path / "raw.txt")


def test_labels_are_not_looked_at(make_task: Callable[..., Task], tmp_path: Path) -> None:
    file = write(tmp_path / "raw.jsonl", [{"text": "a", "label": "no such choice"}, {"text": "b", "label": [True]}])
    for target in ("label", "{{label - 1}}", 0):
        assert make_task(doc_to_target=target).load_unlabelled(file)["label"] == [-1, -1]
    regression = make_task(
        doc_to_choice=["0.0", "1.0"], metadata={"scoring": {"target": "label", "group": "asked"}}, metric_list=None
    )
    data = regression.load_unlabelled(file)
    assert data["target"] == data["group"] == [None, None]


def test_choices_of_the_row(make_task: Callable[..., Task], tmp_path: Path) -> None:
    task = make_task(doc_to_choice="{{[one, two]}}")
    file = write(tmp_path / "raw.csv", [{"text": "a", "one": "x", "two": "y"}])
    assert task.load_unlabelled(file)["choices"] == [[" x", " y"]]
    with pytest.raises(InputError, match=r"'two', which doc_to_choice .* needs, is not in line 2 of .*raw\.csv"):
        task.load_unlabelled(write(tmp_path / "raw.csv", [{"text": "a", "one": "x"}]))


def test_a_benchmarks_own_file_serves_as_it_is(tmp_path: Path) -> None:
    news = tmp_path / "train.csv"
    news.write_text('Class Index,Title,Description\n3,Oil up,"Prices, again"\n9,,Alone\n')
    assert load_task("ag_news").load_unlabelled(news)["text"] == ["Oil up Prices, again", "Alone"]
    reviews = tmp_path / "train.tsv"
    reviews.write_text('sentence\tlabel\n"a half-open quote\t1\nb "c" d\t0\n')
    assert load_task("sst2").load_unlabelled(reviews)["text"] == ['"a half-open quote', 'b "c" d']


def test_csv_is_read_as_the_tasks_own(make_task: Callable[..., Task], tmp_path: Path) -> None:
    kwargs = {"data_files": {"train": "train.csv"}, "delimiter": "|", "quoting": 3}
    task = make_task(dataset_path="csv", dataset_kwargs=kwargs, doc_to_text="{{count + 1}}: {{text}}")
    (tmp_path / "raw.csv").write_text('text|count\n"a|1\n')
    assert task.load_unlabelled(tmp_path / "raw.csv")["prompt"] == ['2: "a']


def test_limit_and_seed(mine: Task, tmp_path: Path) -> None:
    file = write(tmp_path / "raw.jsonl", [{"text": f"Question {i}?"} for i in range(30)])
    every = mine.load_unlabelled(file)["id"]
    assert mine.load_unlabelled(file, limit=5)["id"] == every[:5]
    drawn = mine.load_unlabelled(file, limit=8, seed=1)["id"]
    assert drawn == mine.load_unlabelled(file, limit=8, seed=1)["id"]
    assert drawn != every[:8]
    assert set(drawn) < set(every)
    for wrong, message in (({"limit": 0}, "limit is 0"), ({"seed": "x"}, "seed is 'x'")):
        with pytest.raises(InputError, match=message):
            mine.load_unlabelled(file, **wrong)


def test_large_files_are_rendered_once(mine: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))
    file = write(tmp_path / "raw.jsonl", [{"text": f"Question {i}?"} for i in range(6000)])
    first = mine.load_unlabelled(file)
    monkeypatch.setattr(Task, "_unlabelled_columns", lambda *_: pytest.fail("rendered again"))
    assert mine.load_unlabelled(file).to_dict() == first.to_dict()


def test_own_ids(mine: Task, tmp_path: Path) -> None:
    file = write(tmp_path / "raw.jsonl", [{"id": 12, "text": "a"}, {"id": " b7 ", "text": "b"}, {"text": "c"}])
    ids = mine.load_unlabelled(file)["id"]
    assert ids[:2] == ["12", "b7"]
    assert ids[2].startswith("mine-unlabelled-2-")
    assert mine.load_unlabelled(file, limit=2, seed=0)["id"] == [ids[0], ids[2]]
    write(file, [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": "1", "text": "c"}])
    with pytest.raises(InputError, match=r"id '1' of line 3 of .* is also the id of line 1 of"):
        mine.load_unlabelled(file, limit=1)
    write(file, [{"id": "mine-train-0-abc", "text": "a"}])
    with pytest.raises(InputError, match="is that of a row of the task's splits"):
        mine.load_unlabelled(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("raw.txt", "a\n \nb\n", r"no text on line 2 of .*raw\.txt; drop the line"),
        ("raw.txt", "\n\n", "has no rows"),
        ("raw.txt", "caf\xe9\n".encode("latin1"), "Line 1 of .* is not UTF-8"),
        ("raw.csv", "text,n\na,1\n,2\n", r"no text on line 3 of .*raw\.csv: 'text' is empty"),
        ("raw.jsonl", '{"text": "a"}\n{"text": null}\n', "has no text for line 2 of .*: its column 'text' is null"),
        (
            "raw.jsonl",
            '{"text": "a"}\n{"txt": "b"}\n',
            "The column 'text', .* is not in line 2 of .* Did you mean 'txt'",
        ),
        ("raw.jsonl", '{"text": "a"}\n{"text": ', "Line 2 of .* is not valid JSON"),
        ("raw.parquet", "text\na\n", "cannot be read as Parquet"),
        ("raw.xlsx", "text\na\n", r"ends in '.xlsx'; name it by what it holds, .txt, .csv"),
        ("raw", "text\na\n", "ends in ''; name it by what it holds"),
        ("other/raw.csv", None, r"There is no file .*raw\.csv of rows without labels, neither in"),
        ("r\0w.csv", None, "There is no file"),
        ("", None, "is '', which is no path"),
    ],
)
def test_what_cannot_be_read(mine: Task, tmp_path: Path, name: str, content: Any, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        mine.load_unlabelled(tmp_path / name if name else name)


def test_a_home_that_is_not_there(mine: Task) -> None:
    with pytest.raises(InputError, match="There is no file ~nobody-at-all"):
        mine.load_unlabelled("~nobody-at-all/raw.csv")


def test_empty_texts_beside_others(make_task: Callable[..., Task], tmp_path: Path) -> None:
    file = write(tmp_path / "raw.csv", [{"text": "a", "title": ""}, {"text": "", "title": "b"}])
    assert len(make_task(doc_to_text="{{title}}: {{text}}").load_unlabelled(file)) == 2
    with pytest.raises(InputError, match="no text on line 3"):
        make_task(doc_to_text="{{title}}: {{text}}", metadata={"texts": ["text"]}).load_unlabelled(file)


def test_generated_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'instruct' generates its answers"):
        load_task("instruct").load_unlabelled(write(tmp_path / "raw.csv", ROWS))


def test_a_file_beside_the_task_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = load_task("quickstart")
    statements = task.load_unlabelled("unlabelled.txt")
    assert len(statements) == 3000
    assert repeated_rows(task.load("validation"), statements).total == 0
    Path("unlabelled.txt").write_text("Of my own.\n")
    assert task.load_unlabelled("unlabelled.txt")["text"] == ["Of my own."]


@pytest.mark.parametrize("missing", ["-1", "null", '""', '"nan"'])
def test_a_training_file_may_have_both_sorts_where_asked(mine: Task, tmp_path: Path, missing: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(f'{{"text": "a", "label": 1}}\n{{"text": "b", "label": {missing}}}\n')
    data = mine.load("train", labelled=False)
    assert data["label"] == [1, -1]
    assert data["completion"] == [" yes", ""]
    with pytest.raises(InputError, match="There is no label on line 2"):
        mine.load("train")


def test_training_rows_may_lack_the_column_that_others_have(mine: Task, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b", "label": 0}\n')
    assert mine.load("train", labelled=False)["label"] == [-1, 0]
    with pytest.raises(InputError, match="The column 'label'"):
        mine.load("train")
    file.write_text('{"text": "a"}\n{"text": "b", "lable": 0}\n')
    with pytest.raises(InputError, match="The column 'label'"):  # a misspelt name is no row without a label
        mine.load("train", labelled=False)


def test_labels_that_a_benchmarks_file_leaves_out(tmp_path: Path) -> None:
    folder = tmp_path / "AGNews"
    folder.mkdir()
    (folder / "train.csv").write_text("Class Index,Title,Description\n3,a,b\n,c,d\n-1,e,f\n")
    news = load_task("ag_news")
    assert news.load("train", tmp_path, labelled=False)["label"] == [2, -1, -1]
    with pytest.raises(InputError, match="There is no label on line 3"):
        news.load("train", tmp_path)
    (folder / "train.csv").write_text("Class Index,Title,Description\n3,a,b\n5,c,d\n")
    with pytest.raises(InputError, match="The label '5' of line 3"):
        news.load("train", tmp_path, labelled=False)


def rows_of(texts: list[Any], **more: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"id": [f"r{i}" for i in range(len(texts))], "prompt": texts, **more})


def test_repeated_rows_by_text_whatever_the_white_space_and_case() -> None:
    texts = [f"Text {i}" for i in range(9)]
    scored = rows_of(["Q"] * 9, text=texts)
    raw = rows_of(["R"] * 8, text=[f" TEXT\t {i}\n" for i in (8, 1, 3, 1, 2, 4, 5, 99)])
    assert repeated_rows(scored, raw) == (6, ("r1", "r2", "r3", "r4", "r5"))
    assert repeated_rows(scored, raw.to_iterable_dataset()) == (6, ("r1", "r2", "r3", "r4", "r5"))
    assert repeated_rows(scored, rows_of(["q", "other"])) == (9, ("r0", "r1", "r2", "r3", "r4"))  # prompts alone
    assert repeated_rows(scored.remove_columns("id"), raw).ids[0] == "row 1"
    pairs = rows_of(["Q", "Q"], text=["a", "a"], text_pair=["b", "c"])
    assert repeated_rows(pairs, rows_of(["Q"], text=["A"], text_pair=["C "])) == (1, ("r1",))
    assert repeated_rows(pairs, rows_of(["Q"], text=["ac"], text_pair=[""])) == (0, ())
    talk = [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Ho"}]]
    assert repeated_rows(rows_of(talk), rows_of(talk[1:])) == (1, ("r1",))


@pytest.mark.parametrize("sample", [{}, {"limit": 7}, {"limit": 7, "seed": 3}, {"limit": 90, "seed": 3}])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
def test_rows_that_were_written_as_they_came_are_the_rows_of_a_small_file(
    mine: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, sample: dict[str, int]
) -> None:
    rows = [{"text": f"Question {i}?"} for i in range(40)]
    file = tmp_path / f"raw{suffix}"
    if suffix == ".txt":
        file.write_text("".join(row["text"] + "\n" for row in rows))
    else:
        write(file, rows)
    small = mine.load_unlabelled(file, **sample)
    drawn = list(range(40))
    if "seed" in sample:
        random.Random(sample["seed"]).shuffle(drawn)
    assert small["prompt"] == [f"Q: Question {i}?\nA:" for i in drawn[: sample.get("limit")]]
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks_task, "_CACHED_FROM_BYTES", 1)
    monkeypatch.setattr(tasks_task, "_AT_ONCE", 6)
    large = mine.load_unlabelled(file, **sample)
    assert large.to_list() == small.to_list()
    assert large.features == small.features
    assert [file.suffix for file in (tmp_path / "cache" / "rows").iterdir()].count(".arrow") == 1
    assert len(list((tmp_path / "cache" / "rows").iterdir())) == 2  # and its checksum
    # Where nothing may be kept, a temporary folder takes them.
    monkeypatch.setenv("SINKD_CACHE_DIR", str(file / "no" / "folder"))
    assert mine.load_unlabelled(file, **sample).to_list() == small.to_list()


def test_memory_does_not_grow_with_the_rows(mine: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks_task, "_AT_ONCE", 50)
    file = tmp_path / "raw.jsonl"
    file.write_text("".join(json.dumps({"id": i, "text": f"{i}" + "x" * 5_000}) + "\n" for i in range(2_000)))
    mine.load_unlabelled(write(tmp_path / "few.jsonl", [{"text": "a"}]))
    tracemalloc.start()
    try:
        assert len(mine.load_unlabelled(file, limit=1_500, seed=0)) == 1_500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file.stat().st_size > 10e6
    assert peak < 3e6


def test_a_mistake_in_a_large_file_leaves_nothing(mine: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks_task, "_CACHED_FROM_BYTES", 1)
    monkeypatch.setattr(tasks_task, "_AT_ONCE", 2)
    file = write(tmp_path / "raw.jsonl", [*({"text": f"{i}?"} for i in range(5)), {"text": " "}])
    with pytest.raises(InputError, match=r"no text on line 6 of .*raw\.jsonl"):
        mine.load_unlabelled(file)
    assert list((tmp_path / "cache" / "rows").iterdir()) == []
    (tmp_path / "raw.txt").write_text("a\n\nb\n")
    with pytest.raises(InputError, match="no text on line 2"):
        mine.load_unlabelled(tmp_path / "raw.txt")


def test_a_folder_is_no_file(mine: Task, tmp_path: Path) -> None:
    (tmp_path / "raw.txt").mkdir()
    with pytest.raises(InputError, match=r"unlabelled_file is the folder .*raw\.txt; give a file of rows in it"):
        mine.load_unlabelled(tmp_path / "raw.txt")
