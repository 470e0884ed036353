"""What every term that rests on a transport plan gives: its value, and what is logged of its plans.

Shape suffixes: P transport problems of one size, n and m the rows of a problem that are the student's and the
teacher's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Planned(Protocol):
    """Plans of some problems."""

    @property
    def plan(self) -> Tensor:  # pragma: no cover - a protocol
        """`[P, n, m]`, each of mass 1; 0 where it is padded."""
        ...

    @property
    def row_error(self) -> Tensor:  # pragma: no cover - a protocol
        """The misplaced share of the mass, `[P]`."""
        ...


# Attributes of a term that are logged.
PLAN_DIAGNOSTICS = ("row_error", "diagonal_mass", "plan_entropy")


@dataclass(frozen=True, eq=False)
class TransportTerm:
    """A term of the loss with its plans. The diagnostics are computed on first use and carry no gradient.

    Attributes:
        value (`Tensor`):
            Scalar, the *sum* over supervised tokens.
        num_tokens (`int`):
            Supervised tokens.
        num_problems (`int`):
            Transport problems they were divided into.
        plans (sequence of [`Planned`]):
            Of all problems, some at a time.
        sizes (sequence of `Tensor`):
            For each of `plans`, the number of the student's rows of its problems, `[P]`.
    """

    # The first part of the names in the log.
    name: ClassVar[str]
    logged: ClassVar[tuple[str, ...]] = PLAN_DIAGNOSTICS

    value: Tensor
    num_tokens: int
    num_problems: int
    plans: Sequence[Planned]
    sizes: Sequence[Tensor]

    @cached_property
    def row_error(self) -> Tensor:
        """Share of the mass that the plan's rows misplace, in [0, 2], mean over tokens: 0 = converged."""
        return self._mean([plan.row_error for plan in self.plans])

    @cached_property
    def diagonal_mass(self) -> Tensor:
        """Share of a token's mass that goes to the same token, in [0, 1], mean over tokens.

        At 1 the term compares corresponding rows and transport does nothing; at 1/n the plan of n rows does not know
        which rows correspond.
        """
        return self._mean([plan.plan.detach().diagonal(dim1=-2, dim2=-1).sum(dim=-1) for plan in self.plans])

    @cached_property
    def plan_entropy(self) -> Tensor:
        """How spread the plan is, in [0, 1], mean over tokens: 0 is a permutation, 1 the uniform plan.

        `(H(P) - log n) / log m` for a problem of n rows of the student and m of the teacher: the entropy of where a
        token's mass comes from, over its maximum. A single row of the teacher has only one plan: 0.
        """
        spreads = []
        for planned, size_P in zip(self.plans, self.sizes, strict=True):
            plan = planned.plan.detach()
            columns_P = (plan.sum(dim=-2) > 0).sum(dim=-1)
            entropy_P = torch.special.entr(plan).sum(dim=(-2, -1))
            spread_P = (entropy_P - size_P.to(plan.dtype).log()) / columns_P.to(plan.dtype).log()
            spreads.append(spread_P.clamp(0, 1).where(columns_P > 1, 0))
        return self._mean(spreads)

    def diagnostics(self) -> dict[str, Tensor]:
        """What there is of `logged`, by its names in the log."""
        values = {name: getattr(self, name) for name in self.logged}
        return {f"{self.name}/{name}": value for name, value in values.items() if value is not None}

    def _mean(self, values: list[Tensor]) -> Tensor:
        """Mean over the tokens of all problems of a quantity that each problem has."""
        total = torch.zeros_like(self.value.detach())
        for value_P, size_P in zip(values, self.sizes, strict=True):
            total = total + (value_P * size_P).sum()
        return total / max(sum(int(size_P.sum()) for size_P in self.sizes), 1)
