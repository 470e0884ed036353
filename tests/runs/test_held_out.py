"""Training rows that are held out: which ones, that nothing is trained on them, and that their answers are kept."""

import json
from pathlib import Path

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.report.predictions import EVALUATION, PREDICTIONS_FILE, Predictions, read_predictions, write_predictions
from sinkd_llm.runs import TaskArguments
from sinkd_llm.runs.data import load_run_data
from sinkd_llm.runs.held_out import hold_out, smallest
from tests.support.task_files import write_task

ROWS = [{"text": f"a {'good' if i % 2 else 'bad'} film {i // 2}", "label": i % 2} for i in range(200)]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path / "mine.yaml", ROWS)


def texts(rows):
    return list(rows["prompt"])


def test_a_share_is_held_out_by_the_text_alone(task):
    data = load_run_data(TaskArguments(task=str(task), heldout_share=0.2), 0)
    again = load_run_data(TaskArguments(task=str(task), heldout_share=0.2), 1)
    held = texts(data.held_out)
    assert held == texts(again.held_out)
    assert 20 <= len(held) <= 60
    assert not {*held} & {*texts(data.train)}
    assert sorted(held + texts(data.train)) == sorted(texts(load_run_data(TaskArguments(task=str(task)), 0).train))
    # What is held out with a smaller share is held out with a larger one, too.
    assert {*texts(load_run_data(TaskArguments(task=str(task), heldout_share=0.1), 0).held_out)} < {*held}


def test_rows_of_one_text_stay_together(tmp_path):
    task = write_task(tmp_path / "mine.yaml", [row for row in ROWS for _ in range(2)])
    data = load_run_data(TaskArguments(task=str(task), heldout_share=0.3), 0)
    assert not {*texts(data.held_out)} & {*texts(data.train)}
    assert len(data.held_out) == 2 * len({*texts(data.held_out)})


def test_without_a_share_every_row_is_trained_on(task):
    data = load_run_data(TaskArguments(task=str(task)), 0)
    assert data.held_out is None
    assert len(data.train) == len(ROWS)


def test_held_out_rows_keep_their_labels_where_others_are_forgotten(task):
    data = load_run_data(TaskArguments(task=str(task), heldout_share=0.2, labels_per_class=3), 0)
    assert NO_LABEL not in data.held_out["label"]
    assert sum(label != NO_LABEL for label in data.train["label"]) == 6
    alone = load_run_data(
        TaskArguments(task=str(task), heldout_share=0.2, labels_per_class=3, labelled_rows_only=True), 0
    )
    assert len(alone.train) == 6
    assert NO_LABEL not in alone.train["label"]


def test_rows_without_a_label_do_not_count_as_kept_labels(tmp_path, capsys):
    raw = [{"text": f"raw {i}"} for i in range(9)]
    task = write_task(tmp_path / "mine.yaml", [*ROWS[:6], *raw])
    (tmp_path / "validation.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    given = TaskArguments(task=str(task), allow_unlabelled=True, labels_per_class=2)
    assert sorted(load_run_data(given, 0).train["label"]) == [NO_LABEL] * 11 + [0, 0, 1, 1]
    assert "4 of 6 labels are kept" in " ".join(capsys.readouterr().err.split())


def test_a_raw_row_with_the_text_of_a_held_out_one_is_left_out(task, tmp_path):
    raw = tmp_path / "raw.txt"
    raw.write_text("".join(f"{row['text']}\n" for row in ROWS), encoding="utf-8")
    data = load_run_data(TaskArguments(task=str(task), heldout_share=0.2, unlabelled_file=str(raw)), 0)
    assert not {*texts(data.held_out)} & {*texts(data.train)}
    assert len(data.train) == 2 * (len(ROWS) - len(data.held_out))


def test_most_held_out_rows_that_are_scored(task):
    every = load_run_data(TaskArguments(task=str(task), heldout_share=0.2), 0)
    few = load_run_data(TaskArguments(task=str(task), heldout_share=0.2, max_eval_samples=5), 0)
    assert len(few.held_out) == 5
    assert {*texts(few.held_out)} < {*texts(every.held_out)}
    assert len(few.train) == len(every.train)
    assert texts(smallest(every.held_out, 5)) == texts(few.held_out)


@pytest.mark.parametrize("share", [1e-9, 0.999999])
def test_a_share_that_leaves_nothing_is_refused(task, share):
    with pytest.raises(InputError, match="heldout_share is"):
        load_run_data(TaskArguments(task=str(task), heldout_share=share), 0)


def test_rows_without_a_label_are_not_held_out(task):
    rows = load_run_data(TaskArguments(task=str(task), labels_per_class=1), 0).train
    train, held = hold_out(rows, 0.9)
    assert NO_LABEL not in held["label"]
    assert len(train) + len(held) == len(rows)


def test_predictions_are_read_as_they_were_written(tmp_path):
    given = {EVALUATION: Predictions(["a", "b"], [0, 1], [1, 1], {"acc": 0.5})}
    write_predictions(tmp_path, given)
    assert read_predictions(tmp_path) == given


@pytest.mark.parametrize("content", ["", "[]", '{"evaluation": {}}', '{"evaluation": 1}', None])
def test_a_damaged_file_of_predictions_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / PREDICTIONS_FILE).write_text(content)
    with pytest.raises(InputError, match=r"predictions\.json"):
        read_predictions(tmp_path)


def test_lists_of_different_lengths_are_damage(tmp_path):
    write_predictions(tmp_path, {EVALUATION: Predictions(["a", "b"], [0, 1], [1, 1], {"acc": 0.5})})
    content = json.loads((tmp_path / PREDICTIONS_FILE).read_text())
    content[EVALUATION]["predictions"] = [1]
    (tmp_path / PREDICTIONS_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"predictions\.json"):
        read_predictions(tmp_path)


def alone(folder: Path, rows=ROWS) -> str:
    """A task of one file without a validation split."""
    return str(write_task(folder / "alone.yaml", rows, validation_split=None))


def test_one_file_is_split_by_the_texts_of_its_rows(tmp_path):
    arguments = TaskArguments(task=alone(tmp_path, [*ROWS, *ROWS[:50]]), validation_share=0.2)
    data = load_run_data(arguments, 0)
    train, evaluation = {*texts(data.train)}, {*texts(data.evaluation)}
    assert not train & evaluation
    assert len(train | evaluation) == 200
    assert len(data.train) + len(data.evaluation) == 250
    assert 20 <= len(evaluation) <= 60
    # Neither the seed nor the order of the rows nor a sample of them changes a side.
    again = load_run_data(
        TaskArguments(task=alone(tmp_path, ROWS[::-1]), validation_share=0.2, max_train_samples=40), 1
    )
    assert {*texts(again.evaluation)} == evaluation
    assert len(again.train) == 40
    assert {*texts(again.train)} < train
    sample = TaskArguments(task=alone(tmp_path), validation_share=0.2, max_eval_samples=7)
    assert len(load_run_data(sample, 3).evaluation) == 7


def test_a_share_to_choose_settings_by_is_taken_of_the_rest(tmp_path):
    data = load_run_data(TaskArguments(task=alone(tmp_path), validation_share=0.2, heldout_share=0.2), 0)
    assert {len({*texts(part)}) > 20 for part in (data.held_out, data.evaluation)} == {True}
    parts = [{*texts(part)} for part in (data.train, data.held_out, data.evaluation)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 200


def test_no_unlabelled_row_has_the_text_of_an_evaluation_row(tmp_path):
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in ROWS))
    given = {"unlabelled_file": str(tmp_path / "more.jsonl"), "allow_unlabelled": True}
    data = load_run_data(TaskArguments(task=alone(tmp_path), validation_share=0.3, **given), 0)
    assert not {*texts(data.train)} & {*texts(data.evaluation)}
    assert len(data.train) == 2 * (200 - len(data.evaluation))


@pytest.mark.parametrize(
    "shares",
    [
        {"heldout_share": 0.2, "labels_per_class": 3, "max_train_samples": 150},
        {"validation_share": 0.2, "heldout_share": 0.2, "max_train_samples": 60, "max_eval_samples": 9},
        {"validation_share": 0.3, "id_column": "nr"},
        {"heldout_share": 0.2, "dataset_unlabelled_split": "test", "labels_per_class": 3},
    ],
)
def test_a_teachers_task_has_the_rows_of_the_students(tmp_path, shares):
    own = None if "validation_share" in shares else "validation"
    changes = {"validation_split": own, "test_split": "test"}
    changes["dataset_kwargs"] = {
        "data_files": {"train": "rows.jsonl", "validation": "rows.jsonl", "test": "test.jsonl"}
    }
    rows = [{**row, "nr": 1000 + i} for i, row in enumerate(ROWS)]
    task = write_task(tmp_path / "mine.yaml", rows, **changes)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": f"film {i}"}) + "\n" for i in range(5)))
    longer = write_task(tmp_path / "longer.yaml", task="longer", doc_to_text="Is this good? {{text}}.", **changes)
    given = {"teacher_num_fewshot": 1, **shares}
    data = load_run_data(TaskArguments(task=str(task), teacher_task=str(longer), **given), 0)
    known = {row["prompt"].split(": ")[1].split("\n")[0] for row in data.train if row["label"] != NO_LABEL}
    assert len(data.train) > len(known) or "labels_per_class" not in shares
    for row in [*data.train, *data.evaluation]:
        example, asked = row["teacher"]["prompt"].split("\n\n")
        assert asked == f"Is this good? {row['prompt'].split(': ')[1].split(chr(10))[0]}."
        # An example has a label that the student knows, too.
        assert example.removeprefix("Is this good? ").split(".")[0] in known


def test_a_teachers_task_over_other_rows_is_refused(tmp_path):
    task, longer = (write_task(tmp_path / name / "mine.yaml", rows) for name, rows in (("a", ROWS), ("b", ROWS[:150])))
    for share, message in ((0.0, "has 150 rows and the task 'mine' 200"), (0.2, "is none of the 150 rows")):
        with pytest.raises(InputError, match=f"{message}.*: both have to read the same data files"):
            load_run_data(TaskArguments(task=str(task), teacher_task=str(longer), heldout_share=share), 0)


def test_rows_with_a_completion_are_split_likewise(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion\n" + "".join(f"{i} + 1 =,{i + 1}\n" for i in range(100)))
    assert load_run_data(TaskArguments(dataset_name=str(file)), 0).evaluation is None
    data = load_run_data(TaskArguments(dataset_name=str(file), validation_share=0.25), 0)
    assert sorted(texts(data.train) + texts(data.evaluation)) == sorted(f"{i} + 1 =" for i in range(100))
    assert 10 <= len(data.evaluation) <= 40
    assert not data.places_known


@pytest.mark.parametrize(
    ("split", "known"),
    [("train", True), ("train[:80%]", True), ("train[20%:]", False), ("train[:9]+train[9:]", False)],
)
def test_rows_of_a_part_are_not_counted_as_in_the_whole_split(split, known, tmp_path):
    task = write_task(tmp_path / "mine.yaml", ROWS[:20], training_split=split)
    assert load_run_data(TaskArguments(task=str(task)), 0).places_known is known
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion\n" + "".join(f"{i} + 1 =,{i + 1}\n" for i in range(20)))
    assert load_run_data(TaskArguments(dataset_name=str(file), dataset_train_split=split), 0).places_known is known


@pytest.mark.parametrize(
    ("validation", "shared"), [("train[80%:]", 4), ("train[:2]+train[90%:]", 4), ("train", 0), ("validation", 0)]
)
def test_a_task_does_not_evaluate_on_rows_that_it_trains_on(validation, shared, tmp_path):
    files = {"data_files": dict.fromkeys(("train", "validation"), "rows.jsonl")}
    task = write_task(tmp_path / "mine.yaml", ROWS[:20], validation_split=validation, dataset_kwargs=files)
    if not shared:
        assert len(load_run_data(TaskArguments(task=str(task)), 0).evaluation) == 20
        return
    with pytest.raises(InputError, match=f"validation_split is .*{shared} rows are in both, .* no test"):
        load_run_data(TaskArguments(task=str(task)), 0)


@pytest.mark.parametrize("teacher_has_ids", [True, False])
def test_a_teachers_task_may_repeat_ids_or_lack_them(teacher_has_ids, tmp_path):
    files = {"data_files": {"train": "rows.jsonl", "validation": "rows.jsonl", "test": "test.jsonl"}}
    changes = {"dataset_kwargs": files, "test_split": "test"}
    paths = []
    for name, with_ids in (("own", True), ("parallel", teacher_has_ids)):
        rows = [{**row, **({"nr": i} if with_ids else {})} for i, row in enumerate(ROWS[:20])]
        paths.append(str(write_task(tmp_path / name / "mine.yaml", rows, **changes)))
        test = [{"text": f"film {i}", **({"nr": i} if with_ids else {})} for i in range(5)]
        (tmp_path / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    more = {"id_column": "nr", "dataset_unlabelled_split": "test" if teacher_has_ids else None}
    train = load_run_data(TaskArguments(task=paths[0], teacher_task=paths[1], **more), 0).train
    assert len(train) == (25 if teacher_has_ids else 20)
    assert [row["teacher"]["prompt"] for row in train] == train["prompt"][:]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"validation_split": None}, {}, "has no validation split to evaluate on.* set validation_share to 0.1"),
        ({}, {"validation_share": 0.1}, "has a validation split of its own; leave validation_share out"),
        ({"validation_split": None}, {"validation_share": 1e-9}, "none is left with a label to evaluate on; raise it"),
    ],
)
def test_what_cannot_be_split_is_said(tmp_path, changes, settings, message):
    task = write_task(tmp_path / "mine.yaml", ROWS[:20], **changes)
    with pytest.raises(InputError, match=message):
        load_run_data(TaskArguments(task=str(task), **settings), 0)
