"""Whether a checkpoint's weights are the weights of the model that was made of it: none made up, none left out."""

import re
from collections.abc import Sequence
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds.choose import saved_class
from sinkd_llm.models.kinds.class_heads import is_head

# What checkpoints carry although it is computed anew: Transformers leaves it out of most models' reports, not of all.
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias)$")
# Scales of a quantised cache of keys and values, which is not used here.
_CACHE_SCALES = re.compile(r"\.[kv]_scale$")


def check_complete(name: str, kind: str, model: Any, info: dict[str, Any], labels: Sequence[str] | None) -> set[str]:
    """
    Refuses a model with weights that Transformers made up, left out, or could not fit.

    Args:
        name (`str`): of the checkpoint, for messages.
        kind (`str`): what it was loaded as.
        model (`PreTrainedModel`): as it was loaded.
        info (`dict`): Transformers' `output_loading_info`.
        labels (`Sequence[str]`, *optional*): with classes to learn, a classification head may be new.

    Returns:
        `set[str]`: the weights of a new head, which are random.

    Raises:
        InputError: naming the first weight.
    """
    if errors := list(info.get("error_msgs") or ()):
        raise InputError(f"The weights of {name!r} cannot be read into {type(model).__name__}: {errors[0]}")
    new = {
        weight
        for weight in (*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"]))
        if labels is not None and is_head(kind, model, weight)
    }
    if mismatched := sorted(key for key in info["mismatched_keys"] if key[0] not in new):
        weight, stored, expected = mismatched[0]
        raise InputError(
            f"The weights of {name!r} do not fit its config.json: {weight} is stored as {tuple(stored)}, but "
            f"the configuration asks for {tuple(expected)}. Copy both from the same save."
        )
    if missing := sorted(set(info["missing_keys"]) - new):
        # Transformers would fill them with random numbers and only warn.
        head = all(is_head(kind, model, weight) for weight in missing)
        raise InputError(
            f"{name!r} lacks {len(missing)} of the weights that {type(model).__name__} needs, e.g. {missing[0]}: "
            + (
                "it has no classification head yet, and one is made only where all rows have the same answer choices. "
                "Fine-tune it on such a task first (sinkd finetune); for choices that differ from row to row give a "
                "model that writes its answers."
                if head
                else "it was saved from another kind of model or is not complete. Give a checkpoint of "
                f"a {kind} model."
            )
        )
    if left_out := sorted(weight for weight in info["unexpected_keys"] if not _may_go(weight, kind, model, new)):
        # Transformers would drop them and only warn: layers beyond num_hidden_layers, the head of another model.
        raise InputError(
            f"{name!r} holds {len(left_out)} weights that {type(model).__name__} with its config.json has no place "
            f"for, e.g. {left_out[0]}: they would be dropped, and it would compute something else than the model that "
            "was saved. Copy config.json and weights from the same save."
        )
    return new


def _may_go(weight: str, kind: str, model: Any, new: set[str]) -> bool:
    """Whether a weight that is stored and not used is one that this kind of model does without."""
    if _COMPUTED.search(weight) or _CACHE_SCALES.search(weight):
        return True
    # An encoder gives its pretraining heads up for a new one; a masked language model does without the others that
    # were pretrained beside it (next sentence, replaced token).
    outside = not weight.startswith(f"{model.base_model_prefix}.") or "pooler" in weight
    own_head = saved_class(model.config).endswith("ForSequenceClassification")
    return outside and (kind == "masked-lm" or (kind == "sequence-classification" and bool(new) and not own_head))
