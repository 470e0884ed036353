"""Encoders with a language-model head, which is asked at a mask.

Shapes: S texts of a batch, L tokens of the longest, N supervised rows, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sinkd_llm.models.heads import HeadForm, HiddenStates, hidden_at, logits_at
from sinkd_llm.models.kinds.contract import IGNORE_INDEX, SupervisedRows, answer_rows, encoder_inputs
from sinkd_llm.models.states import last_states, mean_states


class MaskedLanguageModel:
    """BERT, RoBERTa, DeBERTa, ModernBERT with their pretraining head: the answer is the word at the mask."""

    title = "an encoder with a masked-language-model head"
    name = "masked-lm"
    body = "encoder"
    auto_class = "AutoModelForMaskedLM"
    class_table = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"
    class_endings: tuple[str, ...] = ("ForMaskedLM",)
    lora_task_type: str | None = None
    scores_classes = False
    writes_text = False
    continues_prompt = False

    def supervised_rows(
        self, model: nn.Module, batch: Mapping[str, Any], head: HeadForm | None = None, states: bool = False
    ) -> SupervisedRows:
        """`batch` holds `input_ids`, `attention_mask` and `labels` `[S, L]`; labels are -100 outside masks.

        `head`, `states` (of the whole text): see [`Kind`].
        """
        labels_SL = batch["labels"]
        supervised_SL = labels_SL != IGNORE_INDEX
        example_N, column_N, position_N = answer_rows(supervised_SL)
        scores: Tensor | HiddenStates
        with last_states(model, states) as found:
            if head is not None:
                scores = hidden_at(model, head, example_N, column_N, **encoder_inputs(model, batch))
            else:
                scores = logits_at(model, supervised_SL, **encoder_inputs(model, batch))
        states_SH = mean_states(found, batch["attention_mask"]) if states else None
        return SupervisedRows(scores, labels_SL[example_N, column_N], example_N, position_N, states_SH)
