"""Does a model read a text as its kind does here? A short run tells, for no list of names would be complete.

A few short texts tell: padding must not change what a model says of a text (recurrent and state-space models may read
it into their state), and a later token must not change what a decoder says of earlier ones (XLNet and other
bidirectional models would see the answer that they are to predict). Where batches are packed, a row must not change
what a model says of the next one.
"""

import contextlib
import inspect
import logging
import re
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.models.kinds import IGNORE_INDEX, Kind, kind_of, output_size
from sinkd_llm.models.kinds.packing import packed
from sinkd_llm.models.partitioning import is_partitioned
from sinkd_llm.models.quantisation import is_quantised
from sinkd_llm.models.wrappers import forward_parameters, keeps_state, unwrap

logger = logging.getLogger(__name__)

_LENGTH, _PADDING, _CHANGED_FROM = 8, 8, 5
# A difference counts from this share of a row's scale (`_scales`): far above the rounding of a batch of another shape
# (1e-5 in float32, some 5e-2 in bfloat16), far below what a token more in the state or in sight does.
_SHARE = {torch.float32: 2e-3, torch.float64: 2e-3}
_SHARE_OF_HALF = 0.2
# Two packed batches of one shape are rounded alike whatever the type, but for single tokens of experts.
_SHARE_OF_SAME_SHAPE = 2e-3
_PACKED_LENGTHS = (9, 6, 12)
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


def check_packing(model: Any, role: str, precision: torch.dtype) -> None:
    """
    Refuses a model that does not keep the rows of a packed batch apart.

    Two packed batches of a few short rows, which differ in all but the last, and the same rows padded: three forwards
    without gradient and in eval mode. Of a model whose weights are spread over processes all of these have to call it.
    On the meta device nothing can be compared, and only what the model is known to lack is looked at.

    Args:
        model (`nn.Module`): as it will run, with its adapter, where its attention can run.
        role (`str`): what messages call it.
        precision (`torch.dtype`): what it computes in; the caller has entered the autocast for that.

    Raises:
        InputError: saying what the model lacks, or what a row changed.
    """
    fault = _why_not_packed(model)
    if fault is None and not any(parameter.is_meta for parameter in model.parameters()):
        fault = _packing_fault(model, precision)
    if fault is not None:
        raise InputError(
            f"packing is on, but {role} ({type(unwrap(model)).__name__}) {fault}. Leave packing out: with "
            "train_sampling_strategy group_by_length, the default, little of a batch is padding."
        )


def _why_not_packed(model: Any) -> str | None:
    """What a model is known to lack, in words that follow its name."""
    kind = kind_of(model)
    if kind.name != "causal-lm":
        return f"is {kind.title}, and only decoder-only models take packed rows"
    if keeps_state(model):
        return "keeps a state of what it has read, which would go on from one row into the next"
    if "position_ids" not in forward_parameters(model):
        return "takes no position_ids, by which attention would know where a row begins"
    for name, buffer in unwrap(model).named_buffers():
        if buffer.dtype in (torch.bool, torch.uint8) and buffer.ndim > 1 and buffer.shape[-1] == buffer.shape[-2] > 1:
            return (
                f"keeps a mask of {buffer.shape[-1]} tokens ({name}), and all rows of a packed batch together may be "
                "longer"
            )
    return None


@torch.no_grad()
def _packing_fault(model: Any, precision: torch.dtype) -> str | None:
    """What the rows of a packed batch change in a model, in words that follow its name."""
    kind = kind_of(model)
    device = next(model.parameters()).device
    V, generator = output_size(model), torch.Generator().manual_seed(0)
    rows = [torch.randint(V, (length,), generator=generator).to(device) for length in _PACKED_LENGTHS]
    others = [row.flip(0) for row in rows[:-1]] + rows[-1:]
    halves = (torch.bfloat16, torch.float16)
    rounded = precision in halves or is_quantised(model) or bool(set(halves) & set(float_dtypes(model)))
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        padded, laid, beside_others = (
            kind.supervised_rows(model, batch)
            for batch in (_left_padded(rows), packed(_left_padded(rows)), packed(_left_padded(others)))
        )
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, ImportError) as error:
        return f"could not be run on a few packed rows ({type(error).__name__}: {first_line(error)})"
    finally:
        for module, mode in was_training.items():
            module.training = mode
    scale_N = _scales(padded.logits_NV.float())

    def is_changed(other_NV: Tensor, which_N: Tensor, share: float) -> bool:
        # Half of the rows, as above; NaN is a change.
        change_N = (laid.logits_NV.float() - other_NV.float()).abs().amax(dim=-1) / scale_N
        return float((change_N[which_N] <= share).float().mean()) <= 0.5

    last_N = laid.example_N == len(rows) - 1
    if is_changed(beside_others.logits_NV, last_N, _SHARE_OF_SAME_SHAPE):
        return (
            "lets the rows of a packed batch read each other: other rows before a row change its logits, because its "
            "attention does not look at where position_ids begin again, or not only attention passes from token to "
            "token"
        )
    share = _SHARE_OF_HALF if rounded else _SHARE[torch.float32]
    if is_changed(padded.logits_NV, torch.ones_like(last_N), share):
        return "gives other logits for packed rows than for padded ones"
    return None


def _left_padded(rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows of several lengths as the collator of decoder-only models lays them out; all but their first tokens are
    supervised."""
    length = max(map(len, rows))
    filled: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids_L in rows:
        labels_L = torch.cat([torch.full_like(ids_L[:1], IGNORE_INDEX), ids_L[1:]])
        for name, part_L, filler in (
            ("input_ids", ids_L, 0),
            ("attention_mask", torch.ones_like(ids_L), 0),
            ("labels", labels_L, IGNORE_INDEX),
        ):
            filled[name].append(torch.nn.functional.pad(part_L, (length - len(ids_L), 0), value=filler))
    return {name: torch.stack(parts) for name, parts in filled.items()}


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
