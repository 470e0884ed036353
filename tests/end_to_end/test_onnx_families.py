"""Every family of encoders is exported to ONNX, and answers there as before."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from sinkd_llm import load_student
from sinkd_llm.answering.onnx_student import OnnxStudent
from sinkd_llm.answering.torch_student import TorchStudent
from sinkd_llm.exporting.onnx_graph import check_exportable, write_onnx
from tests.support import models
from tests.support.task_files import write_task

ROWS = ["good film", "a", "the food was not good " * 9, "é 東京 🙂"]


@pytest.mark.parametrize("family", models.ENCODERS)
@pytest.mark.parametrize("head", ["SequenceClassification", "MaskedLM"])
def test_a_family_answers_as_before(family: str, head: str, tmp_path: Path) -> None:
    model = models.encoder_or_encoder_decoder(family, head, layers=1)
    models.save(tmp_path / "student", model, models.marked_tokenizer(family))
    student = cast(TorchStudent, load_student(tmp_path / "student", write_task(tmp_path / "task.yaml")))
    check_exportable(student)
    (tmp_path / "out").mkdir()
    write_onnx(student, tmp_path / "out")
    found = OnnxStudent(tmp_path / "out", student.task, student.facts, threads=1)
    examples = [e for _, _, e in student.examples(student.placed(ROWS))]
    expected = np.array(student.log_probabilities(examples))
    assert np.array(found.log_probabilities(examples)) == pytest.approx(expected, abs=1e-5)
