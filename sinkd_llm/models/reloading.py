"""Is what was written the student? It is loaded again and compared with the one in memory."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.loading import load_model
from sinkd_llm.models.names import ADAPTER_CONFIG, BASE_FOLDER, ModelSource
from sinkd_llm.models.outputs import allowed_difference, difference, fits_beside, probe_outputs
from sinkd_llm.models.partitioning import whole_weights
from sinkd_llm.models.quantisation import is_quantised
from sinkd_llm.models.wrappers import unwrap

logger = logging.getLogger(__name__)


def load_again(model: Any, folder: Path, merge_adapter: bool) -> Any:
    """
    The student that was written to `folder`, as `model` was loaded: its dtype, and over a packed base the packing.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the student that was written.
        folder (`Path`): where.
        merge_adapter (`bool`): see [`load_model`].
    """
    base = unwrap(model)
    options: dict[str, Any] = {}
    if is_quantised(base):
        device = next(base.parameters()).device
        options["device_map"] = {"": device} if device.type != "cpu" else None
        if not (folder / BASE_FOLDER).is_dir() and (folder / ADAPTER_CONFIG).is_file():
            options["quantization_config"] = base.config.quantization_config
    with whole_weights():  # one process loads it, and the others wait
        return load_model(
            folder,
            dtype=str(base.dtype).removeprefix("torch."),
            kind=kind_of(model).name,
            merge_adapter=merge_adapter,
            # How it reads was asked, or not, when the student was loaded; writing it changes nothing of that.
            probe=False,
            # Code that is part of the running process already was trusted when it was loaded.
            trust_remote_code=type(base).__module__.startswith("transformers_modules"),
            **options,
        )


def can_compare(model: Any) -> bool:
    """Whether a second student fits beside `model`; a warning says so where not."""
    if any(parameter.is_meta for parameter in unwrap(model).parameters()):
        return False
    if not fits_beside(model):
        logger.warning(
            "The saved student was not compared with the one in memory: a second copy of it does not fit beside it. "
            "check_saved false switches the comparison off."
        )
        return False
    return True


def what_differs(
    model: Any, folder: Path, source: ModelSource | None, gathered: Mapping[str, Tensor] | None = None
) -> str | None:
    """
    What is wrong with a saved student, or `None` if it computes what the one in memory does.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the one in memory.
        folder (`Path`): where it was written.
        source ([`ModelSource`], *optional*): what gives an adapter's base, if it does not lie in `folder`.
        gathered (`Mapping`, *optional*): the weights, where `model` holds only a part of them and one process cannot
            run it: they are compared instead of the outputs.
    """
    expected = probe_outputs(model) if gathered is None else None
    try:
        loaded = load_again(model, folder, merge_adapter=False)
    except InputError as error:
        if source is not None:
            logger.warning("The saved student was not compared with the one in memory: %s", error)
            return None
        if not type(unwrap(model)).__module__.startswith("transformers."):
            logger.warning(
                "The saved student was not compared with the one in memory, for only its own class %s can load it.",
                type(unwrap(model)).__name__,
            )
            return None
        return f"The student that was written cannot be loaded: {error}"
    if expected is None:
        return _other_weights(loaded, gathered or {})
    allowed = allowed_difference(model)
    off = difference(expected, probe_outputs(loaded))
    if off <= allowed and hasattr(loaded, "merge_and_unload") and not is_quantised(model):
        off = difference(expected, probe_outputs(loaded.merge_and_unload()))
    if off <= allowed:
        return None
    return (
        f"The student that was written computes other outputs than the one in memory: they are {off:.1%} of their "
        f"length apart, and rounding explains {allowed:.1%}."
    )


def _other_weights(loaded: Any, gathered: Mapping[str, Tensor]) -> str | None:
    stored = loaded.state_dict()
    for name, value in gathered.items():
        found = stored.get(name)
        if found is None:  # folded in, or of an adapter that has another name in memory
            continue
        if found.shape != value.shape or not torch.equal(found.to(value.dtype), value.to(found.device)):
            return f"The student that was written has another {name} than the one in memory."
    return None
