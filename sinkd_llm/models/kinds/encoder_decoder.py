"""Encoder-decoder language models: the prompt is the encoder's, the answer the decoder's.

Shapes: S prompts of a batch and their answers, L tokens of the longest prompt, T tokens of the longest answer, N
supervised tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.heads import HeadForm, HiddenStates, hidden_at, logits_at
from sinkd_llm.models.kinds.contract import IGNORE_INDEX, SupervisedRows, answer_rows
from sinkd_llm.models.states import last_states, mean_states
from sinkd_llm.models.wrappers import accepted, unwrap


class EncoderDecoder:
    """T5, mT5, Flan-T5, BART, Marian, Pegasus and their like."""

    title = "an encoder-decoder"
    name = "seq2seq-lm"
    body = "encoder-decoder"
    auto_class = "AutoModelForSeq2SeqLM"
    class_table = "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"
    class_endings: tuple[str, ...] = ("ForConditionalGeneration",)
    lora_task_type: str | None = "SEQ_2_SEQ_LM"
    scores_classes = False
    writes_text = True
    continues_prompt = False

    def supervised_rows(
        self, model: nn.Module, batch: Mapping[str, Any], head: HeadForm | None = None, states: bool = False
    ) -> SupervisedRows:
        """Runs the encoder once a prompt, the decoder once an answer, the head only at answer tokens.

        The decoder reads the answer shifted right by the model itself, after its own start token. Padding
        stands on the right of the answers, where a causal decoder never looks.

        Args:
            model (`nn.Module`): possibly wrapped by PEFT or DDP.
            batch (`Mapping`): `input_ids` and `attention_mask` `[S, L]`; `targets` `[S, T]`, the answers with
                the special tokens of the model, -100 on padding; `labels` `[S, T]`, the same without the
                tokens that are not supervised.
            head ([`HeadForm`], *optional*): of the model; then its head is left to the loss.
            states (`bool`, *optional*, defaults to `False`): give the encoder's mean state of each prompt, too.
        """
        labels_ST = batch["labels"]
        supervised_ST = labels_ST != IGNORE_INDEX
        arguments: dict[str, Any] = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "decoder_input_ids": decoder_input_ids(model, batch["targets"]),
            **accepted(model, {"use_cache": False}),
        }
        example_N, column_N, position_N = answer_rows(supervised_ST)
        scores: Tensor | HiddenStates
        with last_states(model, states) as found:
            if head is not None:
                scores = hidden_at(model, head, example_N, column_N, **arguments)
            else:
                scores = logits_at(model, supervised_ST, **arguments)
        states_SH = mean_states(found, batch["attention_mask"]) if states else None
        return SupervisedRows(scores, labels_ST[example_N, column_N], example_N, position_N, states_SH)


def decoder_input_ids(model: nn.Module, targets_ST: Tensor) -> Tensor:
    """What the decoder reads to predict `targets_ST` (-100 on padding), the model's own way.

    Raises:
        InputError: if the model's configuration names no start or padding token.
    """
    inner = unwrap(model)
    config = inner.config
    try:
        if hasattr(inner, "prepare_decoder_input_ids_from_labels"):
            return inner.prepare_decoder_input_ids_from_labels(labels=targets_ST)
        shifted_ST = targets_ST.new_zeros(targets_ST.shape)
        shifted_ST[:, 1:] = targets_ST[:, :-1]
        shifted_ST[:, 0] = config.decoder_start_token_id
        return shifted_ST.masked_fill(shifted_ST == IGNORE_INDEX, config.pad_token_id)
    except (TypeError, ValueError, AttributeError) as error:  # some configurations do not have the names at all
        raise InputError(
            f"{type(inner).__name__} cannot say what its decoder reads first: its configuration has "
            f"decoder_start_token_id={getattr(config, 'decoder_start_token_id', None)} and "
            f"pad_token_id={getattr(config, 'pad_token_id', None)}. Set both in its config.json."
        ) from error
