"""How each family of language model gives its logits at the supervised positions."""

from sinkd_llm.models.architectures.contract import (
    IGNORE_INDEX,
    LOGITS_AT_A_TIME,
    Architecture,
    SupervisedLogits,
    forward_parameters,
    unwrap,
)
from sinkd_llm.models.architectures.decoder_only import DecoderOnly
from sinkd_llm.models.architectures.encoder_decoder import EncoderDecoder, decoder_input_ids
from sinkd_llm.models.architectures.encoder_only import MaskedLanguageModel, SequenceClassification
from sinkd_llm.models.architectures.families import (
    AUTO_CLASSES,
    can_be_loaded_as,
    check_classes_exclude_each_other,
    context_length,
    get_architecture,
    is_encoder,
    kinds_of_class,
    other_head,
    output_size,
)
from sinkd_llm.models.architectures.shared_prompt import can_share_prompts, shared_prompt_logits

__all__ = [
    "AUTO_CLASSES",
    "IGNORE_INDEX",
    "LOGITS_AT_A_TIME",
    "Architecture",
    "DecoderOnly",
    "EncoderDecoder",
    "MaskedLanguageModel",
    "SequenceClassification",
    "SupervisedLogits",
    "can_be_loaded_as",
    "can_share_prompts",
    "check_classes_exclude_each_other",
    "context_length",
    "decoder_input_ids",
    "forward_parameters",
    "get_architecture",
    "is_encoder",
    "kinds_of_class",
    "other_head",
    "output_size",
    "shared_prompt_logits",
    "unwrap",
]
