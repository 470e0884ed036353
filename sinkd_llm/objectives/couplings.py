"""The plan of the transported cross-entropy, its controls, and teacher rows that are sets (`transported.py`).

Shape suffixes: N student rows, M teacher rows, P transport problems of one size, n and m the rows of a problem that
are the student's and the teacher's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkd_llm.objectives.problems import Pairing
from sinkd_llm.objectives.setting_checks import check_numbers
from sinkd_llm.optimal_transport import sinkhorn

TRANSPORT, IDENTITY, ROW_SOFTMAX, PROPORTION = "transport", "identity", "row_softmax", "proportion"
COUPLINGS = (TRANSPORT, IDENTITY, ROW_SOFTMAX, PROPORTION)


@dataclass(frozen=True)
class TransportedSettings:
    """
    The settings of the transported cross-entropy.

    Args:
        transported_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the term's mean over supervised tokens, at least 0. The term is multiplied by
            `transported_temperature ** 2`, as a divergence is. 0: it is not computed.
        transported_temperature (`float`, *optional*, defaults to `1.0`):
            Divides both sides' logits before the softmax.
        transported_epsilon (`float`, *optional*, defaults to `0.5`):
            Entropic regularisation of the plan, in nats.
        transported_iterations (`int`, *optional*, defaults to `20`):
            Sinkhorn iterations.
        transported_anchor (`float`, *optional*, defaults to `1.0`):
            How free the plan is of the pairs of student row i and teacher row i, rho in [0, 1]: 1 does not know them,
            0 is the KL divergence of the pairs. About 0.3 where most pairs hold. A problem whose teacher rows are
            counts, or more or fewer than the student's, has no pairs: there the plan is free.
        transported_coupling (`str`, *optional*, defaults to `"transport"`):
            `"transport"`, or one of the controls that show what the plan does: `"identity"` pairs row i with row i
            (`P = I / n`), `"row_softmax"` takes the nearest teacher rows without the column sums
            (`P_ij = b_j exp(-C_ij / epsilon)`, each row divided by its sum and by n), `"proportion"` compares the
            mean of the teacher's rows with the mean of the student's (`n KL(mean t || mean s)`, the loss of label
            proportions).

    Raises:
        `ValueError`: for a setting out of its range.
    """

    transported_weight: float = 0.0
    transported_temperature: float = 1.0
    transported_epsilon: float = 0.5
    transported_iterations: int = 20
    transported_anchor: float = 1.0
    transported_coupling: str = TRANSPORT

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.transported_coupling not in COUPLINGS:
            raise ValueError(
                f"transported_coupling must be one of {', '.join(COUPLINGS)}, got {self.transported_coupling!r}."
            )

    @property
    def factor(self) -> float:
        """Keeps the size of the gradient the same at every temperature, as of KL."""
        return float(self.transported_temperature) ** 2

    @property
    def uses_pairs(self) -> bool:
        """Whether student row i and teacher row i are taken for a pair."""
        if self.transported_coupling == TRANSPORT:
            return self.transported_anchor < 1
        return self.transported_coupling == IDENTITY

    @property
    def mixes_rows(self) -> bool:
        """Whether student row i learns from other rows of the teacher than row i."""
        if self.transported_coupling == TRANSPORT:
            return self.transported_anchor > 0
        return self.transported_coupling != IDENTITY

    @torch.no_grad()
    def couple(self, cost_Pnm: Tensor, mass_Pm: Tensor | None = None, paired_P: Tensor | None = None) -> "Coupling":
        """
        The plans of problems of one shape.

        Args:
            cost_Pnm (`Tensor`): C, `[P, n, m]`, in fp32 or fp64.
            mass_Pm (`Tensor`, *optional*): the masses of the teacher's rows up to a factor, `[P, m]`, at least 0.
                Default: equal.
            paired_P (`Tensor`, *optional*): booleans `[P]`, on the CPU: in which problems student row i and teacher
                row i are a pair. Default: in all, if there are as many rows on both sides, and no masses.

        Returns:
            [`Coupling`]

        Raises:
            `ValueError`: for the coupling `"identity"` of sides that have no pairs.
        """
        n, m = cost_Pnm.shape[1:]
        epsilon, rho = self.transported_epsilon, self.transported_anchor
        if paired_P is None:
            paired_P = torch.full((len(cost_Pnm),), mass_Pm is None)
        elif n != m and bool(paired_P.any()):
            raise ValueError(f"Pairs need as many rows on both sides, got {n} and {m}.")
        paired, some = n == m and bool(paired_P.all()), n == m and bool(paired_P.any())
        pairs = torch.eye(n, m, dtype=cost_Pnm.dtype, device=cost_Pnm.device)
        if self.transported_coupling == IDENTITY:
            if not paired:
                why = f"a group has {m} rows of the teacher for {n} of the student"
                if mass_Pm is not None:
                    why = f"the teacher's {m} rows of a group come with counts, so that no text has one of its own"
                elif n == m:
                    why = "the order of the teacher's rows of a group is not known"
                raise ValueError(
                    "transported_coupling='identity' takes teacher row i for the student's row i, and here "
                    f"{why}; use 'transport' or 'proportion'."
                )
            return Coupling.without_error((pairs / n).expand(cost_Pnm.shape))
        if self.transported_coupling == ROW_SOFTMAX:
            scores = -cost_Pnm / epsilon if mass_Pm is None else mass_Pm.log()[:, None, :] - cost_Pnm / epsilon
            return Coupling.without_error(torch.softmax(scores, dim=-1) / n)
        if paired and rho == 0:
            return Coupling.without_error((pairs / n).expand(cost_Pnm.shape))
        anchored = cost_Pnm
        if some and 0 < rho < 1:  # the kernel R exp(-C / epsilon) over a b^T
            held = epsilon * (rho + (1 - rho) * n * pairs).log()
            anchored = cost_Pnm - held * paired_P.to(cost_Pnm)[:, None, None]
        # Nothing bounds a cross-entropy; on a CPU it is cheap to look.
        bound = None if cost_Pnm.device.type == "cpu" else float("inf")
        solved = sinkhorn(
            anchored,
            epsilon,
            self.transported_iterations,
            gradient="envelope",
            cost_bound=bound,
            column_weights=mass_Pm,
        )
        if not some or rho > 0:
            return Coupling(solved.plan, solved.row_error)
        own_P = paired_P.to(solved.plan.device)  # rho = 0 beside problems without pairs
        plan = torch.where(own_P[:, None, None], pairs / n, solved.plan)
        return Coupling(plan, solved.row_error.where(~own_P, 0))


@dataclass(frozen=True, eq=False)
class Coupling:
    """
    Plans that are constants.

    Attributes:
        plan (`Tensor`): `[P, n, m]`, each of mass 1.
        row_error (`Tensor`): the share of the mass that its rows misplace, `[P]`.
    """

    plan: Tensor
    row_error: Tensor

    @classmethod
    def without_error(cls, plan_Pnm: Tensor) -> "Coupling":
        """Of plans whose rows have their mass by construction."""
        return cls(plan_Pnm, plan_Pnm.new_zeros(len(plan_Pnm)))


@dataclass(frozen=True, eq=False)
class TeacherSets:
    """
    Teacher rows that are sets: how many there are of a group may differ from the student's number of rows.

    Args:
        group_M (`Tensor`): integers `[M]`, the group of each row of the teacher.
        count_M (`Tensor`, *optional*): how often the group holds this row, `[M]`, finite and at least 0; one row for
            each answer with its count is the same as so many rows. Default: once.
        paired_M (`Tensor`, *optional*): booleans `[M]`, equal in a group: whether its teacher rows are in the order of
            the student's. Default: where there are as many as the student's, and no counts.

    Raises:
        `ValueError`: for counts or pairs that are not one for each row, counts that are not finite and at least 0, and
            for a group whose counts are all 0.
    """

    group_M: Tensor
    count_M: Tensor | None = None
    paired_M: Tensor | None = None

    def __post_init__(self) -> None:
        count_M = self.count_M
        if self.paired_M is not None and self.paired_M.shape != self.group_M.shape:
            raise ValueError(
                f"paired_M must have one entry for each of the teacher's {len(self.group_M)} rows, got shape "
                f"{tuple(self.paired_M.shape)}."
            )
        if count_M is None:
            return
        if count_M.shape != self.group_M.shape:
            raise ValueError(
                f"count_M must have one entry for each of the teacher's {len(self.group_M)} rows, got shape "
                f"{tuple(count_M.shape)}."
            )
        if not bool((count_M.isfinite() & (count_M >= 0)).all()):
            raise ValueError(f"count_M must be finite numbers of at least 0, got {count_M.tolist()}.")
        empty = set(self.group_M.tolist()) - set(self.group_M[count_M > 0].tolist())
        if empty:
            raise ValueError(f"The counts of the groups {sorted(empty)} are all 0, so nothing is known of their rows.")

    def pairing(self, group_N: Tensor) -> Pairing:
        """
        Which rows meet.

        Args:
            group_N (`Tensor`): integers `[N]`, the group of each row of the student.

        Raises:
            `ValueError`: if a group has rows on one side alone.
        """
        mine_N, theirs_M = group_N.cpu(), self.group_M.cpu()
        alone = set(mine_N.tolist()) ^ set(theirs_M.tolist())
        if alone:
            raise ValueError(
                f"The groups {sorted(alone)[:5]} have rows of the student or of the teacher alone; give both, or "
                "leave these rows out."
            )
        keys = torch.cat([mine_N, theirs_M]).unique(return_inverse=True)[1]
        return Pairing.between(*keys.split([len(mine_N), len(theirs_M)]))
