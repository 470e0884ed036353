"""What training logs of the loss between two records: its terms, which add up to it, and the diagnostics."""

from collections import defaultdict

import torch
from torch import Tensor

from sinkd_llm.objectives import ObjectiveOutput


class TermLog:
    """
    Collects the outputs of the objective, micro-batch by micro-batch.

    A term is logged as the loss is: the sum over the micro-batches of an update, the mean over updates. The mean
    over ranks, which the caller takes, is then the mean over the rows of all ranks, however unequal they are. A
    diagnostic is likewise a mean over rows, of the updates that have it.
    """

    def __init__(self) -> None:
        self._terms: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._diagnostics: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._updates: set[int] = set()
        self._diagnosed: set[int] = set()

    def add(self, output: ObjectiveOutput, scale: float, update: int) -> None:
        """
        Args:
            output ([`~sinkd_llm.objectives.ObjectiveOutput`]): of a micro-batch; its terms are means over its rows,
                and `shares` says which part of the update's rows these are.
            scale (`float`): what the loss is multiplied by.
            update (`int`): which update it belongs to.
        """
        for name, value in output.terms.items():
            self._terms[name].append(value * output.shares[name] * scale)
        for name, value in output.diagnostics.items():
            self._diagnostics[name].append(value.detach() * output.shares[""] * scale)
        self._updates.add(update)
        if output.diagnostics:
            self._diagnosed.add(update)

    def take(self) -> dict[str, Tensor]:
        """The terms and the means of the diagnostics since the last call, sorted by name; empty if nothing came."""
        values = {name: torch.stack(shares).sum() / len(self._updates) for name, shares in self._terms.items()}
        values |= {name: torch.stack(each).sum() / len(self._diagnosed) for name, each in self._diagnostics.items()}
        for collected in (self._terms, self._diagnostics, self._updates, self._diagnosed):
            collected.clear()
        return dict(sorted(values.items()))
