"""What a model computes for a few tokens: two models that should be the same are compared by it.

Shapes: B rows, L tokens a row, V outputs.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.partitioning import whole_shape
from sinkd_llm.models.quantisation import is_quantised
from sinkd_llm.models.wrappers import forward_parameters, unwrap

ROWS, TOKENS = 2, 8
# A classifier gives few numbers a row, a regression one, which may all be near 0 by chance; of more rows they are not.
CLASSIFIER_ROWS = 16
# Largest share of the outputs by which two loads of one model may differ: rounding, never another computation.
FULL_PRECISION, LOW_PRECISION = 1e-3, 5e-2


def probe_outputs(model: Any) -> Tensor:
    """
    The model's logits for a few rows of made-up tokens, in fp32 on the CPU, without dropout, autocast or gradient.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a language model or classifier of any kind, with all its weights.

    Returns:
        `Tensor` `[B, L, V]`; of a classifier `[B, V]`.
    """
    with torch.no_grad():
        return made_up_logits(model).float().cpu()


def made_up_logits(model: Any) -> Tensor:
    """The same as the model gives it, with its graph."""
    inner = unwrap(model)
    embeddings = inner.get_input_embeddings().weight
    known = min(int(embeddings.shape[0]), int(getattr(inner.config, "vocab_size", None) or embeddings.shape[0]))
    rows = CLASSIFIER_ROWS if kind_of(model).scores_classes else ROWS
    ids_BL = torch.randint(known, (rows, TOKENS), generator=torch.Generator().manual_seed(0)).to(embeddings.device)
    inputs: dict[str, Any] = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    if getattr(inner.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids_BL.flip(0)
    takes = forward_parameters(model)
    inputs = {name: value for name, value in inputs.items() if name in takes}
    if "use_cache" in takes:
        inputs["use_cache"] = False
    # Accelerate puts autocast around the forward of a model that is trained in a lower precision.
    forward = vars(inner).get("_original_forward", inner)
    training = {module: module.training for module in inner.modules()}
    inner.eval()
    try:
        logits: Tensor = forward(**inputs).logits
    finally:
        for module, mode in training.items():
            module.training = mode
    return logits


def difference(expected: Tensor, found: Tensor) -> float:
    """The distance of two outputs as a share of the first one's length; infinite for other shapes."""
    if expected.shape != found.shape:
        return float("inf")
    if torch.equal(expected.nan_to_num(), found.nan_to_num()):
        return 0.0
    distance = (expected.double() - found.double()).norm() / expected.double().norm().clamp_min(1e-12)
    return float(distance.nan_to_num(nan=float("inf")))


def allowed_difference(model: Any) -> float:
    """
    How far two loads of this model may be apart, as [`difference`] measures it.

    On a GPU, products of fp32 numbers may be rounded to fewer digits, and a load is compared on the CPU.
    """
    inner = unwrap(model)
    weights = [weight for weight in inner.parameters() if weight.is_floating_point()]
    rounded = is_quantised(inner) or any(
        weight.element_size() < 4 or weight.device.type != "cpu" for weight in weights
    )
    return LOW_PRECISION if rounded else FULL_PRECISION


def fits_beside(model: Any) -> bool:
    """Whether a second copy of the model's weights fits into the memory that is free, with as much left over."""
    import psutil

    size = sum(prod(whole_shape(weight)) * weight.element_size() for weight in unwrap(model).parameters())
    return 2 * size < psutil.virtual_memory().available
