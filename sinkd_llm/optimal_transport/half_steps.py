"""The two half-steps of Sinkhorn's iteration, on scalings of one kernel or on logarithms, and their derivative.

Shape suffixes: N rows, M columns, T iterations. One problem is `[N, M]`, several are `[B, N, M]`; a vector is a row,
`[1, N]` or `[B, 1, N]`. Weights that are equal everywhere are a tensor without dimensions.

With `K = exp(-C / epsilon)` and `P = diag(a e^u) K diag(b e^v)`, an iteration is

    u_i = -log sum_j K_ij b_j e^(v_j)        v_j = -log sum_i K_ij a_i e^(u_i)

and its derivative, with P_r the plan after the rows (rows exact) and P_c the plan after the columns (columns exact),

    du = -(1 / a) P_r (d log K + dv)         dv = -(1 / b) P_c^T (d log K + du)

Each of these plans is `diag(x) K diag(y)`, so that its product with a vector is a product of K with a vector, and the
gradient to log K is a sum of such plans, `-K ∘ (X Y^T)` with X `[N, 2T]` and Y `[M, 2T]`.
"""

from collections.abc import Callable, Iterator
from math import log
from typing import Protocol

import torch
from torch import Tensor

# The threshold is looked at every few iterations only: each look makes the CPU wait for a GPU.
_CHECK_EVERY = 5


class HalfSteps(Protocol):
    """What [`alternate`] iterates: from a state of the columns, `[..., 1, M]`, to a state of the rows, and back."""

    def start(self) -> Tensor:
        """The columns' state at `v = 0`."""

    def rows(self, columns: Tensor) -> Tensor:
        """The rows' state that gives each row its mass."""

    def columns(self, rows: Tensor) -> Tensor:
        """The columns' state that gives each column its mass."""

    def row_error(self, rows: Tensor, next_rows: Tensor) -> Tensor:
        """`sum_i |mass of row i - a_i|`, `[..., 1]`, of rows that the next half-step would turn into `next_rows`."""


def alternate(steps: HalfSteps, iterations: int, threshold: float | None) -> Iterator[tuple[Tensor, Tensor]]:
    """
    Yields the states of rows and columns after each iteration: rows normalised, then columns (the published order).

    Args:
        steps ([`HalfSteps`]): computes a half-step.
        iterations (`int`): the most iterations to run.
        threshold (`float`, *optional*): stop when no problem's row error is above it; looked at every 5 iterations.
    """
    next_rows = steps.rows(steps.start())
    for iteration in range(1, iterations + 1):
        rows = next_rows
        columns = steps.columns(rows)
        yield rows, columns
        if iteration == iterations:
            return
        next_rows = steps.rows(columns)
        # The next half-step measures this iteration's error for free.
        if threshold is None or iteration % _CHECK_EVERY:
            continue
        if bool((steps.row_error(rows, next_rows) <= threshold).all()):
            return


class Scalings:
    """
    The state is `x = a e^u` and `y = b e^v`. A half-step is a product of the kernel with a vector, and a division.

    Args:
        kernel (`Tensor`): K, `[N, M]` or `[B, N, M]`, with `-log K` between 0 and [`Scalings.reach`]; 1 where masked.
        a, b (`Tensor`): weights of the rows and columns, 0 where masked; without dimensions if all are equal.
    """

    def __init__(self, kernel: Tensor, a: Tensor, b: Tensor) -> None:
        self.tensors = kernel, a, b
        # With as many rows as columns, of equal weight, y is `e^v`: then x and y are the scalings of a plan of mass N,
        # whose rows and columns sum to 1, and a half-step ends with a reciprocal, the cheapest of operations.
        self._ones = not a.ndim and kernel.shape[-2] == kernel.shape[-1]
        self._share = 1 / kernel.shape[-1] if self._ones else 1.0  # the mass of the plan over the mass of `x K y`
        self._kernel = kernel
        self._a, self._b = (torch.ones_like(a), torch.ones_like(b)) if self._ones else (a, b)
        # Of all forms of a batched product, rows times a matrix as it lies in memory is the fast one.
        self._transposed = kernel.mT.contiguous() if kernel.ndim == 3 else kernel.mT
        self._times = _product(kernel)
        # With masks, a problem without a row or a column has sums of 0.
        self._least = torch.finfo(kernel.dtype).tiny if a.ndim else None

    @staticmethod
    def reach(dtype: torch.dtype) -> float:
        """
        How small a kernel may be, as `-log K`: a quarter of the range of exponents, 21.8 in fp32.

        With `B = max -log K`, the first u lies in [0, B]. An iteration keeps the order and passes an added constant
        on, so that no later u leaves [-B, 2B] and no v [-2B, 2B]; the derivative squares their exponentials.
        """
        return _exponents(dtype) / 4

    @classmethod
    def of(cls, log_kernel: Tensor, a: Tensor, b: Tensor) -> "Scalings":
        return cls(log_kernel.exp(), a, b)

    def start(self) -> Tensor:
        return self._b.expand(*self._kernel.shape[:-2], 1, self._kernel.shape[-1])

    def rows(self, columns: Tensor) -> Tensor:
        sums = self._times(columns, self._transposed)
        return sums.reciprocal_() if self._ones else self._divide(self._a, sums)

    def columns(self, rows: Tensor) -> Tensor:
        sums = self._times(rows, self._kernel)
        return sums.reciprocal_() if self._ones else self._divide(self._b, sums)

    def row_error(self, rows: Tensor, next_rows: Tensor) -> Tensor:
        # Row i holds a_i x_i / next x_i. Masked: 0 over the smallest number.
        smallest = torch.finfo(rows.dtype).tiny
        return ((rows - next_rows) / next_rows.clamp(min=smallest)).mul_(self._share * self._a).abs_().sum(dim=-1)

    def plan(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (self._kernel * rows.mT).mul_(self._share * columns)

    def potentials(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """u and v, 0 where masked."""
        u, v = (rows / (self._share * self._a)).log_(), (columns / self._b).log_()
        return (u.masked_fill_(self._a == 0, 0), v.masked_fill_(self._b == 0, 0)) if self._a.ndim else (u, v)

    def pull(self, rows_T: Tensor, columns_T: Tensor, grad_u: Tensor, grad_v: Tensor) -> Tensor:
        """
        The gradient to log K, given the gradients to the last u and v.

        With `eta = y grad_v / b` and `xi = x grad_u / a` a half-step back is `xi = -(x^2 / a) (K eta)` and, for the
        iteration before, `eta = -(y^2 / b) (K^T xi)`.

        Args:
            rows_T, columns_T (`Tensor`): the states after each iteration, `[..., T, N]` and `[..., T, M]`.
            grad_u, grad_v (`Tensor`): `[..., 1, N]` and `[..., 1, M]`.
        """
        inverse_a, inverse_b = inverse(self._a), inverse(self._b)
        x_over_a, before_T = rows_T * inverse_a, columns_T[..., :-1, :]
        eta = columns_T[..., -1:, :] * grad_v * inverse_b
        xi = x_over_a[..., -1:, :] * (grad_u - rows_T[..., -1:, :] * self._times(eta, self._transposed))
        etas, xis = [eta], [xi]
        factors_x = (x_over_a[..., :-1, :] * rows_T[..., :-1, :]).neg_().split(1, dim=-2)
        factors_y = (before_T * inverse_b).mul_(before_T).neg_().split(1, dim=-2)
        if rows_T.shape[-2] > 1:  # no iterations split into one empty part
            for factor_x, factor_y in zip(reversed(factors_x), reversed(factors_y), strict=True):
                etas.append(self._times(xis[-1], self._kernel).mul_(factor_y))
                xis.append(self._times(etas[-1], self._transposed).mul_(factor_x))
        # P_c of iteration t takes x_t and eta_t, its P_r xi_t and y_(t - 1).
        x = torch.cat([rows_T, *reversed(xis)], dim=-2)
        y = torch.cat([*reversed(etas), self.start(), before_T], dim=-2)
        return (x.mT @ y).mul_(self._kernel).neg_()

    def _divide(self, weights: Tensor, sums: Tensor) -> Tensor:
        if self._least is not None:
            sums.clamp_(min=self._least)
        return torch.div(weights, sums, out=sums)


class Logarithms:
    """
    The state is u and v, for any cost.

    Where looking at numbers is cheap (on a CPU), the half-steps near a plan are products with that plan: potentials f
    and g are absorbed into the kernel, `A = diag(a e^f) K diag(b e^g)`, and

        u = f + log a - log(A e^(v - g))

    as long as `v - g` and `u - f` stay small (stabilised scaling: Schmitzer, arXiv:1610.06519). A half-step that
    leaves this range is computed by a log-sum-exp, and the plan that it leads to is absorbed. A GPU would have to wait
    for each look: there every half-step is a log-sum-exp.

    Args:
        log_kernel (`Tensor`): `-C / epsilon`, `[N, M]` or `[B, N, M]`, finite where masked.
        a, b (`Tensor`): weights of the rows and columns, 0 where masked; without dimensions if all are equal.
    """

    def __init__(self, log_kernel: Tensor, a: Tensor, b: Tensor) -> None:
        self.tensors = self._log_kernel, self._a, self._b = log_kernel, a, b
        self._log_a, self._log_b = a.log(), b.log()
        self._masked_a: Tensor | None = a == 0 if a.ndim else None
        self._masked_b: Tensor | None = b == 0 if b.ndim else None
        self._times = _product(log_kernel)
        self._looks = log_kernel.device.type == "cpu"
        # Entries of an absorbed plan below the smallest number are lost. A quarter of the exponents on either side
        # leaves what is lost below the square root of that number, relative to any sum that it could be part of.
        self._near = _exponents(log_kernel.dtype) / 4
        self._absorbed: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, log_kernel: Tensor, a: Tensor, b: Tensor) -> "Logarithms":
        return cls(log_kernel, a, b)

    def start(self) -> Tensor:
        shape = (*self._log_kernel.shape[:-2], 1, self._log_kernel.shape[-1])
        return self._log_kernel.new_zeros(shape)

    def rows(self, columns: Tensor) -> Tensor:
        if (near := self._step(columns, to_rows=True)) is not None:
            return near
        total = torch.logsumexp(self._log_kernel + (columns + self._log_b), dim=-1).unsqueeze(-2)
        rows = _filled(total, self._masked_a).neg_()
        self._absorb(rows, columns)
        return rows

    def columns(self, rows: Tensor) -> Tensor:
        if (near := self._step(rows, to_rows=False)) is not None:
            return near
        total = torch.logsumexp(self._log_kernel + (rows + self._log_a).mT, dim=-2, keepdim=True)
        columns = _filled(total, self._masked_b).neg_()
        self._absorb(rows, columns)
        return columns

    def row_error(self, rows: Tensor, next_rows: Tensor) -> Tensor:
        # Row i holds a_i exp(u_i - next u_i).
        return torch.expm1(rows - next_rows).mul_(self._a).abs_().sum(dim=-1)

    def plan(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (self._log_kernel + (rows + self._log_a).mT).add_(columns + self._log_b).exp_()

    def potentials(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """u and v, 0 where masked."""
        return rows, columns

    def pull(self, rows_T: Tensor, columns_T: Tensor, grad_u: Tensor, grad_v: Tensor) -> Tensor:
        """The gradient to log K, given the gradients to the last u and v, as [`Scalings.pull`]."""
        inverse_a, inverse_b = inverse(self._a), inverse(self._b)
        us, vs = rows_T.split(1, dim=-2), columns_T.split(1, dim=-2)
        total = torch.zeros_like(self._log_kernel)
        pairs: list[tuple[Tensor, Tensor]] = []  # x and y of the plans that go through the absorbed one
        for u, v, v_before in zip(reversed(us), reversed(vs), reversed((self.start(), *vs[:-1])), strict=True):
            plan, x, y = self._plan_near(u, v, total, pairs)
            eta = y * (grad_v * inverse_b)
            grad_u = grad_u - x * self._times(eta, plan.mT)
            pairs.append((x, eta))
            plan, x, y = self._plan_near(u, v_before, total, pairs)
            xi = x * (grad_u * inverse_a)
            grad_v = -y * self._times(xi, plan)
            pairs.append((xi, y))
            grad_u = torch.zeros_like(grad_u)
        self._collect(total, pairs)
        return total

    def _step(self, state: Tensor, to_rows: bool) -> Tensor | None:
        """The half-step by the absorbed plan; `None` if it is not near enough."""
        if self._absorbed is None:
            return None
        plan, f, g = self._absorbed
        here, there = (g, f) if to_rows else (f, g)
        log_weights, masked = (self._log_a, self._masked_a) if to_rows else (self._log_b, self._masked_b)
        moved = state - here
        sums = self._times(moved.exp(), plan.mT if to_rows else plan)
        step = _filled(log_weights - sums.log_(), masked)
        return there + step if self._is_near(moved, step) else None

    def _plan_near(
        self, u: Tensor, v: Tensor, total: Tensor, pairs: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A plan A, x and y with `P(u, v) = diag(x) A diag(y)`. Before A changes, `total` takes `pairs` in."""
        if self._absorbed is not None:
            plan, f, g = self._absorbed
            x, y = u - f, v - g
            if self._is_near(x, y):
                return plan, x.exp_(), y.exp_()
            self._collect(total, pairs)
        self._absorbed = self.plan(u, v), u, v
        return self._absorbed[0], torch.ones_like(u), torch.ones_like(v)

    def _collect(self, total: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
        assert self._absorbed is not None
        x, y = (torch.cat(vectors, dim=-2) for vectors in zip(*pairs, strict=True))
        total -= (x.mT @ y).mul_(self._absorbed[0])
        pairs.clear()

    def _absorb(self, u: Tensor, v: Tensor) -> None:
        if self._looks:
            self._absorbed = self.plan(u, v), u, v

    def _is_near(self, rows: Tensor, columns: Tensor) -> bool:
        # Written so that a NaN is not near.
        return self._looks and all(moved.abs().max().item() <= self._near for moved in (rows, columns))


def inverse(weights: Tensor) -> Tensor:
    """`1 / weights`, 0 where masked."""
    return (1 / weights).masked_fill_(weights == 0, 0) if weights.ndim else 1 / weights


def _filled(vector: Tensor, masked: Tensor | None) -> Tensor:
    return vector if masked is None else vector.masked_fill_(masked, 0)


def _product(matrix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """How a row `[..., 1, N]` is multiplied with matrices like this one."""
    if matrix.is_cuda:
        return summed_product
    return torch.bmm if matrix.ndim == 3 else torch.mm


def summed_product(row: Tensor, matrix: Tensor) -> Tensor:
    """`row @ matrix` for CUDA, where TF32 may be on and a matrix product then reads 10 bits of each number."""
    return (row.mT * matrix).sum(dim=-2, keepdim=True)


def _exponents(dtype: torch.dtype) -> float:
    """Logarithm of the largest factor by which two numbers can differ from 1: 87.3 in fp32."""
    return -log(torch.finfo(dtype).tiny)
