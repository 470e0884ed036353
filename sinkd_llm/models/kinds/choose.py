"""Which kind a checkpoint is loaded as and a loaded model is: decided here, by configuration and class."""

import functools
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.models.kinds.classifier import SequenceClassification, check_classes_exclude_each_other
from sinkd_llm.models.kinds.contract import Kind
from sinkd_llm.models.kinds.decoder_only import DecoderOnly
from sinkd_llm.models.kinds.encoder_decoder import EncoderDecoder
from sinkd_llm.models.kinds.masked import MaskedLanguageModel
from sinkd_llm.models.partitioning import whole_shape
from sinkd_llm.models.wrappers import unwrap

# By name. Of several kinds with one body, the first is what a model is loaded as unless something says otherwise.
KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (DecoderOnly(), EncoderDecoder(), SequenceClassification(), MaskedLanguageModel())
}


@dataclass(frozen=True)
class _Body:
    """What messages say of models by what is below their heads: what they are, which heads, and that none is there."""

    title: str
    heads: str
    without_head: str


_BODIES = {
    "decoder": _Body(
        "a decoder",
        "decoders are taken as language models, saved as …ForCausalLM",
        "no language model and no encoder with a classification head",
    ),
    "encoder-decoder": _Body(
        "an encoder-decoder",
        "encoder-decoders are taken as language models, saved as …ForConditionalGeneration",
        "an encoder-decoder without a language-model head",
    ),
    "encoder": _Body(
        "an encoder",
        "encoders are taken with the head of …ForSequenceClassification or …ForMaskedLM",
        "an encoder, whose attention looks ahead, without a classification or masked-language-model head",
    ),
}


def choose_kind(name: str, config: Any, kind: str | None, new_head: bool) -> str:
    """
    The kind of model to load from a checkpoint with this configuration.

    Args:
        name (`str`): of the checkpoint, for messages.
        config (`PretrainedConfig`): says the type of model, and in `architectures` the head that was saved.
        kind (`str`, *optional*): one of [`KINDS`]. Default: `"seq2seq-lm"` for an encoder-decoder, `"causal-lm"`
            for a decoder; for an encoder `"masked-lm"` if it was saved so and no new head is wanted, else
            `"sequence-classification"`.
        new_head (`bool`): a classification head may be put on.

    Raises:
        InputError: if the kind is unknown, the checkpoint cannot be loaded as it, or the checkpoint has a
            head that is of none of these kinds or would be dropped.
    """
    if kind is not None and not (isinstance(kind, str) and kind in KINDS):
        near = nearest(str(kind), [*KINDS])
        raise InputError(f"There is no model kind {kind!r}; give one of {', '.join(KINDS)}.{near}")
    saved = saved_class(config)
    body = _body_of(config)
    possible = [of_body.name for of_body in KINDS.values() if of_body.body == body]
    if body == "encoder" and saved.endswith(("ForMaskedLM", "ForPreTraining")) and not new_head:
        possible.reverse()
    if kind is not None and kind not in possible:
        # Transformers would load the decoder half of some encoder-decoders without a word.
        raise InputError(
            f"{name!r} is {_BODIES[body].title} ({config.model_type}), which cannot be loaded as {kind}; give "
            f"{' or '.join(possible)}, or another model."
        )
    chosen = kind or possible[0]
    if not _can_be_loaded_as(config, KINDS[chosen]):
        raise InputError(
            f"{name!r} is of the type {config.model_type!r}{f', saved as {saved}' if saved else ''}, which is no "
            "language model and no encoder of text that Transformers loads as such; models that read images or sound "
            "are not supported. Give a …ForCausalLM, a …ForConditionalGeneration of text, or an encoder."
        )
    _check_saved_head(name, saved, _kinds_of_class(saved, config), body, chosen)
    if chosen == "sequence-classification" and saved.endswith("ForSequenceClassification"):
        check_classes_exclude_each_other(repr(name), config)
    return chosen


def _check_saved_head(name: str, saved: str, kinds: frozenset[str], body: str, chosen: str) -> None:
    """
    Refuses a checkpoint with another head than the one it would be loaded with, which would be dropped in silence.

    A base model without a head passes: where its output is tied to its embeddings it is whole (bart-base is saved so),
    and otherwise its head is missing, which is noticed. An encoder's language-model head may give way to a new one.
    """
    head = None if kinds else _other_head(saved)
    if head is None and (not kinds or chosen in kinds):
        if not kinds and saved.endswith("ForSequenceClassification") and chosen != "sequence-classification":
            head = "SequenceClassification"  # of a class of the user's own
        else:
            return
    if chosen == "sequence-classification" and kinds & {"masked-lm", "causal-lm"}:
        return
    without = ", or this one without its head, saved from its base model." if body == "encoder" else "."
    raise InputError(
        f"{name!r} was saved as {saved}, so loading it as {chosen} would drop its head: {_BODIES[body].heads}. "
        f"Give such a checkpoint{without}"
    )


def saved_class(config: Any) -> str:
    """The class that a checkpoint was saved from, by `architectures` of its configuration; empty if it says none."""
    return str(next(iter(getattr(config, "architectures", None) or ()), ""))


def kind_of(model: nn.Module) -> Kind:
    """
    The kind that `model` is.

    A class that Transformers does not know (a subclass of the user's, code that comes with a model) is what its
    nearest known ancestor is; without one, what its name and its head say.

    Raises:
        InputError: if the model has none of the heads that are supported, or one that is read in another way. It
            would run and be trained on the wrong positions or classes, so it is refused.
    """
    inner = unwrap(model)
    name = type(inner).__name__.removeprefix("FSDP")  # a sharded model has a class of its own
    config = getattr(inner, "config", None)
    body, kinds = _body_of(config), _kinds_of(inner)
    for kind in KINDS.values():
        if kind.body == body and kind.name in kinds:
            if kind.scores_classes:
                check_classes_exclude_each_other(name, config)
            return kind
    reason = _BODIES[body].without_head
    if body == "decoder" and "sequence-classification" in kinds:
        reason = "a decoder with a classification head, and decoders are taken as language models alone"
    raise InputError(
        f"{name} is {reason}. Give a …ForCausalLM, a …ForConditionalGeneration, or an encoder's "
        "…ForSequenceClassification or …ForMaskedLM."
    )


def pads_left(config: Any) -> bool:
    """
    Whether models with this configuration go on writing at the end of a text, so that batches are padded on the left.

    Encoders with absolute positions count them from the first token, padding included: a text that is padded on the
    left is another text to them.

    Args:
        config (`PretrainedConfig`): of any model.
    """
    body = _body_of(config)
    return any(kind.continues_prompt for kind in KINDS.values() if kind.body == body)


def _kinds_of(model: Any) -> frozenset[str]:
    """What a model is by its class, the nearest of its ancestors that says so, or else its head."""
    config = getattr(model, "config", None)
    for ancestor in type(model).__mro__:
        if kinds := _kinds_of_class(ancestor.__name__.removeprefix("FSDP"), config):
            return kinds
    name, body = type(model).__name__, _body_of(config)
    for kind in KINDS.values():
        # Some decoders' own code calls them …ForConditionalGeneration.
        if name.endswith(kind.class_endings) and (kind.body != "encoder-decoder" or kind.body == body):
            return frozenset((kind.name,))
    has_vocabulary_head = hasattr(model, "get_output_embeddings") and model.get_output_embeddings() is not None
    if _other_head(name) is None and has_vocabulary_head:
        return frozenset(kind.name for kind in KINDS.values() if kind.body == body and kind.writes_text)
    return frozenset()


def _body_of(config: Any) -> str:
    """What a model with this configuration is below its head: one of [`_BODIES`]."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    if getattr(config, "is_decoder", False):
        return "decoder"
    model_type = getattr(config, "model_type", None)
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    if model_type in CONFIG_MAPPING:
        return "decoder"
    # Code that comes with a model names the auto classes that load it.
    offered = set(getattr(config, "auto_map", None) or ())
    encoders = {kind.auto_class for kind in KINDS.values() if kind.body == "encoder"}
    return "encoder" if offered & encoders and "AutoModelForCausalLM" not in offered else "decoder"


def _kinds_of_class(name: str, config: Any = None) -> frozenset[str]:
    """
    The kinds of model that a class is by its name; empty for one that is not known.

    Args:
        name (`str`): of the class.
        config (`PretrainedConfig`, *optional*): where it names code of its own (`auto_map`), it is asked first.
    """
    own = getattr(config, "auto_map", None)
    if name and isinstance(own, dict):
        classes = {kind.name: str(own.get(kind.auto_class, "")).rsplit(".", 1)[-1] for kind in KINDS.values()}
        if name in classes.values():
            return frozenset(kind for kind, offered in classes.items() if offered == name)
    return frozenset(kind for kind, names in _known_classes().items() if name in names)


def _other_head(name: str) -> str | None:
    """`"TokenClassification"` of a class name such as `BertForTokenClassification`; `None` for our kinds."""
    ours = [ending for kind in KINDS.values() for ending in kind.class_endings]
    if _kinds_of_class(name) or name.endswith((*ours, "ForPreTraining", "ForTextToText")):
        return None
    found = re.search(r"For([A-Z]\w*)$", name)
    return found[1] if found else None


@functools.cache
def _known_classes() -> dict[str, frozenset[str]]:
    from transformers.models.auto import modeling_auto

    known = {}
    for kind in KINDS.values():
        names: set[str] = set()
        for value in getattr(modeling_auto, kind.class_table).values():
            names |= {value} if isinstance(value, str) else set(value)
        known[kind.name] = frozenset(names)
    return known


def _can_be_loaded_as(config: Any, kind: Kind) -> bool:
    """Whether Transformers, or code that comes with a model, has a class of this kind for a configuration."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    model_type = getattr(config, "model_type", None)
    if model_type in getattr(modeling_auto, kind.class_table):
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
    return int(whole_shape(weight)[0] if weight is not None else inner.config.vocab_size)
