"""The scores of a run's models: rows are those of the trainer, and students are compared with their teacher."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkd_llm import evaluate_task
from sinkd_llm.evaluation import evaluator
from sinkd_llm.report.results import BEFORE, TEACHER
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.scorer import Scorer, has_choices
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
    assert rows[BEFORE].metrics == {**alone[BEFORE].metrics, "agreement": agreement}
    assert trainer.evaluate()["eval_agreement"] == agreement


def test_what_is_recorded_of_a_teacher_stands_in_for_it(trainer: Any) -> None:
    data = RunData("rows", AccuracyTask(), opinions(), opinions(9, 100))
    beside, later = (Scorer(data, trainer.processing_class, trainer.args) for _ in range(2))
    record = beside.record(trainer.teacher.model, 7)
    row = later.recorded(record)
    assert (row.name, row.size_bytes, row.num_examples) == (TEACHER, 7, 9)
    assert later.row(BEFORE, trainer.model).metrics == beside.row(BEFORE, trainer.model).metrics
    assert has_choices(record, data)
    other = RunData("rows", AccuracyTask(), opinions(), opinions(8, 100))
    assert Scorer(other, trainer.processing_class, trainer.args).recorded(record) is None
    assert not has_choices(record, other)
    assert Scorer(RunData("rows", None, opinions(), opinions()), None, trainer.args).record(trainer.model) is None
