"""L1 cost between student rows over the vocabulary and teacher rows of which only some ids are known.

Shape suffixes: B transport problems, N student rows, M teacher rows, V vocabulary, K kept ids of a teacher row.

Everything that a teacher row does not name is one bucket, the *tail*, on both sides. Student row i is therefore
seen through the ids of teacher row j, which differ from row to row: N×M×K numbers, gathered in pieces and
gathered again by the backward pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of one piece of the N×M×K numbers; as the tiles of `cost.py`.
_CPU_PIECE = 2**20
_GPU_PIECE = 2**24


def pairwise_top_k_cost(
    student_BNV: Tensor, ids_BMK: Tensor, teacher_BMK: Tensor, tail_BM: Tensor
) -> tuple[Tensor, Tensor]:
    """Cost of moving each student row onto each teacher row, over the teacher row's ids and one bucket for the rest.

    `C_ij = sum_k |s_i[ids_jk] - t_jk| + |sigma_ij - tau_j|`, with the tail masses `tau_j` of the teacher's row and
    `sigma_ij = 1 - sum_k s_i[ids_jk]` of the student's. The dense cost lies in `[C_ij, C_ij + width_ij]` with
    `width_ij = 2 min(sigma_ij, tau_j)`: merging ids can only shorten an L1 distance, and two tails of masses sigma
    and tau are between `|sigma - tau|` and `sigma + tau` apart. Where the kept ids are all there are, both ends meet.

    The tail's mass is a difference from 1 here, because only its absolute size matters to a sum of absolute values:
    what rounding leaves of a tail that is not there, 1e-7 in fp32, is no more than the rounding of C itself.

    Args:
        student_BNV (`Tensor`):
            Distributions `[B, N, V]` in fp32 or fp64; N may be 0.
        ids_BMK (`Tensor`):
            Integers `[B, M, K]`: the kept ids of each teacher row, distinct within a row.
        teacher_BMK (`Tensor`):
            The probabilities of those ids.
        tail_BM (`Tensor`):
            The probability of all others together, `[B, M]`.

    Returns:
        `tuple[Tensor, Tensor]`: the cost `[B, N, M]`, differentiable once to `student_BNV`, and the width
        `[B, N, M]`, without gradient.
    """
    cost_BNM: Tensor
    cost_BNM, width_BNM = _TopKCost.apply(student_BNV, ids_BMK, teacher_BMK, tail_BM)
    return cost_BNM, width_BNM


class _TopKCost(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_BNV: Tensor, ids_BMK: Tensor, teacher_BMK: Tensor, tail_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(student_BNV, ids_BMK, teacher_BMK, tail_BM)
        cost_BNM = student_BNV.new_zeros(*student_BNV.shape[:2], ids_BMK.shape[1])
        width_BNM = torch.zeros_like(cost_BNM)
        for b, m, _, kept, rest in _gathered(student_BNV, ids_BMK):
            tail = tail_BM[b, None, m]
            cost_BNM[b, :, m] = (kept - teacher_BMK[b, None, m]).abs_().sum(dim=-1) + (rest - tail).abs_()
            width_BNM[b, :, m] = 2 * torch.minimum(rest, tail)
        ctx.mark_non_differentiable(width_BNM)
        return cost_BNM, width_BNM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNM: Tensor, _: Tensor) -> tuple[Tensor | None, None, None, None]:
        student_BNV, ids_BMK, teacher_BMK, tail_BM = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        out_BNV = torch.zeros_like(student_BNV)
        for b, m, index, kept, rest in _gathered(student_BNV, ids_BMK):
            # The student's tail is 1 minus the kept entries: what pulls it up pushes each of them down.
            sign = (kept - teacher_BMK[b, None, m]).sign_() - (rest - tail_BM[b, None, m]).sign_()[..., None]
            out_BNV[b].scatter_add_(2, index, sign.mul_(grad_BNM[b, :, m, None]).flatten(2))
        return out_BNV, None, None, None


def _gathered(student_BNV: Tensor, ids_BMK: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Pieces of problems b and teacher rows m: the index `[b, N, m K]`, the student's kept entries and its tail."""
    (B, N, V), (M, K) = student_BNV.shape, ids_BMK.shape[1:]
    if not (B and N and M):
        return
    elements = _CPU_PIECE if student_BNV.device.type == "cpu" else _GPU_PIECE
    columns = min(M, max(1, elements // (N * K)))
    problems = min(B, max(1, elements // (N * columns * K)))
    for start in range(0, B, problems):
        b = slice(start, min(start + problems, B))
        for first in range(0, M, columns):
            m = slice(first, min(first + columns, M))
            index = ids_BMK[b, m].flatten(1)[:, None, :].expand(-1, N, -1)
            kept = student_BNV[b].gather(2, index).view(b.stop - b.start, N, -1, K)
            rest = (1 - kept.sum(dim=-1)).clamp_(min=0)
            if K == V:
                rest.zero_()  # nothing is left: no rounding either, nor a gradient of its sign
            yield b, m, index, kept, rest
