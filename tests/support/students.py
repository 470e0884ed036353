"""Tiny students in folders of their own, as a run leaves them."""

from pathlib import Path
from typing import Any

import numpy as np

from sinkd_llm.answering.facts import StudentFacts, kept_keys
from sinkd_llm.answering.onnx_reading import CLASSES, METADATA_KEY, OnnxReading
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.tasks import load_task
from tests.support import models
from tests.support.task_files import write_task


def save_student(folder: Path, kind: str, *, task: dict[str, Any] | None = None, **facts: Any) -> Path:
    """
    A random student of the task `mine`, which reads one text and says whether it is positive.

    Args:
        folder: where it is written; its task file lies beside it.
        kind: `"decoder"`, `"classifier"`, `"masked"` or `"encoder-decoder"`.
        task: keys of the task that are changed.
        facts: what `sinkd_answers.json` keeps beside the task, such as `calibration`.
    """
    if kind == "decoder":
        models.save(folder, models.decoder(), models.word_tokenizer())
    else:
        family, head = {
            "classifier": ("bert", "SequenceClassification"),
            "masked": ("roberta", "MaskedLM"),
            "encoder-decoder": ("t5", ""),
        }[kind]
        model = models.encoder_or_encoder_decoder(family, head)
        models.save(folder, model, models.marked_tokenizer(family))
    changes = {"metadata": {"texts": ["text"]}, **(task or {})}
    _write_facts(folder, changes, **facts)
    return folder


def _write_facts(folder: Path, changes: dict[str, Any], **facts: Any) -> None:
    keys = kept_keys(load_task(write_task(folder.parent / f"{folder.name}.yaml", **changes)))
    StudentFacts(keys, Reading(64), **facts).write(folder)


def save_onnx_student(folder: Path) -> Path:
    """A student of the same task as an ONNX file: the mean of its tokens' two numbers, which are random."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    tokenizer = models.marked_tokenizer("bert")
    folder.mkdir()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(len(tokenizer), 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["numbers"]),
            helper.make_node("ReduceMean", ["numbers"], ["logits"], axes=[1], keepdims=0),
        ],
        "student",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "L"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 2])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    reading = OnnxReading(CLASSES, (1,), (2,), 64, "right", 0, 2, None, (0, 1), alone=True)
    helper.set_model_props(model, {METADATA_KEY: reading.as_text()})
    onnx.save(model, folder / "model.onnx")
    _write_facts(folder, {"metadata": {"texts": ["text"]}})
    return folder
