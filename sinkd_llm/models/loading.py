"""Loading a student or teacher: any source, dtype, quantisation, with its LoRA adapter."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.models.completeness import check_complete
from sinkd_llm.models.finite import check_finite_weights
from sinkd_llm.models.gguf import converted_model, quiet_transformers
from sinkd_llm.models.kinds import AUTO_CLASSES, choose_kind, head_options, is_head
from sinkd_llm.models.partitioning import whole_weights
from sinkd_llm.models.sources import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FOLDER,
    BASE_REFERENCE,
    ModelSource,
    fetch_adapter,
    hub_error,
    read_json,
    resolve_model_source,
    what_was_said,
)

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig
    from trl import ModelConfig

logger = logging.getLogger(__name__)

DTYPES = ("auto", "bfloat16", "float16", "float32")


def load_model(
    name_or_path: str | Path,
    *,
    revision: str = "main",
    dtype: str | torch.dtype = "float32",
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    merge_adapter: bool = True,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
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
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`): `"float32"`, `"bfloat16"`,
            `"float16"`, or `"auto"` for the one it was saved in (fp32 for GGUF).
        quantization_config (`BitsAndBytesConfig`, *optional*): see [`build_quantization_config`].
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

    Returns:
        `PreTrainedModel`, or `PeftModel` as said under `merge_adapter`. Its attribute `sinkd_source`
        is the [`ModelSource`] that gives exactly these base weights again, or `None` if no name does.

    Raises:
        InputError: if the source is wrong or not complete, the dtype or the kind is unknown, the kind is not
            one of the architecture, or weights are missing that Transformers would make up.
    """
    source = fetch_adapter(resolve_model_source(name_or_path, revision))
    options = {
        "dtype": dtype_name(dtype),
        "quantization_config": quantization_config,
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
    }
    if source.kind == "adapter":
        with whole_weights():  # it is folded in
            return _load_adapted(source, merge_adapter, kind, options)
    return _load_whole(source, kind, labels, options)


def dtype_name(dtype: str | torch.dtype) -> str:
    """`dtype` as one of [`DTYPES`]."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"There is no dtype {name!r}; give one of {', '.join(DTYPES)}.{nearest(name, DTYPES)}")
    return name


def _load_whole(source: ModelSource, kind: str | None, labels: Sequence[str] | None, options: dict[str, Any]) -> Any:
    import transformers

    path = source.path
    if source.gguf_file:
        unpacked = "float32" if options["dtype"] == "auto" else options["dtype"]
        path = str(converted_model(source, unpacked))
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(
                path, revision=source.revision, trust_remote_code=options["trust_remote_code"]
            )
            kind = choose_kind(source.name, config, kind, labels is not None)
            if options["quantization_config"] is not None and kind == "sequence-classification":
                options = {**options, "quantization_config": _spare_head(options["quantization_config"], config)}
            loaded: Any = getattr(transformers, AUTO_CLASSES[kind]).from_pretrained(
                path,
                revision=source.revision,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # collected below, where the message can name them
                **head_options(kind, labels),
                **{name: value for name, value in options.items() if value is not None},
            )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if "out of memory" in str(error):
            raise
        if source.kind == "hub":
            raise hub_error(source, error) from error
        raise InputError(f"The model in {path} cannot be loaded: {what_was_said(error)}") from error
    model, info = loaded
    new = check_complete(source.name, kind, model, info, labels)
    check_finite_weights(model, source.name)
    model.sinkd_source = source
    # The converted copy's place in the cache is no name that anyone should see or store.
    bundled = source.kind == "bundled" or source.gguf_file is not None
    model.name_or_path = model.config._name_or_path = source.name if bundled else source.path
    model.sinkd_new_modules = new_modules(new)
    if new:
        logger.info("%s gets a new head: %s.", source.name, ", ".join(model.sinkd_new_modules))
        model.sinkd_source = None  # no name gives this head again
        model.name_or_path = model.config._name_or_path = ""
    return model


def _spare_head(quantization_config: Any, config: Any) -> Any:
    """The same quantisation with the classification head in full precision, for a new head is trained whole."""
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


def new_modules(weights: set[str]) -> tuple[str, ...]:
    """The modules with random weights, each by the name under the model or its base: `classifier`, `pooler`."""
    names = {weight.rsplit(".", 1)[0] for weight in weights}
    return tuple(sorted({"pooler" if "pooler" in name.split(".") else name.split(".")[0] for name in names}))


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
    from peft import PeftModel

    folder = Path(source.path)
    base_name, revision, has_base = adapter_base(source)
    try:
        base = load_model(base_name, revision=revision, kind=kind, **options)
    except InputError as error:
        raise InputError(f"The adapter {source.name!r} needs its base model {base_name!r}: {error}") from error
    if has_base:
        base.sinkd_source = None  # it lives inside this folder only, so it must go where the student goes
        base.name_or_path = base.config._name_or_path = ""
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=not merge)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        raise InputError(f"{folder / ADAPTER_WEIGHTS} does not fit its base model {base_name!r}: {said}") from error
    if not merge or getattr(base, "is_quantized", False):
        return model
    merged = model.merge_and_unload()
    merged.sinkd_source = None
    merged.name_or_path = merged.config._name_or_path = ""
    return merged.eval()


def build_quantization_config(model_args: "ModelConfig") -> "BitsAndBytesConfig | None":
    """
    TRL's `get_quantization_config` with its preconditions checked.

    Args:
        model_args (`ModelConfig`): its `load_in_4bit`, `load_in_8bit`, `bnb_4bit_*`, `dtype` are read.

    Returns:
        `BitsAndBytesConfig`, or `None` if neither 4 nor 8 bits are asked for.

    Raises:
        InputError: if bitsandbytes is not installed, or 4 bits are asked for with dtype `"auto"`.
    """
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    from transformers.utils import is_bitsandbytes_available
    from trl import get_quantization_config

    if not is_bitsandbytes_available():
        raise InputError(
            "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed. Install it with: "
            'pip install "sinkd-llm[quant]"'
        )
    if model_args.load_in_4bit and model_args.dtype in (None, "auto"):
        raise InputError(
            f"load_in_4bit computes in the model's dtype, which {model_args.dtype!r} leaves open. "
            "Give bfloat16, float16 or float32."
        )
    return get_quantization_config(model_args)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of all and of trainable parameters; tied ones count once, packed ones unpacked."""
    total = trainable = 0
    for parameter in model.parameters():
        # DeepSpeed's stage 3 leaves an empty tensor on each rank and the true size beside it.
        count = getattr(parameter, "ds_numel", None) or parameter.numel()
        if type(parameter).__name__ == "Params4bit":  # two weights a byte of storage
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable
