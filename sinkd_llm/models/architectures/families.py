"""Which family a model belongs to, and how much it can read."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.architectures.contract import Architecture, unwrap
from sinkd_llm.models.architectures.decoder_only import DecoderOnly
from sinkd_llm.models.architectures.encoder_decoder import EncoderDecoder
from sinkd_llm.models.architectures.encoder_only import MaskedLanguageModel, SequenceClassification


def get_architecture(model: nn.Module) -> Architecture:
    """
    The family that `model` belongs to.

    Raises:
        InputError: if the model has none of the heads that are supported. It would run and be trained on the
            wrong positions, so it is refused.
    """
    from transformers.models.auto import modeling_auto as auto

    inner = unwrap(model)
    name = type(inner).__name__.removeprefix("FSDP")  # a sharded model has a class of its own
    config = getattr(inner, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        if name in _class_names(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES):
            return EncoderDecoder()
        reason = "an encoder-decoder without a language-model head"
    elif is_encoder(config):
        if name in _class_names(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES):
            return SequenceClassification()
        if name in _class_names(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES):
            return MaskedLanguageModel()
        reason = "an encoder, whose attention looks ahead, without a classification or masked-language-model head"
    elif name in _class_names(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return DecoderOnly()
    else:
        reason = "no language model and no encoder with a classification head"
    raise InputError(
        f"{name} is {reason}. Give a …ForCausalLM, a …ForConditionalGeneration, or an encoder's "
        "…ForSequenceClassification or …ForMaskedLM."
    )


def is_encoder(config: Any) -> bool:
    """Whether a configuration is that of an encoder alone, such as BERT's."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return (
        getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not getattr(config, "is_encoder_decoder", False)
        and not getattr(config, "is_decoder", False)
    )


def _class_names(mapping: Mapping[str, Any]) -> set[str]:
    names: set[str] = set()
    for value in mapping.values():
        names |= {value} if isinstance(value, str) else set(value)
    return names


def output_size(model: nn.Module) -> int:
    """V of the model's supervised logits: the rows of its head, padded ones included, or its classes."""
    inner = unwrap(model)
    if get_architecture(model).scores_classes:
        return int(inner.config.num_labels)
    head = inner.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return int(weight.shape[0] if weight is not None else inner.config.vocab_size)


def context_length(model: nn.Module) -> int | None:
    """Longest sequence in tokens that the model's positions allow, or `None` if it has no bound."""
    inner = unwrap(model)
    length = getattr(getattr(inner, "config", None), "max_position_embeddings", None)
    if not length:
        return None
    for name, module in inner.named_modules():
        # RoBERTa and its heirs count positions from behind the padding token's row of the table.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(length) - int(module.padding_idx) - 1
    return int(length)
