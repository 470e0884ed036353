"""The scores of a comparison: on held-out training rows, by which settings are chosen, and on the rows for evaluation.

The two are two types: what chooses takes the first, so that nothing can be chosen by the second.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.metrics.significance import (
    OF_CLASSES,
    OF_NUMBERS,
    Difference,
    Resampled,
    difference,
    holm,
    mean_and_sd,
    resample,
)
from sinkd_llm.report.predictions import Predictions
from sinkd_llm.report.results import LOSSES

# From -1 to 1; other scores are from 0 to 1, and losses have no bound.
SIGNED = ("mcc", *OF_NUMBERS)
# The id that a task gives to a row without its own: `<task>-<split>-<place>-<hash of the prompt>`.
_PLACE = re.compile(r"-((?:train|validation|test)-\d+)-[0-9a-f]{8}$")


@dataclass(frozen=True)
class HeldOutScores:
    """What the runs of a cell score on training rows that were held out, a score for each seed."""

    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class EvaluationScores:
    """
    What the runs of a cell score on the rows for evaluation.

    Attributes:
        by_seed (`Mapping[int, float]`): a score for each seed.
        answers (`Mapping[int, Predictions]`): and what was answered.
    """

    by_seed: Mapping[int, float]
    answers: Mapping[int, Predictions]


def scores_of(metric: str, answers: Mapping[int, Predictions]) -> dict[int, float]:
    """
    The scores of some answers, by seed.

    Raises:
        InputError: if the task has no such metric.
    """
    found = {}
    for seed, one in answers.items():
        if metric not in one.metrics:
            raise InputError(
                f"There is no metric {metric!r} among the scores.{nearest(metric, list(one.metrics))} There are "
                f"{', '.join(one.metrics)}."
            )
        found[seed] = one.metrics[metric]
    return found


def choose(cells: Mapping[str, HeldOutScores], metric: str) -> str:
    """
    The cell with the best mean over its seeds; of several, the first.

    Args:
        cells (`Mapping[str, HeldOutScores]`): by name, at least one.
        metric (`str`): whose scores they are: of a loss, the lowest is best.

    Raises:
        TypeError: for scores on other rows than held-out ones.
    """
    for name, scores in cells.items():
        if not isinstance(scores, HeldOutScores):
            raise TypeError(f"{name} comes with {type(scores).__name__}; settings are chosen by HeldOutScores alone.")
    sign = -1 if metric in LOSSES else 1
    return max(cells, key=lambda name: sign * mean_and_sd(list(cells[name].by_seed.values()))[0])


def resampled(metric: str, answers: Mapping[int, Predictions], seeds: Sequence[int]) -> Resampled:
    """The scores of some seeds, over draws of the examples where the metric can be computed on these."""
    import numpy as np

    kept = [answers[seed] for seed in seeds]
    score_S = np.array([one.metrics[metric] for one in kept])
    if metric in OF_CLASSES and all(isinstance(label, int) for label in kept[0].references):
        return resample(metric, [one.predictions for one in kept], kept[0].references)
    if metric in OF_NUMBERS and all(one.numbers is not None and one.targets is not None for one in kept):
        return resample(metric, [one.numbers or [] for one in kept], kept[0].targets or [])
    # Of `em` a question counts, and which rows are one question is not kept.
    return Resampled(score_S, examples=0 if metric in (*LOSSES, "em") else len(kept[0].references))


def other_rows(ids: Sequence[str], references: Sequence[Any], other_ids: Sequence[str], others: Sequence[Any]) -> str:
    """
    How some rows differ from others, in words; nothing where they are the same, as far as that can be told.

    A task numbers rows that have no ids of their own. Numbers of two tasks count the same rows, whose prompts may
    differ; with own ids they cannot be compared, and then the right answers alone tell rows apart.

    Args:
        ids, other_ids (sequence of `str`): of the rows.
        references, others (sequence): what is right, by row.
    """
    if len(references) != len(others):
        return f"{len(references):,} and {len(others):,}"
    if list(references) != list(others):
        return "other labels, or in another order"
    ours, theirs = _places(ids), _places(other_ids)
    if (ours is None) != (theirs is None):
        return ""
    for one, other in zip(ours or ids, theirs or other_ids, strict=True):
        if one != other:
            return f"{one} in the place of {other}"
    return ""


def _places(ids: Sequence[str]) -> list[str] | None:
    """Split and place of rows that are numbered; `None` for rows with ids of their own."""
    found = [_PLACE.search(one) for one in ids]
    return [one[1] for one in found if one] if all(found) else None


class Compared:
    """
    Differences between cells, each of which is resampled once.

    Args:
        metric (`str`): what is compared.
        cells (`Mapping[str, EvaluationScores]`): by name.

    Raises:
        InputError: if two cells were scored on different rows.
    """

    def __init__(self, metric: str, cells: Mapping[str, EvaluationScores]) -> None:
        self.metric, self.cells = metric, cells
        self._resampled: dict[tuple[str, tuple[int, ...]], Resampled] = {}
        known = [(name, one) for name, scores in cells.items() for one in scores.answers.values()]
        for name, one in known[1:]:
            first = known[0][1]
            if reason := other_rows(one.ids, one.references, first.ids, first.references):
                raise InputError(
                    f"{name!r} and {known[0][0]!r} were scored on different rows ({reason}), so they cannot be "
                    "compared; leave out what changes the rows for evaluation."
                )

    def difference(self, first: str, second: str) -> Difference | None:
        """How much higher `first` scores than `second`, over the seeds that both have; `None` if they share none."""
        seeds = tuple(seed for seed in self.cells[first].by_seed if seed in self.cells[second].by_seed)
        if not seeds:
            return None
        found = difference(self._of(first, seeds), self._of(second, seeds))
        if found.low is None or found.high is None or self.metric in LOSSES:
            return found
        # The t distribution of two seeds reaches beyond what scores can differ by.
        most = 2.0 if self.metric in SIGNED else 1.0
        return replace(found, low=max(found.low, -most), high=min(found.high, most))

    def _of(self, name: str, seeds: tuple[int, ...]) -> Resampled:
        if (name, seeds) not in self._resampled:
            self._resampled[name, seeds] = resampled(self.metric, self.cells[name].answers, seeds)
        return self._resampled[name, seeds]


def adjusted(differences: Sequence[Difference | None]) -> list[float | None]:
    """The p values of a family after Holm's correction; `None` where there is none."""
    known = [one.p for one in differences if one is not None and one.p is not None]
    left = iter(holm(known))
    return [next(left) if one is not None and one.p is not None else None for one in differences]


def check_metric(metric: str | None, task_metrics: Sequence[str], path: Path) -> str:
    """
    The metric that is compared, before anything is run.

    Raises:
        InputError: for one that the task does not have.
    """
    known = [*task_metrics, *([] if "acc_norm" in task_metrics else ["acc_norm"])]
    if metric is None:
        return task_metrics[0]
    if metric not in known:
        raise InputError(
            f"{path}: metric is {metric!r}, which the task does not have.{nearest(metric, known)} It has "
            f"{', '.join(known)}."
        )
    return metric
