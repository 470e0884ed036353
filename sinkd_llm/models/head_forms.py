"""How a model's head makes logits: what its configuration says of it, held against what the model does.

Shapes: B rows of made-up tokens, L tokens of a row, V vocabulary.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.heads import HeadForm, linear_head
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.outputs import made_up_logits
from sinkd_llm.models.partitioning import is_partitioned
from sinkd_llm.models.wrappers import unwrap

logger = logging.getLogger(__name__)

# Of the head's outputs in the probe, so that every bend and shift shows: logits of trained models reach as far.
_SPREAD = 20.0
# By the type of the model's logits; the head's outputs are given in fp32.
_TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-10}


class NoHeadFormError(Exception):
    """A head that the loss cannot take over; the message says why, in words that follow "the student's"."""


def head_to_fuse(model: Any, role: str, fused: str) -> HeadForm | None:
    """
    The form of a head that the loss takes over, as the setting `fused` says; `None`: the model makes logits.

    Args:
        model (`PreTrainedModel` or `PeftModel`): see [`describe_head`].
        role (`str`): what messages call it.
        fused (`str`): `"auto"`, which logs why there is none, `"always"`, which refuses that, or `"never"`.

    Raises:
        InputError: see `fused`.
    """
    if fused == "never":
        return None
    try:
        return describe_head(model)
    except NoHeadFormError as error:
        stays_dense(str(error), role, fused)
        return None


def stays_dense(reason: str, role: str, fused: str) -> None:
    """
    Says that a model makes its own logits, and why.

    Raises:
        InputError: if `fused` is `"always"`.
    """
    if fused == "always":
        raise InputError(
            f"fused is 'always', but the {role} cannot leave its head to the loss: the {role}'s {reason}. Use "
            "fused='auto', which makes logits where it has to."
        )
    logger.info("The %s makes its own logits [tokens, vocabulary]: the %s's %s.", role, role, reason)


def describe_head(model: Any) -> HeadForm:
    """
    How the model makes logits of what its head reads.

    The form comes from the configuration's numbers (Gemma's `final_logit_softcapping`, Granite's `logits_scaling`,
    Cohere's `logit_scale`) and the model's buffers (BART's `final_logits_bias`), and is then compared with the model:
    it runs once on a few tokens, with known numbers in place of the head's output. What the model does *before* its
    head, such as T5's scaling, is part of what the head reads. On the meta device nothing can be compared, and the
    first form that the configuration allows is taken.

    Args:
        model (`PreTrainedModel` or `PeftModel`): of any kind, with all its weights.

    Raises:
        NoHeadFormError: if there is no such form, or none that is known.
    """
    inner = unwrap(model)
    if kind_of(model).scores_classes:
        raise NoHeadFormError("classes are fewer than the features that they are made of")
    head = linear_head(inner)
    if head is None:
        raise NoHeadFormError("head is no plain linear layer (packed, with an adapter of its own, or of another kind)")
    if is_partitioned(inner):
        raise NoHeadFormError("weights are spread over the processes already, so that nothing can be compared")
    if len(set((getattr(inner, "hf_device_map", None) or {}).values())) > 1:
        raise NoHeadFormError("layers lie on several devices")
    size, features = head.weight.shape
    if size <= features:
        raise NoHeadFormError("logits are no larger than the hidden states that they are made of")
    forms = _possible_forms(inner, size)
    if head.weight.is_meta:
        return forms[0]
    given, logits = _probe(model, head)
    if logits.requires_grad:
        raise NoHeadFormError("head is followed by something that is trained")
    if logits.shape != given.shape:
        raise NoHeadFormError(f"logits are {list(logits.shape)} where its head gives {list(given.shape)}")
    tolerance = _TOLERANCE.get(logits.dtype, 1e-5)
    for form in forms:
        shift = getattr(inner, form.shift).flatten() if form.shift else None
        expected = form.bent(given, shift)
        if torch.allclose(logits.to(expected.dtype), expected, rtol=tolerance, atol=tolerance):
            return form
    raise NoHeadFormError("head is followed by something that its configuration does not name")


def _probe(model: Any, head: nn.Module) -> tuple[Tensor, Tensor]:
    """What was put in place of the head's output, `[B, L, V]` in fp32, and the logits that the model made of it."""
    given: list[Tensor] = []

    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        numbers = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        given.append(numbers.mul_(_SPREAD).to(output.device))
        return given[-1]

    hook = head.register_forward_hook(replace)
    try:
        # With gradients, to see whether a trained weight comes after the head.
        with torch.enable_grad():
            logits = made_up_logits(model)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
        raise NoHeadFormError(f"forward fails on a few made-up tokens ({type(error).__name__}: {error})") from error
    finally:
        hook.remove()
    if len(given) != 1 or given[0].ndim != 3:
        raise NoHeadFormError("head is not what makes its logits, once and at every position")
    return given[0], logits


def _possible_forms(model: Any, size: int) -> list[HeadForm]:
    """Forms that numbers of the configuration and buffers of the model may mean; those that use more of them first."""
    config = model.config.get_text_config(decoder=True)
    numbers = {
        name: float(value)
        for name, value in config.to_dict().items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    }
    caps = [value for name, value in numbers.items() if "logit" in name and "cap" in name and "attn" not in name]
    scales = [
        factor
        for name, value in numbers.items()
        if ("logit" in name or "head" in name) and ("scal" in name or "multiplier" in name)
        for factor in (value, 1 / value)
    ]
    shifts = [name for name, buffer in model.named_buffers(recurse=False) if buffer.numel() == size]
    return [
        HeadForm(scale, cap, shift)
        for shift in (*shifts, None)
        for cap in (*caps, None)
        for scale in dict.fromkeys((*scales, 1.0))
    ]
