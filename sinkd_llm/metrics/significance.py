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

Shape suffixes: S seeds, N examples, D draws, K classes, C draws that are made at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    Array = np.ndarray[Any, Any]

DRAWS = 10_000
# Numbers in the memory of the draws that are made at once.
_AT_ONCE = 4_000_000
# These follow from how often each class was right, given and meant.
OF_CLASSES = ("acc", "mcc", "f1", "f1_macro")
OF_NUMBERS = ("pearson", "spearman")


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
    score = _of_classes if metric in OF_CLASSES else _of_numbers
    scorers = [score(metric, np.asarray(row), np.asarray(references_N)) for row in predictions_SN]
    once_1N = np.ones((1, examples))
    score_S = np.array([scorer(once_1N)[0] for scorer in scorers])
    random = np.random.default_rng(seed)
    parts = []
    for start in range(0, draws, chunk := max(1, _AT_ONCE // examples)):
        counts_CN = _counts(random, min(chunk, draws - start), examples)
        parts.append(np.stack([scorer(counts_CN) for scorer in scorers], axis=1))
    return Resampled(score_S, np.concatenate(parts), examples)


def _counts(random: np.random.Generator, draws: int, examples: int) -> "Array":
    """How often each example is in a draw of as many as there are."""
    drawn_CN = random.integers(examples, size=(draws, examples))
    drawn_CN += examples * np.arange(draws)[:, None]
    return np.bincount(drawn_CN.ravel(), minlength=draws * examples).reshape(draws, examples).astype(np.float64)


def _of_classes(metric: str, predictions_N: "Array", references_N: "Array") -> Callable[["Array"], "Array"]:
    """A metric of classes as a function of how often each example counts, `[C, N]` to `[C]`."""
    right_N = predictions_N == references_N
    if metric == "acc":
        return lambda counts_CN: counts_CN @ right_N / counts_CN.sum(1)
    classes = np.array([1]) if metric == "f1" else np.unique(np.concatenate([predictions_N, references_N]))
    said_KN, meant_KN, right_KN = (
        _members(classes, values) for values in (predictions_N, references_N, np.where(right_N, references_N, -1))
    )

    def score(counts_CN: "Array") -> "Array":
        counts_NC = counts_CN.T
        said_KC, meant_KC, right_KC = said_KN @ counts_NC, meant_KN @ counts_NC, right_KN @ counts_NC
        if metric == "mcc":
            # Gorodkin 2004, equation 8, as scikit-learn has it.
            total_C, hits_C = counts_NC.sum(0), right_KC.sum(0)
            above_C = hits_C * total_C - (said_KC * meant_KC).sum(0)
            spread_C = (total_C**2 - (said_KC**2).sum(0)) * (total_C**2 - (meant_KC**2).sum(0))
            return np.divide(above_C, np.sqrt(spread_C), out=np.zeros_like(above_C), where=spread_C > 0)
        occurs_KC = said_KC + meant_KC
        f1_KC = np.divide(2 * right_KC, occurs_KC, out=np.zeros_like(right_KC), where=occurs_KC > 0)
        return f1_KC.sum(0) / np.maximum((occurs_KC > 0).sum(0), 1)

    return score


def _members(classes: "Array", values_N: "Array") -> "csr_matrix":
    """Which examples have which class, `[K, N]`; a value that is no class has none."""
    from scipy.sparse import csr_matrix

    row_N = np.searchsorted(classes, values_N)
    known = np.flatnonzero((row_N < len(classes)) & (classes[np.minimum(row_N, len(classes) - 1)] == values_N))
    return csr_matrix((np.ones(len(known)), (row_N[known], known)), shape=(len(classes), len(values_N)))


def _of_numbers(metric: str, predictions_N: "Array", references_N: "Array") -> Callable[["Array"], "Array"]:
    """A correlation as a function of how often each example counts, `[C, N]` to `[C]`; 0 where a side is constant."""

    def score(counts_CN: "Array") -> "Array":
        total_C1 = counts_CN.sum(1, keepdims=True)
        centred = []
        for values_N in (predictions_N, references_N):
            ranked = metric == "spearman"
            values_CN = _ranks(values_N, counts_CN) if ranked else np.broadcast_to(values_N, counts_CN.shape)
            centred.append(values_CN - (counts_CN * values_CN).sum(1, keepdims=True) / total_C1)
        first_CN, second_CN = centred
        shared_C = (counts_CN * first_CN * second_CN).sum(1)
        spread_C = (counts_CN * first_CN**2).sum(1) * (counts_CN * second_CN**2).sum(1)
        return np.divide(shared_C, np.sqrt(spread_C), out=np.zeros_like(shared_C), where=spread_C > 1e-24)

    return score


def _ranks(values_N: "Array", counts_CN: "Array") -> "Array":
    """The mean rank of each example among those of its draw; examples with the same value share theirs."""
    distinct, place_N = np.unique(values_N, return_inverse=True)
    counts_CK = (_members(np.arange(len(distinct)), place_N) @ counts_CN.T).T
    return (counts_CK.cumsum(1) - (counts_CK - 1) / 2)[:, place_N]


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
