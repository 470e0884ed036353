"""What a checkpoint is loaded as: which head, and which of its weights may be new."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.models.origin import new_modules_of
from sinkd_llm.models.kinds import (
    AUTO_CLASSES,
    can_be_loaded_as,
    check_classes_exclude_each_other,
    is_encoder,
    kinds_of_class,
    other_head,
)

logger = logging.getLogger(__name__)

MODEL_KINDS = (*AUTO_CLASSES,)


def choose_kind(name: str, config: Any, kind: str | None, new_head: bool) -> str:
    """
    The kind of model to load from a checkpoint with this configuration.

    Args:
        name (`str`): of the checkpoint, for messages.
        config (`PretrainedConfig`): says the family, and in `architectures` the head that was saved.
        kind (`str`, *optional*): one of [`MODEL_KINDS`]. Default: `"seq2seq-lm"` for an encoder-decoder, `"causal-lm"`
            for a decoder; for an encoder `"masked-lm"` if it was saved so and no new head is wanted, else
            `"sequence-classification"`.
        new_head (`bool`): a classification head may be put on.

    Raises:
        InputError: if the kind is unknown, the checkpoint's family cannot be loaded as it, or the checkpoint has a
            head that is of none of these kinds or would be dropped.
    """
    if kind is not None and not (isinstance(kind, str) and kind in AUTO_CLASSES):
        raise InputError(
            f"There is no model kind {kind!r}; give one of {', '.join(AUTO_CLASSES)}.{nearest(str(kind), MODEL_KINDS)}"
        )
    saved = saved_class(config)
    if getattr(config, "is_encoder_decoder", False):
        possible: tuple[str, ...] = ("seq2seq-lm",)
        family = "an encoder-decoder"
    elif is_encoder(config):
        possible, family = ("sequence-classification", "masked-lm"), "an encoder"
        if saved.endswith(("ForMaskedLM", "ForPreTraining")) and not new_head:
            possible = possible[::-1]
    else:
        possible, family = ("causal-lm",), "a decoder"
    if kind is not None and kind not in possible:
        # Transformers would load the decoder half of some encoder-decoders without a word.
        raise InputError(
            f"{name!r} is {family} ({config.model_type}), which cannot be loaded as {kind}; give "
            f"{' or '.join(possible)}, or another model."
        )
    chosen = kind or possible[0]
    if not can_be_loaded_as(config, chosen):
        raise InputError(
            f"{name!r} is of the type {config.model_type!r}{f', saved as {saved}' if saved else ''}, which is no "
            "language model and no encoder of text that Transformers loads as such; models that read images or sound "
            "are not supported. Give a …ForCausalLM, a …ForConditionalGeneration of text, or an encoder."
        )
    _check_saved_head(name, saved, kinds_of_class(saved, config), family, chosen)
    if chosen == "sequence-classification" and saved.endswith("ForSequenceClassification"):
        check_classes_exclude_each_other(repr(name), config)
    return chosen


def saved_class(config: Any) -> str:
    """The class that a checkpoint was saved from, by `architectures` of its configuration; empty if it says none."""
    return str(next(iter(getattr(config, "architectures", None) or ()), ""))


def _check_saved_head(name: str, saved: str, kinds: frozenset[str], family: str, chosen: str) -> None:
    """
    Refuses a checkpoint with another head than the one it would be loaded with, which would be dropped in silence.

    A base model without a head passes: where its output is tied to its embeddings it is whole (bart-base is saved so),
    and otherwise its head is missing, which is noticed. An encoder's language-model head may give way to a new one.
    """
    head = None if kinds else other_head(saved)
    if head is None and (not kinds or chosen in kinds):
        if not kinds and saved.endswith("ForSequenceClassification") and chosen != "sequence-classification":
            head = "SequenceClassification"  # of a class of the user's own
        else:
            return
    if chosen == "sequence-classification" and kinds & {"masked-lm", "causal-lm"}:
        return
    use = {
        "a decoder": "decoders are taken as language models, saved as …ForCausalLM",
        "an encoder-decoder": "encoder-decoders are taken as language models, saved as …ForConditionalGeneration",
        "an encoder": "encoders are taken with the head of …ForSequenceClassification or …ForMaskedLM",
    }[family]
    raise InputError(
        f"{name!r} was saved as {saved}, so loading it as {chosen} would drop its head: {use}. Give such a checkpoint"
        + (", or this one without its head, saved from its base model." if family == "an encoder" else ".")
    )


def head_options(kind: str, labels: Sequence[str] | None, config: Any) -> dict[str, Any]:
    """
    Arguments of `from_pretrained` that give a classification head one output a label.

    A saved head that calls its classes by the same words keeps its own order: its weights are in that.

    Args:
        kind (`str`): what the checkpoint is loaded as.
        labels (`Sequence[str]`, *optional*): the classes to learn.
        config (`PretrainedConfig`): of the checkpoint, as it was saved.
    """
    if kind != "sequence-classification" or labels is None:
        return {}
    if saved_class(config).endswith("ForSequenceClassification") and same_words(class_words(config), labels):
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def class_words(config: Any) -> tuple[str, ...] | None:
    """The words that a checkpoint gives its classes, in lower case and in their order; `None` if it gives none."""
    names = getattr(config, "id2label", None) or {}
    words = tuple(str(names[i]).strip().lower() for i in sorted(names))
    # LABEL_0 is what Transformers calls a class that nobody named.
    return words if words and not any(word.startswith("label_") for word in words) else None


def same_words(words: Sequence[str] | None, choices: Sequence[str]) -> bool:
    """Whether a head's [`class_words`] are the choices of a task, each once and in any order."""
    names = [choice.strip().lower() for choice in choices]
    return words is not None and sorted(words) == sorted(names) and len(set(names)) == len(names)


@functools.lru_cache(maxsize=64)
def class_order(choices: tuple[str, ...], words: tuple[str, ...] | None) -> tuple[int, ...]:
    """The class of each choice: the one of its name, if the head's `words` are those of the choices."""
    if words is None or not same_words(words, choices):
        return tuple(range(len(choices)))
    return tuple(words.index(choice.strip().lower()) for choice in choices)


def is_new_head(model: Any) -> bool:
    """Whether a classification head was put on while the model was loaded; a new pooler alone is none."""
    return bool(set(new_modules_of(model)) - {"pooler"})


def name_classes(config: Any, labels: Sequence[str]) -> None:
    """Names the classes of a head that is new; what an earlier one was for is forgotten with it."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = None


def warn_of_router(model: Any) -> None:
    """Warns of a mixture of experts: the loss that balances its experts is left out here (docs/models.md)."""
    if has_router_loss(model.config):
        logger.warning(
            "%s is a mixture of experts, and the load-balancing loss of its router is left out here: train it for a "
            "few epochs at most, or only its attention by LoRA, so that the use of its experts stays as it is.",
            type(model).__name__,
        )


def has_router_loss(config: Any) -> bool:
    """Whether Transformers would add a loss that balances the experts of a mixture of experts."""
    parts = [config, getattr(config, "text_config", None)]
    experts = ("num_local_experts", "num_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts")
    weights = ("router_aux_loss_coef", "aux_loss_alpha", "aux_loss_coef", "moe_aux_loss_coeff")
    return any(
        any(isinstance(n := getattr(part, name, None), int) and n > 1 for name in experts)
        and any(getattr(part, name, None) for name in weights)
        for part in parts
        if part is not None
    )


def is_head(kind: str, model: Any, weight: str) -> bool:
    """Whether a weight belongs to what a classifier adds to its encoder; the pooler counts as well."""
    if kind != "sequence-classification":
        return False
    return not weight.startswith(f"{model.base_model_prefix}.") or "pooler" in weight
