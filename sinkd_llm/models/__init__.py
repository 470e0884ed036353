"""Students and teachers: loading them, cutting them shorter, saving them so that they load by themselves."""

from typing import TYPE_CHECKING, Any

_LAZY = {
    "BUNDLED": "bundled",
    "ModelSource": "names",
    "resolve_model_source": "names",
    "load_tokenizer": "tokenizers",
    "check_same_tokenizer": "tokenizers",
    "load_model": "loading",
    "build_quantization_config": "quantisation",
    "count_parameters": "loading",
    "select_layers": "layers",
    "save_student": "saving",
}

__all__ = [*_LAZY]

if TYPE_CHECKING:
    from sinkd_llm.models.bundled import BUNDLED
    from sinkd_llm.models.layers import select_layers
    from sinkd_llm.models.loading import count_parameters, load_model
    from sinkd_llm.models.names import ModelSource, resolve_model_source
    from sinkd_llm.models.quantisation import build_quantization_config
    from sinkd_llm.models.saving import save_student
    from sinkd_llm.models.tokenizers import check_same_tokenizer, load_tokenizer


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"sinkd_llm.models.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
