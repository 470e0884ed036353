"""Classification heads: what their classes are called, in which order they stand, and which weights are theirs."""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch

from sinkd_llm.models.kinds.choose import saved_class
from sinkd_llm.models.origin import new_modules_of


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
    """The class of each choice: the class of its name, if the head's `words` are the words of the choices."""
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


def is_head(kind: str, model: Any, weight: str) -> bool:
    """Whether a weight belongs to what a classifier adds to its encoder; the pooler counts as well."""
    if kind != "sequence-classification":
        return False
    return not weight.startswith(f"{model.base_model_prefix}.") or "pooler" in weight


def sparing_head(quantization_config: Any, config: Any) -> Any:
    """
    The same quantisation with the classification head in full precision, for a new head is trained whole.

    Args:
        quantization_config (`BitsAndBytesConfig`): it is not changed; one of another method is given back.
        config (`PretrainedConfig`): of the classifier.
    """
    import transformers

    if not hasattr(quantization_config, "llm_int8_skip_modules"):
        return quantization_config  # not of bitsandbytes
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    names = [name for name, _ in model.named_parameters()]
    head = {name.rsplit(".", 1)[0] for name in names if is_head("sequence-classification", model, name)}
    spared = copy.deepcopy(quantization_config)
    spared.llm_int8_skip_modules = sorted({*(spared.llm_int8_skip_modules or ()), *head})
    return spared
