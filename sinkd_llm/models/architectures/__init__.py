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
from sinkd_llm.models.architectures.families import context_length, get_architecture, is_encoder, output_size
from sinkd_llm.models.architectures.shared_prompt import can_share_prompts, shared_prompt_logits

__all__ = [
    "IGNORE_INDEX",
    "LOGITS_AT_A_TIME",
    "Architecture",
    "DecoderOnly",
    "EncoderDecoder",
    "MaskedLanguageModel",
    "SequenceClassification",
    "SupervisedLogits",
    "can_share_prompts",
    "context_length",
    "decoder_input_ids",
    "forward_parameters",
    "get_architecture",
    "is_encoder",
    "output_size",
    "shared_prompt_logits",
    "unwrap",
]
