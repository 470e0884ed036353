"""The tokenizer and the collator of each kind of model."""

from typing import TYPE_CHECKING

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.batch import AnswerCollator
from sinkd_llm.inputs.classifier import ClassCollator, ClassTokenizer
from sinkd_llm.inputs.contract import AnswerTokenizer
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, DecoderOnlyTokenizer
from sinkd_llm.inputs.encoder_decoder import EncoderDecoderCollator, EncoderDecoderTokenizer
from sinkd_llm.inputs.masked import MaskCollator, MaskTokenizer
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.origin import name_of
from sinkd_llm.models.tokenizers import check_vocabulary
from sinkd_llm.models.wrappers import unwrap

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_BY_KIND: dict[str, tuple[type[AnswerTokenizer], type[AnswerCollator]]] = {
    "causal-lm": (DecoderOnlyTokenizer, DecoderOnlyCollator),
    "seq2seq-lm": (EncoderDecoderTokenizer, EncoderDecoderCollator),
    "sequence-classification": (ClassTokenizer, ClassCollator),
    "masked-lm": (MaskTokenizer, MaskCollator),
}


def row_tokenizer(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", reading: Reading) -> AnswerTokenizer:
    """
    What turns rows into what `model` reads.

    Args:
        model (`nn.Module`): of any kind, possibly wrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        reading ([`Reading`]): how rows become tokens.

    Raises:
        InputError: if the kind of model is not supported, it lacks a token that the tokenizer gives, or
            `reading.add_eos` asks for one that it cannot predict.
    """
    inner = unwrap(model)
    check_vocabulary(inner, tokenizer, name_of(inner) or type(inner).__name__)
    of_kind, _ = _BY_KIND[kind_of(model).name]
    if reading.add_eos and not of_kind.predicts_end:
        raise InputError(f"add_eos is set, but {type(inner).__name__} predicts no end of a sequence; drop it.")
    return of_kind.of(model, tokenizer, reading)


def row_collator(
    model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", pad_to_multiple_of: int | None = None
) -> AnswerCollator:
    """
    The collator of rows that [`row_tokenizer`] made for `model`.

    Raises:
        InputError: if the tokenizer has no token to pad with.
    """
    _, of_kind = _BY_KIND[kind_of(model).name]
    return of_kind.of(tokenizer, pad_to_multiple_of)
