"""Rows to transport problems: which rows form one, over which ids, and its solution.

Shape suffixes: N rows of the student, M of the teacher, V vocabulary, K kept token ids, P transport problems of one
size, R rows of a problem, n and m the rows of a problem that are the student's and the teacher's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinkd_llm.errors import shown
from sinkd_llm.objectives.setting_checks import check_numbers
from sinkd_llm.optimal_transport import COST_NORMS, GRADIENTS, TransportPlan, sinkhorn

# The scope that the data give: rows of one number are a problem.
GROUP = "group"
TRANSPORT_SCOPES = ("batch", "position", "sequence", GROUP)
FULL, VERBALIZERS = "full", "verbalizers"
VOCABULARIES = (FULL, VERBALIZERS)
# What two distributions are at most apart, in either norm. Known without a look at the costs.
COST_BOUND = 2.0


@dataclass(frozen=True)
class TransportSettings:
    """
    The settings of the SinKD term but for its weight. The defaults are the published constants.

    Args:
        sinkhorn_temperature (`float`, *optional*, defaults to `2.0`):
            Divides both sides' logits before the softmax. The term has no factor for it (the published form).
        sinkhorn_epsilon (`float`, *optional*, defaults to `0.1`):
            Entropic regularisation, in units of the cost.
        sinkhorn_iterations (`int`, *optional*, defaults to `20`):
            The most Sinkhorn iterations.
        sinkhorn_threshold (`float`, *optional*):
            Row error at which the iterations stop early.
        sinkhorn_gradient (`str`, *optional*, defaults to `"unrolled"`):
            `"unrolled"`, `"implicit"` or `"envelope"`, see [`~sinkd_llm.optimal_transport.sinkhorn`].
        cost_norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"` or `"sql2"`, see [`~sinkd_llm.optimal_transport.pairwise_cost`].
        transport_scope (`str`, *optional*, defaults to `"batch"`):
            Which rows form one transport problem: `"batch"` all of them, `"position"` the rows of one place in
            their answers, `"sequence"` the rows of one example, `"group"` the rows of one group of the data. A group
            is never cut: its teacher rows may belong to any of its rows.
        vocabulary (`str`, *optional*, defaults to `"full"`):
            `"verbalizers"` restricts the logits to the first token ids of the answer choices *before* the softmax.
        transport_group_size (`int`, *optional*, defaults to `256`):
            The most rows of a problem. One with more is cut into random groups of nearly equal size, so that the cost
            of a step grows with the number of rows and not with its square. `None`: no problem is cut.

    Raises:
        `ValueError`: for a setting out of its range.
    """

    sinkhorn_temperature: float = 2.0
    sinkhorn_epsilon: float = 0.1
    sinkhorn_iterations: int = 20
    sinkhorn_threshold: float | None = None
    sinkhorn_gradient: str = "unrolled"
    cost_norm: str = "l1"
    transport_scope: str = "batch"
    vocabulary: str = FULL
    transport_group_size: int | None = 256
    # What the last ids became, by their content; and by V the last ones on a device: a look at them makes a GPU wait.
    _kept: dict[tuple[tuple[int, ...], int, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _looked_at: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_numbers(self)
        choices = {
            **{"sinkhorn_gradient": GRADIENTS, "cost_norm": COST_NORMS},
            **{"transport_scope": TRANSPORT_SCOPES, "vocabulary": VOCABULARIES},
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")

    @property
    def _solver(self) -> tuple[float, int, float | None, str]:
        return self.sinkhorn_epsilon, self.sinkhorn_iterations, self.sinkhorn_threshold, self.sinkhorn_gradient

    def kept_ids(
        self, verbalizer_ids: Tensor | Sequence[int] | None, regression: bool, V: int, device: torch.device
    ) -> Tensor | None:
        """The ids `[K]` that the logits `[N, V]` are restricted to; `None`: all of them.

        Raises:
            `ValueError`: if verbalizers are wanted and not given, or are fewer than two, repeated, outside of
            [0, V) or no whole numbers.
        """
        if self.vocabulary == FULL or regression:  # one output has nothing to leave out
            return None
        if verbalizer_ids is None:
            raise ValueError(
                "vocabulary='verbalizers' needs verbalizer_ids: pass the first token id of each choice, or use "
                "vocabulary='full'."
            )
        ids_K = _whole_numbers(verbalizer_ids)
        if isinstance(verbalizer_ids, Tensor) and verbalizer_ids.device.type != "cpu":
            if self._looked_at.get(V) is not verbalizer_ids:
                _check_ids(ids_K, V)
                self._looked_at[V] = verbalizer_ids
            return ids_K.to(device)
        key = tuple(ids_K.tolist()), V, device
        if key not in self._kept:
            _check_ids(ids_K, V)  # where they are: the memory estimate's device has no values
            self._kept.clear()
            self._kept[key] = ids_K.to(device, copy=True)  # the caller may change theirs
        return self._kept[key]

    def problems(
        self, example_N: Tensor, position_N: Tensor, group_N: Tensor | None = None, seed: int = 0
    ) -> "Problems":
        """The problems that rows form.

        Args:
            example_N, position_N (`Tensor`): integers `[N]`: each row's example, and its place in the answer.
            group_N (`Tensor`, *optional*): integers `[N]`: each row's group, for the scope `"group"`.
            seed (`int`, *optional*, defaults to `0`): of the groups that a large problem is cut into.

        Raises:
            `ValueError`: for the scope `"group"` without `group_N`, or with one of another length.
        """
        if self.transport_scope != GROUP:
            keys = {"position": position_N, "sequence": example_N}
            return Problems.of(keys.get(self.transport_scope), len(position_N), self.transport_group_size, seed)
        if group_N is None or group_N.shape != position_N.shape:
            raise ValueError(
                f"transport_scope='group' needs a group number for each of the {len(position_N)} rows, got "
                f"{None if group_N is None else tuple(group_N.shape)}; give group_N, or choose another scope."
            )
        return Problems.of(group_N, len(position_N))

    def solve(self, costs: Sequence[Tensor], cost_bound: float | None = COST_BOUND) -> "Solution":
        """Solves problems, given the costs `[P, R, R]` of the problems of each size R, R growing.

        `cost_bound` is what no cost exceeds; `None`: not known.

        One solver call for the problems that have the same power of two above their size: few calls, and padding
        that at most quadruples the plans, however unequal the problems are.
        """
        plans, sizes = [], []
        for _, similar in groupby(costs, key=lambda cost: (cost.shape[-1] - 1).bit_length()):
            cost_PRR, mask_PR, size_P = _padded(list(similar))
            plans.append(sinkhorn(cost_PRR, *self._solver, mask_PR, mask_PR, cost_bound))
            sizes.append(size_P)
        return Solution(plans, sizes)


def _whole_numbers(verbalizer_ids: Tensor | Sequence[int]) -> Tensor:
    """The ids `[K]` in int64, where they are."""
    try:
        ids_K = torch.as_tensor(verbalizer_ids).flatten()
    except (OverflowError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"verbalizer_ids must be whole numbers, got {shown(verbalizer_ids)}.") from None
    if len(ids_K) and (ids_K.dtype == torch.bool or ids_K.is_floating_point() or ids_K.is_complex()):
        raise ValueError(f"verbalizer_ids must be whole numbers, got {shown(ids_K.tolist())}.")
    return ids_K.long()


def _check_ids(ids_K: Tensor, V: int) -> None:
    distinct = ids_K.unique()
    if len(distinct) < 2:
        raise ValueError(
            f"SinKD needs at least two vocabulary ids, got {ids_K.tolist()}: over a single one every "
            "distribution is the same and the term is 0 whatever the model says."
        )
    if len(distinct) < len(ids_K):
        raise ValueError(f"verbalizer_ids must be distinct, got {ids_K.tolist()}.")
    if distinct[0] < 0 or distinct[-1] >= V:
        raise ValueError(f"verbalizer_ids must lie in [0, {V}), got {ids_K.tolist()}.")


@dataclass(frozen=True, eq=False)
class Pairing:
    """
    Which rows of the student meet which rows of the teacher.

    Attributes:
        blocks (`list[tuple[int, int, int]]`): `(P, n, m)` for P problems of n and m rows.
        order_N, order_M (`Tensor`, *optional*): the order of either side's rows in which the blocks, and within them
            the problems, follow each other. `None`: as they stand, all in one block.
    """

    blocks: list[tuple[int, int, int]]
    order_N: Tensor | None = None
    order_M: Tensor | None = None

    @classmethod
    def between(cls, key_N: Tensor, key_M: Tensor) -> "Pairing":
        """Every row of the student meets all of the teacher's rows with its key; keys are in [0, some number)."""
        size = int(max((int(key.max()) for key in (key_N, key_M) if len(key)), default=-1)) + 1
        counts, sizes = key_N.bincount(minlength=size).tolist(), key_M.bincount(minlength=size).tolist()
        # One block for the problems of one shape: the same order of problems on both sides.
        shape_of = list(zip(counts, sizes, strict=True))
        present = sorted((p for p in range(size) if counts[p]), key=shape_of.__getitem__)
        place_P = torch.full((size,), size, dtype=torch.long)
        place_P[torch.tensor(present, dtype=torch.long)] = torch.arange(len(present))
        blocks = [(len(list(same)), *shape) for shape, same in groupby(present, key=shape_of.__getitem__)]
        order_M = place_P[key_M].argsort(stable=True)[: sum(sizes[p] for p in present)]
        return cls(blocks, place_P[key_N].argsort(stable=True), order_M)

    def students(self, rows_N: Tensor) -> list[Tensor]:
        """The student's rows `[N, ...]` as `[P, n, ...]` for each block."""
        return _blocks(rows_N, self.order_N, [(P, n) for P, n, _ in self.blocks])

    def teachers(self, rows_M: Tensor) -> list[Tensor]:
        """The teacher's rows `[M, ...]` as `[P, m, ...]` for each block."""
        return _blocks(rows_M, self.order_M, [(P, m) for P, _, m in self.blocks])

    def joined_student(self, blocks: Sequence[Tensor]) -> Tensor:
        """The reverse of `students`: `[N, ...]` of `[P, n, ...]`."""
        flat = [block.flatten(0, 1) for block in blocks]
        sorted_N = flat[0] if len(flat) == 1 else torch.cat(flat)
        if self.order_N is None:
            return sorted_N
        return torch.empty_like(sorted_N).index_copy_(0, self.order_N.to(sorted_N.device), sorted_N)


@dataclass(frozen=True, eq=False)
class Problems:
    """
    Which rows form which transport problem.

    Attributes:
        blocks (`list[tuple[int, int]]`): `(P, R)` for the P problems of R rows, R growing.
        order_N (`Tensor`, *optional*): the order of the rows in which the blocks, and within them the problems, follow
            each other. Rows of one problem keep their order, so that row i of the student and row i of the teacher
            stay the same token. `None`: the rows are one problem as they stand.
        key_N (`Tensor`, *optional*): which problem each row is part of; `None`: all of one.
    """

    blocks: list[tuple[int, int]]
    order_N: Tensor | None = None
    key_N: Tensor | None = None

    @classmethod
    def of(cls, key_N: Tensor | None, N: int, group_size: int | None = None, seed: int = 0) -> "Problems":
        """
        Rows with equal keys are one problem.

        Args:
            key_N (`Tensor`, *optional*): integers `[N]`. `None`: all rows are of one problem.
            N (`int`): rows.
            group_size (`int`, *optional*): see [`TransportSettings`].
            seed (`int`, *optional*, defaults to `0`): of the groups of a problem that is cut; ranks with equal keys
                and seeds cut it alike.
        """
        if key_N is None and (group_size is None or group_size >= N):
            return cls([(1, N)] if N else [])
        # On the CPU: the sizes are needed here.
        key_N = torch.zeros(N, dtype=torch.long) if key_N is None else key_N.cpu()
        if group_size is not None and N:
            key_N = _cut(key_N, group_size, seed)
        _, problem_N, count = key_N.unique(return_inverse=True, return_counts=True)
        order_N = problem_N.argsort(stable=True)
        order_N = order_N[count[problem_N[order_N]].argsort(stable=True)]
        blocks = [(len(list(same)), R) for R, same in groupby(sorted(count.tolist()))]
        return cls(blocks, order_N, problem_N)

    @property
    def count(self) -> int:
        return sum(P for P, _ in self.blocks)

    @property
    def largest(self) -> int:
        """Rows of the largest problem; 0 without one."""
        return self.blocks[-1][1] if self.blocks else 0

    @property
    def pairing(self) -> Pairing:
        """Every row meets all rows of its problem."""
        return Pairing([(P, R, R) for P, R in self.blocks], self.order_N, self.order_N)

    def pairing_of(self, rows: slice) -> Pairing:
        """Some rows of the student meet all rows of their problems."""
        if self.key_N is None:
            n = len(range(*rows.indices(self.largest)))
            return Pairing([(1, n, self.largest)] if n else [])
        return Pairing.between(self.key_N[rows], self.key_N)

    def sorted(self, rows_N: Tensor) -> Tensor:
        """The rows `[N, ...]` in the order of the problems."""
        return rows_N if self.order_N is None else rows_N.index_select(0, self.order_N.to(rows_N.device))

    def unsorted(self, sorted_N: Tensor) -> Tensor:
        """The rows in their own order again."""
        if self.order_N is None:
            return sorted_N
        rows_N = torch.empty_like(sorted_N)
        rows_N[self.order_N.to(rows_N.device)] = sorted_N
        return rows_N

    def split(self, sorted_N: Tensor) -> list[Tensor]:
        """The `[P, R, ...]` of each block."""
        return _blocks(sorted_N, None, self.blocks)


def _blocks(rows: Tensor, order: Tensor | None, blocks: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Rows in an order as `[P, R, ...]` for each block. A single block is not split, which would copy its gradient."""
    if not blocks:
        return []  # a rank without rows of its own needs none of the others'
    if order is not None:
        rows = rows.index_select(0, order.to(rows.device))
    parts = [rows] if len(blocks) == 1 else rows.split([P * R for P, R in blocks])
    return [part.unflatten(0, (P, R)) for (P, R), part in zip(blocks, parts, strict=True)]


def _cut(key_N: Tensor, group_size: int, seed: int) -> Tensor:
    """Keys of the groups that problems of more rows are cut into: random ones, of nearly equal size."""
    _, problem_N, count_P = key_N.unique(return_inverse=True, return_counts=True)
    groups_P = -(-count_P // group_size)
    if int(groups_P.max()) <= 1:
        return key_N
    shuffled_N = torch.randperm(len(key_N), generator=torch.Generator().manual_seed(seed))
    shuffled_N = shuffled_N[problem_N[shuffled_N].argsort(stable=True)]  # problem by problem
    problem_of = problem_N[shuffled_N]
    place = torch.arange(len(key_N)) - (count_P.cumsum(0) - count_P)[problem_of]  # in its problem
    group = (groups_P.cumsum(0) - groups_P)[problem_of] + place * groups_P[problem_of] // count_P[problem_of]
    return torch.empty_like(shuffled_N).index_copy_(0, shuffled_N, group)


@dataclass(frozen=True, eq=False)
class Solution:
    """
    The solutions of transport problems, problems of similar size together.

    Attributes:
        plans (`list[TransportPlan]`): `plan` is `[P, R, R]`, each of mass 1.
        sizes (`list[Tensor]`): for each of `plans`, the number of rows of its problems, `[P]`.
    """

    plans: list[TransportPlan]
    sizes: list[Tensor]

    def cost(self, zero: Tensor) -> Tensor:
        """`sum_p n_p <P_p, C_p>`, the transport cost of all rows, added to `zero`."""
        for plan, size_P in zip(self.plans, self.sizes, strict=True):
            zero = zero + (plan.value * size_P).sum()
        return zero


def _padded(costs: list[Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Square cost blocks `[P, R, R]` of growing R as one; a mask of the real rows if there is padding; their sizes."""
    largest = costs[-1].shape[-1]
    cost = torch.cat([pad(c, (0, largest - c.shape[-1]) * 2) for c in costs])
    sizes = [c.shape[-1] for c in costs for _ in range(len(c))]
    size_P = torch.tensor(sizes, device=cost.device)
    if sizes[0] == largest:
        return cost, None, size_P
    return cost, torch.arange(largest, device=cost.device) < size_P[:, None], size_P
