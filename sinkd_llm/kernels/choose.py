"""Which kernels compute a tile of the L1 cost: compiled C on a CPU, Triton on a CUDA GPU, or none.

Shape suffixes: B transport problems, N student rows, M teacher rows, w columns of a vocabulary tile.
"""

from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

# Below this many differences PyTorch's operators take 0.2 ms: a run of such tiles needs no compiler.
WORTH_A_KERNEL = 2**17


class L1Kernels(Protocol):
    """The two directions of a tile in fp32; arguments as in `sinkd_llm.optimal_transport.tiles`."""

    def add_l1_cost(self, cost_BNM: Tensor, student_BNw: Tensor, teacher_BMw: Tensor) -> None: ...

    def l1_gradient(self, student_BNw: Tensor, teacher_BMw: Tensor, grad_BNM: Tensor) -> Tensor: ...


def l1_kernels(student_BNw: Tensor, teacher_BMw: Tensor, pairs_BNM: Tensor) -> L1Kernels | None:
    """The kernels for these tensors, or None: then PyTorch's operators compute the tile.

    The answer depends on dtype, device and number of differences alone, so that a run that goes on computes as it
    did before.

    Args:
        student_BNw (`Tensor`):
            `[B, N, w]`.
        teacher_BMw (`Tensor`):
            `[B, M, w]`.
        pairs_BNM (`Tensor`):
            The cost, or the gradient to it.
    """
    if student_BNw.numel() * teacher_BMw.shape[1] < WORTH_A_KERNEL:
        return None
    for tensor in (student_BNw, teacher_BMw, pairs_BNM):
        # A fake tensor, of the memory estimate, has no memory to read.
        if tensor.dtype != torch.float32 or type(tensor) is not Tensor or tensor.device != student_BNw.device:
            return None
    if student_BNw.device.type == "cpu":
        from sinkd_llm.kernels.compiled import compiled_kernels

        return compiled_kernels()
    if student_BNw.device.type == "cuda" and _triton_is_there():
        from sinkd_llm.kernels import triton_l1

        return triton_l1
    return None


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None
