"""Decoder-only language models: the prompt and its answer are one sequence.

Shapes: B sequences of a batch (of a packed one: 1), L tokens of the longest, N supervised tokens of the batch, K kept
positions, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.models.heads import HeadForm, HiddenStates, hidden_at
from sinkd_llm.models.kinds.contract import IGNORE_INDEX, SupervisedRows, answer_rows
from sinkd_llm.models.kinds.packing import ROW_OF, mean_states_of_packed, rows_of_packed
from sinkd_llm.models.states import last_states, mean_states
from sinkd_llm.models.wrappers import forward_parameters


class DecoderOnly:
    """Llama, Qwen, Gemma, GPT-2 and their like: the token at position l is predicted at l - 1."""

    title = "a decoder-only model"
    name = "causal-lm"
    body = "decoder"
    auto_class = "AutoModelForCausalLM"
    class_table = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    class_endings: tuple[str, ...] = ("ForCausalLM", "LMHeadModel")
    lora_task_type: str | None = "CAUSAL_LM"
    scores_classes = False
    writes_text = True
    continues_prompt = True

    def supervised_rows(
        self, model: nn.Module, batch: Mapping[str, Any], head: HeadForm | None = None, states: bool = False
    ) -> SupervisedRows:
        """Runs the model once and its head only at the positions that predict an answer token.

        Args:
            model (`nn.Module`): a causal language model, possibly wrapped by PEFT or DDP.
            batch (`Mapping`): `input_ids`, `attention_mask` and `labels`, each `[B, L]`. Padding may
                stand on either side; on the left, the answers end together and K is smallest. Or what
                [`~sinkd_llm.models.kinds.packing.packed`] makes of these.
            head ([`HeadForm`], *optional*): of the model; then its head is left to the loss.
            states (`bool`, *optional*, defaults to `False`): give the mean state of what stands before the first
                supervised token, too.
        """
        labels_BL = batch["labels"]
        supervised_BL = labels_BL[:, 1:] != IGNORE_INDEX
        sequence_N, source_N, position_N = answer_rows(supervised_BL)
        labels_N = labels_BL[sequence_N, source_N + 1]
        example_N = sequence_N
        if ROW_OF in batch:
            example_N, position_N = rows_of_packed(batch[ROW_OF], source_N + 1)

        # The last token predicts nothing that is supervised: the model need not see it. A batch
        # without a supervised token still runs at one position, so that every rank of a distributed
        # job makes the same forward and gets gradients of zeros.
        takes = forward_parameters(model)
        arguments: dict[str, Any] = {"input_ids": batch["input_ids"][:, :-1]}
        if ROW_OF in batch:
            # No mask: beside one, a model does not look at where the positions begin again.
            arguments["position_ids"] = batch["position_ids"][:, :-1]
        else:
            attention_mask = arguments["attention_mask"] = batch["attention_mask"][:, :-1]
            if "position_ids" in takes:
                # Models with absolute positions count padding unless told otherwise.
                arguments["position_ids"] = (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)
        if "use_cache" in takes:
            arguments["use_cache"] = False
        scores: Tensor | HiddenStates
        with last_states(model, states) as found:
            if head is not None:
                scores = hidden_at(model, head, sequence_N, source_N, **arguments)
            else:
                column_N = source_N
                if "logits_to_keep" in takes:
                    kept_K = source_N.unique() if source_N.numel() else source_N.new_zeros(1)
                    arguments["logits_to_keep"] = kept_K
                    column_N = torch.searchsorted(kept_K, source_N)
                scores = model(**arguments).logits[sequence_N, column_N]
        return SupervisedRows(scores, labels_N, example_N, position_N, _states(found, batch) if states else None)


def _states(found: list[Tensor], batch: Mapping[str, Any]) -> Tensor:
    """The mean state of each row's prompt, of what the body gave at all positions but the last."""
    answered_BL = batch["labels"][:, :-1] != IGNORE_INDEX
    answered_BL = answered_BL & (torch.arange(answered_BL.shape[1], device=answered_BL.device) > 0)
    if ROW_OF in batch:
        return mean_states_of_packed(found, answered_BL, batch[ROW_OF][:, :-1])
    present_BL = batch["attention_mask"][:, :-1].bool()
    return mean_states(found, present_BL & (answered_BL.cumsum(dim=1) == 0).to(present_BL.device))
