"""A part of one transport plan, small enough to be kept and looked at.

Shape suffixes: N rows of the student in the call, n and m the rows of the part that are the student's and the
teacher's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkd_llm.objectives.problems import Pairing
from sinkd_llm.objectives.transport_term import TransportTerm

# More rows are not told apart in a drawing.
LARGEST_PART = 64


@dataclass(frozen=True, eq=False)
class PlanPart:
    """
    A part of a plan.

    Attributes:
        plan_nm (`Tensor`): masses, without gradient; of the whole plan they add up to 1.
        example_n, position_n (`Tensor`): of each row of the student: its example, and its place in the answer.
        same_rows (`bool`): whether the teacher's rows are of the same tokens. Where they are sets they are not: their
            order says nothing.
        problem (`tuple[int, int]`): how many rows of either side the whole problem has.
    """

    plan_nm: Tensor
    example_n: Tensor
    position_n: Tensor
    same_rows: bool
    problem: tuple[int, int]


def part_of(
    term: TransportTerm,
    pairing: Pairing,
    example_N: Tensor,
    position_N: Tensor,
    own: slice | None = None,
    are_sets: bool = False,
) -> dict[str, PlanPart]:
    """
    The first rows of the largest problem, of those that are in this call.

    Args:
        term ([`TransportTerm`]): with its plans.
        pairing ([`Pairing`]): of all rows that the plans are of.
        example_N, position_N (`Tensor`): integers `[N]`, as in the objective.
        own (`slice`, *optional*): which of the pairing's rows are those of this call. Default: all.
        are_sets (`bool`, *optional*, defaults to `False`): whether the teacher's rows are sets.

    Returns:
        `dict[str, PlanPart]`: by the term's name; empty if it has no plan of rows of this call.
    """
    plans = [plan for planned in term.plans for plan in planned.plan.detach().unbind()]
    sizes = [(n, m) for P, n, m in pairing.blocks for _ in range(P)]
    first, last = (own.start, own.stop) if own is not None else (0, len(example_N))
    ends_n, end = [], 0
    for n, _ in sizes:
        end += n
        ends_n.append(end)
    order_N = torch.arange(end) if pairing.order_N is None else pairing.order_N.cpu()
    for plan, (n, m), end in reversed(list(zip(plans, sizes, ends_n, strict=bool(plans)))):
        rows_n = order_N[end - n : end]
        kept = torch.nonzero((rows_n >= first) & (rows_n < last)).flatten()[:LARGEST_PART]
        if not len(kept):
            continue
        columns = torch.arange(min(m, LARGEST_PART)) if are_sets else kept
        index_n, device = (rows_n[kept] - first).to(example_N.device), plan.device
        part = plan[kept.to(device)][:, columns.to(device)]
        return {term.name: PlanPart(part, example_N[index_n], position_N[index_n], not are_sets, (n, m))}
    return {}
