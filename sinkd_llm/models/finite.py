"""Models whose weights are numbers: NaN and infinity are found before they train, teach or score."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.partitioning import held_part, is_part
from sinkd_llm.models.quantisation import scales_of


def check_finite_weights(model: nn.Module, name: str) -> None:
    """
    Refuses a model that holds a NaN or an infinite weight: all it computes would be NaN, and argmax of that a class.

    One pass over the weights without a copy of them. Packed weights are checked by their scales, and of weights that
    are spread over processes each process checks its own part, all with one outcome. Weights that are not in memory
    (meta tensors, as of an offloaded model) are skipped.

    Args:
        model (`nn.Module`): possibly wrapped, quantised or partitioned. Partitioned: all processes must call it.
        name (`str`): of the model, for the message.

    Raises:
        InputError: naming the first parameter or buffer that is not finite.
    """
    names: list[str] = []
    sums: list[Tensor] = []
    held: list[tuple[Tensor, bool]] = []
    spread = False
    for weight, tensor, is_buffer in _weights(model):
        local = held_part(tensor)
        spread = spread or is_part(tensor)
        if local is None or local.is_meta or not local.is_floating_point():
            continue
        names.append(weight)
        held.append((local, is_buffer))
        # A sum is not finite if one number is not; where only the sum is too large, every number is looked at below.
        sums.append(_plain(local).sum(dtype=torch.float32))
    first = _first_not_finite(held, sums)
    found: str | None = names[first] if first is not None else None
    if spread and torch.distributed.is_initialized():
        everywhere: list[str | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, found)
        found = next((weight for weight in everywhere if weight is not None), None)
    if found is not None:
        raise InputError(
            f"The weight {found} of {name!r} holds NaN or infinity, so everything the model computes is NaN. Give "
            "another save of it, such as an earlier checkpoint; a smaller learning rate or bfloat16 instead of "
            "float16 keeps a training from ending so."
        )


def _weights(model: nn.Module) -> Iterator[tuple[str, Any, bool]]:
    """Parameters, the scales of packed ones, and persistent buffers: name, tensor, whether it is a buffer."""
    for name, parameter in model.named_parameters():
        yield name, parameter, False
        for scales in scales_of(parameter):
            yield name, scales, False
    for path, module in model.named_modules():
        for short, buffer in module.named_buffers(recurse=False):
            if short not in module._non_persistent_buffers_set:
                yield f"{path}.{short}".lstrip("."), buffer, True


def _plain(tensor: Tensor) -> Tensor:
    # The 8-bit floats of some checkpoints know few operations; in float32 nothing of them is lost.
    return tensor if tensor.element_size() > 1 else tensor.float()


def _first_not_finite(held: list[tuple[Tensor, bool]], sums: list[Tensor]) -> int | None:
    """Index of the first tensor that holds NaN or infinity. One wait for each device, not for each tensor."""
    suspects: list[int] = []
    for device in {total.device for total in sums}:
        here = [i for i, total in enumerate(sums) if total.device == device]
        finite = torch.isfinite(torch.stack([sums[i] for i in here])).tolist()
        suspects += [i for i, whole in zip(here, finite, strict=True) if not whole]
    for i in sorted(suspects):
        tensor, is_buffer = held[i]
        # A buffer, such as a mask or a bias on tokens never to be said, may hold -inf on purpose.
        wrong = torch.isnan(_plain(tensor)) if is_buffer else ~torch.isfinite(_plain(tensor))
        if bool(wrong.any()):
            return i
    return None
