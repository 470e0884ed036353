"""Does a model read a text as its kind does here? A short run tells, for no list of names would be complete.

A few short texts tell: padding must not change what a model says of a text (recurrent and state-space models may read
it into their state), and a later token must not change what a decoder says of earlier ones (XLNet and other
bidirectional models would see the answer that they are to predict).
"""

import contextlib
import inspect
import logging
import re
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import IGNORE_INDEX, Kind, kind_of
from sinkd_llm.models.partitioning import is_partitioned
from sinkd_llm.models.quantisation import is_quantised
from sinkd_llm.models.wrappers import keeps_state, unwrap

logger = logging.getLogger(__name__)

_LENGTH, _PADDING, _CHANGED_FROM = 8, 8, 5
# A difference counts from this share of a row's scale (`_scales`): far above the rounding of a batch of another shape
# (1e-5 in float32, some 5e-2 in bfloat16), far below what a token more in the state or in sight does.
_SHARE = {torch.float32: 2e-3, torch.float64: 2e-3}
_SHARE_OF_HALF = 0.2
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id", "decoder_start_token_id", "sep_token_id")


def check_reading(model: Any, name: str, precision: torch.dtype | None = None) -> None:
    """
    Refuses a model whose outputs depend on padding, or a decoder whose outputs depend on later tokens.

    A few forwards of short texts, without gradient and in eval mode. Models whose weights are not all here (spread
    over processes, offloaded, on the meta device) and quantised ones (whose forward may repack their weights for good)
    are not run; of those that keep a state, a warning is given.

    Args:
        model (`PreTrainedModel`): possibly wrapped.
        name (`str`): of the model, for the message.
        precision (`torch.dtype`, *optional*): what the run computes in, where that is known: the type of its autocast,
            else float32. Then a model of mixed dtypes whose forward fails for that is refused.

    Raises:
        InputError: with what changed the outputs, or with the weight of another dtype.
    """
    inner = unwrap(model)
    kind = kind_of(model)
    if _cannot_run(inner):
        if keeps_state(inner):
            logger.warning(
                "%s (%s) keeps a state of what it has read, and was not run to see whether padding gets into it; "
                "load it once whole and unquantised, which checks that.",
                name,
                type(inner).__name__,
            )
        return
    training = inner.training
    inner.eval()
    try:
        with torch.no_grad(), _autocast(inner, precision):
            found = _fault_of(inner, kind)
    except InputError:
        raise
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        NotImplementedError,
        ImportError,
    ) as error:
        if precision is not None and re.search(r"dtype|scalar type", str(error)):
            _check_one_dtype(inner, name, error)
        # A kernel that is only on a GPU, a model that needs texts of a certain length: training says it again.
        logger.info("%s (%s) could not be run on a short text: %s", name, type(inner).__name__, error)
        return
    finally:
        inner.train(training)
    if found is not None:
        raise InputError(f"{name!r} ({type(inner).__name__}) {found}")


def float_dtypes(model: Any) -> dict[torch.dtype, str]:
    """The floating dtypes of a model's parameters, each with the first parameter that has it."""
    found: dict[torch.dtype, str] = {}
    for name, parameter in unwrap(model).named_parameters():
        if parameter.is_floating_point():
            found.setdefault(parameter.dtype, name)
    return found


def _autocast(model: Any, precision: torch.dtype | None) -> Any:
    """That of the run, where only that lets a model of several dtypes run; one of them is a half then."""
    if precision not in (torch.bfloat16, torch.float16) or len(float_dtypes(model)) < 2:
        return contextlib.nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=precision)


def _check_one_dtype(model: Any, name: str, error: Exception) -> None:
    found = float_dtypes(model)
    if len(found) < 2:
        return
    each = ", ".join(f"{weight} is {str(dtype).removeprefix('torch.')}" for dtype, weight in found.items())
    raise InputError(
        f"{name} ({type(model).__name__}) has weights of several dtypes, between which its forward fails: {each}. "
        "Convert it to one, as with model.float(), or train with bf16, whose autocast converts them."
    ) from error


def _cannot_run(model: Any) -> bool:
    return (
        is_partitioned(model)
        or is_quantised(model)
        or any(parameter.is_meta for parameter in model.parameters())
        or {"cpu", "disk"} & {str(place) for place in (getattr(model, "hf_device_map", None) or {"": "here"}).values()}
        != set()
    )


def _fault_of(model: Any, kind: Kind) -> str | None:
    name = kind.name
    ids_L = _plain_ids(model)
    pad = int(getattr(model.config, "pad_token_id", None) or 0)
    share = max(_SHARE.get(dtype, _SHARE_OF_HALF) for dtype in float_dtypes(model))

    def logits(texts_SL: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        rows = kind.supervised_rows(model, _batch(name, texts_SL, pad, padding))
        return rows.logits_NV.float(), rows.example_N

    if kind.scores_classes:
        # One row a text says little. One by one: some classifiers take a batch only if they know their padding token.
        texts_TL = _rearranged(ids_L)
        logits_NV, padded_NV = (
            torch.cat([logits(ids_L[None], padding)[0] for ids_L in texts_TL]) for padding in (0, _PADDING)
        )
    else:
        texts_SL = ids_L[None]
        if name == "causal-lm":  # beside a text that ends in another way
            texts_SL = torch.stack([ids_L, torch.cat([ids_L[:_CHANGED_FROM], ids_L[: _LENGTH - _CHANGED_FROM]])])
        both_NV, example_N = logits(texts_SL, 0)
        logits_NV, padded_NV = both_NV[example_N == 0], logits(ids_L[None], _PADDING)[0]
    scale_N = _scales(logits_NV)

    def differs(other_NV: Tensor) -> Tensor:
        return (other_NV - logits_NV).abs().amax(dim=-1) / scale_N > share

    if name == "causal-lm":
        # Row i is of token i + 1, which is predicted from the tokens before it.
        changed_N = differs(both_NV[example_N == 1])
        if bool(changed_N[: _CHANGED_FROM - 1].any()):
            return (
                "sees later tokens: changing the end of a text changes its logits at the beginning, so it would read "
                "the answers that it is to predict. Give a decoder that reads from left to right."
            )
    # Half of the rows: in a mixture of experts rounding may send single tokens elsewhere.
    if float(differs(padded_NV).float().mean()) >= 0.5:
        return (
            "depends on padding: beside a longer text it gives other logits for the same text, because "
            f"{_likely_cause(model, name)}, so scores and gradients would depend on what else is in a batch. Give a "
            "model that masks padding, as most with attention alone do."
        )
    return None


def _scales(logits_NV: Tensor) -> Tensor:
    """
    What a difference of each row's logits is measured by: `[N]`, above 0.

    It is the spread of a row's outputs. One output has none; there it is the standard deviation over the texts, and at
    least a tenth of the output itself: rounding is a share of it, also where a head says the same of every text.
    """
    if logits_NV.shape[-1] == 1:
        spread_N = torch.maximum(logits_NV.std(dim=0, correction=0), logits_NV[:, 0].abs() / 10)
    else:
        spread_N = (logits_NV - logits_NV.mean(dim=-1, keepdim=True)).abs().amax(dim=-1)
    return spread_N.clamp_min(1e-30)


def _rearranged(ids_L: Tensor) -> Tensor:
    """Several texts of the same length, made of one text's tokens: `[5, L]`."""
    half = _LENGTH // 2
    parts = (ids_L[:half], ids_L[half:], ids_L[::2], ids_L[1::2])
    return torch.stack([ids_L, *(part.repeat(2) for part in parts)])


def _likely_cause(model: Any, kind: str) -> str:
    if keeps_state(model):
        return "it reads padding into the state that it keeps"
    learned = any("position" in name and hasattr(module, "embedding_dim") for name, module in model.named_modules())
    if kind == "causal-lm" and learned and "position_ids" not in inspect.signature(model.forward).parameters:
        return (
            "it looks its positions up in a table and counts them from the padding on the left, with no position_ids "
            "to say otherwise"
        )
    return "it reads padding into a state or counts it as positions"


def _plain_ids(model: Any) -> Tensor:
    """A few token ids that are no special ones: `[L]`."""
    config = model.config
    special = {value for name in _SPECIAL if isinstance(value := getattr(config, name, None), int)}
    if isinstance(ends := getattr(config, "eos_token_id", None), list):
        special |= set(ends)
    rows = model.get_input_embeddings().weight.shape[0]
    # Spread over the vocabulary, apart from its first rows, where special tokens stand.
    candidates = (5 + (7 * i * max(1, rows // 97)) % max(1, rows - 5) for i in range(4 * _LENGTH + len(special)))
    ids = list(dict.fromkeys(token for token in candidates if token < rows and token not in special))[:_LENGTH]
    if len(set(ids)) < _LENGTH:
        raise ValueError(f"a vocabulary of {rows} tokens")
    return torch.tensor(ids, device=model.get_input_embeddings().weight.device)


def _batch(kind: str, ids_SL: Tensor, pad: int, padding: int) -> dict[str, Tensor]:
    """Texts as their kind's collator lays them out beside a text that is `padding` tokens longer."""
    more = ids_SL.new_full((len(ids_SL), padding), pad)
    ones, zeros = torch.ones_like(ids_SL), torch.zeros_like(more)
    none = torch.full_like(more, IGNORE_INDEX)
    if kind == "causal-lm":
        first = torch.full_like(ids_SL[:, :1], IGNORE_INDEX)
        return {
            "input_ids": torch.cat([more, ids_SL], dim=1),
            "attention_mask": torch.cat([zeros, ones], dim=1),
            "labels": torch.cat([none, first, ids_SL[:, 1:]], dim=1),
        }
    batch = {"input_ids": torch.cat([ids_SL, more], dim=1), "attention_mask": torch.cat([ones, zeros], dim=1)}
    if kind == "sequence-classification":
        return {**batch, "labels": ids_SL.new_zeros(len(ids_SL))}
    if kind == "seq2seq-lm":
        answer = torch.cat([ids_SL.flip(1), none], dim=1)
        return {**batch, "targets": answer, "labels": answer}
    return {**batch, "labels": torch.cat([ids_SL, none], dim=1)}
