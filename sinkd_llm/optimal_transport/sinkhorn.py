"""Entropic optimal transport between two sets, with three gradients.

Shape suffixes: N rows, M columns; every tensor may have leading dimensions, one transport problem each.

The problem (SinKD, arXiv:2402.17110; Cuturi, arXiv:1306.0895), with a = 1/N, and b = 1/M or given:

    P = argmin <P, C> + epsilon KL(P | a b^T)      subject to   P 1 = a,   P^T 1 = b

KL(P | a b^T) is the negative entropy of P plus the constant log(N M), so the plan is the published one. Its
solution is `P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)`. Here `u = f / epsilon`, `v = g / epsilon`. Where
`C / epsilon` is so small that no factor can leave the range of the numbers, the iterations scale the kernel
`exp(-C / epsilon)`; elsewhere they compute u and v, and exponentiate only what is normalised.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sinkd_llm.optimal_transport.half_steps import Logarithms, Scalings, alternate
from sinkd_llm.optimal_transport.precision import full_precision, no_autocast
from sinkd_llm.optimal_transport.solver_path import Plan, Potentials, SolverPath, Value, leading_of, value_of
from sinkd_llm.ranges import Range

GRADIENTS = ("unrolled", "implicit", "envelope")
_RANGES = {"epsilon": Range(0, above=True), "iterations": Range(1, whole=True), "threshold": Range(0, null=True)}


@dataclass(frozen=True, eq=False)
class TransportPlan:
    """The solution of `sinkhorn`. Everything derived from the iterations is computed on first use.

    Attributes:
        cost (`Tensor`):
            `[..., N, M]` in the solver's precision, 0 where masked.
        iterations (`int`):
            How many iterations ran.
    """

    cost: Tensor
    epsilon: float
    gradient: str
    iterations: int
    _path: SolverPath
    _a: Tensor  # [..., 1, N], or without dimensions
    _b: Tensor  # [..., 1, M], or without dimensions

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        """
        `f [..., N]` and `g [..., M]` in units of the cost, 0 where masked; fixed up to a constant that moves from
        one to the other.
        """
        u, v = self._log_scalings
        return self.epsilon * u, self.epsilon * v

    @cached_property
    def plan(self) -> Tensor:
        """P, `[..., N, M]`, of total mass 1 (0 for an empty problem); 0 where masked."""
        return Plan.apply(self._moving_cost, self._path)

    @cached_property
    def value(self) -> Tensor:
        """`<P, C>`, `[...]`: the mean transport cost of a row. The loss of the paper is N times it."""
        if self.cost.requires_grad and torch.is_grad_enabled():
            return Value.apply(self.cost, self._path)
        return value_of(self.cost, self._path)

    @cached_property
    def regularised_value(self) -> Tensor:
        """`<P, C> + epsilon KL(P | a b^T)`, `[...]`: what the plan minimises.

        The divergence is summed as `a b (r log r - r + 1)` with `r = P / (a b)`: the extra terms add up to
        zero, and each summand is small where the plan is close to uniform. `sum P log r` is not, and
        a large epsilon multiplies its rounding error.
        """
        u, v = self._log_scalings
        log_r = u[..., :, None] + v[..., None, :] - self._moving_cost / self.epsilon
        if self._a.ndim:
            ab = self._a.mT * self._b
            log_r = log_r.where(ab > 0, 0)  # masked entries may hold anything
        else:
            ab = self._a * self._b
        return self.value + self.epsilon * (ab * (log_r.exp() * log_r - torch.expm1(log_r))).sum(dim=(-2, -1))

    @cached_property
    def row_error(self) -> Tensor:
        """`sum_i |sum_j P_ij - a_i|`, `[...]`: the misplaced share of the mass, in [0, 2]; no gradient."""
        rows, columns = self._path.last
        with torch.no_grad(), no_autocast(rows):
            error = self._path.steps.row_error(rows, self._path.steps.rows(columns))
        return error.view(self.cost.shape[:-2])

    @cached_property
    def column_error(self) -> Tensor:
        """As `row_error`, for the columns: rounding only, because the columns are normalised last."""
        mass = self.plan.detach().sum(dim=-2, keepdim=True)
        return (mass - self._b).abs().sum(dim=(-2, -1))

    @cached_property
    def _log_scalings(self) -> tuple[Tensor, Tensor]:
        """u `[..., N]` and v `[..., M]`."""
        return Potentials.apply(self._moving_cost, self._path)

    @property
    def _moving_cost(self) -> Tensor:
        """The cost, or a constant where the plan does not follow it."""
        return self.cost.detach() if self.gradient == "envelope" else self.cost


def sinkhorn(
    cost_NM: Tensor,
    epsilon: float = 0.1,
    iterations: int = 20,
    threshold: float | None = None,
    gradient: str = "unrolled",
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
    cost_bound: float | None = None,
    column_weights: Tensor | None = None,
) -> TransportPlan:
    """Solves one or many entropic transport problems with marginals of total mass 1: uniform, but for
    `column_weights`.

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

            - `"unrolled"`: the derivative of the iterations themselves (the published one). Two vectors of each
              iteration are kept, O(T (N + M)), and one kernel.
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
        cost_bound (`float`, *optional*):
            What no entry of the cost is above in absolute value, but for rounding: 2 for the costs of distributions.
            It decides how the iterations are computed; a cost far above it may give NaN. By default the cost is looked
            at, for which the CPU waits for a GPU.
        column_weights (`Tensor`, *optional*):
            `[..., M]`, finite and at least 0: the columns' masses, up to a factor. A column of weight 0 takes no part.
            Default: equal.

    Returns:
        [`TransportPlan`]

    Raises:
        `ValueError`: for epsilon <= 0, iterations < 1 or not whole, a negative threshold, what is no number, an
        unknown gradient, a negative cost_bound, or shapes that do not match.
    """
    _check_solver(epsilon, iterations, threshold, gradient)
    if cost_NM.ndim < 2:
        raise ValueError(f"cost_NM must be [..., rows, columns], got shape {tuple(cost_NM.shape)}.")
    if cost_bound is not None and not cost_bound >= 0:
        raise ValueError(f"cost_bound must be None or at least 0, got {cost_bound}.")
    cost = full_precision(cost_NM)
    if row_mask is None and column_mask is None and column_weights is None and cost.numel():
        a, b = cost.new_full((), 1 / cost.shape[-2]), cost.new_full((), 1 / cost.shape[-1])
    else:
        rows = _mask("row_mask", row_mask, cost, cost.shape[:-1])
        columns = _mask("column_mask", column_mask, cost, (*cost.shape[:-2], cost.shape[-1]))
        if column_weights is not None:
            if column_weights.shape != columns.shape:
                raise ValueError(
                    f"column_weights must be of shape {tuple(columns.shape)} for a cost of shape "
                    f"{tuple(cost.shape)}, got {tuple(column_weights.shape)}."
                )
            columns = columns & (column_weights > 0)
        # Rows that have no column to go to, or the reverse, are an empty problem.
        rows, columns = rows & columns.any(dim=-1, keepdim=True), columns & rows.any(dim=-1, keepdim=True)
        cost = cost.masked_fill(~(rows[..., :, None] & columns[..., None, :]), 0)
        masses = columns if column_weights is None else column_weights * columns
        a, b = _shares(rows, cost.dtype), _shares(masses, cost.dtype)
    whole_path = gradient == "unrolled" and cost.requires_grad and torch.is_grad_enabled()
    with torch.no_grad(), no_autocast(cost):
        path, ran = _solve(cost.detach(), epsilon, iterations, threshold, gradient, a, b, cost_bound, whole_path)
    return TransportPlan(cost, epsilon, gradient, ran, path, a, b)


def _check_solver(epsilon: float, iterations: int, threshold: float | None, gradient: str) -> None:
    for name, value in (("epsilon", epsilon), ("iterations", iterations), ("threshold", threshold)):
        _RANGES[name].check(name, value)
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}.")


def _solve(
    cost: Tensor,
    epsilon: float,
    iterations: int,
    threshold: float | None,
    gradient: str,
    a: Tensor,
    b: Tensor,
    cost_bound: float | None,
    whole_path: bool,
) -> tuple[SolverPath, int]:
    """The path of the iterations, or its end, and their number."""
    leading = leading_of(cost)
    if a.ndim:
        a, b = (weights.reshape(*leading, 1, weights.shape[-1]) for weights in (a, b))
    bound = _largest(cost) if cost_bound is None else cost_bound
    kind = Scalings if bound / epsilon <= Scalings.reach(cost.dtype) else Logarithms
    steps = kind.of(cost.reshape(*leading, *cost.shape[-2:]) / -epsilon, a, b)
    kept: list[tuple[Tensor, Tensor]] = []
    ran = 0
    for state in alternate(steps, iterations, threshold):
        ran += 1
        if not whole_path:
            kept.clear()
        kept.append(state)
    rows, columns = (torch.cat(s, dim=-2) if len(s) > 1 else s[0] for s in zip(*kept, strict=True))
    return SolverPath(steps, rows, columns, epsilon, gradient), ran


def _largest(cost: Tensor) -> float:
    """The largest absolute value, or the distance from the smallest to the largest if that is more."""
    if not cost.numel():
        return 0.0
    low, high = (extreme.item() for extreme in cost.aminmax())
    return float(max(high, 0) - min(low, 0))


def _shares(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights, or a mask's True entries, that sum to 1, `[..., 1, N]`; all 0 where there is none."""
    weights = weights.to(dtype)
    total = weights.sum(dim=-1, keepdim=True)
    return (weights / total.where(total > 0, 1)).unsqueeze(-2)


def _mask(name: str, mask: Tensor | None, cost: Tensor, shape: tuple[int, ...]) -> Tensor:
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=cost.device)
    if mask.dtype != torch.bool or mask.shape != torch.Size(shape):
        raise ValueError(
            f"{name} must be a boolean tensor of shape {tuple(shape)} for a cost of shape "
            f"{tuple(cost.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    return mask
