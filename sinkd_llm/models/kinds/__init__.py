"""How each kind of language model gives its logits at the supervised positions."""

from sinkd_llm.models.kinds.choose import KINDS, kind_of, output_size
from sinkd_llm.models.kinds.contract import (
    IGNORE_INDEX,
    LOGITS_AT_A_TIME,
    TEACHER,
    Kind,
    SupervisedRows,
    context_length,
)
from sinkd_llm.models.kinds.encoder_decoder import decoder_input_ids

__all__ = [
    "IGNORE_INDEX",
    "KINDS",
    "LOGITS_AT_A_TIME",
    "TEACHER",
    "Kind",
    "SupervisedRows",
    "context_length",
    "decoder_input_ids",
    "kind_of",
    "output_size",
]
