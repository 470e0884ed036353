"""
An encoder as an ONNX file, by torch's exporter.

Shapes: B rows of a batch, L tokens of the longest, V classes, or tokens of a vocabulary, H features of a hidden state.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.answering.onnx_reading import CLASSES, MASKED, METADATA_KEY, OnnxReading
from sinkd_llm.answering.onnx_student import ONNX_FILE, TOKENIZER_FILE
from sinkd_llm.answering.torch_student import TorchStudent
from sinkd_llm.errors import InputError
from sinkd_llm.inputs.special_tokens import special_ids
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.models.foreign import what_was_said
from sinkd_llm.models.kinds import context_length, kind_of
from sinkd_llm.models.kinds.class_heads import class_order, class_words
from sinkd_llm.models.layers import attention_of
from sinkd_llm.models.wrappers import forward_parameters, unwrap
from sinkd_llm.quiet import quiet_transformers
from sinkd_llm.units import format_bytes

# The oldest opset that torch's exporter writes by itself; ONNX Runtime reads it since 1.14.
OPSET = 18
# Protocol buffers hold no more, and weights in a second file would part when a folder is copied in part.
_LARGEST = 2**31 - 2**24
# Large enough that no dimension is taken for a constant.
_EXAMPLE = (3, 7)


def check_exportable(student: TorchStudent) -> None:
    """
    Refuses a student that has no ONNX graph, or whose rows cannot be read without Transformers.

    Raises:
        InputError: naming what it is that cannot be exported, and which format takes it.
    """
    kind, tokenizer = kind_of(student.model), student.tokenizer
    if kind.name not in (CLASSES, MASKED):
        raise InputError(
            f"The student is {kind.title}, which is not exported to ONNX: the scores of its choices are made in "
            "several forwards, and the tokens of a choice depend on the prompt before it, by rules that only "
            "Transformers' tokenizers follow here. Give --format gguf (llama.cpp) or merged (Transformers, vLLM)."
        )
    if kind.name == CLASSES and student.task.choices is None:
        raise InputError("The choices of this task vary, and a classification head has the same classes for all rows.")
    if student.facts.reading.apply_chat_template:
        raise InputError(
            "The student reads prompts through the chat template of its tokenizer (apply_chat_template), which needs "
            "Transformers; give --format merged."
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"The tokenizer of this student ({type(tokenizer).__name__}) has no tokenizer.json, by which it could be "
            "read without Transformers; give --format merged."
        )
    size = sum(weight.numel() * 4 for weight in student.model.parameters())
    if size > _LARGEST:
        raise InputError(
            f"The student has {format_bytes(size)} of weights in fp32, and an ONNX file holds 2 GiB; give --format "
            "merged, or train a smaller student."
        )


def write_onnx(student: TorchStudent, folder: Path) -> None:
    """
    Writes a student as `model.onnx` and `tokenizer.json`.

    The graph takes `input_ids`, `attention_mask`, perhaps `token_type_ids`, `[B, L]` of any B and L, and of a masked
    model `mask_place` `[B]`; it gives `logits` `[B, V]`.

    Args:
        student ([`TorchStudent`]): in fp32, which [`check_exportable`] has passed.
        folder (`Path`): exists.

    Raises:
        InputError: if torch's exporter cannot follow the model's code.
    """
    model = unwrap(student.model)
    masked = kind_of(model).name == MASKED
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in forward_parameters(model) and "token_type_ids" in student.tokenizer.model_input_names:
        names.append("token_type_ids")
    example_BL = torch.ones(_EXAMPLE, dtype=torch.int64)
    rows, length = torch.export.Dim("rows"), torch.export.Dim("tokens")
    inputs = [example_BL.clone() for _ in names]
    shapes: list[dict[int, Any]] = [{0: rows, 1: length} for _ in names]
    if masked:
        names, shapes = [*names, "mask_place"], [*shapes, {0: rows}]
        inputs.append(torch.ones(_EXAMPLE[0], dtype=torch.int64))
    with _traced(model), torch.no_grad():
        try:
            program = torch.onnx.export(
                _Graph(model, masked).eval(),
                tuple(inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=(tuple(shapes),),
                verbose=False,
            )
        except Exception as error:  # whatever tracing the code of a model leads to
            if is_memory_full(error):
                raise
            raise InputError(
                f"torch's ONNX exporter cannot follow {type(model).__name__} ({what_was_said(error)}); give --format "
                "merged."
            ) from error
    assert program is not None
    program.model.metadata_props[METADATA_KEY] = reading_of(student).as_text()
    program.save(str(folder / ONNX_FILE), external_data=False)
    student.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_FILE))


def reading_of(student: TorchStudent) -> OnnxReading:
    """How the student reads its rows, for a program without Transformers."""
    tokenizer: Any = student.tokenizer
    model = unwrap(student.model)
    prefix, suffix = special_ids(tokenizer)
    classes = None
    if kind_of(model).name == CLASSES:
        assert student.task.choices is not None
        classes = class_order(student.task.choices, class_words(model.config))
    else:
        suffix = (int(tokenizer.mask_token_id), *suffix)
    return OnnxReading(
        kind=kind_of(model).name,
        prefix=prefix,
        suffix=suffix,
        max_length=student.facts.reading.within(context_length(model)).max_length,
        cut_side=tokenizer.truncation_side,
        pad_id=int(tokenizer.pad_token_id),
        eos_id=tokenizer.eos_token_id,
        unknown_id=tokenizer.unk_token_id,
        classes=classes,
    )


class _Graph(nn.Module):
    """What is exported of a model: the logits of its classes, or at the place of a mask."""

    def __init__(self, model: Any, masked: bool) -> None:
        super().__init__()
        self.model, self.masked = model, masked

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(("input_ids", "attention_mask", "token_type_ids"), inputs, strict=False))
        if not self.masked:
            logits_BV: Tensor = self.model(**named).logits
            return logits_BV
        *texts, place_B = inputs
        row_B = torch.arange(place_B.shape[0])
        head = self.model.get_output_embeddings()

        def select(_: nn.Module, read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return read[0][row_B, place_B].unsqueeze(1), *read[1:]

        # The head is most of a small model, and it is asked at one place of a text.
        hook = head.register_forward_pre_hook(select) if isinstance(head, nn.Module) else None
        try:
            named = dict(zip(("input_ids", "attention_mask", "token_type_ids"), texts, strict=False))
            logits_BLV: Tensor = self.model(**named).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits_BLV[:, 0] if hook is not None else logits_BLV[row_B, place_B]


@contextmanager
def _traced(model: Any) -> Iterator[None]:
    """Within, a model is fit to be traced, and the exporter keeps what it says of its own work to itself."""
    from transformers import PreTrainedModel

    before = attention_of(model) if isinstance(model, PreTrainedModel) else None
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    try:
        exporter.setLevel(logging.ERROR)
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")
            if before not in (None, "eager"):
                # Others choose their kernel by the lengths of a batch, and mend rows that are all padding.
                model.set_attn_implementation("eager")
            yield
    finally:
        exporter.setLevel(level)
        if before not in (None, "eager"):
            model.set_attn_implementation(before)
