"""A model without its weights: what it reads and what it is, for checks before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models.gguf import quiet_transformers
from sinkd_llm.models.kinds import AUTO_CLASSES, choose_kind, head_options
from sinkd_llm.models.loading import adapter_base
from sinkd_llm.models.sources import ModelSource, fetch_adapter, hub_error, resolve_model_source


def load_skeleton(
    name_or_path: str | Path,
    *,
    revision: str = "main",
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """
    What [`load_model`] would load, on the meta device: its configuration is read, its weights are not.

    Arguments are those of [`load_model`]; of an adapter it is the base model.

    Raises:
        InputError: if the source is wrong, or the kind is unknown or not one of the architecture.
    """
    import transformers

    source = fetch_adapter(resolve_model_source(name_or_path, revision))
    if source.kind == "adapter":
        base_name, base_revision, _ = adapter_base(source)
        options: dict[str, Any] = {"kind": kind, "labels": labels, "trust_remote_code": trust_remote_code}
        return load_skeleton(base_name, revision=base_revision, **options)
    try:
        with quiet_transformers(), torch.device("meta"):
            config = _config(source, trust_remote_code)
            kind = choose_kind(source.name, config, kind, labels is not None)
            for name, value in head_options(kind, labels).items():
                setattr(config, name, value)
            auto_class: Any = getattr(transformers, AUTO_CLASSES[kind])
            return auto_class.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if source.kind == "hub":
            raise hub_error(source, error) from error
        raise InputError(f"The configuration in {source.path} cannot be read: {error}") from error


def _config(source: ModelSource, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    more = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    return AutoConfig.from_pretrained(
        source.path, revision=source.revision, trust_remote_code=trust_remote_code, **more
    )
