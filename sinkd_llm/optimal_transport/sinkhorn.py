"""Entropic optimal transport between two uniform sets, in the log domain, with three gradients.

Shape suffixes: N rows, M columns; every tensor may have leading dimensions, one transport problem each.

The problem (SinKD, arXiv:2402.17110; Cuturi, arXiv:1306.0895), with a = 1/N, b = 1/M:

    P = argmin <P, C> + epsilon KL(P | a b^T)      subject to   P 1 = a,   P^T 1 = b

KL(P | a b^T) is the negative entropy of P plus the constant log(N M), so the plan is the published one. Its
solution is `P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)`. Here `u = f / epsilon`, `v = g / epsilon` and
`K = -C / epsilon`, so that nothing is ever exponentiated before it is normalised.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.optimal_transport.precision import full_precision

GRADIENTS = ("unrolled", "implicit", "envelope")

# The threshold is looked at every few iterations only: each look makes the CPU wait for a GPU.
_CHECK_EVERY = 5
# Relative ridge of the implicit system. It bounds the solution where the plan falls apart into blocks that
# exchange no mass; what it changes in the gradient is of its own size.
_RIDGE = 1e-11


@dataclass(frozen=True, eq=False)
class TransportPlan:
    """The solution of `sinkhorn`. Everything derived from the potentials is computed on first use.

    Attributes:
        cost (`Tensor`):
            `[..., N, M]` in the solver's precision, 0 where masked.
        potentials (`tuple[Tensor, Tensor]`):
            `f [..., N]` and `g [..., M]` in units of the cost, 0 where masked; fixed up to a constant that
            moves from one to the other.
        iterations (`int`):
            How many iterations ran.
    """

    cost: Tensor
    epsilon: float
    gradient: str
    iterations: int
    _log_kernel: Tensor
    _u: Tensor
    _v: Tensor
    _log_a: Tensor
    _log_b: Tensor

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        return self.epsilon * self._u, self.epsilon * self._v

    @cached_property
    def plan(self) -> Tensor:
        """P, `[..., N, M]`, of total mass 1 (0 for an empty problem); 0 where masked."""
        plan = _plan(self._log_kernel, self._u, self._v, self._log_a, self._log_b)
        return plan.detach() if self.gradient == "envelope" else plan

    @cached_property
    def value(self) -> Tensor:
        """`<P, C>`, `[...]`: the mean transport cost of a row. The loss of the paper is N times it."""
        return (self.plan * self.cost).sum(dim=(-2, -1))

    @cached_property
    def regularised_value(self) -> Tensor:
        """`<P, C> + epsilon KL(P | a b^T)`, `[...]`: what the plan minimises.

        The divergence is summed as `a b (r log r - r + 1)` with `r = P / (a b)`: the extra terms add up to
        zero, and each summand is small where the plan is close to uniform. `sum P log r` is not, and
        a large epsilon multiplies its rounding error.
        """
        ab = (self._log_a[..., :, None] + self._log_b[..., None, :]).exp()
        log_r = self._log_kernel + self._u[..., :, None] + self._v[..., None, :]
        log_r = log_r.where(ab > 0, 0)  # masked entries may hold anything
        divergence = (ab * (log_r.exp() * log_r - torch.expm1(log_r))).sum(dim=(-2, -1))
        if self.gradient == "envelope":
            divergence = divergence.detach()
        return self.value + self.epsilon * divergence

    @cached_property
    def row_error(self) -> Tensor:
        """`sum_i |sum_j P_ij - a_i|`, `[...]`: the misplaced share of the mass, in [0, 2]; no gradient."""
        return (self.plan.detach().sum(dim=-1) - self._log_a.exp()).abs().sum(dim=-1)

    @cached_property
    def column_error(self) -> Tensor:
        """As `row_error`, for the columns: rounding only, because the columns are normalised last."""
        return (self.plan.detach().sum(dim=-2) - self._log_b.exp()).abs().sum(dim=-1)


def sinkhorn(
    cost_NM: Tensor,
    epsilon: float = 0.1,
    iterations: int = 20,
    threshold: float | None = None,
    gradient: str = "unrolled",
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
) -> TransportPlan:
    """Solves one or many entropic transport problems with uniform marginals of total mass 1.

    Each iteration normalises the rows, then the columns (the published order), so that the columns of the
    plan are exact and `row_error` says how far it is from converged.

    Args:
        cost_NM (`Tensor`):
            `[..., N, M]`, any floating dtype; solved in fp32, or fp64 if given fp64. N or M may be 0.
        epsilon (`float`, *optional*, defaults to `0.1`):
            Weight of the entropy, in units of the cost. Safe from 1e-3 to 1e6 for costs of order 1.
        iterations (`int`, *optional*, defaults to `20`):
            The most iterations to run.
        threshold (`float`, *optional*):
            Stop as soon as the row error of every problem is at most this share of the mass. Checked every
            5 iterations.
        gradient (`str`, *optional*, defaults to `"unrolled"`):
            What back-propagation through the result means.

            - `"unrolled"`: the derivative of the iterations themselves (the published one). Only the
              potentials of each iteration are kept, O(T (N + M)); the kernels are recomputed.
            - `"implicit"`: the derivative of the *converged* plan, by one linear solve per problem (Luise et
              al., arXiv:1805.11897). No iteration is kept. If the plan is not converged, it is exact for
              the row sums that were reached. `potentials` are differentiated with the mean
              of g held fixed.
            - `"envelope"`: the plan is a constant. This is the derivative of `regularised_value` at
              convergence and *not* the gradient of `value`.
        row_mask (`Tensor`, *optional*):
            Boolean `[..., N]`, True for the rows that take part. Masked entries change neither values nor
            gradients, whatever they hold. A problem without a row or without a column has value 0.
        column_mask (`Tensor`, *optional*):
            Boolean `[..., M]`, in the same way.

    Returns:
        [`TransportPlan`]

    Raises:
        `ValueError`: for epsilon <= 0, iterations < 1, a negative threshold, an unknown gradient, or shapes
        that do not match.
    """
    check_solver(epsilon, iterations, threshold, gradient)
    if cost_NM.ndim < 2:
        raise ValueError(f"cost_NM must be [..., rows, columns], got shape {tuple(cost_NM.shape)}.")
    cost = full_precision(cost_NM)
    rows = _mask("row_mask", row_mask, cost, cost.shape[:-1])
    columns = _mask("column_mask", column_mask, cost, (*cost.shape[:-2], cost.shape[-1]))
    # Rows that have no column to go to, or the reverse, are an empty problem.
    rows, columns = (
        rows & columns.any(dim=-1, keepdim=True),
        columns & rows.any(dim=-1, keepdim=True),
    )
    if row_mask is not None or column_mask is not None:
        cost = cost.masked_fill(~(rows[..., :, None] & columns[..., None, :]), 0)
    log_a, log_b = _log_uniform(rows, cost.dtype), _log_uniform(columns, cost.dtype)

    log_kernel = -cost / epsilon
    if gradient == "unrolled":
        ran, u, v = _Unrolled.apply(log_kernel, log_a, log_b, iterations, threshold)
    elif gradient == "implicit":
        ran, u, v = _Implicit.apply(log_kernel, log_a, log_b, iterations, threshold)
    else:
        path = list(_iterate(log_kernel.detach(), log_a, log_b, iterations, threshold))
        ran, (u, v) = len(path), path[-1]
    return TransportPlan(cost, epsilon, gradient, ran, log_kernel, u, v, log_a, log_b)


def check_solver(epsilon: float, iterations: int, threshold: float | None, gradient: str, prefix: str = "") -> None:
    """
    Refuses what [`sinkhorn`] cannot be run with.

    Args:
        prefix (`str`, *optional*): begins the names by which a message calls these, for settings that are called so.

    Raises:
        `ValueError`: for epsilon <= 0, iterations < 1, a negative threshold or an unknown gradient.
    """
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"{prefix}epsilon must be a positive number, got {epsilon}.")
    if iterations < 1:
        raise ValueError(f"{prefix}iterations must be at least 1, got {iterations}.")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"{prefix}threshold must be None or at least 0, got {threshold}.")
    if gradient not in GRADIENTS:
        raise ValueError(f"{prefix}gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}.")


def _iterate(
    log_kernel: Tensor, log_a: Tensor, log_b: Tensor, iterations: int, threshold: float | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the potentials `(u, v)` after each iteration: rows normalised, then columns.

    The published K <- K / (K 1 1^T), K <- K / (1 1^T K) on K = exp(-C / epsilon), T times, as logarithms:

    u_i = -log sum_j b_j exp(K_ij + v_j)      v_j = -log sum_i a_i exp(K_ij + u_i)
    """
    masked_a, masked_b = log_a.isneginf(), log_b.isneginf()

    def rows(v: Tensor) -> Tensor:
        total = torch.logsumexp(log_kernel + (v + log_b)[..., None, :], dim=-1)
        return -total.masked_fill(masked_a, 0)

    def columns(u: Tensor) -> Tensor:
        total = torch.logsumexp(log_kernel + (u + log_a)[..., :, None], dim=-2)
        return -total.masked_fill(masked_b, 0)

    next_u = rows(torch.zeros_like(log_b))
    for iteration in range(1, iterations + 1):
        u = next_u
        v = columns(u)
        yield u, v
        if iteration == iterations:
            return
        next_u = rows(v)
        if threshold is not None and iteration % _CHECK_EVERY == 0:
            # Row i holds a_i exp(u_i - next_u_i): the next half-step measures this one's error for free.
            error = (log_a.exp() * torch.expm1(u - next_u)).abs().sum(dim=-1)
            if bool((error <= threshold).all()):
                return


class _Unrolled(torch.autograd.Function):
    """Potentials whose backward pass walks the iterations in reverse, rebuilding each plan."""

    @staticmethod
    def forward(
        ctx: Any,
        log_kernel: Tensor,
        log_a: Tensor,
        log_b: Tensor,
        iterations: int,
        threshold: float | None,
    ) -> tuple[int, Tensor, Tensor]:
        path = list(_iterate(log_kernel, log_a, log_b, iterations, threshold))
        us, vs = zip(*path, strict=True)
        ctx.save_for_backward(log_kernel, log_a, log_b, *us, *vs)
        return len(path), us[-1], vs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, grad_u: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        log_kernel, log_a, log_b, *path = ctx.saved_tensors
        us, vs = path[: len(path) // 2], path[len(path) // 2 :]
        inverse_a, inverse_b = _inverse_weights(log_a), _inverse_weights(log_b)
        grad_kernel = torch.zeros_like(log_kernel)
        before = [torch.zeros_like(log_b), *vs[:-1]]  # the v that each row step started from
        for u, v, v_before in reversed(list(zip(us, vs, before, strict=True))):
            # v_j = -log sum_i a_i exp(K_ij + u_i):  dv_j = -(1 / b_j) sum_i P_ij (dK_ij + du_i)
            flow = _plan(log_kernel, u, v, log_a, log_b) * (grad_v * inverse_b)[..., None, :]
            grad_kernel -= flow
            grad_u = grad_u - flow.sum(dim=-1)
            # u_i = -log sum_j b_j exp(K_ij + v_j):  du_i = -(1 / a_i) sum_j P_ij (dK_ij + dv_j)
            flow = _plan(log_kernel, u, v_before, log_a, log_b) * (grad_u * inverse_a)[..., None]
            grad_kernel -= flow
            grad_v = -flow.sum(dim=-2)
            grad_u = torch.zeros_like(grad_u)
        return grad_kernel, None, None, None, None


class _Implicit(torch.autograd.Function):
    """Potentials whose backward pass differentiates the optimality conditions `P 1 = r, P^T 1 = c`."""

    @staticmethod
    def forward(
        ctx: Any,
        log_kernel: Tensor,
        log_a: Tensor,
        log_b: Tensor,
        iterations: int,
        threshold: float | None,
    ) -> tuple[int, Tensor, Tensor]:
        path = list(_iterate(log_kernel, log_a, log_b, iterations, threshold))
        u, v = path[-1]
        ctx.save_for_backward(log_kernel, u, v, log_a, log_b)
        return len(path), u, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, grad_u: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        plan = _plan(*(_double(tensor) for tensor in ctx.saved_tensors))
        x, y = _solve_marginals(plan, _double(grad_u), _double(grad_v))
        grad_kernel = -plan * (x[..., :, None] + y[..., None, :])
        return grad_kernel.to(grad_u), None, None, None, None


def _solve_marginals(plan: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Solves `[diag(P 1), P; P^T, diag(P^T 1)] [x; y] = [p; q]`, singular by one direction a problem.

    Eliminating x leaves `(I - Q^T Q) z = w` with `Q = diag(r)^-1/2 P diag(c)^-1/2`: symmetric, eigenvalues in
    [0, 1], and 0 along sqrt(c), because a constant may move from x to y. That direction is given eigenvalue
    1: `x_i + y_j` does not see it. A masked column is a zero column of Q, hence the equation z = 0. Near a
    permutation many eigenvalues are close to 0, along directions that hardly any mass crosses; the plan
    multiplies whatever the solution is there, so fp64 and a small ridge are enough to keep it bounded.
    """
    root_r, root_c = plan.sum(dim=-1).sqrt(), plan.sum(dim=-2).sqrt()
    inverse_r = torch.where(root_r > 0, 1 / root_r, 0)
    inverse_c = torch.where(root_c > 0, 1 / root_c, 0)
    Q = inverse_r[..., :, None] * plan * inverse_c[..., None, :]
    null = torch.nn.functional.normalize(root_c, dim=-1)
    w = inverse_c * q - (Q.mT @ (inverse_r * p)[..., None]).squeeze(-1)
    identity = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    system = (1 + _RIDGE) * identity - Q.mT @ Q + null[..., :, None] * null[..., None, :]
    # `cholesky_ex` does not raise: a NaN in the cost stays a NaN in the gradient.
    factor = torch.linalg.cholesky_ex(system).L
    z = torch.cholesky_solve(w[..., None], factor)
    x = inverse_r * (inverse_r * p - (Q @ z).squeeze(-1))
    return x, inverse_c * z.squeeze(-1)


def _plan(log_kernel: Tensor, u: Tensor, v: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_kernel + (u + log_a)[..., :, None] + (v + log_b)[..., None, :]).exp()


def _double(tensor: Tensor) -> Tensor:
    """fp64, on the CPU where the device has none (Apple's)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _log_uniform(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """log of uniform weights over the True entries; -inf elsewhere."""
    count = mask.sum(dim=-1, keepdim=True).clamp(min=1).to(dtype)
    return (-count.log()).expand(mask.shape).masked_fill(~mask, float("-inf"))


def _inverse_weights(log_weights: Tensor) -> Tensor:
    return (-log_weights).exp().masked_fill(log_weights.isneginf(), 0)


def _mask(name: str, mask: Tensor | None, cost: Tensor, shape: tuple[int, ...]) -> Tensor:
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=cost.device)
    if mask.dtype != torch.bool or mask.shape != torch.Size(shape):
        raise ValueError(
            f"{name} must be a boolean tensor of shape {tuple(shape)} for a cost of shape "
            f"{tuple(cost.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    return mask
