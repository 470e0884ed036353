"""What the iterations of a solver went through, and the three derivatives of what follows from it.

Shape suffixes: N rows, M columns, T iterations; every tensor may have leading dimensions, one transport problem each.
The problem, u and v are those of `sinkhorn.py`, the iterations those of `half_steps.py`.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.optimal_transport.half_steps import Logarithms, Scalings
from sinkd_llm.optimal_transport.precision import no_autocast, reciprocal

# Relative ridge of the implicit system. It bounds the solution where the plan falls apart into blocks that
# exchange no mass; what it changes in the gradient is of its own size.
_RIDGE = 1e-11


@dataclass(frozen=True, eq=False)
class SolverPath:
    """What the iterations went through; one problem without leading dimensions, or several with one.

    `rows` and `columns` are the states `[..., T, N]` and `[..., T, M]` after each iteration, or after the last.
    """

    steps: Scalings | Logarithms
    rows: Tensor
    columns: Tensor
    epsilon: float
    gradient: str

    @property
    def last(self) -> tuple[Tensor, Tensor]:
        end = self.rows.shape[-2] - 1
        if end == 0:
            return self.rows, self.columns
        return self.rows.narrow(-2, end, 1), self.columns.narrow(-2, end, 1)

    def save(self, ctx: Any, cost: Tensor) -> None:
        ctx.save_for_backward(cost, self.rows, self.columns, *self.steps.tensors)
        ctx.facts = type(self.steps), self.epsilon, self.gradient

    @classmethod
    def saved(cls, ctx: Any) -> tuple[Tensor, "SolverPath"]:
        cost, rows, columns, *tensors = ctx.saved_tensors
        steps, epsilon, gradient = ctx.facts
        return cost, cls(steps(*tensors), rows, columns, epsilon, gradient)

    def pull(self, grad_u: Tensor, grad_v: Tensor) -> Tensor:
        """The gradient to log K, `[..., N, M]`, given the gradients `[..., 1, N]` and `[..., 1, M]` to u and v."""
        if self.gradient == "unrolled":
            with no_autocast(grad_u):
                return self.steps.pull(self.rows, self.columns, grad_u, grad_v)
        exact = type(self.steps)(*map(_double, self.steps.tensors))
        plan = exact.plan(*map(_double, self.last))
        x, y = _solve_marginals(plan, _double(grad_u).squeeze(-2), _double(grad_v).squeeze(-2))
        return (-plan * (x[..., :, None] + y[..., None, :])).to(grad_u)

    def pull_plan(self, change: Tensor) -> Tensor:
        """The gradient to log K, given `P ∘` the gradient to P; it takes the place of `change`."""
        return change.add_(self.pull(change.sum(dim=-1).unsqueeze(-2), change.sum(dim=-2, keepdim=True)))


def value_of(cost: Tensor, path: SolverPath) -> Tensor:
    """`<P, C>`, `[...]`, without gradient."""
    plan = path.steps.plan(*path.last)
    if plan.shape != cost.shape:  # a view is an operation too
        plan = plan.view(cost.shape)
    return plan.mul_(cost).sum(dim=(-2, -1))


class Value(torch.autograd.Function):
    """`<P, C>`, with a gradient that is one matrix: `P + (P ∘ C) (-1 / epsilon) +` what moves with the potentials."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, path: SolverPath) -> Tensor:
        path.save(ctx, cost)
        return value_of(cost, path)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        cost, path = SolverPath.saved(ctx)
        plan = path.steps.plan(*path.last)
        if path.gradient != "envelope":
            plan.add_(path.pull_plan(plan * cost.view(plan.shape)), alpha=-reciprocal(path.epsilon, plan.dtype))
        return plan.view(cost.shape).mul_(grad[..., None, None]), None


class Plan(torch.autograd.Function):
    """P, `[..., N, M]`."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, path: SolverPath) -> Tensor:
        path.save(ctx, cost)
        return path.steps.plan(*path.last).view(cost.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        cost, path = SolverPath.saved(ctx)
        plan = path.steps.plan(*path.last)
        return path.pull_plan(plan.mul_(grad.reshape(plan.shape))).mul_(-reciprocal(path.epsilon, cost.dtype)).view(
            cost.shape
        ), None


class Potentials(torch.autograd.Function):
    """u and v, `[..., N]` and `[..., M]`."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, path: SolverPath) -> tuple[Tensor, Tensor]:
        path.save(ctx, cost)
        u, v = path.steps.potentials(*path.last)
        return u.reshape(cost.shape[:-1]).clone(), v.reshape(*cost.shape[:-2], cost.shape[-1]).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_u: Tensor, grad_v: Tensor) -> tuple[Tensor, None]:
        cost, path = SolverPath.saved(ctx)
        leading = leading_of(cost)
        grad_u, grad_v = (grad.reshape(*leading, 1, grad.shape[-1]) for grad in (grad_u, grad_v))
        return path.pull(grad_u, grad_v).mul_(-reciprocal(path.epsilon, cost.dtype)).view(cost.shape), None


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


def _double(tensor: Tensor) -> Tensor:
    """fp64, on the CPU where the device has none (Apple's)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def leading_of(cost: Tensor) -> tuple[int, ...]:
    """`()` for one problem, `(B,)` for several: one matrix is multiplied faster than a batch of one."""
    count = prod(cost.shape[:-2])
    return () if count == 1 else (count,)
