"""How each family of language model gives its logits at the supervised positions."""

from sinkd_llm.models.kinds.contract import (
    IGNORE_INDEX,
    LOGITS_AT_A_TIME,
    Kind,
    SupervisedRows,
    forward_parameters,
    unwrap,
)
from sinkd_llm.models.kinds.decoder_only import DecoderOnly
from sinkd_llm.models.kinds.encoder_decoder import EncoderDecoder, decoder_input_ids
from sinkd_llm.models.kinds.encoder_only import MaskedLanguageModel, SequenceClassification
from sinkd_llm.models.kinds.families import (
    AUTO_CLASSES,
    can_be_loaded_as,
    check_classes_exclude_each_other,
    context_length,
    is_encoder,
    kind_of,
    kinds_of_class,
    other_head,
    output_size,
)
from sinkd_llm.models.kinds.shared_prompt import can_share_prompts, shared_prompt_logits

__all__ = [
    "AUTO_CLASSES",
    "IGNORE_INDEX",
    "LOGITS_AT_A_TIME",
    "DecoderOnly",
    "EncoderDecoder",
    "Kind",
    "MaskedLanguageModel",
    "SequenceClassification",
    "SupervisedRows",
    "can_be_loaded_as",
    "can_share_prompts",
    "check_classes_exclude_each_other",
    "context_length",
    "decoder_input_ids",
    "forward_parameters",
    "is_encoder",
    "kind_of",
    "kinds_of_class",
    "other_head",
    "output_size",
    "shared_prompt_logits",
    "unwrap",
]
