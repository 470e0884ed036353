"""
A student from an ONNX file: ONNX Runtime, `tokenizers` and numpy, without torch and Transformers.

Shapes: B rows of a batch, L tokens of the longest, V columns: classes, or tokens of a vocabulary.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkd_llm.answering.facts import StudentFacts
from sinkd_llm.answering.onnx_reading import CLASSES, MASKED, OnnxReading, OnnxTexts
from sinkd_llm.answering.student import Student
from sinkd_llm.errors import InputError, NonFiniteError, first_line
from sinkd_llm.tasks.rendering import Example
from sinkd_llm.tasks.task import Task

ONNX_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"
# Rows of like lengths that are run together. More of them gain nothing on a processor, and pad more.
_TOGETHER = 8


class OnnxStudent(Student):
    """
    A student that answers rows through ONNX Runtime.

    Args:
        folder (`Path`): what `sinkd export --format onnx` wrote: `model.onnx`, `tokenizer.json`,
            `sinkd_answers.json`.
        task ([`Task`]): what it answers.
        facts ([`StudentFacts`]): calibration and route among them.
        threads (`int`, *optional*): threads of a forward. Default: `OMP_NUM_THREADS`, which torch takes, too; else as
            many as ONNX Runtime finds processors.

    Raises:
        InputError: if a package or file is missing, or cannot be read, or `threads` is below 1.
    """

    def __init__(self, folder: Path, task: Task, facts: StudentFacts, threads: int | None = None) -> None:
        super().__init__(task, facts)
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; give 1 or more, or leave it out.")
        wanted = os.environ.get("OMP_NUM_THREADS", "")
        if threads is None and wanted.isdecimal() and int(wanted) > 0:
            threads = int(wanted)
        self.folder = folder
        self._session = _session(folder / ONNX_FILE, threads)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.reading = OnnxReading.from_metadata(metadata, str(folder / ONNX_FILE))
        self._texts = OnnxTexts(self.reading, _tokenizer(folder / TOKENIZER_FILE))
        self._inputs = {one.name for one in self._session.get_inputs()}

    @property
    def num_cut(self) -> int:  # type: ignore[override]
        """See [`Student`]."""
        return self._texts.num_cut

    @property
    def takes_choices(self) -> bool:
        """See [`Student`]."""
        return self.reading.kind != CLASSES

    def log_probabilities(self, examples: Sequence[Example]) -> list[list[float]]:
        """
        The log-probability of each choice of each example, in nats: among all classes, or all tokens at the mask.

        Raises:
            InputError: for choices that the student does not have.
            NonFiniteError: naming the first example of which a score is NaN or infinite.
        """
        if not examples:
            return []
        ids, types = self._texts.ids(examples)
        columns = [self._texts.choices(example) for example in examples]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        together = 1 if self.reading.alone else _TOGETHER
        found: list[list[float]] = [[] for _ in examples]
        for start in range(0, len(order), together):
            part = order[start : start + together]
            logits_BV = self._run([ids[i] for i in part], [types[i] for i in part]).astype(np.float64)
            top_B1 = logits_BV.max(axis=1, keepdims=True)
            log_BV = logits_BV - top_B1 - np.log(np.exp(logits_BV - top_B1).sum(axis=1, keepdims=True))
            for i, row in zip(part, log_BV, strict=True):
                found[i] = row[columns[i]].tolist()
                if not np.isfinite(found[i]).all():
                    raise NonFiniteError(
                        f"The log-probability of a choice is NaN or infinite for {examples[i].id}: export the student "
                        "again, without quantisation."
                    )
        return found

    def _run(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> NDArray[Any]:
        """What the graph says of some rows, `[B, V]`."""
        length = max(map(len, ids))
        inputs = {
            "input_ids": np.full((len(ids), length), self.reading.pad_id, dtype=np.int64),
            "attention_mask": np.zeros((len(ids), length), dtype=np.int64),
            "token_type_ids": np.zeros((len(ids), length), dtype=np.int64),
        }
        for b, (row, row_types) in enumerate(zip(ids, types, strict=True)):
            inputs["input_ids"][b, : len(row)] = row
            inputs["attention_mask"][b, : len(row)] = 1
            inputs["token_type_ids"][b, : len(row)] = row_types
        if self.reading.kind == MASKED:
            inputs["mask_place"] = np.asarray(self._texts.masks(ids), dtype=np.int64)
        outputs = self._session.run(None, {name: inputs[name] for name in inputs.keys() & self._inputs})
        return np.asarray(outputs[0])


def _session(file: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{file} needs onnxruntime, which is not installed. Install it with: pip install 'sinkd-llm[export]'"
        ) from error
    if not file.is_file():
        raise InputError(f"There is no file {str(file)!r}; give the folder that 'sinkd export --format onnx' wrote.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised; its warnings are about its own optimisations
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no type of their own
        raise InputError(
            f"ONNX Runtime {onnxruntime.__version__} cannot read {file} ({first_line(error)}): the file is damaged or "
            "of a later version. Copy or export it again, or update onnxruntime."
        ) from error


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(os.fspath(file))
    except Exception as error:  # of no type of its own
        raise InputError(f"{file} cannot be read ({first_line(error)}): copy or export the folder again.") from error
