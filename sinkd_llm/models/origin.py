"""Which name gives a loaded model's weights again, if one does."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.adapter_facts import base_weights, changes_base, loads_merged_only
from sinkd_llm.models.partitioning import is_partitioned
from sinkd_llm.models.names import WEIGHTS, WEIGHTS_INDEX, ModelSource, resolve_model_source


def base_by_name(model: Any) -> bool:
    """Whether `model` is an adapter that is saved alone, because its base can be had by name again."""
    from peft import PeftModel

    return isinstance(model, PeftModel) and base_source(model) is not None


def base_source(model: Any) -> ModelSource | None:
    """
    The hub repository or folder that gives the weights of an adapter's base again, or `None`.

    The base is compared with what lies there, so one that was resized or trained since has no name. A base whose
    weights are spread over processes cannot be: what [`settle_base`] found before counts.

    Args:
        model (`PeftModel`): the adapter on its base.
    """
    base = model.get_base_model()
    if changes_base(model) or loads_merged_only(model):
        return None
    source: ModelSource | None = getattr(base, "sinkd_source", None)
    if source is None and base.name_or_path:  # loaded with Transformers itself
        try:
            source = resolve_model_source(base.name_or_path)
        except InputError:
            return None
    # Plain Transformers code knows no bundled names, and does not read a GGUF file by this path.
    if source is None or source.kind not in ("hub", "folder"):
        return None
    if is_partitioned(base):
        return source if getattr(base, "sinkd_base_unchanged", True) else None
    return source if _holds(source, base_weights(model)) else None


def settle_base(model: Any) -> None:
    """Notes whether an adapter's base can be had by name, before its weights are spread over processes."""
    from peft import PeftModel

    if isinstance(model, PeftModel) and not is_partitioned(model):
        base: Any = model.get_base_model()
        base.sinkd_base_unchanged = base_source(model) is not None


def _holds(source: ModelSource, weights: dict[str, Tensor]) -> bool:
    """
    Whether the files of `source` hold these weights.

    Weights that are stored under another name, packed, or not on this machine are left to the comparison of outputs
    that follows a save.
    """
    for name, shape, read in _stored(source):
        weight = next((weights[other] for other in _names(name, weights) if other in weights), None)
        if weight is None or weight.is_meta or not weight.is_floating_point():
            continue
        if tuple(weight.shape) != shape:
            return False
        found = read()
        if found.is_floating_point() and not torch.equal(found.to(weight.dtype), weight.detach().cpu()):
            return False
    return True


def _names(stored: str, weights: dict[str, Tensor]) -> Iterator[str]:
    """A stored weight's name in the model: checkpoints of a bare model lack the first part of it."""
    yield stored
    for prefix in {name.split(".", 1)[0] for name in weights}:
        yield f"{prefix}.{stored}"


def _stored(source: ModelSource) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    """Name, shape and reader of every weight in the files of `source` that are on this machine."""
    from safetensors import safe_open

    for file in _files(source):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                shape = tuple(opened.get_slice(name).get_shape())
                yield name, shape, functools.partial(opened.get_tensor, name)


def _files(source: ModelSource) -> list[Path]:
    whole, index = (_file(source, name) for name in (WEIGHTS, WEIGHTS_INDEX))
    if whole is not None:
        return [whole]
    if index is None:
        return []
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [file for file in (_file(source, shard) for shard in shards) if file is not None]


def _file(source: ModelSource, name: str) -> Path | None:
    if source.kind == "folder":
        file = Path(source.path) / name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.path, name, revision=source.revision)
    return Path(found) if isinstance(found, str) else None
