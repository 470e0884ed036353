"""The scores of a run's models: rows are those of the trainer, and students are compared with their teacher."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sinkd_llm import evaluate_task
from sinkd_llm.errors import InputError
from sinkd_llm.evaluation import evaluator
from sinkd_llm.report.results import BEFORE, TEACHER
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.evaluate import answers_of_cache
from sinkd_llm.runs.predicting import predictions_of
from sinkd_llm.runs.scorer import Scorer, named_rows, rows_hash
from tests.support.rows import opinions
from tests.support.trainers import AccuracyTask, changed_trainer


@pytest.fixture
def trainer(tmp_path: Path, tiny_causal_lm: Any, tiny_tokenizer: Any) -> Any:
    models = {"model": tiny_causal_lm(seed=1), "teacher_model": tiny_causal_lm(seed=2, layers=4, hidden=48)}
    rows = {"train_dataset": opinions(), "eval_dataset": opinions(9, 100)}
    return changed_trainer(tmp_path, {**models, **rows, "processing_class": tiny_tokenizer}, {})


def test_the_rows_of_a_run_are_tokenised_by_its_trainer_alone(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100))
    models = {TEACHER: trainer.teacher.model, BEFORE: trainer.model}
    tokenizer = trainer.processing_class
    alone = {name: evaluate_task(model, tokenizer, AccuracyTask(), data.evaluation) for name, model in models.items()}
    monkeypatch.setattr(evaluator, "tokenize_dataset", lambda *_, **__: pytest.fail("rows were tokenised again"))
    scorer = Scorer(data, tokenizer, trainer.args, trainer)
    rows = {name: scorer.row(name, model) for name, model in models.items()}
    assert rows[TEACHER].metrics == alone[TEACHER].metrics
    agreement = np.mean(np.equal(alone[TEACHER].predictions, alone[BEFORE].predictions))
    teachers, students = (np.array(alone[name].probabilities) for name in (TEACHER, BEFORE))
    kl = float((teachers * np.log(teachers / students)).sum(axis=1).mean())
    assert rows[BEFORE].metrics == {
        **alone[BEFORE].metrics,
        "agreement": agreement,
        "kl_to_teacher": pytest.approx(kl),
    }
    assert list(rows[BEFORE].intervals) == list(rows[BEFORE].metrics)
    assert all(low <= rows[BEFORE].metrics[name] <= high for name, (low, high) in rows[BEFORE].intervals.items())
    assert trainer.evaluate()["eval_agreement"] == agreement


def without_keys(record: dict[str, Any]) -> dict[str, Any]:
    """As an earlier version recorded it."""
    return {name: value for name, value in record.items() if name not in ("keys", "probabilities")}


def test_what_is_recorded_of_a_teacher_stands_in_for_it(trainer: Any) -> None:
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100))
    beside, later = (Scorer(data, trainer.processing_class, trainer.args) for _ in range(2))
    record = beside.record(trainer.teacher.model, 7)
    row = later.recorded(record)
    assert (row.name, row.size_bytes, row.num_examples) == (TEACHER, 7, 9)
    assert later.row(BEFORE, trainer.model).metrics == pytest.approx(
        beside.row(BEFORE, trainer.model).metrics, abs=1e-4
    )
    assert all(round(value, 5) == value for probabilities in record["probabilities"] for value in probabilities)
    other = Scorer(
        RunData("rows", AccuracyTask(), opinions(), opinions(8, 100)), trainer.processing_class, trainer.args
    )
    assert other.recorded(record) is None
    assert Scorer(data, trainer.processing_class, trainer.args).recorded(without_keys(record)) == row
    assert Scorer(RunData("rows", None, opinions(), opinions()), None, trainer.args).record(trainer.model) is None


@pytest.mark.parametrize(("start", "known"), [(100, True), (103, False)], ids=["some-of-them", "others"])
def test_a_student_is_compared_with_a_recorded_teacher_where_all_choices_are_known(
    start: int, known: bool, trainer: Any
) -> None:
    def scorer(rows: Any) -> Scorer:
        return Scorer(RunData("rows", AccuracyTask(), opinions(), rows), trainer.processing_class, trainer.args)

    record = scorer(opinions(9, 100)).record(trainer.teacher.model)
    rows = opinions(7, start).map(
        lambda row, i: {"prompt": f"{row['prompt']} {i}"} if start + i > 108 else row, with_indices=True
    )
    # Of another teacher, which chooses the other answer.
    other = {**record, "predictions": [1 - chosen for chosen in record["predictions"]]}
    beside, later, opposed, earlier = (scorer(rows) for _ in range(4))
    beside.row(TEACHER, trainer.teacher.model)
    assert later.recorded(record) is None
    metrics = later.row(BEFORE, trainer.model).metrics
    expected = beside.row(BEFORE, trainer.model).metrics
    of_teacher = ("agreement", "kl_to_teacher")
    assert metrics == pytest.approx({k: v for k, v in expected.items() if known or k not in of_teacher}, abs=1e-4)
    assert (-1 in later.recorded_choices(trainer.model)) is not known
    opposed.recorded(other)
    opposite = opposed.row(BEFORE, trainer.model).metrics.get("agreement")
    assert opposite == (pytest.approx(1 - expected["agreement"]) if known else None)
    earlier.recorded(without_keys(record))
    assert not {*of_teacher} & {*earlier.row(BEFORE, trainer.model).metrics}


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("prints", [False, True])
def test_ids_of_the_data_are_those_of_the_recorded_rows_alone(made: bool, prints: bool, trainer: Any) -> None:
    names = [f"mine-validation-{i}-0123abcd" if made else str(i) for i in range(9)]

    def scorer(start: int, count: int = 9) -> Scorer:
        rows = opinions(count, start).remove_columns("id").add_column("id", names[:count])
        data = RunData("rows", AccuracyTask(), opinions(), rows)
        return Scorer(data, trainer.processing_class, trainer.args, by_name=True)

    these, some, others = scorer(100), scorer(100, 7), scorer(200)
    record = {"name": TEACHER, "metrics": {}, "num_examples": 9, "predictions": [0, 1] * 4 + [0]}
    record |= {**named_rows(these.data.evaluation), "rows": rows_hash(these.data)}
    if not prints:  # as an earlier version recorded it
        del record["prints"]
    assert these.recorded(record) is not None
    assert these.recorded_choices(trainer.model) == record["predictions"]
    for other, known in ((some, made or prints), (others, made and not prints)):
        assert other.recorded(record) is None
        count = len(other.data.evaluation)
        assert other.recorded_choices(trainer.model) == (record["predictions"][:count] if known else [-1] * count)
    others.recorded(None)
    assert others.recorded_choices(trainer.model) is None


def test_a_record_of_an_earlier_version_has_no_probabilities(trainer: Any) -> None:
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100))
    record = Scorer(data, trainer.processing_class, trainer.args).record(trainer.teacher.model)
    later = Scorer(data, trainer.processing_class, trainer.args)
    later.recorded({name: value for name, value in record.items() if name != "probabilities"})
    metrics = later.row(BEFORE, trainer.model).metrics
    assert "agreement" in metrics
    assert "kl_to_teacher" not in metrics


def test_recorded_probabilities_of_other_choices_are_refused(trainer: Any) -> None:
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100))
    record = Scorer(data, trainer.processing_class, trainer.args).record(trainer.teacher.model)
    later = Scorer(data, trainer.processing_class, trainer.args)
    later.recorded({**record, "probabilities": [[0.2, 0.3, 0.5]] * 9})
    with pytest.raises(InputError, match="records 3 probabilities for a row with 2 choices"):
        later.row(BEFORE, trainer.model)


@pytest.mark.parametrize("over_choices", [False, True])
def test_evaluate_knows_the_teacher_of_a_cache(
    over_choices: bool, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100))
    scorer = Scorer(data, trainer.processing_class, trainer.args, by_name=over_choices)
    record = scorer.record(trainer.teacher.model)
    kept = SimpleNamespace(teacher_score=record, layout=SimpleNamespace(over_choices=over_choices))
    monkeypatch.setattr("sinkd_llm.teachers.cache.manifest.Manifest.load", lambda folder: kept)
    found = answers_of_cache(Path("cache"), scorer.evaluator_of_rows(data.evaluation), trainer.model)
    assert found.predictions == record["predictions"]
    assert found.probabilities == record["probabilities"]
    others = opinions(9, 200).remove_columns("id").add_column("id", data.evaluation["id"][:])
    with pytest.raises(InputError, match="--teacher_cache cache: The teacher cache does not know what the teacher"):
        answers_of_cache(Path("cache"), scorer.evaluator_of_rows(others), trainer.model)


@pytest.mark.parametrize("kept", [True, False])
def test_probabilities_and_texts_of_rows_are_kept_if_they_are_to_be(kept: bool, trainer: Any) -> None:
    arguments = TaskArguments(task="quickstart", keep_probabilities=kept)
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100), arguments=arguments)
    scorer = Scorer(data, trainer.processing_class, trainer.args)
    scorer.row(TEACHER, trainer.teacher.model)
    scorer.row(BEFORE, trainer.model)
    found = predictions_of(scorer, BEFORE, trainer.model)
    student, teacher = found["evaluation"], found["teacher"]
    assert student.predictions == scorer.scores[BEFORE].predictions
    assert student.probabilities == (scorer.scores[BEFORE].probabilities if kept else None)
    assert teacher.probabilities == (scorer.scores[TEACHER].probabilities if kept else None)
    assert student.texts == (list(data.evaluation["prompt"]) if kept else None)
    assert student.choices is None  # rows of this task may have others


def test_a_model_is_timed_on_single_rows(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The time is up at once, and it goes on until there are enough answers for a 95th percentile.
    monkeypatch.setattr("sinkd_llm.runs.profiling._SECONDS", 0.0)
    monkeypatch.setattr("sinkd_llm.runs.profiling._MOST_SECONDS", 600.0)
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100))
    row = Scorer(data, trainer.processing_class, trainer.args).row(BEFORE, trainer.model, profiled=True)
    assert 0 < row.latency_ms_p50 <= row.latency_ms_p95
    weights = sum(p.numel() * 4 for p in trainer.model.parameters())
    assert weights < row.peak_memory_bytes < 3 * weights


def test_a_recorded_choice_that_is_none_is_refused(trainer: Any) -> None:
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100))
    scorer = Scorer(data, trainer.processing_class, trainer.args)
    record = scorer.record(trainer.teacher.model)
    later = Scorer(data, trainer.processing_class, trainer.args)
    later.recorded({**record, "predictions": [9] * 9})
    with pytest.raises(
        InputError, match=r"records choice 9 for a row with choices 0 to 1: its manifest\.json is damaged"
    ):
        later.row(BEFORE, trainer.model)
