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

Two limits keep a spread that is 0 by chance from a p value of 0. Scores of N examples lie on a grid of 1/N, and seeds
may meet on one point of it: where seeds are all that is known, the variance of their differences is at least
1/(6 N^2), that of rounding both scores. And N examples that all differ alike are no more certain than by a sign test,
whose least p value is 2^(1-N).

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
# Of the size of the scores: seeds that are closer differ by the rounding of computations alone.
_ROUNDING = 1e-12
# Less is no number in computations.
_LEAST_P = 1e-300


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
        examples (`int`): N, of scores that are a share or a mean over them; 0 where it is not known.
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
        low, high (`float`, *optional*): the interval; `None` where nothing is known of the spread: for one seed
            without draws, for seeds that all differ alike in scores of which the number of examples is not known, and
            for one example.
        p (`float`, *optional*): how likely a difference as large is where there is none (two-sided).
        p_seeds (`float`, *optional*): the same by a paired t test over the seeds alone; `None` for one seed, and where
            the spread of the seeds is not known.
        seeds, examples (`int`): S, and N where draws of the examples are behind it, else 0.
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
    seeds, rows, draws = shapes[0]
    examples = 0 if draws is None else rows
    difference_S = first.score_S - second.score_S
    estimate = float(difference_S.mean())
    seen = float(difference_S.var(ddof=1)) / seeds if seeds > 1 else 0.0
    rounding = _ROUNDING * float(max(np.abs(first.score_S).max(), np.abs(second.score_S).max()))
    over_seeds = max(seen, 1 / (6 * rows**2 * seeds) if rows else 0.0)
    known = seeds > 1 and (over_seeds > rounding**2 or abs(estimate) <= rounding)
    p_seeds = _p(estimate, over_seeds, seeds - 1) if known else None
    if first.score_DS is not None and second.score_DS is not None:
        apart_DS = first.score_DS - second.score_DS - difference_S
        over_examples = float((apart_DS.mean(1) ** 2).mean())
        both = float(apart_DS.var(axis=1, ddof=1).mean()) / seeds if seeds > 1 else 0.0
        variance = max(seen + over_examples - both, seen, over_examples)
        freedom = variance**2 / _share(seen, seeds - 1, variance - seen, examples - 1) or max(examples - 1, 1)
        least_p = max(2.0 ** (1 - examples), _LEAST_P)
        known = examples > 1 or variance == estimate == 0
        if known and _p(estimate, variance, freedom) < least_p:
            variance = (estimate / float(t.isf(least_p / 2, freedom))) ** 2
    else:
        variance, freedom = over_seeds, float(seeds - 1)
    if not known:
        return Difference(estimate, None, None, None, p_seeds, seeds, examples)
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
