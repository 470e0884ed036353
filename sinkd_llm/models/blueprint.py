"""A model's shape without its weights: built on the meta device from its configuration alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sinkd_llm.models.foreign import fetch_adapter, reading
from sinkd_llm.models.kinds.choose import KINDS, choose_kind, saved_class
from sinkd_llm.models.kinds.class_heads import head_options, is_head, name_classes
from sinkd_llm.models.loading import adapter_base
from sinkd_llm.models.loading_options import check_attention, dtype_from, dtype_name
from sinkd_llm.models.names import ModelSource, resolve_model_source
from sinkd_llm.models.origin import modules_of, set_origin


def blueprint(
    name_or_path: str | Path,
    *,
    revision: str = "main",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    attn_implementation: str | None = None,
    **other: Any,
) -> Any:
    """
    What [`load_model`] would give, on the meta device: every parameter has its shape and dtype, and no memory.

    Reads the configuration and no weights. An adapter is taken as folded into its base. Fused attention kernels
    are not needed to count with, so `attn_implementation` matters only where it is `"eager"`.

    Args:
        name_or_path, revision, dtype, trust_remote_code, kind, labels: as in [`load_model`]. Its other arguments
            say where and how the weights are put, and are ignored.

    Raises:
        InputError: if the source is wrong, or its configuration cannot be read.
    """
    import transformers

    placing = ("quantization_config", "device_map", "merge_adapter", "probe")
    wanted = dtype_from(dtype, {name: value for name, value in other.items() if name not in placing})
    check_attention(attn_implementation)
    source = fetch_adapter(resolve_model_source(name_or_path, revision or "main"))
    if source.kind == "adapter":
        base, base_revision = adapter_base(source)[:2]
        return blueprint(
            base,
            revision=base_revision,
            dtype=wanted,
            trust_remote_code=trust_remote_code,
            kind=kind,
            attn_implementation=attn_implementation,
        )
    config = _read_config(source, trust_remote_code)
    kind = choose_kind(source.name, config, kind, labels is not None)
    # The saved head has other outputs than are wanted, or there is none.
    fresh = (
        kind == "sequence-classification"
        and labels is not None
        and not (saved_class(config).endswith("ForSequenceClassification") and config.num_labels == len(labels))
    )
    for name, value in head_options(kind, labels, config).items():
        setattr(config, name, value)
    if fresh and labels is not None:
        name_classes(config, labels)
    saved = getattr(config, "dtype", None)
    if wanted == "auto":
        wanted = dtype_name(saved) if saved is not None and not source.gguf_file else "float32"
    auto: Any = getattr(transformers, KINDS[kind].auto_class)
    with reading(source, "The model"), torch.device("meta"):
        model = auto.from_config(
            config,
            dtype=getattr(torch, wanted),
            trust_remote_code=trust_remote_code,
            attn_implementation="eager" if attn_implementation == "eager" else None,
        )
    model.tie_weights()
    new = [name for name in model.state_dict() if is_head(kind, model, name)] if fresh else ()
    set_origin(model, None if new else source, modules_of(new))
    return model.eval()


def _read_config(source: ModelSource, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    options: dict[str, Any] = {"gguf_file": source.gguf_file} if source.gguf_file else {"revision": source.revision}
    with reading(source, "The configuration"):
        return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code, **options)
