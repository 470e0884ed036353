"""One vocabulary tile of the pairwise cost: its part of the cost, and the gradient to its entries.

Shape suffixes: B transport problems, N student rows, M teacher rows, w columns of the tile.

Whoever walks over the vocabulary calls these once a tile and pass: `pairwise_cost`, which has the rows in memory,
and the sweep, which makes them tile by tile. The N×M×w differences of the L1 norm live in the registers of a kernel
(`sinkd_llm.kernels`) or, where there is none for the hardware, dtype or size, are written in pieces into one scratch
buffer that fits the cache. The backward pass makes them again.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from sinkd_llm.kernels import l1_kernels
from sinkd_llm.optimal_transport.precision import no_autocast

COST_NORMS = ("l1", "sql2")

# Elements of the scratch buffer, and the widest piece of the vocabulary in it. On a CPU it should stay in the cache
# and still be long enough to hide the cost of an operator call; on a GPU it has to hide kernel launches.
_CPU_PIECE = (2**20, 2048)
_GPU_PIECE = (2**24, 8192)
_NARROWEST_PIECE = 256


def add_cost(cost_BNM: Tensor, student_BNw: Tensor, teacher_BMw: Tensor, norm: str = "l1") -> None:
    """Add this tile's part of the cost to `cost_BNM`, in place and without a gradient.

    `l1`: `sum_v |s_iv - t_jv|`, exactly 0 for equal rows. `sql2`: `sum_v (s_iv - t_jv)^2` by matrix products of the
    rows minus the teacher's mean row. `||s - t||^2 = ||s||^2 + ||t||^2 - 2 s.t` does not change when both are
    shifted, but its rounding error does: peaked rows that differ by 1e-3 have norms near 1 before the shift and near
    1e-3 after it. A part that rounding leaves below 0 is 0.

    Args:
        cost_BNM (`Tensor`):
            `[B, N, M]`, fp32 or fp64.
        student_BNw (`Tensor`):
            Columns of the student's rows, `[B, N, w]` of the same dtype; any strides; N, M and w may be 0.
        teacher_BMw (`Tensor`):
            The same columns of the teacher's rows, `[B, M, w]`.
        norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"` or `"sql2"`.

    Raises:
        `ValueError`: for shapes that do not pair up.
    """
    _check_shapes(student_BNw, teacher_BMw, cost_BNM)
    if norm == "l1":
        if kernels := l1_kernels(student_BNw, teacher_BMw, cost_BNM):
            kernels.add_l1_cost(cost_BNM, student_BNw, teacher_BMw)
            return
        for b, n, _, difference in _differences(student_BNw, teacher_BMw):
            cost_BNM[b, n] += difference.abs_().sum(dim=-1)
        return
    with no_autocast(cost_BNM):
        s, t = _centred(student_BNw, teacher_BMw)
        part_BNM = s.square().sum(-1)[:, :, None] + t.square().sum(-1)[:, None, :]
        cost_BNM += part_BNM.baddbmm_(s, t.mT, alpha=-2).clamp_(min=0)


def cost_gradient(student_BNw: Tensor, teacher_BMw: Tensor, grad_BNM: Tensor, norm: str = "l1") -> Tensor:
    """Gradient of `sum_ij G_ij C_ij` to the student's entries of this tile.

    `l1`: `sum_j G_ij sign(s_iv - t_jv)`, with sign(0) = 0. `sql2`: `2 (s_iv sum_j G_ij - sum_j G_ij t_jv)`. The
    gradient to the teacher is the same function with the sides exchanged and `grad_BNM.mT`.

    Args:
        student_BNw (`Tensor`):
            Columns of the student's rows, `[B, N, w]`, fp32 or fp64; any strides; N, M and w may be 0.
        teacher_BMw (`Tensor`):
            The same columns of the teacher's rows, `[B, M, w]`.
        grad_BNM (`Tensor`):
            G, `[B, N, M]`.
        norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"` or `"sql2"`.

    Returns:
        `Tensor`: the gradient, `[B, N, w]`.

    Raises:
        `ValueError`: for shapes that do not pair up.
    """
    _check_shapes(student_BNw, teacher_BMw, grad_BNM)
    if norm == "l1" and (kernels := l1_kernels(student_BNw, teacher_BMw, grad_BNM)):
        return kernels.l1_gradient(student_BNw, teacher_BMw, grad_BNM)
    with no_autocast(grad_BNM):
        if norm == "sql2":
            s, t = _centred(student_BNw, teacher_BMw)
            return torch.baddbmm(s * grad_BNM.sum(dim=2, keepdim=True), grad_BNM, t, alpha=-1).mul_(2)
        out_BNw = student_BNw.new_zeros(student_BNw.shape)
        for b, n, v, difference in _differences(student_BNw, teacher_BMw):
            out_BNw[b, n, v] = (grad_BNM[b, n, None, :] @ difference.sign_()).squeeze(-2)
        return out_BNw


def _check_shapes(student_BNw: Tensor, teacher_BMw: Tensor, pairs_BNM: Tensor) -> None:
    """A kernel would read beyond the end of what is too short."""
    (B, N, w), M = student_BNw.shape, teacher_BMw.shape[1]
    if teacher_BMw.shape != (B, M, w) or pairs_BNM.shape != (B, N, M):
        raise ValueError(
            "the tiles must be [B, N, w] and [B, M, w] and their cost [B, N, M], got shapes "
            f"{tuple(student_BNw.shape)}, {tuple(teacher_BMw.shape)} and {tuple(pairs_BNM.shape)}."
        )


def _differences(x_BNw: Tensor, y_BMw: Tensor) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Pieces `x[b, n, None, v] - y[b, None, :, v]`, all written into the same scratch buffer."""
    (B, N, w), M = x_BNw.shape, y_BMw.shape[1]
    if not (B and N and M and w):
        return
    elements, widest = _CPU_PIECE if x_BNw.device.type == "cpu" else _GPU_PIECE
    width = min(w, widest, max(_NARROWEST_PIECE, elements // M))
    rows = min(N, max(1, elements // (M * width)))
    problems = min(B, max(1, elements // (N * M * width)))  # many small problems share a piece
    scratch = x_BNw.new_empty(problems * rows * M * width)
    # The vocabulary is the outer loop: the rows of y stay in the cache while the rows of x pass by.
    for b, v, n in (
        (slice(b, min(b + problems, B)), slice(v, min(v + width, w)), slice(n, min(n + rows, N)))
        for b in range(0, B, problems)
        for v in range(0, w, width)
        for n in range(0, N, rows)
    ):
        shape = (b.stop - b.start, n.stop - n.start, M, v.stop - v.start)
        out = scratch[: prod(shape)].view(shape)
        yield b, n, v, torch.sub(x_BNw[b, n, None, v], y_BMw[b, None, :, v], out=out)


def _centred(student_BNw: Tensor, teacher_BMw: Tensor) -> tuple[Tensor, Tensor]:
    """Both minus the teacher's mean row."""
    centre = teacher_BMw.sum(dim=1, keepdim=True) / max(teacher_BMw.shape[1], 1)
    return student_BNw - centre, teacher_BMw - centre
