"""Which rows a run trains and is scored on."""

import json

import pytest

from sinkd_llm import SinKDConfig
from sinkd_llm.errors import InputError
from sinkd_llm.runs import TaskArguments
from sinkd_llm.runs.data import load_run_data

ROWS = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(8)]


@pytest.fixture
def jsonl(tmp_path):
    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_a_local_file_is_the_train_split(jsonl):
    data = load_run_data(TaskArguments(dataset_name=jsonl(ROWS)), seed=0)
    assert data.name == "rows.jsonl"
    assert data.train.to_list() == ROWS
    assert data.evaluation is None
    assert data.task is None


def test_parts_of_a_file_are_splits(jsonl):
    parts = {"dataset_train_split": "train[:75%]", "dataset_test_split": "train[75%:]"}
    data = load_run_data(TaskArguments(dataset_name=jsonl(ROWS), **parts), seed=0)
    assert (data.train.to_list(), data.evaluation.to_list()) == (ROWS[:6], ROWS[6:])


@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [("train", "train[75%:]", 2), ("train[:75%]", "train[4:]", 2), ("train[6:]+train[:2]", "train", 4)],
)
def test_rows_that_are_trained_on_are_no_test(jsonl, train, test, shared):
    arguments = TaskArguments(dataset_name=jsonl(ROWS), dataset_train_split=train, dataset_test_split=test)
    with pytest.raises(InputError, match=rf"{shared} rows are in both, .* such as train\[:80%\]"):
        load_run_data(arguments, seed=0)


def test_the_rows_to_evaluate_on_may_be_the_training_rows_if_both_are_named_alike(jsonl):
    arguments = TaskArguments(dataset_name=jsonl(ROWS), dataset_test_split="train")
    assert load_run_data(arguments, seed=0).evaluation.to_list() == ROWS


def test_a_folder_with_both_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = load_run_data(TaskArguments(dataset_name=str(tmp_path), max_eval_samples=3), seed=0)
    assert len(data.train) == 8
    assert data.evaluation is not None
    assert len(data.evaluation) == 3


def test_samples_follow_the_seed_in_training_and_not_in_evaluation():
    def ids(**seeds):
        arguments = TaskArguments(task="quickstart", max_train_samples=5, max_eval_samples=5)
        data = load_run_data(arguments, SinKDConfig("unused", use_cpu=True, **seeds).sample_seed)
        return list(data.train["id"]), list(data.evaluation["id"])

    first = ids(seed=0)
    assert ids(seed=0) == first == ids(seed=1, data_seed=0)
    assert ids(seed=1)[0] != first[0]
    assert ids(seed=1)[1] == first[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_name": "absent.jsonl"}, "There is no file absent.jsonl"),
        ({"dataset_name": "nobody/nothing-at-all"}, "'nobody/nothing-at-all' could not be loaded"),
        ({"task": "sst3"}, "Did you mean 'sst2'"),
    ],
)
def test_what_is_not_there(arguments, message):
    with pytest.raises(InputError, match=message):
        load_run_data(TaskArguments(**arguments), seed=0)


def test_rows_without_prompt_and_completion(jsonl):
    path = jsonl([{"text": "a", "label": 0}])
    with pytest.raises(InputError, match="have no column 'completion', only text, label"):
        load_run_data(TaskArguments(dataset_name=path), seed=0)


def test_a_split_that_is_not_there(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(InputError, match="has no split 'training'; it has train"):
        load_run_data(TaskArguments(dataset_name=str(tmp_path), dataset_train_split="training"), seed=0)
