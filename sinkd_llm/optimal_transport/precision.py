"""The working precision of the losses: fp32 or better, whatever the model's dtype or autocast say."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_NOTHING = nullcontext()


def full_precision(tensor: Tensor) -> Tensor:
    """`tensor` in fp32, or unchanged when it is fp64. Differentiable."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def reciprocal(number: float, dtype: torch.dtype) -> float:
    """`1 / number` for a positive number, or the largest that the type has: torch refuses a factor beyond it."""
    return min(1 / number, torch.finfo(dtype).max)


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Context in which an ambient autocast does not send the matrix products of `tensor` to bf16.

    Under mixed precision a trainer may compute the loss inside autocast. The products here subtract
    nearly equal numbers: eight bits of mantissa are not enough.
    """
    if tensor.is_meta or not torch.is_autocast_enabled(tensor.device.type):  # there is none to switch off
        return _NOTHING
    return torch.autocast(tensor.device.type, enabled=False)
