"""The terms of the loss, and how they are added up."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkd_llm.objectives.plan_part import PlanPart


@dataclass
class ObjectiveOutput:
    """What [`DistillationObjective`] returns.

    Attributes:
        loss (`Tensor`):
            Scalar to minimise.
        terms (`dict[str, Tensor]`):
            What was computed of `"ce"`, the divergence's name and `"sinkhorn"` (of a regression, `"mse"`,
            `"teacher_mse"` and `"sinkhorn"`): the mean over these rows, before the term's weight and without
            gradient. The divergence has its temperature factor, so that the weighted terms add up to the loss when
            `num_items` is the number of rows.
        diagnostics (`dict[str, Tensor]`):
            Empty unless asked for.
        shares (`dict[str, Tensor | float]`):
            Of each term, and of the diagnostics under `""`: the number of its rows, divided by what its sum is divided
            by in the loss.
        plans (`dict[str, PlanPart]`):
            With the diagnostics: a part of one plan of each transport term that has plans, by the term's name.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, Tensor | float] = field(default_factory=dict)
    plans: dict[str, PlanPart] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Term:
    """
    A summand of the loss.

    Args:
        name (`str`): as it is logged.
        weight (`float`): its factor in the loss.
        total (`Tensor`): the sum over its rows.
        rows (`Tensor` or `int`): how many rows these are.
        divisor (`Tensor` or `int`): what the sum is divided by: rows of the whole accumulation window. At least 1 is
            used.
    """

    name: str
    weight: float
    total: Tensor
    rows: Tensor | int
    divisor: Tensor | int


def added_up(terms: Sequence[Term], diagnostics: dict[str, Tensor], M: int, taught: Tensor | int) -> ObjectiveOutput:
    """
    `sum of weight * total / divisor`, and the mean of each term over its rows.

    Args:
        terms (sequence of [`Term`]): at least one.
        diagnostics (`dict[str, Tensor]`): means over the rows that the teacher speaks of.
        M (`int`): how many rows these are.
        taught (`Tensor` or `int`): the same number of the whole accumulation window.
    """
    device = terms[0].total.device
    divisors = [_at_least_1(term.divisor, device) for term in terms]
    if all(term.divisor is terms[0].divisor for term in terms):
        loss = torch.stack([term.weight * term.total for term in terms]).sum() / divisors[0]
    else:
        parts = [term.weight * term.total / divisor for term, divisor in zip(terms, divisors, strict=True)]
        loss = torch.stack(parts).sum()
    means = {term.name: term.total.detach() / _at_least_1(term.rows, device) for term in terms}
    shares = {term.name: term.rows / divisor for term, divisor in zip(terms, divisors, strict=True)}
    return ObjectiveOutput(loss, means, diagnostics, {**shares, "": M / _at_least_1(taught, device)})


def with_terms(output: ObjectiveOutput, terms: Sequence[Term]) -> ObjectiveOutput:
    """
    A loss with further terms.

    Args:
        output ([`ObjectiveOutput`]): without them.
        terms (sequence of [`Term`]): at least one; their names are new.
    """
    more = added_up(terms, {}, 0, 1)
    shares = {**more.shares, **output.shares}  # of the diagnostics those that there were
    return ObjectiveOutput(
        output.loss + more.loss, output.terms | more.terms, output.diagnostics, shares, output.plans
    )


def _at_least_1(count: Tensor | int, device: torch.device) -> Tensor | int:
    return count.to(device).clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
