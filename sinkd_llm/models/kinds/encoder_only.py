"""Encoders: a classification head over the whole text, or a language-model head at a mask.

Shapes: S texts of a batch, L tokens of the longest, N supervised rows, V classes or vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sinkd_llm.models.kinds.contract import (
    IGNORE_INDEX,
    SupervisedRows,
    accepted,
    answer_rows,
    logits_at,
)


class SequenceClassification:
    """BERT, RoBERTa, DeBERTa, MiniLM with one output a class: a supervised row a text, V classes.

    A head with one output is a regression: its label is the true value, in [0, 1].
    """

    title = "encoder with a classification head"
    name = "sequence-classification"
    lora_task_type: str | None = "SEQ_CLS"
    scores_classes = True

    def supervised_rows(self, model: nn.Module, batch: Mapping[str, Any], with_hidden: bool = False) -> SupervisedRows:
        """`batch` holds `input_ids`, `attention_mask` and perhaps `token_type_ids` `[S, L]`, and `labels` `[S]`, -100
        where a text is not supervised.

        There is no `hidden_NH`: the classes are fewer than the features that they are made of.
        """
        labels_S = batch["labels"]
        logits_SV = model(**_inputs(model, batch)).logits
        example_N = (labels_S != IGNORE_INDEX).nonzero().squeeze(1)
        return SupervisedRows(logits_SV[example_N], labels_S[example_N], example_N, torch.zeros_like(example_N))


class MaskedLanguageModel:
    """The same encoders with their pretraining head: the answer is the word at the mask."""

    title = "encoder with a masked-language-model head"
    name = "masked-lm"
    lora_task_type: str | None = None
    scores_classes = False

    def supervised_rows(self, model: nn.Module, batch: Mapping[str, Any], with_hidden: bool = False) -> SupervisedRows:
        """`batch` holds `input_ids`, `attention_mask` and `labels` `[S, L]`; labels are -100 outside masks.

        `with_hidden`: see [`SupervisedRows`].
        """
        labels_SL = batch["labels"]
        supervised_SL = labels_SL != IGNORE_INDEX
        logits_NV, hidden_NH = logits_at(model, supervised_SL, with_hidden, **_inputs(model, batch))
        example_N, column_N, position_N = answer_rows(supervised_SL)
        return SupervisedRows(logits_NV, labels_SL[example_N, column_N], example_N, position_N, hidden_NH)


def _inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return accepted(model, {name: batch[name] for name in names if name in batch})
