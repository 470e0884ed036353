"""What a teacher says of N supervised tokens, and how the terms of the loss see both sides through it.

Shape suffixes: N supervised tokens, V vocabulary, K kept ids of a row, W wanted ids, M teacher rows of a transport
problem, P problems.

Each kind of signal is one class: it says over which ids it can be compared, and how it travels between ranks.
`comparison.py` compares each with the student. There are three:

- [`DenseSignal`]: logits of all ids. Wherever a signal is taken, a plain `Tensor` `[N, V]` stands for it.
- [`HeadOf`]: hidden states and the head that would make logits of all ids of them (`head_of.py`).
- [`TopKSignal`]: logits of some ids of each row. What a row does not name is one bucket, the *tail*. Over K ids and
  the tail, teacher and student are distributions again, so that every divergence is the dense one on `[N, K + 1]`
  logits; merging ids can only lower KL, reverse KL, JS and TVD (data-processing inequality), and changes nothing at
  K = V.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.optimal_transport import pairwise_top_k_cost
from sinkd_llm.optimal_transport.precision import full_precision

if TYPE_CHECKING:
    from sinkd_llm.objectives.few_ids import StudentAt
    from sinkd_llm.objectives.problems import Pairing


@dataclass(frozen=True, eq=False)
class DenseSignal:
    """
    The teacher's logits of all ids.

    Args:
        logits_NV (`Tensor`): `[N, V]` of any floating dtype, without gradient.
    """

    logits_NV: Tensor

    @classmethod
    def joined(cls, signals: "Sequence[DenseSignal]", join: Callable[[list[Tensor]], Tensor]) -> "DenseSignal":
        """One signal of several; `join` makes one tensor of their tensors."""
        return cls(join([signal.logits_NV for signal in signals]))

    @property
    def names_all_ids(self) -> bool:
        """Whether no id is merged with others."""
        return True

    @property
    def vocabulary_size(self) -> int:
        return self.logits_NV.shape[-1]

    def __len__(self) -> int:
        return len(self.logits_NV)

    def first_ids(self, count: int) -> "DenseSignal":
        """The signal over the ids in [0, count)."""
        return DenseSignal(self.logits_NV[:, :count])

    @property
    def side(self) -> Tensor:
        """What a sweep takes."""
        return self.logits_NV

    def at_ids(self, ids_W: Tensor) -> Tensor:
        """The logits of some ids alone."""
        return self.logits_NV.index_select(1, ids_W)

    def predictions(self) -> Tensor:
        """Of a regression, whose single output is a number: `[N, 1]`."""
        return self.logits_NV


@dataclass(frozen=True, eq=False)
class TopKSignal:
    """The teacher's logits at some ids of each supervised token, and how much the others weigh.

    `log_sum_exp(T)` is over the whole vocabulary: the probability of a kept id at temperature T is exact. The tail is
    kept as a logarithm of its own, for a difference of two large numbers would not give a tail of 1e-9, which
    reverse KL needs.

    Args:
        ids_NK (`Tensor`): integers `[N, K]`, distinct within a row.
        logits_NK (`Tensor`): their logits, up to a constant per row, which the tail shares. Any floating dtype;
            computed in fp32, or fp64 if given fp64.
        tail_log_sum_exp (`dict[float, Tensor]`): for every temperature T at which the signal can be used,
            `log sum exp(logit / T)` over the ids that are not kept, `[N]`; -inf where none is left.
        vocabulary_size (`int`): V of the logits that the signal was taken from.
        logit_error_N (`Tensor`, *optional*): how far a kept logit of each row may be from the teacher's, where the
            signal was stored with fewer bits. `None`: not at all.
        floor (`float`, *optional*): kept logits at or below it stand for ones that may lie anywhere below.
    """

    ids_NK: Tensor
    logits_NK: Tensor
    tail_log_sum_exp: dict[float, Tensor]
    vocabulary_size: int
    logit_error_N: Tensor | None = None
    floor: float = float("-inf")

    @classmethod
    def from_logits(cls, teacher_NV: Tensor, ids_NK: Tensor, temperatures: Sequence[float]) -> "TopKSignal":
        """The signal of dense logits `[N, V]` at the given ids."""
        logits_NV = full_precision(teacher_NV.detach())
        rest_NV = logits_NV.scatter(-1, ids_NK, float("-inf"))
        tails = {float(T): torch.logsumexp(rest_NV / T, dim=-1) for T in temperatures}
        return cls(ids_NK, logits_NV.gather(-1, ids_NK), tails, teacher_NV.shape[-1])

    @property
    def names_all_ids(self) -> bool:
        """Whether no id is merged with others: some are in the tail, or may be."""
        return False

    def __len__(self) -> int:
        return len(self.ids_NK)

    def map(self, function: Callable[[Tensor], Tensor]) -> "TopKSignal":
        """`function` of every tensor, each of which has the N rows first: to move, select or gather rows."""
        tails = {temperature: function(tail_N) for temperature, tail_N in self.tail_log_sum_exp.items()}
        error_N = None if self.logit_error_N is None else function(self.logit_error_N)
        return TopKSignal(
            function(self.ids_NK), function(self.logits_NK), tails, self.vocabulary_size, error_N, self.floor
        )

    @classmethod
    def joined(cls, signals: "Sequence[TopKSignal]", join: Callable[[list[Tensor]], Tensor]) -> "TopKSignal":
        """One signal of several of one kind; `join` makes one tensor of their tensors."""
        first = signals[0]
        tails = {T: join([signal.tail_log_sum_exp[T] for signal in signals]) for T in first.tail_log_sum_exp}
        ids_NK, logits_NK = join([s.ids_NK for s in signals]), join([s.logits_NK for s in signals])
        errors = [signal.logit_error_N for signal in signals if signal.logit_error_N is not None]
        error_N = join(errors) if errors else None
        return cls(ids_NK, logits_NK, tails, first.vocabulary_size, error_N, first.floor)

    def log_sum_exp(self, temperature: float) -> Tensor:
        """`log sum exp(logit / temperature)` over the whole vocabulary, `[N]`."""
        kept_N = torch.logsumexp(full_precision(self.logits_NK) / temperature, dim=-1)
        return torch.logaddexp(kept_N, self._tail(temperature))

    def bucket_logits(self, temperature: float) -> Tensor:
        """Logits, at temperature 1, of the distribution over the kept ids and the tail: `[N, K + 1]`."""
        kept_NK = full_precision(self.logits_NK) / temperature
        return torch.cat([kept_NK, self._tail(temperature)[:, None]], dim=-1)

    def probabilities(self, temperature: float) -> tuple[Tensor, Tensor]:
        """The probabilities of the kept ids `[N, K]` and of the tail `[N]`."""
        buckets = torch.softmax(self.bucket_logits(temperature), dim=-1)
        return buckets[:, :-1], buckets[:, -1]

    def cost_error(self, temperature: float) -> Tensor:
        """
        How far the L1 distance of a row to any other may be off because its logits are stored with fewer bits, `[N]`.

        With logits off by h T at most, every probability changes by a factor in [exp(-2h), exp(2h)], and the row by
        `2 tanh(h / 2) <= h` in the L1 norm (the worst case is a row of two masses). What lies at the floor is off by
        no more than all of its mass, twice.
        """
        kept_NK, _ = self.probabilities(temperature)
        below_N = kept_NK.masked_fill(self.logits_NK > self.floor, 0).sum(dim=-1)
        error_N = 2 * below_N
        return error_N if self.logit_error_N is None else error_N + self.logit_error_N / temperature

    def first_ids(self, count: int) -> "TopKSignal":
        """The signal over the ids in [0, count): of those that the tail counts none can be left out.

        Raises:
            `ValueError`: if there are more.
        """
        if count < self.vocabulary_size:
            raise ValueError(
                f"The teacher signal counts the mass of {self.vocabulary_size} ids and the student has {count}; cache "
                f"the teacher over {count} ids."
            )
        return self

    @property
    def side(self) -> None:
        """Nothing that a sweep takes."""
        return None

    def at_ids(self, ids_W: Tensor) -> Tensor:
        """The logits of ids that every row has kept.

        Raises:
            `ValueError`: if a row has not kept one of them.
        """
        match_NKW = self.ids_NK[:, :, None] == ids_W
        if not match_NKW.any(dim=1).all():
            lost = ids_W[~match_NKW.any(dim=1).all(dim=0)].tolist()
            raise ValueError(
                f"The teacher signal has no logits of the ids {lost} in some rows; cache it with these ids (a recipe "
                "with vocabulary='verbalizers' does), or use vocabulary='full'."
            )
        return self.logits_NK.gather(1, match_NKW.to(torch.uint8).argmax(dim=1))

    def compared(self, student: "StudentAt", temperature: float) -> tuple[Tensor, Tensor, float]:
        """What a divergence takes: logits `[N, K + 1]` of both, which have the temperature in them already."""
        few_NB = student_bucket_logits(student.logits_NU, student.positions(self.ids_NK), temperature)
        if student.rest:
            few_NB = torch.cat([few_NB[:, :-1], student.with_rest(few_NB[:, -1], temperature)[:, None]], dim=-1)
        return few_NB, self.bucket_logits(temperature), 1.0

    def predictions(self) -> NoReturn:
        """There are none: one output has no ids to leave out."""
        raise ValueError("A regression has one output, so its teacher signal is dense: give the predictions [N, 1].")

    def costs(
        self, student: "StudentAt", pairing: "Pairing", temperature: float, cost_norm: str
    ) -> tuple[list[Tensor], Tensor]:
        """The transport cost of the student's rows, `[P, n, m]` for each block, and each row's mean width, `[N]`.

        Raises:
            `ValueError`: for a norm of which nothing would be certified.
        """
        if cost_norm != "l1":
            raise ValueError(
                f"cost_norm={cost_norm!r} needs the teacher's whole rows: merging ids into one bucket shortens an L1 "
                "distance, but may lengthen a squared one, so nothing would be certified; use cost_norm='l1', or "
                "cache full rows."
            )
        students = pairing.students(student.distribution(temperature))
        rows = (student.positions(self.ids_NK), *self.probabilities(temperature), self.cost_error(temperature))
        costs, widths = [], []
        for student_PnU, ids_PmK, kept_PmK, tail_Pm, error_Pm in zip(
            students, *map(pairing.teachers, rows), strict=True
        ):
            cost_Pnm, width_Pnm = pairwise_top_k_cost(student_PnU, ids_PmK, kept_PmK, tail_Pm)
            costs.append(cost_Pnm)
            # Both ends of the interval may be off by the error of the stored logits.
            widths.append(width_Pnm.mean(dim=-1) + 2 * error_Pm.mean(dim=-1, keepdim=True))
        width_N = pairing.joined_student(widths) if widths else full_precision(student.logits_NU).new_zeros(0)
        return costs, width_N

    def _tail(self, temperature: float) -> Tensor:
        if temperature not in self.tail_log_sum_exp:
            known = ", ".join(f"{t:g}" for t in sorted(self.tail_log_sum_exp))
            raise ValueError(
                f"The teacher signal has its tail mass at the temperatures {known}, but not at {temperature:g}; train "
                "at one of them, or cache the teacher with this one."
            )
        tail_N = self.tail_log_sum_exp[temperature]
        return tail_N.to(torch.promote_types(full_precision(self.logits_NK).dtype, tail_N.dtype))


# Logits that [`mean_entropy`] looks at together.
_ENTROPY_LOGITS = 2**24

# The kinds of signal there are, and what stands for them where one is given.
Signal: TypeAlias = DenseSignal | HeadOf | TopKSignal
TeacherSignal: TypeAlias = Tensor | Signal


def as_signal(teacher: TeacherSignal) -> Signal:
    """The signal that a plain tensor of logits stands for; any other as it is."""
    if isinstance(teacher, HeadOf):
        return teacher.detached()
    return DenseSignal(teacher.detach()) if isinstance(teacher, Tensor) else teacher


def joined(signals: Sequence[Signal], join: Callable[[list[Tensor]], Tensor]) -> Signal:
    """One signal of several of one kind; `join` makes one tensor of their tensors, rows first."""
    kind: Any = type(signals[0])
    signal: Signal = kind.joined(signals, join)
    return signal


def vocabulary_of(student: Tensor | HeadOf) -> int:
    """V of the student's side."""
    return student.shape[-1] if isinstance(student, Tensor) else student.vocabulary_size


def rows_of(side: Tensor | HeadOf) -> Tensor:
    """The tensor of a side that has its rows."""
    return side if isinstance(side, Tensor) else side.hidden_NH


def logits_of(side: Tensor | HeadOf) -> Tensor:
    """The logits `[N, V]` of a side."""
    return side if isinstance(side, Tensor) else side.logits()


def first_ids(student: Tensor | HeadOf, count: int) -> Tensor | HeadOf:
    """The student's side over the ids in [0, count): models pad one vocabulary to different widths."""
    if vocabulary_of(student) == count:  # a slice of everything would copy the gradient for nothing
        return student
    return student[:, :count] if isinstance(student, Tensor) else student.first_ids(count)


def at_ids(student: Tensor | HeadOf, ids_K: Tensor) -> Tensor:
    """The student's logits of some ids alone, `[N, K]`."""
    return student.index_select(1, ids_K) if isinstance(student, Tensor) else student.at_ids(ids_K)


@torch.no_grad()
def mean_entropy(side: Tensor | HeadOf) -> Tensor:
    """Mean entropy of the rows at temperature 1, in nats; 0 without rows."""
    rows = max(1, _ENTROPY_LOGITS // vocabulary_of(side))
    total, N = None, len(side)
    for start in range(0, max(N, 1), rows):
        part = slice(start, start + rows)
        logits = side[part] if isinstance(side, Tensor) else replace(side, hidden_NH=side.hidden_NH[part]).logits()
        entropy = torch.special.entr(torch.softmax(full_precision(logits), dim=-1)).sum()
        total = entropy if total is None else total + entropy
    assert total is not None
    return total / max(N, 1)


def student_bucket_logits(student_NV: Tensor, ids_NK: Tensor, temperature: float) -> Tensor:
    """The student's side of [`TopKSignal.bucket_logits`]: `[N, K + 1]`, differentiable once.

    The tail is the log-sum-exp over the ids that are not kept, and not `log(1 - kept mass)`, which cancels where the
    student, too, is sure of the kept ids.

    Args:
        student_NV (`Tensor`): logits `[N, V]` of any floating dtype; computed in fp32, or fp64 if given fp64.
        ids_NK (`Tensor`): integers `[N, K]`, distinct within a row.
        temperature (`float`): divides the logits.
    """
    buckets: Tensor = _Buckets.apply(student_NV, ids_NK, temperature)
    return buckets


class _Buckets(torch.autograd.Function):
    """With z = logits / T: (z at the kept ids, LSE of the others). The only [N, V] buffer holds the other ids."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, ids_NK: Tensor, temperature: float) -> Tensor:
        scaled_NV = full_precision(student_NV) / temperature
        kept_NK = scaled_NV.gather(-1, ids_NK)
        rest_NV = scaled_NV.scatter_(-1, ids_NK, float("-inf"))
        tail_N = torch.logsumexp(rest_NV, dim=-1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(rest_NV, ids_NK, tail_N)
        ctx.temperature, ctx.dtype = temperature, student_NV.dtype
        return torch.cat([kept_NK, tail_N[:, None]], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NB: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        rest_NV, ids_NK, tail_N = ctx.saved_tensors
        finite_N = tail_N.where(tail_N.isfinite(), 0)  # -inf: nothing is left, and exp(-inf) gives it nothing
        grad_NV = (rest_NV - finite_N[:, None]).exp_().mul_(grad_NB[:, -1:])
        grad_NV.scatter_(-1, ids_NK, grad_NB[:, :-1])
        return grad_NV.div_(ctx.temperature).to(ctx.dtype), None, None
