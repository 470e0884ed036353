"""An encoder through torch's exporter, ONNX Runtime and `tokenizers` answers as through Transformers."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from sinkd_llm import load_student
from sinkd_llm.answering.onnx_reading import METADATA_KEY, OnnxReading
from sinkd_llm.answering.onnx_student import ONNX_FILE, TOKENIZER_FILE, OnnxStudent
from sinkd_llm.answering.student import Student
from sinkd_llm.answering.torch_student import TorchStudent
from sinkd_llm.errors import InputError
from sinkd_llm.exporting.onnx_graph import OPSET, check_exportable, reading_of, write_onnx
from sinkd_llm.exporting.onnx_int8 import quantise
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.kinds.class_heads import name_classes
from tests.support import models
from tests.support.task_files import write_task

# Longer than 24 tokens: some of one text, some of both.
PAIRS = [
    {"text": "good film", "other": "the plot"},
    {"text": "the food was not good " * 8, "other": "a great film"},
    {"text": "a great film", "other": "the food was not good " * 8},
    {"text": "but the plot was bad " * 6, "other": "and the food is awful " * 7},
    {"text": "é 東京 🙂", "other": "1024 %"},
]
TEXTS = ["good film", "the food was not good " * 12, "a", "é 東京 🙂", "Review: the plot   "]


def classifier(folder: Path, family: str = "distilbert") -> TorchStudent:
    """Of pairs of texts, with classes in another order than the task's choices."""
    model = models.encoder_or_encoder_decoder(family, layers=1)
    name_classes(model.config, ["positive", "negative"])
    models.save(folder / family, model, models.marked_tokenizer(family))
    changes = {"metadata": {"texts": ["text", "other"]}, "doc_to_text": "{{text}} {{other}}"}
    task = write_task(folder / "pairs.yaml", **changes)
    return cast(TorchStudent, load_student(folder / family, task, reading=Reading(24)))


def masked(folder: Path, family: str = "roberta") -> TorchStudent:
    model = models.encoder_or_encoder_decoder(family, "MaskedLM", layers=1)
    models.save(folder / family, model, models.marked_tokenizer(family))
    return cast(TorchStudent, load_student(folder / family, write_task(folder / "one.yaml"), reading=Reading(24)))


def exported(student: TorchStudent, folder: Path) -> OnnxStudent:
    check_exportable(student)
    folder.mkdir()
    write_onnx(student, folder)
    return OnnxStudent(folder, student.task, student.facts, threads=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchStudent, OnnxStudent]:
    folder = tmp_path_factory.mktemp("onnx")
    student = classifier(folder)
    return student, exported(student, folder / "out")


def log_probabilities(student: Student, rows: Any) -> np.ndarray:
    return np.array(student.log_probabilities([e for _, _, e in student.examples(student.placed(rows))]))


def test_a_classifier_of_two_texts_answers_as_before(pair: tuple[TorchStudent, OnnxStudent]) -> None:
    student, onnx_student = pair
    assert onnx_student.reading.classes == (1, 0)
    expected = log_probabilities(student, PAIRS)
    assert log_probabilities(onnx_student, PAIRS) == pytest.approx(expected, abs=1e-5)
    assert onnx_student.num_cut == student.num_cut == 3
    # One row, and one of one token beside long ones: neither batch nor length is a constant of the graph.
    assert log_probabilities(onnx_student, PAIRS[:1]) == pytest.approx(expected[:1], abs=1e-5)
    answers, found = list(student.predict(PAIRS)), list(onnx_student.predict(PAIRS))
    assert [answer.choice for answer in found] == [answer.choice for answer in answers]


def test_tokens_are_those_of_transformers(pair: tuple[TorchStudent, OnnxStudent]) -> None:
    student, onnx_student = pair
    examples = [e for _, _, e in student.examples(student.placed(PAIRS))]
    rows = [{"id": e.id, **{n: getattr(e, n) for n in ("prompt", "text", "text_pair")}} for e in examples]
    rows = [{**row, "choices": list(e.choices), "label": 0} for row, e in zip(rows, examples, strict=True)]
    features = student._tokenizer.features(rows, ranking=True)
    assert onnx_student._texts.ids(examples)[0] == [row["prompt_ids"] for row in features]


def test_the_file_says_its_opset_and_inputs(pair: tuple[TorchStudent, OnnxStudent]) -> None:
    import onnx

    model = onnx.load(pair[1].folder / ONNX_FILE)
    onnx.checker.check_model(model)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
    assert [one.name for one in model.graph.input] == ["input_ids", "attention_mask"]  # DistilBERT has no types
    assert METADATA_KEY in {entry.key for entry in model.metadata_props}


def test_a_masked_model_answers_as_before_and_its_head_runs_at_the_mask(tmp_path: Path) -> None:
    student = masked(tmp_path)
    onnx_student = exported(student, tmp_path / "out")
    assert log_probabilities(onnx_student, TEXTS) == pytest.approx(log_probabilities(student, TEXTS), abs=1e-5)
    assert onnx_student.num_cut == student.num_cut == 1
    shapes = [output.shape for output in onnx_student._session.get_outputs()]
    assert [len(shape) for shape in shapes] == [2]
    (example,) = (e for _, _, e in student.examples(student.placed(["good"])))
    other = dataclasses.replace(example, choices=(" xylophone", " no"))
    with pytest.raises(InputError, match="not one known token"):
        onnx_student.log_probabilities([other])


def test_eight_bits_are_a_quarter_and_rows_do_not_change_each_other(
    pair: tuple[TorchStudent, OnnxStudent], tmp_path: Path
) -> None:
    import onnx

    student, whole = pair
    shutil.copytree(whole.folder, tmp_path / "int8")
    quantise(tmp_path / "int8", reading_of(student))
    packed = OnnxStudent(tmp_path / "int8", student.task, student.facts, threads=1)
    graph = onnx.load(packed.folder / ONNX_FILE).graph
    operators = {node.op_type for node in graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear", "DequantizeLinear"} <= operators
    # No table of embeddings and no matrix is left in fp32.
    assert not [
        one.name for one in graph.initializer if len(one.dims) == 2 and one.data_type == onnx.TensorProto.FLOAT
    ]
    assert sorted(file.name for file in packed.folder.iterdir()) == [ONNX_FILE, TOKENIZER_FILE]
    together = log_probabilities(packed, PAIRS)
    assert together == pytest.approx(log_probabilities(whole, PAIRS), abs=0.05)
    alone = np.concatenate([log_probabilities(packed, [row]) for row in PAIRS])
    assert (together == alone).all()


def test_it_runs_where_torch_and_transformers_cannot_be_imported(
    pair: tuple[TorchStudent, OnnxStudent], tmp_path: Path
) -> None:
    student, onnx_student = pair
    shutil.copytree(onnx_student.folder, tmp_path / "out")
    student.facts.write(tmp_path / "out")
    code = f"""
import sys
for name in ("torch", "transformers", "trl", "peft", "datasets"):
    sys.modules[name] = None
from sinkd_llm import load_student
for answer in load_student({str(tmp_path / "out")!r}).predict({PAIRS!r}):
    print(answer.choice, answer.probability)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    found = [line.split() for line in ran.stdout.splitlines()]
    expected = list(student.predict(PAIRS))
    assert [word for word, _ in found] == [answer.choice for answer in expected]
    assert [float(p) for _, p in found] == pytest.approx([a.probability for a in expected], abs=1e-5)


@pytest.mark.parametrize(("given", "variable", "expected"), [(3, "2", 3), (None, "2", 2), (None, "", 0)])
def test_threads_are_those_that_were_asked_for(
    pair: tuple[TorchStudent, OnnxStudent],
    given: int | None,
    variable: str,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    student, onnx_student = pair
    made = OnnxStudent(onnx_student.folder, student.task, student.facts, threads=given)
    assert made._session.get_session_options().intra_op_num_threads == expected


def test_what_cannot_be_read_is_said(pair: tuple[TorchStudent, OnnxStudent], tmp_path: Path) -> None:
    student, onnx_student = pair

    def load(**threads: Any) -> OnnxStudent:
        return OnnxStudent(tmp_path / "out", student.task, student.facts, **threads)

    shutil.copytree(onnx_student.folder, tmp_path / "out")
    with pytest.raises(InputError, match="threads is 0"):
        load(threads=0)
    (tmp_path / "out" / TOKENIZER_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        load()
    content = (tmp_path / "out" / ONNX_FILE).read_bytes()
    (tmp_path / "out" / ONNX_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot read"):
        load()
    (tmp_path / "out" / ONNX_FILE).unlink()
    with pytest.raises(InputError, match="There is no file"):
        load()
    with pytest.raises(InputError, match="is no export of a student"):
        OnnxReading.from_metadata({}, "model.onnx")
    later = onnx_student.reading.as_text().replace('"format": 1', '"format": 2')
    with pytest.raises(InputError, match="later version"):
        OnnxReading.from_metadata({METADATA_KEY: later}, "model.onnx")


def test_other_kinds_are_refused_by_name(pair: tuple[TorchStudent, OnnxStudent], tmp_path: Path) -> None:
    models.save(tmp_path / "decoder", models.decoder(layers=1), models.word_tokenizer())
    task = write_task(tmp_path / "one.yaml")
    decoder = cast(TorchStudent, load_student(tmp_path / "decoder", task))
    with pytest.raises(InputError, match=r"a decoder-only model, which is not exported to ONNX.*--format gguf"):
        check_exportable(decoder)
    student = pair[0]
    chat = TorchStudent(student.model, student.tokenizer, student.task, student.facts)
    chat.facts = dataclasses.replace(student.facts, reading=Reading(24, apply_chat_template=True))
    with pytest.raises(InputError, match="chat template"):
        check_exportable(chat)
