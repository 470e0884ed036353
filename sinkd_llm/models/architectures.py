"""How each family of language model gives its logits at the supervised positions.

Objectives, teachers and evaluation see only `SupervisedLogits`: one row per answer token, and which
example and which answer position each row is. They never ask which family they serve.

Shapes: B sequences of a batch, L tokens of the longest, N supervised tokens of the batch, K kept
positions, V vocabulary.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError

IGNORE_INDEX = -100


@dataclass(frozen=True)
class SupervisedLogits:
    """Logits at the supervised tokens of a batch, in the order (sequence, answer position).

    Attributes:
        logits_NV (`Tensor` `[N, V]`): scores of the vocabulary, in the model's dtype.
        labels_N (`Tensor` `[N]`): the supervised token ids.
        example_N (`Tensor` `[N]`): index of the row's sequence in the batch, in `[0, B)`.
        position_N (`Tensor` `[N]`): index of the row's token in its answer, from 0.
    """

    logits_NV: Tensor
    labels_N: Tensor
    example_N: Tensor
    position_N: Tensor


class Architecture(Protocol):
    """The contract of a family: a batch in, supervised logits out."""

    name: str
    lora_task_type: str

    def supervised_logits(
        self, model: nn.Module, batch: Mapping[str, Any]
    ) -> SupervisedLogits:  # pragma: no cover - a protocol
        """`batch` holds `input_ids`, `attention_mask` and `labels` `[B, L]`, -100 outside answers."""
        ...


class DecoderOnly:
    """Llama, Qwen, Gemma, GPT-2 and their like: the token at position l is predicted at l - 1."""

    name = "decoder-only"
    lora_task_type = "CAUSAL_LM"

    def supervised_logits(self, model: nn.Module, batch: Mapping[str, Any]) -> SupervisedLogits:
        """Runs the model once and its head only at the positions that predict an answer token.

        Args:
            model (`nn.Module`): a causal language model, possibly wrapped by PEFT or DDP.
            batch (`Mapping`): `input_ids`, `attention_mask` and `labels`, each `[B, L]`. Padding may
                stand on either side; on the left, the answers end together and K is smallest.
        """
        labels_BL = batch["labels"]
        supervised_BL = labels_BL[:, 1:] != IGNORE_INDEX
        example_N, source_N = supervised_BL.nonzero(as_tuple=True)
        position_N = (supervised_BL.cumsum(dim=1) - 1)[example_N, source_N]
        labels_N = labels_BL[example_N, source_N + 1]

        # The last token predicts nothing that is supervised: the model need not see it. A batch
        # without a supervised token still runs at one position, so that every rank of a distributed
        # job makes the same forward and gets gradients of zeros.
        input_ids = batch["input_ids"][:, :-1]
        attention_mask = batch["attention_mask"][:, :-1]
        kept_K = source_N.unique() if source_N.numel() else source_N.new_zeros(1)

        accepted = forward_parameters(model)
        arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "position_ids" in accepted:
            # Models with absolute positions count padding unless told otherwise.
            arguments["position_ids"] = (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)
        if "use_cache" in accepted:
            arguments["use_cache"] = False
        keeps = "logits_to_keep" in accepted
        if keeps:
            arguments["logits_to_keep"] = kept_K
        logits = model(**arguments).logits
        column_N = torch.searchsorted(kept_K, source_N) if keeps else source_N
        return SupervisedLogits(logits[example_N, column_N], labels_N, example_N, position_N)


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the innermost model's `forward` takes (PEFT and DDP pass them on)."""
    return frozenset(inspect.signature(unwrap(model).forward).parameters)


def unwrap(model: Any) -> Any:
    """The Transformers model inside DDP, DeepSpeed and PEFT wrappers."""
    while True:
        if hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):  # DDP, DeepSpeed
            model = model.module
        else:
            return model


def get_architecture(model: nn.Module) -> Architecture:
    """
    The family that `model` belongs to.

    Raises:
        InputError: if the model is not a decoder-only language model with a head. Other families
            would run and be trained on the wrong positions, so they are refused.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    inner = unwrap(model)
    name, config = type(inner).__name__, getattr(inner, "config", None)
    causal = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        causal |= {names} if isinstance(names, str) else set(names)
    if getattr(config, "is_encoder_decoder", False):
        family = "an encoder-decoder"
    elif name not in causal:
        family = "not a causal language model"
    elif (
        getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and getattr(config, "is_decoder", True) is False
    ):  # BertLMHeadModel and its like: causal by name, but the mask is the encoder's
        family = "an encoder, whose attention looks ahead"
    else:
        return DecoderOnly()
    raise InputError(
        f"{name} is {family}; only decoder-only language models (…ForCausalLM) are supported. "
        "Choose one such as 'smollm2-135m'."
    )


def context_length(model: nn.Module) -> int | None:
    """Longest sequence in tokens that the model's positions allow, or `None` if it has no bound."""
    config = getattr(unwrap(model), "config", None)
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None
