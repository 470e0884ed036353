"""What a loaded model remembers of where it comes from: one attribute, and the name that other libraries keep."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinkd_llm.models.names import ModelSource, stored_file
from sinkd_llm.models.stored_config import CONFIG

if TYPE_CHECKING:
    from sinkd_llm.models.layer_choice import LayerChoice


@dataclass(frozen=True)
class Origin:
    """
    Where a model comes from.

    Attributes:
        source ([`ModelSource`], *optional*): what gives exactly these weights again; `None` if no name does, as of a
            model that was cut, merged, or given a new head.
        new_modules (`tuple[str, ...]`): the modules that started with random weights, as [`modules_of`] names them.
        held_before_spreading (`bool`): whether `source` held the weights when that was last looked at: it cannot be
            once they are spread over processes.
        layers ([`LayerChoice`], *optional*): which layers it has of the model that it was cut from in this process.
    """

    source: ModelSource | None
    new_modules: tuple[str, ...] = ()
    held_before_spreading: bool = True
    layers: "LayerChoice | None" = None


def origin_of(model: Any) -> Origin | None:
    """
    Where a model comes from; `None` if it was neither loaded nor made by this package.

    Args:
        model (`PreTrainedModel` or `PeftModel`): not wrapped otherwise.
    """
    origin: Origin | None = getattr(model, "sinkd_origin", None)
    return origin


def set_origin(model: Any, source: ModelSource | None, new_modules: tuple[str, ...] = ()) -> None:
    """
    Writes down where a model comes from, for this package and as the name that Transformers and PEFT keep.

    Args:
        model (`PreTrainedModel`): that was just loaded or made.
        source ([`ModelSource`], *optional*): what gives exactly these weights again, if anything does.
        new_modules (`tuple[str, ...]`, *optional*): those with random weights.
    """
    model.sinkd_origin = Origin(source, new_modules)
    # The converted copy's place in the cache is no name that anyone should see or store.
    name = (source.name if source.kind == "bundled" or source.gguf_file else source.path) if source is not None else ""
    model.name_or_path = model.config.name_or_path = name  # PEFT reads the one and Transformers the other


def note_held(model: Any, held: bool) -> None:
    """Writes down whether a model's source holds its weights, as long as that can be seen."""
    model.sinkd_origin = dataclasses.replace(origin_of(model) or Origin(None), held_before_spreading=held)


def note_layers(model: Any, layers: "LayerChoice") -> None:
    """Writes down which layers a model has of another one."""
    model.sinkd_origin = dataclasses.replace(origin_of(model) or Origin(None), layers=layers)


def noted_layers(model: Any) -> "LayerChoice | None":
    """Which layers a model has of the one that it was cut from; `None` if it was not cut in this process."""
    origin = origin_of(model)
    return origin.layers if origin is not None else None


def new_modules_of(model: Any) -> tuple[str, ...]:
    """The modules of a model that started with random weights, such as a new classification head."""
    origin = origin_of(model)
    return origin.new_modules if origin is not None else ()


def name_of(model: Any) -> str | None:
    """What a model was loaded by, here or with Transformers; `None` if no name gives its weights again."""
    return getattr(model, "name_or_path", None) or None


def commit_of(model: Any) -> str | None:
    """The commit of the hub repository that a model was read from; `None` if it came from elsewhere."""
    origin = origin_of(model)
    if origin is None or origin.source is None or origin.source.kind != "hub":
        return None
    # Transformers no longer notes it; the hub's cache keeps the files of a commit in a folder of its name.
    file = stored_file(origin.source, CONFIG)
    return file.parent.name if file is not None else None


def modules_of(weights: Iterable[str]) -> tuple[str, ...]:
    """The modules that hold these weights, each by the name under the model or its base: `classifier`, `pooler`."""
    names = {weight.rsplit(".", 1)[0] for weight in weights}
    return tuple(sorted({"pooler" if "pooler" in name.split(".") else name.split(".")[0] for name in names}))
