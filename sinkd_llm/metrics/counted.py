"""Metrics as functions of how often each row counts: many draws of the rows are scored with a few products.

A draw of N rows with replacement (Efron 1979) is the number of times that each row is in it.

Shape suffixes: N rows, K classes, B bins, C draws that are made at once.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = np.ndarray[Any, Any]
# How often each row counts in each draw, `[C, N]`, to a score of each draw, `[C]`.
Scorer: TypeAlias = Callable[[Array], Array]

# These follow from how often each class was right, given and meant.
OF_CLASSES = ("acc", "mcc", "f1", "f1_macro")
OF_NUMBERS = ("pearson", "spearman")
# Numbers in the memory of the draws that are made at once.
_AT_ONCE = 4_000_000
# Of the mean of some numbers: where none is further from it, they are one number.
_ROUNDING = 1e-13


def drawn(units: int, draws: int, seed: int) -> Iterator[Array]:
    """
    How often each of some units is in each draw of as many with replacement, some draws at a time.

    Args:
        units (`int`): how many, 1 or more.
        draws (`int`): in all.
        seed (`int`): the same draws come for the same one.

    Yields:
        `np.ndarray` `[C, units]`.
    """
    random = np.random.default_rng(seed)
    for start in range(0, draws, chunk := max(1, _AT_ONCE // units)):
        yield _counts(random, min(chunk, draws - start), units)


def mean_of(values_N: Array) -> Scorer:
    """The mean of a number of each row."""
    return lambda counts_CN: counts_CN @ values_N / counts_CN.sum(1)


def ratio_of(above_N: Array, below_N: Array) -> Scorer:
    """The sum of one number of each row over the sum of another one, which is above 0."""
    return lambda counts_CN: (counts_CN @ above_N) / (counts_CN @ below_N)


def distance_in_bins(gap_N: Array, bin_N: Array) -> Scorer:
    """The calibration error of rows in bins, of what [`~sinkd_llm.metrics.calibration.bins_of`] gives: the sum over
    bins of the size of the summed gaps, for each row."""
    inside_BN = _members(np.unique(bin_N), bin_N).multiply(gap_N).tocsr()
    return lambda counts_CN: np.abs(inside_BN @ counts_CN.T).sum(0) / counts_CN.sum(1)


def _counts(random: np.random.Generator, draws: int, units: int) -> Array:
    drawn_CN = random.integers(units, size=(draws, units))
    drawn_CN += units * np.arange(draws)[:, None]
    counts_CN = np.bincount(drawn_CN.ravel(), minlength=draws * units).reshape(draws, units)
    # A view of [N, C], as sparse products over the rows read it.
    return counts_CN.T.astype(np.float64, order="C").T


def of_classes(metric: str, predictions_N: Array, references_N: Array) -> Scorer:
    """A metric of `OF_CLASSES`, of choice indices."""
    right_N = predictions_N == references_N
    if metric == "acc":
        return lambda counts_CN: counts_CN @ right_N / counts_CN.sum(1)
    classes = np.array([1]) if metric == "f1" else np.unique(np.concatenate([predictions_N, references_N]))
    said_KN, meant_KN, right_KN = (
        _members(classes, values) for values in (predictions_N, references_N, np.where(right_N, references_N, -1))
    )

    def score(counts_CN: Array) -> Array:
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


def _members(classes: Array, values_N: Array) -> "csr_matrix":
    """Which examples have which class, `[K, N]`; a value that is no class has none."""
    from scipy.sparse import csr_matrix

    row_N = np.searchsorted(classes, values_N)
    known = np.flatnonzero((row_N < len(classes)) & (classes[np.minimum(row_N, len(classes) - 1)] == values_N))
    return csr_matrix((np.ones(len(known)), (row_N[known], known)), shape=(len(classes), len(values_N)))


def of_numbers(metric: str, predictions_N: Array, references_N: Array) -> Scorer:
    """A metric of `OF_NUMBERS`; 0 where a side is constant."""

    def score(counts_CN: Array) -> Array:
        total_C1 = counts_CN.sum(1, keepdims=True)
        centred = []
        for values_N in (predictions_N, references_N):
            ranked = metric == "spearman"
            values_CN = _ranks(values_N, counts_CN) if ranked else np.broadcast_to(values_N, counts_CN.shape)
            mean_C1 = (counts_CN * values_CN).sum(1, keepdims=True) / total_C1
            apart_CN = np.where(counts_CN > 0, values_CN - mean_C1, 0)
            # Squares of small and of large numbers are 0 or infinite, and a correlation is the same at every scale.
            largest_C1 = np.abs(apart_CN).max(1, keepdims=True)
            differ_C1 = largest_C1 > _ROUNDING * np.abs(mean_C1)
            centred.append(np.divide(apart_CN, largest_C1, out=np.zeros_like(apart_CN), where=differ_C1))
        first_CN, second_CN = centred
        shared_C = (counts_CN * first_CN * second_CN).sum(1)
        spread_C = (counts_CN * first_CN**2).sum(1) * (counts_CN * second_CN**2).sum(1)
        return np.divide(shared_C, np.sqrt(spread_C), out=np.zeros_like(shared_C), where=spread_C > 0)

    return score


def _ranks(values_N: Array, counts_CN: Array) -> Array:
    """The mean rank of each example among those of its draw; examples with the same value share theirs."""
    distinct, place_N = np.unique(values_N, return_inverse=True)
    counts_CK = (_members(np.arange(len(distinct)), place_N) @ counts_CN.T).T
    return (counts_CK.cumsum(1) - (counts_CK - 1) / 2)[:, place_N]
