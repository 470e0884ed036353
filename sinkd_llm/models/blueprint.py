"""A model's shape without its weights: built on the meta device from its configuration alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models.gguf import quiet_transformers
from sinkd_llm.models.kinds import AUTO_CLASSES, choose_kind, head_options, is_head
from sinkd_llm.models.loading import adapter_base, dtype_name, new_modules
from sinkd_llm.models.sources import ModelSource, fetch_adapter, hub_error, resolve_model_source, what_was_said


def blueprint(
    name_or_path: str | Path,
    *,
    revision: str = "main",
    dtype: str | torch.dtype = "float32",
    trust_remote_code: bool = False,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    attn_implementation: str | None = None,
    **_: Any,
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

    source = fetch_adapter(resolve_model_source(name_or_path, revision))
    if source.kind == "adapter":
        base, base_revision = adapter_base(source)[:2]
        return blueprint(
            base,
            revision=base_revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            kind=kind,
            attn_implementation=attn_implementation,
        )
    config = _read_config(source, trust_remote_code)
    kind = choose_kind(source.name, config, kind, labels is not None)
    for name, value in head_options(kind, labels).items():
        setattr(config, name, value)
    wanted = dtype_name(dtype)
    saved = getattr(config, "dtype", None)
    if wanted == "auto":
        wanted = dtype_name(saved) if saved is not None and not source.gguf_file else "float32"
    auto: Any = getattr(transformers, AUTO_CLASSES[kind])
    with quiet_transformers(), torch.device("meta"):
        model = auto.from_config(
            config,
            dtype=getattr(torch, wanted),
            trust_remote_code=trust_remote_code,
            attn_implementation="eager" if attn_implementation == "eager" else None,
        )
    model.tie_weights()
    saved_head = next(iter(getattr(config, "architectures", None) or ()), "").endswith("ForSequenceClassification")
    new = () if labels is None or saved_head else [name for name in model.state_dict() if is_head(kind, model, name)]
    model.sinkd_new_modules = new_modules(set(new))
    model.name_or_path = model.config._name_or_path = source.name
    return model.eval()


def _read_config(source: ModelSource, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    options: dict[str, Any] = {"gguf_file": source.gguf_file} if source.gguf_file else {"revision": source.revision}
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, KeyError) as error:
        if source.kind == "hub":
            raise hub_error(source, error) from error
        raise InputError(f"The configuration in {source.path} cannot be read: {what_was_said(error)}") from error
