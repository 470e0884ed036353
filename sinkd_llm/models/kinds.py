"""What a checkpoint is loaded as: which head, and which of its weights may be new."""

from collections.abc import Sequence
from typing import Any

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.models.architectures import is_encoder

# kind -> the class of Transformers that loads it
AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "masked-lm": "AutoModelForMaskedLM",
}
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
        InputError: if the kind is unknown, or the checkpoint's family cannot be loaded as it.
    """
    if kind is not None and kind not in AUTO_CLASSES:
        raise InputError(
            f"There is no model kind {kind!r}; give one of {', '.join(AUTO_CLASSES)}.{nearest(kind, MODEL_KINDS)}"
        )
    if getattr(config, "is_encoder_decoder", False):
        possible: tuple[str, ...] = ("seq2seq-lm",)
        family = "an encoder-decoder"
    elif is_encoder(config):
        saved = next(iter(getattr(config, "architectures", None) or ()), "")
        possible, family = ("sequence-classification", "masked-lm"), "an encoder"
        if saved.endswith("ForMaskedLM") and not new_head:
            possible = possible[::-1]
    else:
        possible, family = ("causal-lm",), "a decoder"
    if kind is not None and kind not in possible:
        # Transformers would load the decoder half of some encoder-decoders without a word.
        raise InputError(
            f"{name!r} is {family} ({config.model_type}), which cannot be loaded as {kind}; give "
            f"{' or '.join(possible)}, or another model."
        )
    return kind or possible[0]


def head_options(kind: str, labels: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that give a classification head one output a label."""
    if kind != "sequence-classification" or labels is None:
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


def is_head(kind: str, model: Any, weight: str) -> bool:
    """Whether a weight belongs to what a classifier adds to its encoder; the pooler counts as well."""
    if kind != "sequence-classification":
        return False
    return not weight.startswith(f"{model.base_model_prefix}.") or "pooler" in weight
