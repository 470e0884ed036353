"""What every kind of model gives: logits at the supervised positions of a batch, or what its head makes them of.

Objectives, teachers and evaluation see only `SupervisedRows`: one row per answer token, and which
example and which answer position each row is. They never ask which kind they serve.

Shapes: S sequences of a batch, L tokens of the longest, N supervised tokens of the batch, V outputs: the
vocabulary, or the classes of a classification head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from sinkd_llm.models.heads import HeadForm, HiddenStates
from sinkd_llm.models.wrappers import accepted, unwrap

IGNORE_INDEX = -100
# Where a batch holds what a teacher of another kind reads of the same rows.
TEACHER = "teacher"
# Where scoring may choose how much it looks at together: so many logits, 1 GiB in fp32.
LOGITS_AT_A_TIME = 2**28


@dataclass(frozen=True)
class SupervisedRows:
    """What a model says at the supervised tokens of a batch, in the order (sequence, answer position).

    Attributes:
        scores (`Tensor` `[N, V]` or [`HiddenStates`]): scores of the vocabulary or of the classes, in the model's
            dtype; where a form of the head was given, what the head would make them of.
        labels_N (`Tensor` `[N]`): the supervised token ids or classes; the true values of a regression.
        example_N (`Tensor` `[N]`): index of the row's sequence in the batch, in `[0, S)`.
        position_N (`Tensor` `[N]`): index of the row's token in its answer, from 0.
        states_SH (`Tensor` `[S, H]`, *optional*): the mean hidden state of each sequence's prompt, where it was asked
            for, see [`~sinkd_llm.models.states`].
    """

    scores: Tensor | HiddenStates
    labels_N: Tensor
    example_N: Tensor
    position_N: Tensor
    states_SH: Tensor | None = None

    @property
    def logits_NV(self) -> Tensor:
        """`scores`, of rows that were asked for without a form of the head."""
        assert isinstance(self.scores, Tensor)
        return self.scores


class Kind(Protocol):
    """The contract of a kind of model: a batch in, supervised logits out.

    Attributes:
        title (`str`): in words with their article, for messages.
        name (`str`): the `kind` by which [`load_model`] loads it.
        body (`str`): what is below its head: `"decoder"`, `"encoder-decoder"` or `"encoder"`.
        auto_class (`str`): the class of Transformers that loads it.
        class_table (`str`): the table of Transformers that names its classes.
        class_endings (`tuple[str, ...]`): how classes of it are called that Transformers does not know.
        lora_task_type (`str` or `None`): PEFT's task type, if it has one for the kind.
        scores_classes (`bool`): V is the classes of a head, not a vocabulary.
        writes_text (`bool`): it can generate answers.
        continues_prompt (`bool`): prompt and answer are one sequence.
    """

    title: str
    name: str
    body: str
    auto_class: str
    class_table: str
    class_endings: tuple[str, ...]
    lora_task_type: str | None
    scores_classes: bool
    writes_text: bool
    continues_prompt: bool

    def supervised_rows(
        self, model: nn.Module, batch: Mapping[str, Any], head: HeadForm | None = None, states: bool = False
    ) -> SupervisedRows:  # pragma: no cover - a protocol
        """`batch` comes from the kind's collator; `labels` are -100 outside answers. With the form of the model's head
        the head is left to the loss: `scores` are then hidden states. With `states` there are `states_SH` as well."""
        ...


def answer_rows(supervised_SL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`example_N`, the column of each supervised position, and `position_N`."""
    example_N, column_N = supervised_SL.nonzero(as_tuple=True)
    return example_N, column_N, (supervised_SL.cumsum(dim=1) - 1)[example_N, column_N]


def encoder_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What an encoder takes of a batch: some read the types of tokens, others have none."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return accepted(model, {name: batch[name] for name in names if name in batch})


def context_length(model: nn.Module) -> int | None:
    """Longest sequence in tokens that the model's positions allow, or `None` if it has no bound."""
    inner = unwrap(model)
    length = getattr(getattr(inner, "config", None), "max_position_embeddings", None)
    if not length:
        return None
    for name, module in inner.named_modules():
        # RoBERTa and its heirs count positions from after the padding token's row of the table.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(length) - int(module.padding_idx) - 1
    return int(length)
