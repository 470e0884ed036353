"""Pairwise cost between the rows of two sets of distributions, streamed over the vocabulary.

Shape suffixes: B transport problems, N student rows, M teacher rows, V vocabulary.

The N×M result is small (4096² floats are 64 MiB); N×M×V is not (N = M = 256, V = 151,936 are 40 GB, what
the backward pass of `torch.cdist(p=1)` allocates on CUDA). So both passes walk over tiles of the vocabulary
(`tiles.py`), and the backward pass recomputes the differences from the two inputs.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.optimal_transport.precision import full_precision
from sinkd_llm.optimal_transport.tiles import COST_NORMS, add_cost, cost_gradient

_TILE_WIDTH = 8192


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
    cost_BNM: Tensor = _Cost.apply(student_BNV, teacher_BMV, norm)
    return cost_BNM.reshape(*leading, N, M)


class _Cost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_BNV: Tensor, teacher_BMV: Tensor, norm: str) -> Tensor:
        ctx.save_for_backward(student_BNV, teacher_BMV)
        ctx.norm = norm
        cost_BNM = student_BNV.new_zeros(*student_BNV.shape[:2], teacher_BMV.shape[1])
        for v in _tiles(student_BNV.shape[-1]):
            add_cost(cost_BNM, student_BNV[..., v], teacher_BMV[..., v], norm)
        return cost_BNM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNM: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        student_BNV, teacher_BMV = ctx.saved_tensors
        student = torch.empty_like(student_BNV) if ctx.needs_input_grad[0] else None
        teacher = torch.empty_like(teacher_BMV) if ctx.needs_input_grad[1] else None
        for v in _tiles(student_BNV.shape[-1]):
            if student is not None:
                student[..., v] = cost_gradient(student_BNV[..., v], teacher_BMV[..., v], grad_BNM, ctx.norm)
            if teacher is not None:
                teacher[..., v] = cost_gradient(teacher_BMV[..., v], student_BNV[..., v], grad_BNM.mT, ctx.norm)
        return student, teacher, None


def _tiles(V: int) -> list[slice]:
    return [slice(start, start + _TILE_WIDTH) for start in range(0, V, _TILE_WIDTH)]
