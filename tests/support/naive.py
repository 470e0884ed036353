"""fp64 twins of the losses, written from their formulas alone: slow, and independent of the package.

Everything is a sum that one can read off the page. Gradients come from automatic differentiation of these
sums, or from central differences.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    scaled = logits.double() / temperature
    weights = (scaled - scaled.max(dim=-1, keepdim=True).values).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


def cost(student: Tensor, teacher: Tensor, norm: str = "l1") -> Tensor:
    rows = []
    for s in student.double():
        differences = [(s - t) for t in teacher.double()]
        rows.append(torch.stack([d.abs().sum() if norm == "l1" else (d**2).sum() for d in differences]))
    return torch.stack(rows)


def plan(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Linear domain, as published, but of mass 1: rows sum to 1/N, then columns to 1/M."""
    P = torch.exp(-cost.double() / epsilon)
    for _ in range(iterations):
        P = P / P.sum(dim=1, keepdim=True) / P.shape[0]
        P = P / P.sum(dim=0, keepdim=True) / P.shape[1]
    return P


def transport_value(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    return (plan(cost, epsilon, iterations) * cost.double()).sum()


def regularised_value(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    P = plan(cost, epsilon, iterations)
    return (P * cost.double()).sum() + epsilon * (P * (P * P.numel()).log()).sum()


def implicit_gradient(cost: Tensor, epsilon: float) -> Tensor:
    """Gradient of the converged <P, C> (Luise et al., arXiv:1805.11897), by a pseudo-inverse."""
    P, C = plan(cost, epsilon, 5_000), cost.double()
    system = torch.cat(
        [
            torch.cat([P.sum(dim=1).diag(), P], dim=1),
            torch.cat([P.T, P.sum(dim=0).diag()], dim=1),
        ]
    )
    right = torch.cat([(P * C).sum(dim=1), (P * C).sum(dim=0)])
    solution = torch.linalg.pinv(system) @ right
    s, t = solution[: len(P)], solution[len(P) :]
    return P + P * (s[:, None] + t[None, :] - C) / epsilon


def published_loss(student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.8) -> Tensor:
    """beta * 0.001 * sum(P * D) with the constants of the published GLUE code: a plan of mass N."""
    s, t = softmax(student_logits, 2.0), softmax(teacher_logits, 2.0)
    D = cost(s, t)
    P = torch.exp(-D / 0.1)
    for _ in range(20):
        P = P / P.sum(dim=1, keepdim=True)
        P = P / P.sum(dim=0, keepdim=True)
    return beta * 0.001 * (P * D).sum()


def divergence(name: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """One value per row, of logits without an infinity."""
    q, p = softmax(student, temperature), softmax(teacher, temperature)

    def kl(x: Tensor, y: Tensor) -> Tensor:
        return (x * (x.log() - y.log())).sum(dim=-1)

    if name == "kl":
        return kl(p, q)
    if name == "rkl":
        return kl(q, p)
    if name == "js":
        return kl(p, (p + q) / 2) / 2 + kl(q, (p + q) / 2) / 2
    return (p - q).abs().sum(dim=-1) / 2


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([-softmax(row)[label].log() for row, label in zip(student, labels, strict=True)])


def sinkd(
    student: Tensor,
    teacher: Tensor,
    keys: Sequence[int],
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    norm: str = "l1",
    ids: Sequence[int] | None = None,
) -> Tensor:
    """Sum over tokens of their transport cost; rows of the same key form one problem."""
    total = student.double().new_zeros(())
    for key in sorted(set(keys)):
        rows = [i for i, k in enumerate(keys) if k == key]
        s, t = student[rows], teacher[rows]
        if ids is not None:
            s, t = s[:, ids], t[:, ids]
        C = cost(softmax(s, temperature), softmax(t, temperature), norm)
        total = total + len(rows) * transport_value(C, epsilon, iterations)
    return total


def transported_plan(cost: Tensor, masses: Tensor, of: Any, paired: bool = True) -> Tensor:
    """The linear domain, as the formulas say: scale the rows of `R exp(-C / epsilon)`, then its columns, T times."""
    n, m = cost.shape
    kernel = torch.exp(-cost / of.transported_epsilon) * masses
    if of.transported_coupling == "row_softmax":
        return kernel / kernel.sum(dim=1, keepdim=True) / n
    rho = 0.0 if of.transported_coupling == "identity" else of.transported_anchor
    if paired and n == m and bool((masses == masses[0]).all()):
        kernel = kernel * (rho / (n * n) + (1 - rho) * torch.eye(n, dtype=cost.dtype) / n)
    for _ in range(of.transported_iterations):
        kernel = kernel / kernel.sum(dim=1, keepdim=True) / n
        kernel = kernel * torch.where(masses > 0, masses / kernel.sum(dim=0), 0)
    return kernel


def transported(
    student: Tensor,
    teacher: Tensor,
    of: Any,
    groups: Sequence[int],
    teacher_groups: Sequence[int] | None = None,
    counts: Sequence[float] | None = None,
    at: Tensor | None = None,
    paired: Sequence[int] | None = None,
) -> Tensor:
    """The transported cross-entropy of groups, with the plan of the student at `at` (by default `student`); `paired`
    are the groups whose rows stand in the same order on both sides (by default all that can)."""
    T, total = of.transported_temperature, student.double().sum() * 0
    theirs = groups if teacher_groups is None else teacher_groups
    for group in sorted(set(groups)):
        rows, columns = ([i for i, g in enumerate(gs) if g == group] for gs in (groups, theirs))
        weights = torch.tensor([1.0 if counts is None else counts[j] for j in columns], dtype=torch.float64)
        masses = weights / weights.sum()
        t = softmax(teacher[columns], T)
        s = softmax(student[rows], T)
        if of.transported_coupling == "proportion":
            mean_t, mean_s = masses @ t, s.mean(dim=0)
            total = total + len(rows) * (mean_t * (mean_t / mean_s).log()).sum()
            continue
        entropies = -(t * t.log()).sum(dim=1)
        fixed = softmax((student if at is None else at)[rows], T)
        in_order = paired is None or group in paired
        P = transported_plan(-(fixed.log() @ t.T), masses, of, in_order).detach()
        total = total + len(rows) * (P * (-(s.log() @ t.T) - entropies)).sum()
    return total


def central_differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Gradient of a scalar function in fp64. It is called once, with all shifted inputs in a batch."""
    at = at.detach().double()
    shifts = step * torch.eye(at.numel(), dtype=torch.float64).view(-1, *at.shape)
    above, below = function(torch.cat([at + shifts, at - shifts])).chunk(2)
    return ((above - below) / (2 * step)).view_as(at)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of a scalar function by automatic differentiation, in fp64."""
    at = at.detach().double().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


def merged(logits: Tensor, ids: Sequence[int], temperature: float) -> Tensor:
    """One row's probabilities of `ids`, and as the last entry that of everything else."""
    p = softmax(logits, temperature)
    others = [v for v in range(len(p)) if v not in set(ids)]
    return torch.cat([p[list(ids)], p[others].sum()[None]])


def merged_divergence(name: str, student: Tensor, teacher: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """`divergence` of each pair of rows, over the teacher row's ids and the rest in one."""
    values = []
    for s, t, row in zip(student, teacher, ids.tolist(), strict=True):
        q, p = merged(s, row, temperature), merged(t, row, temperature)
        values.append(divergence(name, q.log()[None], p.log()[None], 1.0)[0])
    return torch.stack(values)


def merged_cost(student: Tensor, teacher: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """`cost` between logits, entry by entry: both rows over the ids of the teacher's, and the rest in one."""
    return torch.stack(
        [
            torch.stack(
                [
                    (merged(s, row, temperature) - merged(t, row, temperature)).abs().sum()
                    for t, row in zip(teacher, ids.tolist(), strict=True)
                ]
            )
            for s in student
        ]
    )
