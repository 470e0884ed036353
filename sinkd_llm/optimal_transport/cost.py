"""Pairwise cost between the rows of two sets of distributions, streamed over the vocabulary.

Shape suffixes: B transport problems, N student rows, M teacher rows, V vocabulary.

The N×M result is small (4096² floats are 64 MiB); N×M×V is not (N = M = 256, V = 151,936 are 40 GB, what
the backward pass of `torch.cdist(p=1)` allocates on CUDA). So both passes walk over tiles of rows and
vocabulary that fit the cache, and the backward pass recomputes the differences from the two inputs.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.optimal_transport.precision import full_precision, no_autocast

COST_NORMS = ("l1", "sql2")

# Elements of the one scratch buffer, and its widest vocabulary tile. On a CPU it should stay in the cache and
# still be long enough to hide the cost of an operator call; on a GPU it has to hide kernel launches.
_CPU_TILE = (2**20, 2048)
_GPU_TILE = (2**24, 8192)
_NARROWEST_TILE = 256
_GEMM_TILE_WIDTH = 8192


def pairwise_cost(student_NV: Tensor, teacher_MV: Tensor, norm: str = "l1") -> Tensor:
    """Cost of moving each student row onto each teacher row.

    `l1`: `C_ij = sum_v |s_iv - t_jv|`, in [0, 2] for distributions: the cost of the SinKD paper
    (arXiv:2402.17110; `D_ij` in docs/method.md). Its derivative at `s_iv == t_jv` is taken as 0.
    `sql2`: `C_ij = sum_v (s_iv - t_jv)^2`, in [0, 2] for distributions: three matrix products.

    Differentiable once. Only the two inputs are kept for the backward pass, and the teacher's gradient is
    computed only if it is asked for. Neither pass allocates anything of size N×M×V.

    Args:
        student_NV (`Tensor`):
            Floating-point rows, `[..., N, V]`; N may be 0. Computed in fp32, or fp64 if given fp64.
        teacher_MV (`Tensor`):
            Rows `[..., M, V]` with the same leading dimensions; M may be 0.
        norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"` or `"sql2"`.

    Returns:
        `Tensor`: the cost `[..., N, M]`, fp32 or fp64.

    Raises:
        `ValueError`: for an unknown norm, or shapes that do not pair up.
    """
    if norm not in COST_NORMS:
        raise ValueError(f"norm must be one of {', '.join(COST_NORMS)}, got {norm!r}.")
    if student_NV.ndim < 2 or teacher_MV.ndim < 2:
        raise ValueError(
            "student_NV and teacher_MV must be [..., rows, vocabulary], got shapes "
            f"{tuple(student_NV.shape)} and {tuple(teacher_MV.shape)}."
        )
    leading, (N, V), M = student_NV.shape[:-2], student_NV.shape[-2:], teacher_MV.shape[-2]
    if teacher_MV.shape[:-2] != leading or teacher_MV.shape[-1] != V:
        raise ValueError(
            "student_NV and teacher_MV must agree in every dimension but the rows, got shapes "
            f"{tuple(student_NV.shape)} and {tuple(teacher_MV.shape)}."
        )
    student_NV, teacher_MV = full_precision(student_NV), full_precision(teacher_MV)
    dtype = torch.promote_types(student_NV.dtype, teacher_MV.dtype)
    B = prod(leading)
    student_BNV = student_NV.to(dtype).reshape(B, N, V)
    teacher_BMV = teacher_MV.to(dtype).reshape(B, M, V)
    function = _L1Cost if norm == "l1" else _SquaredL2Cost
    return function.apply(student_BNV, teacher_BMV).reshape(*leading, N, M)


class _L1Cost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_BNV: Tensor, teacher_BMV: Tensor) -> Tensor:
        ctx.save_for_backward(student_BNV, teacher_BMV)
        cost_BNM = student_BNV.new_zeros(*student_BNV.shape[:2], teacher_BMV.shape[1])
        for b, n, _, difference in _differences(student_BNV, teacher_BMV):
            cost_BNM[b, n] += difference.abs_().sum(dim=-1)
        return cost_BNM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNM: Tensor) -> tuple[Tensor | None, Tensor | None]:
        student_BNV, teacher_BMV = ctx.saved_tensors
        with no_autocast(grad_BNM):
            student = teacher = None
            if ctx.needs_input_grad[0]:
                student = _l1_gradient(student_BNV, teacher_BMV, grad_BNM)
            if ctx.needs_input_grad[1]:
                teacher = _l1_gradient(teacher_BMV, student_BNV, grad_BNM.mT)
            return student, teacher


def _l1_gradient(x_BNV: Tensor, y_BMV: Tensor, grad_BNM: Tensor) -> Tensor:
    """`sum_j G_ij sign(x_iv - y_jv)`: the gradient of `sum_ij G_ij ||x_i - y_j||_1` to x."""
    out_BNV = torch.zeros_like(x_BNV)
    for b, n, v, difference in _differences(x_BNV, y_BMV):
        torch.sign(difference, out=difference)
        out_BNV[b, n, v] = (grad_BNM[b, n, None, :] @ difference).squeeze(-2)
    return out_BNV


def _differences(x_BNV: Tensor, y_BMV: Tensor) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Tiles `x[b, n, None, v] - y[b, None, :, v]`, all written into the same scratch buffer."""
    (B, N, V), M = x_BNV.shape, y_BMV.shape[1]
    if not (B and N and M and V):
        return
    elements, widest = _CPU_TILE if x_BNV.device.type == "cpu" else _GPU_TILE
    width = min(V, widest, max(_NARROWEST_TILE, elements // M))
    rows = min(N, max(1, elements // (M * width)))
    problems = min(B, max(1, elements // (N * M * width)))  # many small problems share a tile
    scratch = x_BNV.new_empty(problems * rows * M * width)
    # The vocabulary is the outer loop: the rows of y stay in the cache while the rows of x pass by.
    for b, v, n in (
        (slice(b, min(b + problems, B)), slice(v, min(v + width, V)), slice(n, min(n + rows, N)))
        for b in range(0, B, problems)
        for v in range(0, V, width)
        for n in range(0, N, rows)
    ):
        shape = (b.stop - b.start, n.stop - n.start, M, v.stop - v.start)
        out = scratch[: prod(shape)].view(shape)
        yield b, n, v, torch.sub(x_BNV[b, n, None, v], y_BMV[b, None, :, v], out=out)


class _SquaredL2Cost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_BNV: Tensor, teacher_BMV: Tensor) -> Tensor:
        ctx.save_for_backward(student_BNV, teacher_BMV)
        cost_BNM = student_BNV.new_zeros(*student_BNV.shape[:2], teacher_BMV.shape[1])
        with no_autocast(cost_BNM):
            for _, s, t in _centred_tiles(student_BNV, teacher_BMV):
                cost_BNM += s.square().sum(-1)[:, :, None] + t.square().sum(-1)[:, None, :]
                cost_BNM.baddbmm_(s, t.mT, alpha=-2)
        return cost_BNM.clamp_(min=0)  # rounding leaves equal rows a little below zero

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNM: Tensor) -> tuple[Tensor | None, Tensor | None]:
        student_BNV, teacher_BMV = ctx.saved_tensors
        student = torch.empty_like(student_BNV) if ctx.needs_input_grad[0] else None
        teacher = torch.empty_like(teacher_BMV) if ctx.needs_input_grad[1] else None
        with no_autocast(grad_BNM):
            for v, s, t in _centred_tiles(student_BNV, teacher_BMV):
                if student is not None:
                    student[..., v] = 2 * (grad_BNM.sum(2)[:, :, None] * s - grad_BNM @ t)
                if teacher is not None:
                    teacher[..., v] = 2 * (grad_BNM.sum(1)[:, :, None] * t - grad_BNM.mT @ s)
        return student, teacher


def _centred_tiles(student_BNV: Tensor, teacher_BMV: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Vocabulary tiles of both inputs, minus the teacher's mean row.

    `||s - t||^2 = ||s||^2 + ||t||^2 - 2 s.t` does not change when both are shifted, but its rounding error
    does: peaked rows that differ by 1e-3 have norms near 1 before the shift and near 1e-3 after it.
    """
    for start in range(0, student_BNV.shape[-1], _GEMM_TILE_WIDTH):
        v = slice(start, start + _GEMM_TILE_WIDTH)
        teacher = teacher_BMV[..., v]
        centre = teacher.sum(dim=1, keepdim=True) / max(teacher.shape[1], 1)
        yield v, student_BNV[..., v] - centre, teacher - centre
