"""Rows from the user's own files, from benchmark folders and from the hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks import Task, load_task
from sinkd_llm.tasks.loading import load_rows


@pytest.fixture
def own(write_task, tmp_path: Path) -> Task:
    rows = [{"text": f"Question {i}?", "label": i % 2} for i in range(20)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Task(write_task())


def test_columns(own: Task) -> None:
    data = own.load("train")
    assert data.column_names == ["id", "prompt", "completion", "choices", "label"]
    assert data[3] == {
        "id": data[3]["id"],
        "prompt": "Q: Question 3?\nA:",
        "completion": " yes",
        "choices": [" no", " yes"],
        "label": 1,
    }
    assert len(set(data["id"])) == 20
    assert data.features["label"].dtype == "int64"


def test_a_part_of_a_split(write_task, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"Question {i}?", "label": i % 2}) + "\n" for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    files = {"dataset_kwargs": {"data_files": {"train": "rows.jsonl"}}}
    task = Task(write_task(**files, training_split="train[:80%]", validation_split="train[80%:]"))
    assert task.load("train")["prompt"] == [f"Q: Question {i}?\nA:" for i in range(8)]
    assert task.load("validation")["prompt"] == ["Q: Question 8?\nA:", "Q: Question 9?\nA:"]
    (tmp_path / "rows.jsonl").write_text("".join([*lines[:9], '{"text": "one more", "label": 7}\n']))
    with pytest.raises(InputError, match=r"line 10 of .*rows.jsonl"):
        task.load("validation")
    (tmp_path / "more.jsonl").write_text("".join(lines[:2]))
    files = {"dataset_kwargs": {"data_files": {"train": "rows.jsonl", "more": ["more.jsonl", "more.jsonl"]}}}
    both = Task(write_task(**files, training_split="train[2:4]+more[50%:]"))
    assert [row[12:13] for row in both.load("train")["prompt"]] == ["2", "3", "0", "1"]
    with pytest.raises(InputError, match="has no files for the split 'test'"):
        Task(write_task(**files, training_split="test[:2]")).load("train")


def test_a_part_of_a_benchmark_s_file(write_task, tmp_path: Path) -> None:
    (tmp_path / "T").mkdir()
    (tmp_path / "T" / "train.csv").write_text("text,label\n" + "".join(f"Question {i}?,{i % 2}\n" for i in range(10)))
    local = {"folder": "T", "format": "csv", "files": {"train": "train.csv", "validation": "train.csv"}}
    local["labels"] = {0: 0, 1: 1}
    parts = {"training_split": "train[:70%]", "validation_split": "train[70%:]"}
    task = Task(write_task(dataset_path="nobody/x", dataset_kwargs=None, metadata={"local": local}, **parts))
    assert [len(task.load(split, tmp_path)) for split in ("train", "validation")] == [7, 3]
    assert task.load("validation", tmp_path)["prompt"][0] == "Q: Question 7?\nA:"


def test_limit_and_seed(own: Task) -> None:
    every = own.load("train")["id"]
    assert own.load("train", limit=5)["id"] == every[:5]
    assert own.load("train", limit=50)["id"] == every
    drawn = own.load("train", limit=8, seed=1)["id"]
    assert drawn == own.load("train", limit=8, seed=1)["id"]
    assert drawn != own.load("train", limit=8, seed=2)["id"]
    assert drawn[:3] == own.load("train", limit=3, seed=1)["id"]
    assert set(drawn) < set(every)
    assert drawn != every[:8]
    with pytest.raises(InputError, match="limit is 0"):
        own.load("train", limit=0)


def test_files_are_looked_up_in_data_dir_then_beside_the_task_then_here(
    own: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    row = '{"text": "Elsewhere?", "label": 0}\n'
    (other / "train.jsonl").write_text(row)
    assert len(own.load("train")) == 20
    assert own.load("train", data_dir=other)["prompt"] == ["Q: Elsewhere?\nA:"]
    (tmp_path / "train.jsonl").unlink()
    assert own.load("train")["prompt"] == ["Q: Elsewhere?\nA:"]


def test_csv_labels_are_integers_and_delimiter(make_task, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text;label\n"a; b";1\n007;0\n')
    task = make_task(
        dataset_path="csv",
        dataset_kwargs={"data_files": {"train": ["rows.csv", "rows.csv"]}, "delimiter": ";"},
    )
    data = task.load("train")
    assert data["label"] == [1, 0, 1, 0]
    assert data["prompt"][:2] == ["Q: a; b\nA:", "Q: 007\nA:"]


def test_a_bare_file_name_is_the_train_split(make_task, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "x", "label": 0}]')
    task = make_task(dataset_kwargs={"data_files": "rows.json"})
    assert len(task.load("train")) == 1
    with pytest.raises(InputError, match="has no files for the split 'validation'"):
        task.load("validation")


@pytest.mark.parametrize(
    ("changes", "content", "message"),
    [
        ({}, '{"text": "x", "label": 0}\n{"text": "y"}\n', "'label'.*line 2 of .*train.jsonl"),
        ({}, '{"text": "x", "label": 7}\n', "label 7 of line 1 of .*train.jsonl is outside"),
        ({}, '{"text": "x", "la', "Line 1 of .*train.jsonl is not valid JSON"),
        ({"dataset_kwargs": None}, "", "has no files for the split 'train'"),
        ({"dataset_kwargs": {"data_files": {"train": "no.jsonl"}}}, "", "'no.jsonl' of .* does not exist"),
        ({"dataset_kwargs": {"data_files": 3}}, "", "data_files.train in .* is 3; give a file name"),
        ({"dataset_kwargs": {"field": "x"}}, "", "dataset_kwargs.field in .* is not supported"),
    ],
)
def test_bad_own_files(changes, content: str, message: str, make_task, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        make_task(**changes).load("train")


def test_bad_splits_and_folders(own: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unknown split 'dev'"):
        own.load("dev")
    with pytest.raises(InputError, match="has no test split: test_split is not set"):
        own.load("test")
    with pytest.raises(InputError, match=r"data folder .*absent does not exist"):
        own.load("train", data_dir=tmp_path / "absent")


def test_empty_title_leaves_no_gap(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("Class Index,Title,Description\n1,,Only  a description.\n")
    prompts = load_task("ag_news").load("validation", data_dir=tmp_path)["prompt"]
    assert prompts[0] == "News: Only a description.\nTopic:"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("sst2", None, "", "needs the file SST-2/dev.tsv in the data folder"),
        ("sst2", "dev.tsv", "sentence\tlabel\nx\t2\n", "The label '2' of line 2 of .* is none of '0', '1'"),
        ("sst2", "dev.tsv", "sentence\tlabel\nx\n", "Line 2 of .* has 1 fields, but 2"),
        ("sst2", "dev.tsv", "text\tlabel\nx\t1\n", "'sentence', which doc_to_text in .* needs, is not in line 2"),
        ("cola", "dev.tsv", "x\t1\n", "has 2 fields, but 4 are expected .source, label"),
        ("rte", "dev.tsv", "sentence1\tsentence2\tlabel\na\tb\tmaybe\n", "'maybe' of line 2"),
        ("boolq", "val.jsonl", '{"question": "q", "label": true}\n', "'passage', which doc_to_text"),
        ("ag_news", "val.csv", "1,a,b\n2,c,d\n", "'Title' is not in line 2"),
        ("mrpc", "dev.tsv", "Quality\t#1 ID\t#1 String\n1\t2\ta\n", "'#2 String' is not in line 2"),
        ("stsb", "dev.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\n", "gives 'high' for line 2 .* be a number"),
        ("stsb", "dev.tsv", "sentence1\tsentence2\tscore\na\tb\t7.0\n", "The label 35 of line 2 .* is outside"),
        ("mnli", "dev.tsv", "sentence1\tsentence2\tgold_label\na\tb\t-\n", "The label '-' of line 2"),
        ("cb", "val.jsonl", '{"premise": "p", "hypothesis": "h"}\n', "'label', which doc_to_target"),
        (
            "copa",
            "val.jsonl",
            '{"premise": "p", "choice1": "a", "choice2": "a", "question": "cause", "label": 0}\n',
            "'a' more than once .line 1",
        ),
        (
            "copa",
            "val.jsonl",
            '{"premise": "p", "choice1": "a", "choice2": "", "question": "cause", "label": 0}\n',
            "empty choice .line 1",
        ),
        (
            "wsc",
            "val.jsonl",
            '{"text": "t", "target": {"span1_text": "t"}, "label": true}\n',
            "'target.span2_text' is not in line 1",
        ),
        (
            "multirc",
            "val.jsonl",
            '{"idx": 0, "passage": {"text": "t", "questions": [{"idx": 0, "question": "q"}]}}\n',
            "Question 0 on line 1 of .* has no 'answers'",
        ),
        ("multirc", "val.jsonl", '{"idx": 0, "passage": {"text": "t", "questions": []}}\n', "has no rows"),
        (
            "multirc",
            "val.jsonl",
            '{"idx": 0, "passage": {"text": "t", "questions": [{"idx": 0, "question": "q", '
            '"answers": [{"idx": 0, "text": "a"}]}]}}\n',
            "'label', .* is not in answer 0 to question 0 on line 1",
        ),
        (
            "record",
            "val.jsonl",
            '{"idx": 0, "passage": {"text": "t", "entities": [{"start": 0}]}, "qas": []}\n',
            "Entity 0 of line 1 of .* has no 'end'",
        ),
        (
            "record",
            "val.jsonl",
            '{"idx": 0, "passage": {"text": "t", "entities": [{"start": 0, "end": 0}]}, '
            '"qas": [{"idx": 0, "query": "q"}]}\n',
            "'answers', which .* is not in query 0 on line 1",
        ),
        ("trec", "TREC_10.label", "NUM:date When ?\nDESC\n", "Line 2 of .* is 'DESC', not COARSE:fine"),
        ("trec", "TREC_10.label", "NUMB:date When ?\n", "The label 'NUMB' of line 1"),
    ],
)
def test_bad_benchmark_folders(name: str, file: str | None, content: str, message: str, tmp_path: Path) -> None:
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message):
        load_task(name).load("validation", data_dir=tmp_path)


def test_data_dir_needs_a_declaration(make_task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not say how its files look"):
        make_task(dataset_path="some/set", dataset_kwargs=None).load("train", data_dir=tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list]:
    """Replaces `datasets.load_dataset`; the returned list collects its arguments."""

    def replace(result: Any) -> list:
        calls: list = []

        def load_dataset(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return replace


def test_hub(hub) -> None:
    calls = hub(datasets.Dataset.from_list([{"sentence": "fine ", "label": 1, "idx": 0}]))
    data = load_task("sst2").load("validation")
    assert calls == [(("nyu-mll/glue", "sst2"), {"split": "validation"})]
    assert data["prompt"] == ["Review: fine\nSentiment:"]


def test_offline_says_what_to_do(hub) -> None:
    hub(ConnectionError("Couldn't reach the hub\nlong trace"))
    with pytest.raises(InputError) as caught:
        load_task("sst2").load("validation")
    message = str(caught.value)
    assert "pass --data_dir with the folder that holds SST-2 (train.tsv, dev.tsv)" in message
    assert "Couldn't reach the hub" in message
    assert "\n" not in message


def test_streaming_is_refused(hub, make_task) -> None:
    hub(datasets.IterableDataset.from_generator(lambda: iter([{"text": "x"}])))
    task = make_task(dataset_path="some/set", dataset_kwargs={"streaming": True, "trust_remote_code": True})
    with pytest.raises(InputError, match="drop streaming"):
        task.load("train")


def test_qqp_leaves_out_rows_that_break_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    (tmp_path / "dev.tsv").write_text(header + "0\t1\t2\tWhat is\n" + "3\t4\t5\tWhy?\tWhy not?\t0\n")
    data = load_task("qqp").load("validation", data_dir=tmp_path)
    assert list(data["label"]) == [0]
    assert "Left out 1 incomplete rows" in caplog.text
    assert "line 2; 1 rows remain" in caplog.text


def test_the_filter_of_clinc150_leaves_out_what_is_out_of_scope(tmp_path: Path) -> None:
    """`datasets` filters the hub's Parquet files itself; the sizes on its card are those without the filter."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=[f"i{i}" for i in range(151)])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "intent": [41, 42, 43]}, features=features)
    (tmp_path / "plus").mkdir()
    rows.to_parquet(tmp_path / "plus" / "test-0.parquet")
    card = {
        "dataset_info": [{"config_name": "plus", "splits": [{"name": "test", "num_bytes": 9, "num_examples": 3}]}],
        "configs": [{"config_name": "plus", "data_files": [{"split": "test", "path": "plus/test-*"}]}],
    }
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    task = load_task("clinc150")
    found = load_rows({**task.config, "dataset_path": str(tmp_path)}, task.path, "validation", None)
    assert [row["intent"] for row in found.rows] == [41, 43]
    assert [task.render(row, 0, "validation").completion for row in found.rows] == [
        " current credit limit",
        " read the shopping list",
    ]
    with pytest.raises(InputError, match="label 'out of scope' of row 0"):
        task.render({"text": "b", "intent": 42}, 0, "validation")


def test_unlabelled_rows_of_the_hub(hub, make_task) -> None:
    """The hub's test splits of GLUE have the label -1; STS-B's as a float, ReCoRD's as no answers."""
    hub(datasets.Dataset.from_list([{"sentence1": "a", "sentence2": "b", "label": -1.0}]))
    row = load_task("stsb").load("validation")[0]
    assert (row["label"], row["completion"], row["target"]) == (-1, "", None)
    hub(datasets.Dataset.from_list([{"passage": "p", "query": "q", "entities": ["A", "B"], "answers": []}]))
    row = load_task("record").load("validation")[0]
    assert (row["label"], row["completion"], row["answers"]) == (-1, "", [])
    hub(datasets.Dataset.from_list([{"sentence": "a", "label": -1}]))
    assert load_task("cola").load("validation")[0]["label"] == -1


def test_record_names(hub) -> None:
    """Stray white space, doubles, an odd quote and a digit change nothing; one candidate alone is allowed."""
    rows = [
        {"passage": "p", "query": "q", "entities": [" 2", "O'Neil", "O'Neil ", ""], "answers": ["O'Neil "]},
        {"passage": "p", "query": "q", "entities": ["Solo"], "answers": ["Solo"]},
    ]
    hub(datasets.Dataset.from_list(rows))
    data = load_task("record").load("validation")
    assert data["choices"][0] == [" 2", " O'Neil"]
    assert list(data["label"]) == [1, 0]
    assert data["choices"][1] == [" Solo"]


def test_choice_lists_of_different_lengths(make_task, tmp_path: Path) -> None:
    rows = [{"text": "a", "options": ["x", "y"], "label": 0}, {"text": "b", "options": ["x", "y", "z"], "label": 2}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(make_task(doc_to_choice="options").load("train")) == 2
    task = make_task(doc_to_choice="options", metric_list=[{"metric": "acc"}, {"metric": "mcc"}])
    with pytest.raises(InputError, match=r"Line 2 of .* has 3 choices and line 1 of .* has 2, but mcc compares"):
        task.load("train")


def test_class_labels_of_the_hub_are_indices(hub, make_task) -> None:
    stars = ["1", "2", "3", "4", "5"]
    rows = [{"text": "a", "label": 4}, {"text": "b", "label": 1}, {"text": "c", "label": -1}]
    task = make_task(dataset_path="some/set", dataset_kwargs=None, doc_to_choice=stars)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=stars)})
    hub(datasets.Dataset.from_list(rows, features=features))
    assert task.load("validation")["completion"] == [" 5", " 2", ""]
    hub(datasets.Dataset.from_list(rows[:2]))  # as plain numbers these are words
    assert task.load("validation")["completion"] == [" 4", " 1"]


def test_arguments_of_the_wrong_kind(own: Task, tmp_path: Path) -> None:
    for arguments, message in (
        ((["train"],), r"Unknown split \['train'\]"),
        (("train", 3), "data_dir is 3, which is no path"),
        (("train", None, 1.5), "limit is 1.5, but it should be a whole number"),
        (("train", None, True), "limit is True"),
        (("train", None, -1), "limit is -1"),
        (("train", None, 2, "x"), "seed is 'x'"),
    ):
        with pytest.raises(InputError, match=message):
            own.load(*arguments)
    for name in ("a\0.yaml", "x" * 5_000 + ".yaml", "y" * 5_000, ""):
        with pytest.raises(InputError) as caught:
            load_task(name)
        assert len(str(caught.value)) < 400
    with pytest.raises(InputError, match="row 0 of the train split is None, not a mapping"):
        own.render(None, 0, "train")  # type: ignore[arg-type]


def test_csv_columns_of_booleans_and_names_of_digits(make_task, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n007,true\n010,false\n")
    data = {"dataset_path": "csv", "dataset_kwargs": {"data_files": {"train": "rows.csv"}}}
    rows = make_task(**data, doc_to_choice=["yes", "no"]).load("train")
    assert rows["completion"] == [" yes", " no"]
    assert rows["prompt"][0] == "Q: 007\nA:"
    rows = make_task(**data, doc_to_target="{{'yes' if label else 'no'}}").load("train")
    assert rows["completion"] == [" yes", " no"]


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        ({}, {"text": None}, "doc_to_text in .* has no text for line 1 of .*: its column 'text' is null"),
        ({"doc_to_text": "text"}, {"text": None}, "doc_to_text .* its column 'text' is null"),
        ({"doc_to_text": "{{text | trim}}?"}, {"text": None}, "its column 'text' is null"),
        ({"doc_to_text": "{{text ~ '?'}}"}, {"text": None}, "its column 'text' is null"),
        ({"doc_to_text": "{{'%s?' % text}}"}, {"text": None}, "its column 'text' is null"),
        ({"doc_to_text": "{{text | int}}?"}, {"text": None}, "its column 'text' is null"),
        ({"doc_to_text": "{{text.a | trim}}?"}, {"text": {"a": None}}, r"its column 'text.a' is null"),
        ({"doc_to_text": "{{text | join(' ')}}?"}, {"text": ["a", None]}, r"its column 'text\[1\]' is null"),
        ({"doc_to_text": "{{text.get('b')}}?"}, {"text": {"a": 1}}, "a call in it is null"),
        ({"doc_to_text": "{{text.get('b') | trim}}?"}, {"text": {"a": 1}}, "a call in it is null"),
        ({"doc_to_text": "{{none}}?"}, {}, "an expression in it is null"),
        ({}, {"text": float("nan")}, "its column 'text' is NaN"),
        ({}, {"text": "a\ud800"}, r"that cannot be encoded: character 4 is U\+D800"),
        ({"description": "{{other}}"}, {"other": None}, "description in .* its column 'other' is null"),
        ({"metadata": {"texts": ["other"]}}, {"other": None}, "metadata.texts in .* its column 'other' is null"),
        ({"doc_to_choice": "{{[text, other]}}"}, {"other": None}, "doc_to_choice in .* its column 'other' is null"),
        ({"doc_to_choice": "other"}, {"other": None}, "doc_to_choice in .* its column 'other' is null"),
        ({"doc_to_choice": "other"}, {"other": ["a", None]}, "The choice None .line 1 of .* is NoneType, not text"),
        ({"doc_to_target": "{{'yes' if label else 'no'}}"}, {"label": None}, "There is no label on line 1 of"),
        ({"doc_to_target": "{{label}}"}, {"label": None}, "There is no label on line 1 of"),
        (
            {"output_type": "generate_until", "doc_to_choice": None},
            {"label": None},
            "gives no text but None",
        ),
    ],
)
def test_a_null_is_no_word(changes, row, message: str, make_task, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a", "label": 1, **row}) + "\n")
    with pytest.raises(InputError, match=message):
        make_task(**changes).load("train")


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{text or 'nothing'}}.", "nothing."),
        ("{% if text is none %}-{% else %}{{text}}{% endif %}.", "-."),
        ("{{text | default('nothing', true)}}.", "nothing."),
        ("{{[label, text] | reject('none') | join}}.", "1."),
        ("{{label == 1 and text == none}}.", "True."),
        ("{{text.a | default('no a')}}.", "no a."),
    ],
)
def test_a_template_may_say_what_a_null_means(template: str, prompt: str, make_task, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": null, "label": 1}\n')
    assert make_task(doc_to_text=template).load("train")["prompt"] == [prompt]
