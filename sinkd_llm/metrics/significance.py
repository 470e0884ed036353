"""Which differences between models are more than chance: over the seeds of training, and over the scored examples.

A model is trained with S seeds and scored on N examples, the same for all models. Another seed and another example
would both have given another score, so both count: a score is taken as

    score = mean + effect of the seed + effect of the example + their interaction

(two crossed random effects). The variance of the mean over a crossed sample is, without bias,

    var(mean) = A + B - I,     A = S_between / S             the spread over seeds
                               B = var_D(mean over seeds)    the spread over draws of the examples
                               I = mean_D(var_S) / S         the interaction, which A and B both hold

where D runs over bootstrap draws of the examples (Efron 1979; crossed effects as in Owen 2007, "The pigeonhole
bootstrap", Annals of Applied Statistics 1(2), whose plain form counts I three times). Draws of a handful of seeds know
too little of their spread, so seeds enter with a t distribution, with Satterthwaite's degrees of freedom.

Shape suffixes: S seeds, N examples, D draws, C draws that are made at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.metrics.counted import OF_CLASSES, OF_NUMBERS, drawn, of_classes, of_numbers

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

DRAWS = 10_000


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """
    The mean of the scores of some seeds, and their standard deviation (of the sample); `None` for one seed.

    Raises:
        InputError: without a value.
    """
    if not len(values):
        raise InputError("There are no scores to take a mean of; give at least one.")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Resampled:
    """
    The score of a model, with each seed, over all examples and over draws of them.

    Attributes:
        score_S (`np.ndarray`): over all examples.
        score_DS (`np.ndarray`, *optional*): over each draw of N examples with replacement; `None` where the examples
            are not known.
        examples (`int`): N; 0 where they are not known.
    """

    score_S: "Array"
    score_DS: "Array | None" = None
    examples: int = 0


def resample(
    metric: str,
    predictions_SN: Sequence[Sequence[float]],
    references_N: Sequence[float],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Resampled:
    """
    Score draws of the examples. Two models with the same examples, number of draws and seed meet the same draws.

    Args:
        metric (`str`): one of `acc`, `mcc`, `f1`, `f1_macro` (of choice indices), `pearson`, `spearman` (of numbers),
            as in [`~sinkd_llm.metrics.compute_metrics`].
        predictions_SN (`Sequence`): what the model said with each seed.
        references_N (`Sequence`): what is right.
        draws (`int`, *optional*, defaults to `10_000`): how many.
        seed (`int`, *optional*, defaults to `0`): of the draws.

    Raises:
        InputError: for another metric, no seed or no example, fewer than 2 draws, or rows of different lengths.
    """
    if metric not in (*OF_CLASSES, *OF_NUMBERS):
        raise InputError(f"The metric {metric} is not resampled; these are: {', '.join((*OF_CLASSES, *OF_NUMBERS))}.")
    examples = len(references_N)
    if not len(predictions_SN) or not examples or any(len(row) != examples for row in predictions_SN):
        raise InputError(
            f"There are {examples} references for predictions of {[len(row) for row in predictions_SN]} examples; "
            "give one prediction for each example and seed."
        )
    if draws < 2:
        raise InputError(f"draws is {draws}; give 2 or more.")
    score = of_classes if metric in OF_CLASSES else of_numbers
    scorers = [score(metric, np.asarray(row), np.asarray(references_N)) for row in predictions_SN]
    once_1N = np.ones((1, examples))
    score_S = np.array([scorer(once_1N)[0] for scorer in scorers])
    parts = [np.stack([scorer(counts_CN) for scorer in scorers], axis=1) for counts_CN in drawn(examples, draws, seed)]
    return Resampled(score_S, np.concatenate(parts), examples)


@dataclass(frozen=True)
class Difference:
    """
    How much higher a model scores than another one.

    Attributes:
        estimate (`float`): the mean over seeds.
        low, high (`float`, *optional*): the interval; `None` for one seed without examples, of which nothing is known.
        p (`float`, *optional*): how likely a difference as large is where there is none (two-sided).
        p_seeds (`float`, *optional*): the same by a paired t test over the seeds alone; `None` for one seed.
        seeds, examples (`int`): S, N.
    """

    estimate: float
    low: float | None
    high: float | None
    p: float | None
    p_seeds: float | None
    seeds: int
    examples: int

    @property
    def bound(self) -> float | None:
        """No larger difference, in either direction, is supported: the far end of the interval."""
        return None if self.low is None or self.high is None else max(abs(self.low), abs(self.high))


def difference(first: Resampled, second: Resampled, *, confidence: float = 0.95) -> Difference:
    """
    How much higher `first` scores than `second`, pair by pair of seeds and examples.

    Args:
        first, second ([`Resampled`]): of the same seeds, examples and draws.
        confidence (`float`, *optional*, defaults to `0.95`): of the interval, in (0, 1).

    Raises:
        InputError: for other numbers of seeds, examples or draws.
    """
    from scipy.stats import t

    shapes = [(len(r.score_S), r.examples, None if r.score_DS is None else len(r.score_DS)) for r in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"Two models are compared pair by pair, but they have {shapes[0]} and {shapes[1]} seeds, examples and "
            "draws; score both on the same examples, with the same seeds."
        )
    seeds, examples, _ = shapes[0]
    difference_S = first.score_S - second.score_S
    estimate = float(difference_S.mean())
    over_seeds = float(difference_S.var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = over_seeds
    if first.score_DS is not None and second.score_DS is not None:
        apart_DS = first.score_DS - second.score_DS - difference_S
        over_examples = float((apart_DS.mean(1) ** 2).mean())
        both = float(apart_DS.var(axis=1, ddof=1).mean()) / seeds if seeds > 1 else 0.0
        variance = max(over_seeds + over_examples - both, over_seeds, over_examples)
    elif seeds == 1:
        return Difference(estimate, None, None, None, None, seeds, examples)
    p_seeds = _p(estimate, over_seeds, seeds - 1) if seeds > 1 else None
    if variance == 0:
        return Difference(estimate, estimate, estimate, float(estimate == 0), p_seeds, seeds, examples)
    freedom = variance**2 / _share(over_seeds, seeds - 1, variance - over_seeds, examples - 1)
    reach = float(t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    p = _p(estimate, variance, freedom)
    return Difference(estimate, estimate - reach, estimate + reach, p, p_seeds, seeds, examples)


def _share(over_seeds: float, of_seeds: int, rest: float, of_examples: int) -> float:
    """The denominator of Satterthwaite's degrees of freedom (1946), of two independent variances."""
    parts = ((over_seeds, of_seeds), (rest, of_examples))
    return max(sum(part**2 / max(freedom, 1) for part, freedom in parts if part > 0), 1e-300)


def _p(estimate: float, variance: float, freedom: float) -> float:
    """Of Student's t, two-sided."""
    from scipy.stats import t

    if variance == 0:
        return float(estimate == 0)
    return float(2 * t.sf(abs(estimate) / math.sqrt(variance), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """
    p values of a family, so adjusted that a level holds for all of them together (Holm 1979).

    Args:
        p_values (`Sequence[float]`): of the comparisons, in [0, 1].

    Returns:
        `list[float]`: in the same order; never below the given ones.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1)
    return [float(value) for value in result]
