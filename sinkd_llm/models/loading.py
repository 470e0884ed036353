"""Loading a student or teacher: any source, dtype, quantisation, with its LoRA adapter."""

import logging
import warnings
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sinkd_llm.errors import InputError
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.models.adapter_facts import adapter_parameters
from sinkd_llm.models.completeness import check_complete
from sinkd_llm.models.finite import check_finite_weights
from sinkd_llm.models.foreign import fetch_adapter, reading, what_was_said
from sinkd_llm.models.gguf import converted_model
from sinkd_llm.models.kinds.choose import KINDS, choose_kind
from sinkd_llm.models.kinds.class_heads import head_options, is_new_head, name_classes, sparing_head
from sinkd_llm.models.loading_options import check_attention, dtype_from
from sinkd_llm.models.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FOLDER,
    BASE_REFERENCE,
    ModelSource,
    resolve_model_source,
)
from sinkd_llm.models.origin import modules_of, set_origin
from sinkd_llm.models.partitioning import waits_for_weights, whole_shape, whole_weights
from sinkd_llm.models.probes import check_reading
from sinkd_llm.models.quantisation import check_method_known, is_quantised, weights_in_each
from sinkd_llm.models.stored_config import read_json
from sinkd_llm.models.student_record import check_unchanged, warn_of_quantisation
from sinkd_llm.quiet import quiet_transformers

logger = logging.getLogger(__name__)


def load_model(
    name_or_path: str | Path,
    *,
    revision: str = "main",
    dtype: str | torch.dtype | None = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    merge_adapter: bool = True,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    probe: bool = True,
    **other: Any,
) -> Any:
    """
    Loads a language model or an encoder as an ordinary Transformers model, in eval mode.

    A GGUF file or bundled model is converted once and then loaded from a cache (`gguf.py`), so it
    trains, takes LoRA, copies, quantises and saves as any other. Weights are read from safetensors
    only.

    Args:
        name_or_path (`str` or `Path`): a bundled name, a `*.gguf` file, a folder with a model or a PEFT
            adapter, or a hub id; see [`resolve_model_source`].
        revision (`str`, *optional*, defaults to `"main"`): branch, tag or commit of a hub repository.
        dtype (`str` or `torch.dtype`, *optional*): `"float32"` (the default), `"bfloat16"`, `"float16"`, or
            `"auto"` for the one it was saved in (fp32 for GGUF).
        quantization_config (`BitsAndBytesConfig`, *optional*): see [`build_quantization_config`] in `quantisation.py`.
        attn_implementation (`str`, *optional*): as in Transformers, e.g. `"sdpa"`.
        device_map (`str` or `dict`, *optional*): as in Transformers, e.g. `"auto"` to shard a teacher.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run model code that comes with the
            weights.
        merge_adapter (`bool`, *optional*, defaults to `True`): fold a PEFT adapter into its base, which
            gives an ordinary model. With `False` it stays a trainable `PeftModel`. On a quantised base
            the adapter always stays beside it, since four bits would round it away.
        kind (`str`, *optional*): `"causal-lm"`, `"seq2seq-lm"`, `"sequence-classification"` or `"masked-lm"`.
            Default: what the checkpoint says, see [`choose_kind`].
        labels (`Sequence[str]`, *optional*): the classes to learn. A classification head that the checkpoint
            lacks, or has for another number of classes, is put on with random weights; without `labels` such a
            checkpoint is refused.
        probe (`bool`, *optional*, defaults to `True`): run the model on a few short texts, to see that neither
            padding nor later tokens change what it says of a text ([`check_reading`]). `False` saves these short
            forwards, which count for a very large model on a CPU.
        other: `torch_dtype`, the older word for `dtype`. Anything else is refused by name.

    Returns:
        `PreTrainedModel`, or `PeftModel` as said under `merge_adapter`. [`~sinkd_llm.models.origin.origin_of`]
        says which [`ModelSource`] gives exactly these base weights again, if one does.

    Raises:
        InputError: if the source is wrong, not complete or changed since it was saved, the dtype, the kind or an
            argument is unknown, the model cannot be of the kind, weights are missing that Transformers
            would make up, or left over that it would drop, a weight is not finite, or the model depends on padding
            or on later tokens.
    """
    wanted = dtype_from(dtype, other)
    check_attention(attn_implementation)
    source = fetch_adapter(resolve_model_source(name_or_path, revision or "main"))
    check_unchanged(source)
    warn_of_quantisation(source, quantization_config)
    options = {
        "dtype": wanted,
        "quantization_config": quantization_config,
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
    }
    if source.kind == "adapter":
        with whole_weights():  # it is folded in
            return _load_adapted(source, merge_adapter, kind, {**options, "probe": probe})
    model = _load_whole(source, kind, labels, options)
    if probe and not waits_for_weights():
        check_reading(model, source.name)
    return model


def _load_whole(source: ModelSource, kind: str | None, labels: Sequence[str] | None, options: dict[str, Any]) -> Any:
    import transformers

    path = source.path
    if source.gguf_file:
        unpacked = "float32" if options["dtype"] == "auto" else options["dtype"]
        path = str(converted_model(source, unpacked))
    with reading(source, "The configuration"):
        config = transformers.AutoConfig.from_pretrained(
            path, revision=source.revision, trust_remote_code=options["trust_remote_code"]
        )
    kind = choose_kind(source.name, config, kind, labels is not None)
    check_method_known(source.name, config)
    with reading(source, "The model"):
        if options["quantization_config"] is not None and kind == "sequence-classification":
            options = {**options, "quantization_config": sparing_head(options["quantization_config"], config)}
        loaded: Any = getattr(transformers, KINDS[kind].auto_class).from_pretrained(
            path,
            revision=source.revision,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # collected below, where the message can name them
            **head_options(kind, labels, config),
            **{name: value for name, value in options.items() if value is not None},
        )
    model, info = loaded
    new = check_complete(source.name, kind, model, info, labels)
    if not waits_for_weights():
        check_finite_weights(model, source.name)
    set_origin(model, None if new else source, modules_of(new))  # no name gives a new head again
    if labels is not None and is_new_head(model):
        name_classes(model.config, labels)
    if new:
        logger.info("%s gets a new head: %s.", source.name, ", ".join(modules_of(new)))
    return model


def adapter_base(source: ModelSource) -> tuple[str, str, bool]:
    """Name and revision of the base model of the adapter in `source.path`, and whether it lies in that folder."""
    folder = Path(source.path)
    config = read_json(folder / ADAPTER_CONFIG)
    has_base = (folder / BASE_FOLDER).is_dir()
    base_name = str(folder / BASE_FOLDER) if has_base else config.get("base_model_name_or_path")
    if not base_name or base_name == BASE_REFERENCE:
        raise InputError(
            f"{source.name!r} holds an adapter without its base model: no folder "
            f"{folder / BASE_FOLDER}, and its {ADAPTER_CONFIG} names none. Give the folder that the "
            "finished run wrote; to go on from a checkpoint, repeat the run's command with "
            "--resume_from_checkpoint."
        )
    if Path(base_name).is_dir() and Path(base_name).resolve() == folder:
        raise InputError(f"The adapter in {folder} names its own folder as its base model.")
    return base_name, config.get("revision") or "main", has_base


def _load_adapted(source: ModelSource, merge: bool, kind: str | None, options: dict[str, Any]) -> Any:
    """The base model of the adapter in the folder `source.path`, with the adapter on or in it."""
    base_name, revision, has_base = adapter_base(source)
    try:
        base = load_model(base_name, revision=revision, kind=kind, **options)
    except InputError as error:
        raise InputError(f"The adapter {source.name!r} needs its base model {base_name!r}: {error}") from error
    if has_base:
        set_origin(base, None)  # it lives inside this folder only, so it must go where the student goes
    model = _with_adapter(base, source, base_name, trainable=not merge)
    check_finite_weights(model, source.name)
    if not merge or is_quantised(base):
        return model
    merged = _merged(model, source)
    set_origin(merged, None)
    # An ordinary model, as any other that is loaded: the adapter had its base frozen.
    return merged.requires_grad_(True).eval()


def _merged(model: Any, source: ModelSource) -> Any:
    try:
        return model.merge_and_unload()
    except Exception as error:  # methods that change more than weights: prompts, activations, aLoRA
        if is_memory_full(error):
            raise
        raise InputError(
            f"The adapter {source.name!r} cannot be folded into its base model ({what_was_said(error)}); give one "
            "that can, such as LoRA, or load it with merge_adapter=False."
        ) from error


def _with_adapter(base: Any, source: ModelSource, base_name: str, trainable: bool) -> Any:
    """
    The adapter in `source.path` on its base, all of its weights in their place.

    PEFT only warns of weights that the adapter lacks, and says nothing of those that it has no place for.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    weights = Path(source.path) / ADAPTER_WEIGHTS
    try:
        with warnings.catch_warnings(record=True) as caught, quiet_transformers():
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(base, source.path, is_trainable=trainable)
    except Exception as error:
        if is_memory_full(error):
            raise
        raise InputError(f"{weights} does not fit its base model {base_name!r}: {what_was_said(error)}.") from error
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    made_up = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
    if made_up:
        lacking = sorted(expected - stored)
        raise InputError(
            f"{weights} lacks {len(lacking) or 'some'} of the weights that its {ADAPTER_CONFIG} describes for "
            f"{base_name!r}, e.g. {lacking[0] if lacking else made_up[0]}: it is not complete, or of another base."
        )
    # Where names are converted while they are read, all are others; what PEFT missed was said above.
    if expected <= stored and (left_out := sorted(stored - expected - set(model.state_dict()))):
        raise InputError(
            f"{weights} holds {len(left_out)} weights that {base_name!r} with its {ADAPTER_CONFIG} has no place for, "
            f"e.g. {left_out[0]}: it was trained on another base model, or with another configuration."
        )
    return model


def count_parameters(model: nn.Module, *, adapters: bool = False) -> tuple[int, int]:
    """
    Numbers of all and of trainable parameters; tied ones count once, packed ones unpacked.

    Args:
        model (`nn.Module`): possibly wrapped.
        adapters (`bool`, *optional*, defaults to `False`): count what an adapter has beside its base among all. By
            default it is counted among the trainable parameters alone: a model has the same number of parameters
            before and after its adapter is folded in.
    """
    beside = set() if adapters else adapter_parameters(model)
    total = trainable = 0
    for parameter in model.parameters():
        count = prod(whole_shape(parameter)) * weights_in_each(parameter)
        total += 0 if id(parameter) in beside else count
        trainable += count if parameter.requires_grad else 0
    return total, trainable
