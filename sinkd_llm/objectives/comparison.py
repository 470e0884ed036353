"""How the student's rows and a teacher's signal are compared: each kind of signal in the way that it allows.

Shape suffixes: N student rows, M teacher rows, V vocabulary, P transport problems of one size, n and m the rows of a
problem.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkd_llm.objectives.divergences import Divergence, cross_entropy
from sinkd_llm.objectives.few_ids import StudentAt
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.problems import COST_BOUND, Pairing, TransportSettings
from sinkd_llm.objectives.signals import (
    DenseSignal,
    Signal,
    TopKSignal,
    at_ids,
    first_ids,
    logits_of,
    rows_of,
    vocabulary_of,
)
from sinkd_llm.objectives.sweep import sweep
from sinkd_llm.objectives.tile_pair import Wanted
from sinkd_llm.optimal_transport import pairwise_cost
from sinkd_llm.optimal_transport.precision import full_precision


@dataclass(frozen=True, eq=False)
class Costs:
    """
    The transport cost between the rows of each problem, differentiable once to the student.

    Attributes:
        blocks (`list[Tensor]`): `[P, n, m]` for each block of the pairing.
        width_N (`Tensor`, *optional*): of a top-k signal, each row's mean width of the interval that begins at the
            cost and holds the dense one.
        zero (`Tensor`): 0, but of the graph where there is no row.
        bound (`float`, *optional*): what no cost exceeds; `None`: not known.
    """

    blocks: list[Tensor]
    width_N: Tensor | None
    zero: Tensor
    bound: float | None = COST_BOUND


@dataclass(frozen=True, eq=False)
class TransportRequest:
    """
    Which costs are wanted.

    Args:
        signal ([`Signal`]): of the teacher's M rows.
        pairing ([`Pairing`]): which rows meet.
        settings ([`TransportSettings`]): temperature and norm.
        ids_K (`Tensor`, *optional*): the ids that the logits are restricted to before the softmax.
        own (`slice`, *optional*): which of the M rows are of the student's tokens. Default: all.
    """

    signal: Signal
    pairing: Pairing
    settings: TransportSettings
    ids_K: Tensor | None = None
    own: slice | None = None


@dataclass(frozen=True, eq=False)
class Compared:
    """What [`compare`] gives: cross-entropy and divergence `[N]`, and costs; `None` where they were not asked for."""

    ce_N: Tensor | None
    divergence_N: Tensor | None
    costs: Costs | None


def compare(
    student: Tensor | HeadOf,
    signal: Signal,
    labels_N: Tensor | None = None,
    divergence: Divergence | None = None,
    temperature: float = 1.0,
    transport: TransportRequest | None = None,
) -> Compared:
    """
    Everything that the loss needs of a batch, over the vocabulary once where the signal allows it.

    Args:
        student (`Tensor` or [`HeadOf`]): logits `[N, V]`, or hidden states with their head.
        signal ([`Signal`]): the teacher's, of the same rows.
        labels_N (`Tensor`, *optional*): for cross-entropy.
        divergence ([`Divergence`], *optional*), temperature (`float`): over the ids that both have.
        transport ([`TransportRequest`], *optional*): the costs, likewise.
    """
    if isinstance(signal, TopKSignal):
        return _compare_few(student, signal, labels_N, divergence, temperature, transport)
    # The teacher's rows serve the divergence and the cost, where both see all ids.
    together = transport is not None and transport.ids_K is None and transport.signal.side is not None
    wanted = Wanted(
        labels_N,
        divergence,
        temperature,
        transport.pairing if transport is not None and together else None,
        transport.settings.sinkhorn_temperature if transport is not None else 1.0,
        transport.settings.cost_norm if transport is not None else "l1",
        transport.own if transport is not None and together else None,
    )
    theirs = transport.signal if transport is not None and together else signal
    swept = sweep(student, theirs.side, wanted)
    if transport is None:
        return Compared(swept.ce_N, swept.divergence_N, None)
    costs = Costs(swept.costs, None, zero_of(student)) if together else transport_costs(student, transport)
    return Compared(swept.ce_N, swept.divergence_N, costs)


def transport_costs(student: Tensor | HeadOf, request: TransportRequest, regression: bool = False) -> Costs:
    """
    The costs alone.

    Args:
        student (`Tensor` or [`HeadOf`]): as in [`compare`].
        request ([`TransportRequest`]): which.
        regression (`bool`, *optional*, defaults to `False`): the rows are predictions `[N, 1]` of a number in [0, 1].
            A prediction z stands for the two masses (z, 1 - z), without temperature.
    """
    signal, pairing, settings = request.signal, request.pairing, request.settings
    zero = zero_of(student)
    if regression:
        masses = [_two_masses(logits_of(student)), _two_masses(signal.predictions())]
        blocks = zip(pairing.students(masses[0]), pairing.teachers(masses[1]), strict=True)
        return Costs([pairwise_cost(s, t, norm=settings.cost_norm) for s, t in blocks], None, zero, None)
    if request.ids_K is not None:
        student = at_ids(student, request.ids_K)
    elif isinstance(signal, TopKSignal):
        tau = settings.sinkhorn_temperature
        few = StudentAt.of(shared_ids(student, signal), [signal.ids_NK], [tau])
        return Costs(*signal.costs(few, pairing, tau, settings.cost_norm), zero)
    wanted = Wanted(pairing=pairing, sinkhorn_temperature=settings.sinkhorn_temperature, cost_norm=settings.cost_norm)
    return Costs(sweep(student, signal.side, wanted).costs, None, zero)


def _compare_few(
    student: Tensor | HeadOf,
    signal: TopKSignal,
    labels_N: Tensor | None,
    divergence: Divergence | None,
    temperature: float,
    transport: TransportRequest | None,
) -> Compared:
    """[`compare`] with a teacher that names ids of its own in each row."""
    shared = shared_ids(student, signal)
    if vocabulary_of(shared) < vocabulary_of(student):
        student = logits_of(student)  # cross-entropy is over more ids than the teacher counts
        shared = first_ids(student, vocabulary_of(shared))
    named, temperatures = [signal.ids_NK], [1.0, temperature]
    top_k = None
    if transport is not None and transport.ids_K is None and isinstance(transport.signal, TopKSignal):
        top_k = transport.signal
        named.append(top_k.ids_NK)
        temperatures.append(transport.settings.sinkhorn_temperature)
    few = StudentAt.of(shared, named if labels_N is None else [*named, labels_N], temperatures)
    ce_N = None
    if labels_N is not None:
        ce_N = cross_entropy(student, labels_N) if isinstance(student, Tensor) else few.cross_entropy(labels_N)
    divergence_N = None if divergence is None else divergence(*signal.compared(few, temperature))
    costs = None
    if transport is not None and top_k is not None:
        tau, norm = transport.settings.sinkhorn_temperature, transport.settings.cost_norm
        costs = Costs(*top_k.costs(few, transport.pairing, tau, norm), zero_of(student))
    elif transport is not None:
        costs = transport_costs(student, transport)
    return Compared(ce_N, divergence_N, costs)


def restricted(signal: Signal, ids_K: Tensor | None) -> Signal:
    """The signal over some ids alone, of which every row is then dense."""
    return signal if ids_K is None else DenseSignal(signal.at_ids(ids_K))


def shared_ids(student: Tensor | HeadOf, signal: Signal) -> Tensor | HeadOf:
    """The student over the ids that both have. Raises `ValueError` if the signal cannot leave out those it lacks."""
    shared = min(vocabulary_of(student), signal.vocabulary_size)
    signal.first_ids(shared)
    return first_ids(student, shared)


def zero_of(student: Tensor | HeadOf) -> Tensor:
    """0, and without a row one of the student's graph, so that its gradient is 0 as well."""
    rows = rows_of(student)
    zero = full_precision(rows).new_zeros(())
    return zero if len(rows) else zero + rows.sum()


def _two_masses(predictions_N1: Tensor) -> Tensor:
    predictions_N1 = full_precision(predictions_N1)
    return torch.cat([predictions_N1, 1 - predictions_N1], dim=-1)
