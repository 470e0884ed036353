"""The L1 tile on a CUDA GPU, in Triton: every difference is made in a register and never written.

Imported only where Triton is installed and the tensors lie on a CUDA GPU. Tested through Triton's interpreter, which
runs the same code on a CPU; it has not run on a GPU yet.

Shape suffixes: B transport problems, N student rows, M teacher rows, w columns of a vocabulary tile.
"""

import triton
import triton.language as tl
from torch import Tensor

# Rows of the student, rows of the teacher and columns that a program holds at a time: 8,192 differences, 64 a thread
# with four warps.
_N, _M, _W = 16, 16, 32
_FEWEST_COLUMNS = 256  # of a program of the cost, so that its sums pay for its start
_PROGRAMS = 1024  # keep a large GPU busy; a cost of fewer blocks is cut along the columns


def add_l1_cost(cost_BNM: Tensor, student_BNw: Tensor, teacher_BMw: Tensor) -> None:
    """`add_cost` of `sinkd_llm.optimal_transport.tiles` for the L1 norm and fp32.

    Cuts along the columns are summed by PyTorch afterwards, not by atomic additions: the same inputs give the same
    bits.
    """
    (B, N, w), M = student_BNw.shape, teacher_BMw.shape[1]
    blocks = B * triton.cdiv(N, _N), triton.cdiv(M, _M)
    cuts = max(1, min(_PROGRAMS // (blocks[0] * blocks[1]), w // _FEWEST_COLUMNS))
    columns = triton.cdiv(triton.cdiv(w, cuts), _W) * _W
    part_CBNM = student_BNw.new_empty(triton.cdiv(w, columns), B, N, M)
    _cost[(*blocks, part_CBNM.shape[0])](
        part_CBNM, student_BNw, teacher_BMw, N, M, w, columns,
        *part_CBNM.stride(), *student_BNw.stride(), *teacher_BMw.stride(),
        BLOCK_N=_N, BLOCK_M=_M, BLOCK_W=_W,
    )  # fmt: skip
    cost_BNM += part_CBNM.sum(dim=0)


def l1_gradient(student_BNw: Tensor, teacher_BMw: Tensor, grad_BNM: Tensor) -> Tensor:
    """`cost_gradient` of `sinkd_llm.optimal_transport.tiles` for the L1 norm and fp32."""
    (B, N, w), M = student_BNw.shape, teacher_BMw.shape[1]
    out_BNw = student_BNw.new_empty(B, N, w)
    _gradient[(B * triton.cdiv(N, _N), triton.cdiv(w, _W))](
        out_BNw, student_BNw, teacher_BMw, grad_BNM, N, M, w,
        *out_BNw.stride(), *student_BNw.stride(), *teacher_BMw.stride(), *grad_BNM.stride(),
        BLOCK_N=_N, BLOCK_M=_M, BLOCK_W=_W,
    )  # fmt: skip
    return out_BNw


@triton.jit
def _cost(  # type: ignore[no-untyped-def]
    part, x, y, N, M, w, columns,
    part_c, part_b, part_n, part_m, x_b, x_n, x_w, y_b, y_m, y_w,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    blocks_of_n = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks_of_n).to(tl.int64)
    n = (tl.program_id(0) % blocks_of_n) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    c = tl.program_id(2).to(tl.int64)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, columns, BLOCK_W):
        v = c * columns + first + tl.arange(0, BLOCK_W)
        inside = v < w
        # Columns outside are 0 on both sides: no distance.
        s = tl.load(
            x + b * x_b + n[:, None] * x_n + v[None, :] * x_w, mask=(n < N)[:, None] & inside[None, :], other=0.0
        )
        t = tl.load(
            y + b * y_b + m[:, None] * y_m + v[None, :] * y_w, mask=(m < M)[:, None] & inside[None, :], other=0.0
        )
        total += tl.sum(tl.abs(s[:, None, :] - t[None, :, :]), axis=2)
    where = part + c * part_c + b * part_b + n[:, None] * part_n + m[None, :] * part_m
    tl.store(where, total, mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    out, x, y, g, N, M, w,
    out_b, out_n, out_w, x_b, x_n, x_w, y_b, y_m, y_w, g_b, g_n, g_m,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    blocks_of_n = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks_of_n).to(tl.int64)
    n = (tl.program_id(0) % blocks_of_n) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    v = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W).to(tl.int64)
    inside = (n < N)[:, None] & (v < w)[None, :]
    s = tl.load(x + b * x_b + n[:, None] * x_n + v[None, :] * x_w, mask=inside, other=0.0)
    total = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
    for first in range(0, M, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M).to(tl.int64)
        t = tl.load(
            y + b * y_b + m[:, None] * y_m + v[None, :] * y_w, mask=(m < M)[:, None] & (v < w)[None, :], other=0.0
        )
        # Rows outside have no weight.
        weight = tl.load(
            g + b * g_b + n[:, None] * g_n + m[None, :] * g_m, mask=(n < N)[:, None] & (m < M)[None, :], other=0.0
        )
        difference = s[:, None, :] - t[None, :, :]
        sign = (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
        total += tl.sum(weight[:, :, None] * sign, axis=1)
    tl.store(out + b * out_b + n[:, None] * out_n + v[None, :] * out_w, total, mask=inside)
