"""Which rows a server's and a file's answers are of, and which of them a cache holds."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkd_llm import load_task
from sinkd_llm.cli.parsing import parse_recipe, parse_training
from sinkd_llm.errors import InputError
from sinkd_llm.runs import asking
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.balancing import balanced_sets
from sinkd_llm.runs.cache import run_cache
from sinkd_llm.runs.data import RunData, load_run_data
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.answer_file import file_rows
from sinkd_llm.teachers.questions import Answers, AnswerSet, Question, questions_of
from tests.support.language_server import language_server
from tests.support.task_files import TASK, write_task

FILES = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight rows to train on and four others in each other split, which count their `nr` from 0."""
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "kept"))
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        rows = [{"text": f"{split} film {i}", "label": i % 2, "nr": i} for i in range(count)]
        (tmp_path / FILES[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_task(
        tmp_path / "opinions.yaml",
        dataset_kwargs={"data_files": FILES},
        test_split="test",
        metadata={"version": 1, "texts": ["text"]},
    )


def cached(task: Path, output: str, *words: str, **more: Any) -> CachedTeacher:
    settings = {"task": task, "use_cpu": "true", **more, "output": task.parent / output}
    given = [word for name, value in settings.items() for word in (f"--{name}", str(value))] + [*words]
    run_cache(*parse_recipe("cache", given)[:4], argv=given)
    return CachedTeacher(task.parent / output)


def answer_file(task: Path, name: str, columns: str, *rows: str) -> Path:
    (task.parent / name).write_text("\n".join([columns, *rows]) + "\n")
    return task.parent / name


def answered(task: Path, name: str, choices: str) -> Path:
    """Of each training row the choice: 0 negative, 1 positive."""
    said = (f"{i},{TASK['doc_to_choice'][int(choice)]}" for i, choice in enumerate(choices))
    return answer_file(task, name, "row,answer", *said)


def chosen(cache: CachedTeacher, data: RunData) -> list[int]:
    scores = cache.answers(data.train["id"][:])
    return [int(scores[name].argmax()) for name in data.train["id"][:]]


def test_a_file_with_other_answers_is_not_taken_for_the_one_that_was_cached(task: Path) -> None:
    data = load_run_data(TaskArguments(task=str(task)), 0)
    cached(task, "cache", teacher_file=answered(task, "answers.csv", "01010101"))
    cached(task, "cache", teacher_file=answered(task, "answers.csv", "01010101"))
    for answers in ("10101010", "0101010"):
        file = answered(task, "answers.csv", answers)
        with pytest.raises(InputError, match=r"other answers to the rows\); give another --output, or --overwrite"):
            cached(task, "cache", teacher_file=file)
        assert chosen(CachedTeacher(task.parent / "cache"), data) == [0, 1] * 4
    file = answered(task, "answers.csv", "10101010")
    assert chosen(cached(task, "cache", "--overwrite", "true", teacher_file=file), data) == [1, 0] * 4


def test_caches_that_are_merged_otherwise_are_other_ones(task: Path) -> None:
    for name, said in (("a", "0.9,0.1"), ("b", "0.1,0.9")):
        file = answer_file(task, f"{name}.csv", "row,negative,positive", *(f"{i},{said}" for i in range(8)))
        cached(task, name, teacher_file=file)
    merge = ["--merge", str(task.parent / "a"), str(task.parent / "b")]
    cached(task, "both", *merge, "--merge_weights", "9", "1")
    cached(task, "both", *merge, "--merge_weights", "18", "2")
    for words in (["--merge_weights", "1", "9"], ["--merge_weights", "9", "1", "--merge_by", "logits"]):
        with pytest.raises(InputError, match="other answers to the rows"):
            cached(task, "both", *merge, *words)


@pytest.mark.parametrize(
    ("value", "folders", "message"),
    [
        ("a", ("one/a", "two/a"), "is 'a', which may be .*one/a or .*two/a; .* give the folders other names"),
        ("0", ("one/1", "one/0"), "is '0', which may be .*one/1 or .*one/0; .* give the folders other names"),
        ("c", ("one/a", "one/b"), "is 'c', which is no cache; the caches are a, b"),
    ],
)
def test_a_value_that_may_be_either_cache_is_refused(
    value: str, folders: tuple[str, str], message: str, task: Path
) -> None:
    rows = [json.loads(line) for line in (task.parent / "train.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "source": value}) for row in rows]
    (task.parent / "train.jsonl").write_text("\n".join(lines) + "\n")
    for folder in folders:
        cached(task, folder, teacher_file=answered(task, "answers.csv", "01010101"))
    merge = ["--merge", *(str(task.parent / folder) for folder in folders), "--merge_by", "source"]
    with pytest.raises(InputError, match=message):
        cached(task, "both", *merge)


def test_a_run_takes_what_its_server_says_now(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(choice: int) -> Callable[..., Any]:
        def asked(args: Any, questions: list[Question], held_out: list[Question]) -> Any:
            said = Answers()
            for question in questions:
                said.add_answer(question, choice)
            return said, {}

        return asked

    flags = {"task": task, "model_name_or_path": "none", "output_dir": task.parent / "out", "use_cpu": "true"}
    flags |= {"teacher_url": "http://127.0.0.1:9/v1", "sinkhorn_weight": 0}
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    data, folders = load_run_data(TaskArguments(task=str(task)), 0), set()
    for choice in (0, 1):  # another model at the same address
        monkeypatch.setattr(asking, "ask_server", says(choice))
        args = parse_training("distill", given)[1]
        asking.use_answers(data, args)
        folders.add(args.teacher_cache)
        assert chosen(CachedTeacher(str(args.teacher_cache)), data) == [choice] * 8
    assert len(folders) == 1


@pytest.mark.parametrize("rows_per_request", [1, 4])
def test_a_server_is_asked_about_two_splits_that_use_the_same_ids(rows_per_request: int, task: Path) -> None:
    def says(prompt: str, number: int) -> str:
        texts = prompt.split("Texts:\n")[1].split("\n\nAnswers:")[0].splitlines() if rows_per_request > 1 else [prompt]
        said = ["positive" if "train" in text else "negative" for text in texts]
        return "\n".join(f"{n}. {word}" for n, word in enumerate(said, 1)) if rows_per_request > 1 else said[0]

    with language_server(style="chat", says=says) as state:
        more: dict[str, Any] = {"teacher_url": state.url, "id_column": "nr", "teacher_way": "answers"}
        cache = cached(task, "cache", **more, teacher_rows_per_request=rows_per_request)
    names = [str(i) for i in range(8)]
    assert {name: int(scores.argmax()) for name, scores in cache.answers(names).items()} == dict.fromkeys(names, 1)
    assert cache.recorded_score is not None
    assert cache.recorded_score["predictions"] == [0] * 4


@pytest.mark.parametrize(
    ("columns", "split", "id_column", "expected"),
    [
        ("split,row", "test", None, {}),  # another split of the task
        ("split,row", "validation", None, {"0", "1", "2", "3"}),
        ("split,row", "dev", None, {"0", "1", "2", "3"}),
        ("row", "", None, {}),  # positions of the training rows
        ("nr", "", "nr", {}),  # ids of the training rows, or of these
        ("split,nr", "test", "nr", {}),
        ("split,nr", "validation", "nr", {"0", "1", "2", "3"}),
        ("text", "", "nr", {"0", "1", "2", "3"}),
    ],
)
def test_what_a_file_says_of_the_rows_for_evaluation(
    columns: str, split: str, id_column: str | None, expected: set[str], task: Path
) -> None:
    data = load_run_data(TaskArguments(task=str(task), id_column=id_column), 0)
    rows = [("train", i) for i in range(8)] + [(split or "validation", i) for i in range(4)]
    of_training = columns in ("row", "nr")
    values = {"split": "{0}", "row": "{1}", "nr": "{1}", "text": "{0} film {1}"}
    form = ",".join(values[name] for name in columns.split(",")) + ",positive"
    lines = [form.format(*row) for row in (rows[:8] if of_training else rows)]
    file = answer_file(task, "answers.csv", f"{columns},answer", *lines)
    said = asking.answers_of_evaluation(
        file_rows(file),
        questions_of(data.train),
        questions_of(data.evaluation),
        id_column,
        asking.evaluation_splits(data.task, data.arguments),
    )
    assert {name if id_column else name.split("-")[2] for name in said} == set(expected)


@pytest.mark.parametrize(
    ("split", "training", "expected"),
    [
        ("dev", range(4, 8), True),  # the file knows the split by its second name
        ("valid", range(4, 8), True),  # a name that is of no split; none of the rows to train on has such an id
        ("valid", range(8), False),
        ("test", range(4, 8), False),
    ],
)
def test_ids_of_the_data_are_looked_for_in_the_rows_of_their_split(
    split: str, training: range, expected: bool, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"train,{i},positive" for i in training] + [f"{split},{i},positive" for i in range(4)]
    file = answer_file(task, "answers.csv", "split,nr,answer", *lines)
    score = cached(task, "cache", teacher_file=file, id_column="nr").recorded_score
    assert (score is not None and score["num_examples"] == 4) is expected
    said = " ".join(capsys.readouterr().err.split())
    assert ("all their split 'validation' in its column 'split'" in said) is not expected


def test_test_rows_are_those_for_evaluation_where_the_task_has_no_other(task: Path) -> None:
    def counted(*words: Any) -> tuple[str, ...]:
        return asking.evaluation_splits(*words).counted

    assert counted(load_task(task), None) == ("validation", "dev")
    two = load_task(write_task(task.with_name("two.yaml")))
    assert "test" in counted(two, None)
    one = load_task(write_task(task.with_name("one.yaml"), validation_split=None))
    assert counted(one, None, 0.2) == ("train",)
    assert counted(one, None) == ()
    part = asking.evaluation_splits(
        load_task(write_task(task.with_name("p.yaml"), validation_split="train[80%:]")), None
    )
    assert "train" in part.names
    assert "train" not in part.counted
    rows = TaskArguments(dataset_name="d.jsonl", dataset_test_split="test")
    assert counted(None, rows) == ("test",)
    assert {*counted(None, dataclasses.replace(rows, dataset_test_split="validation"))} == {"validation", "dev"}
    # Of a sample, or a part of a split, the positions are others than the file's.
    assert counted(None, dataclasses.replace(rows, max_eval_samples=3)) == ()
    assert counted(None, dataclasses.replace(rows, dataset_test_split="train[80%:]")) == ()


def test_a_score_over_more_rows_is_not_replaced_unasked(task: Path) -> None:
    def file(*choices: str) -> Path:
        held_out = (f"validation,{i},{choice}" for i, choice in enumerate(choices))
        return answer_file(task, "a.csv", "split,row,answer", *(f"train,{i},positive" for i in range(8)), *held_out)

    four = ("positive",) * 4
    cached(task, "cache", teacher_file=file(*four))
    for less in ({"teacher_file": file(*four), "score_teacher": "false"}, {"teacher_file": file("positive")}):
        with pytest.raises(InputError, match=r"another score of the teacher, .* or --overwrite"):
            cached(task, "cache", **less)
    score = cached(task, "cache", teacher_file=file("negative", *four[1:])).recorded_score
    assert score is not None
    assert score["predictions"] == [0, 1, 1, 1]


def test_lists_and_the_rows_for_evaluation_are_balanced_alike(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_run_data(TaskArguments(task=str(task), balance="uniform"), 0)
    questions, held_out = questions_of(data.train), questions_of(data.evaluation)
    # All are held for negative, the positive ones a little less so.
    shares = np.array([[0.9, 0.1], [0.7, 0.3]], np.float32)
    sets = [
        AnswerSet(tuple(one.name for one in questions[i : i + 2]), np.log(shares), np.ones(2), True)
        for i in range(0, 8, 2)
    ]
    theirs = {question.name: np.log(shares[i % 2]) for i, question in enumerate(held_out)}
    balanced, also = balanced_sets(data, questions, sets, held_out, theirs)
    moved = balanced[0].scores_MC - sets[0].scores_MC
    for i, question in enumerate(held_out):
        difference = also[question.name] - theirs[question.name]
        assert difference[1] - difference[0] == pytest.approx(moved[0, 1] - moved[0, 0], abs=1e-5)
        assert int(also[question.name].argmax()) == i % 2
    said = " ".join(capsys.readouterr().err.split())
    assert "On 8 labelled rows for training: score 0.500 → 1.000" in said
    assert "On 4 labelled rows for evaluation: score 0.500 → 1.000" in said
