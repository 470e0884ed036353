"""fp64 twins of the losses, written from their formulas alone: slow, and independent of the package.

Everything is a sum that one can read off the page. Gradients come from automatic differentiation of these
sums, or from central differences.
"""

from collections.abc import Callable, Sequence

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
