"""Which family a model belongs to, and how much it can read."""

import functools
import re
from typing import Any

from torch import nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds.contract import Kind, unwrap
from sinkd_llm.models.kinds.decoder_only import DecoderOnly
from sinkd_llm.models.kinds.encoder_decoder import EncoderDecoder
from sinkd_llm.models.kinds.encoder_only import MaskedLanguageModel, SequenceClassification

# kind -> the table of Transformers that names its classes, and the class that loads it
_MAPPINGS = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
}
AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "masked-lm": "AutoModelForMaskedLM",
}
# What a class says of its head where Transformers does not know it: `Tuned` + `ForCausalLM`.
_SUFFIXES = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForConditionalGeneration": "seq2seq-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForMaskedLM": "masked-lm",
}


def kind_of(model: nn.Module) -> Kind:
    """
    The family that `model` belongs to.

    A class that Transformers does not know (a subclass of the user's, code that comes with a model) is what its
    nearest known ancestor is; without one, what its name and its head say.

    Raises:
        InputError: if the model has none of the heads that are supported, or one that is read in another way. It
            would run and be trained on the wrong positions or classes, so it is refused.
    """
    inner = unwrap(model)
    name = type(inner).__name__.removeprefix("FSDP")  # a sharded model has a class of its own
    config = getattr(inner, "config", None)
    kinds = _kinds_of(inner)
    if getattr(config, "is_encoder_decoder", False):
        if "seq2seq-lm" in kinds:
            return EncoderDecoder()
        reason = "an encoder-decoder without a language-model head"
    elif is_encoder(config):
        if "sequence-classification" in kinds:
            check_classes_exclude_each_other(name, config)
            return SequenceClassification()
        if "masked-lm" in kinds:
            return MaskedLanguageModel()
        reason = "an encoder, whose attention looks ahead, without a classification or masked-language-model head"
    elif "causal-lm" in kinds:
        return DecoderOnly()
    elif "sequence-classification" in kinds:
        reason = "a decoder with a classification head, and decoders are taken as language models alone"
    else:
        reason = "no language model and no encoder with a classification head"
    raise InputError(
        f"{name} is {reason}. Give a …ForCausalLM, a …ForConditionalGeneration, or an encoder's "
        "…ForSequenceClassification or …ForMaskedLM."
    )


def _kinds_of(model: Any) -> frozenset[str]:
    """What a model is by its class, the nearest of its ancestors that says so, or else its head."""
    config = getattr(model, "config", None)
    for ancestor in type(model).__mro__:
        if kinds := kinds_of_class(ancestor.__name__.removeprefix("FSDP"), config):
            return kinds
    name = type(model).__name__
    for suffix, kind in _SUFFIXES.items():
        # Some decoders' own code calls them …ForConditionalGeneration.
        if name.endswith(suffix) and (kind != "seq2seq-lm" or getattr(config, "is_encoder_decoder", False)):
            return frozenset((kind,))
    if other_head(name) is None and _vocabulary_head(model) is not None:
        return frozenset(("seq2seq-lm" if getattr(config, "is_encoder_decoder", False) else "causal-lm",))
    return frozenset()


def _vocabulary_head(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def kinds_of_class(name: str, config: Any = None) -> frozenset[str]:
    """
    The kinds of model that a class is by its name; empty for one that is not known.

    Args:
        name (`str`): of the class.
        config (`PretrainedConfig`, *optional*): where it names code of its own (`auto_map`), it is asked first.
    """
    own = getattr(config, "auto_map", None)
    if isinstance(own, dict):
        offered = {kind for kind, auto in AUTO_CLASSES.items() if str(own.get(auto, "")).rsplit(".", 1)[-1] == name}
        if name and offered:
            return frozenset(offered)
    return frozenset(kind for kind, names in _known_classes().items() if name in names)


def other_head(name: str) -> str | None:
    """`"TokenClassification"` of a class name such as `BertForTokenClassification`; `None` for heads of our kinds."""
    if kinds_of_class(name) or name.endswith((*_SUFFIXES, "ForPreTraining", "ForTextToText")):
        return None
    found = re.search(r"For([A-Z]\w*)$", name)
    return found[1] if found else None


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


@functools.cache
def _known_classes() -> dict[str, frozenset[str]]:
    from transformers.models.auto import modeling_auto

    known = {}
    for kind, mapping in _MAPPINGS.items():
        names: set[str] = set()
        for value in getattr(modeling_auto, mapping).values():
            names |= {value} if isinstance(value, str) else set(value)
        known[kind] = frozenset(names)
    return known


def is_encoder(config: Any) -> bool:
    """Whether a configuration is that of an encoder alone, such as BERT's."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        return False
    model_type = getattr(config, "model_type", None)
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return True
    if model_type in CONFIG_MAPPING:
        return False
    # Code that comes with a model names the auto classes that load it.
    offered = set(getattr(config, "auto_map", None) or ())
    return "AutoModelForCausalLM" not in offered and bool(
        offered & {"AutoModelForMaskedLM", "AutoModelForSequenceClassification"}
    )


def can_be_loaded_as(config: Any, kind: str) -> bool:
    """Whether Transformers, or code that comes with a model, has a class of this kind for a configuration."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    model_type = getattr(config, "model_type", None)
    if model_type in getattr(modeling_auto, _MAPPINGS[kind]):
        return True
    # What was registered with `AutoModelFor….register` is asked while it is loaded.
    return model_type not in CONFIG_MAPPING or type(config).__module__.split(".")[0] != "transformers"


def output_size(model: nn.Module) -> int:
    """V of the model's supervised logits: the rows of its head, padded ones included, or its classes."""
    inner = unwrap(model)
    if kind_of(model).scores_classes:
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
