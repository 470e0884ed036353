"""Encoders with a classification head over the whole text.

Shapes: S texts of a batch, L tokens of the longest, N supervised rows, V classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.heads import HeadForm
from sinkd_llm.models.kinds.by_length import logits_by_length
from sinkd_llm.models.kinds.contract import IGNORE_INDEX, SupervisedRows, encoder_inputs


class SequenceClassification:
    """BERT, RoBERTa, DeBERTa, MiniLM with one output a class: a supervised row a text, V classes.

    A head with one output is a regression: its label is the true value, in [0, 1].
    """

    title = "an encoder with a classification head"
    name = "sequence-classification"
    body = "encoder"
    auto_class = "AutoModelForSequenceClassification"
    class_table = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    class_endings: tuple[str, ...] = ("ForSequenceClassification",)
    lora_task_type: str | None = "SEQ_CLS"
    scores_classes = True
    writes_text = False
    continues_prompt = False

    def supervised_rows(
        self, model: nn.Module, batch: Mapping[str, Any], head: HeadForm | None = None, states: bool = False
    ) -> SupervisedRows:
        """`batch` holds `input_ids`, `attention_mask` and perhaps `token_type_ids` `[S, L]`, and `labels` `[S]`, -100
        where a text is not supervised.

        No classification head has a form, see [`describe_head`]: `head` is always `None`. `states` are of the whole
        text.
        """
        labels_S = batch["labels"]
        logits_SV, states_SH = logits_by_length(model, encoder_inputs(model, batch), states)
        example_N = (labels_S != IGNORE_INDEX).nonzero().squeeze(1)
        position_N = torch.zeros_like(example_N)
        return SupervisedRows(logits_SV[example_N], labels_S[example_N], example_N, position_N, states_SH)


def check_classes_exclude_each_other(name: str, config: Any) -> None:
    """
    Refuses heads whose outputs are no classes of which one is right, where one of all is trained and asked: one that
    says yes or no to each label by itself, and one that predicts several numbers.

    Raises:
        InputError: if the configuration's `problem_type` says so.
    """
    outputs = getattr(config, "num_labels", None) or 0
    if getattr(config, "problem_type", None) == "regression" and outputs > 1:
        raise InputError(
            f"{name} has a head that predicts {outputs} numbers (problem_type: regression in its config.json), which "
            "would be taken for the scores of classes; here a regression has one output. Give a model with one "
            "output, or one with a head for single_label_classification."
        )
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise InputError(
            f"{name} has a head for several labels at a time (problem_type: multi_label_classification in its "
            "config.json), each with a probability of its own; here an example has one class. Give a model with a "
            "head for single_label_classification, or fine-tune one from the same encoder."
        )
