"""How far the probabilities of choices can be believed: log-loss, Brier score, calibration error, and its diagram.

Each score is a mean over rows, or a sum over bins of rows, so that drawing rows again is a product with how often each
was drawn (`counted.py`).

Shape suffixes: N rows, C choices, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from sinkd_llm.errors import InputError

Array = np.ndarray[Any, Any]
# Numbers of the choices of each row; rows may differ in how many they have.
Rows: TypeAlias = Sequence[Sequence[float]]

# As in Guo et al. 2017.
BINS = 15
# The sum of a row may miss 1 by so much for each choice: probabilities are kept with 5 digits.
_SLACK = 1e-5
# The logarithm of a probability of 0 is that of this one, so that a mean over rows is a number.
_SMALLEST = float(np.finfo(np.float64).tiny)


def probabilities_of(log_likelihoods: Rows) -> list[list[float]]:
    """
    The softmax over the choices of each row.

    Args:
        log_likelihoods (`Sequence[Sequence[float]]`): of each row's choices, in nats; rows may differ in how many they
            have. -inf is a choice that is never made.

    Returns:
        `list[list[float]]`: likewise; each row sums to 1.

    Raises:
        InputError: for a row without a finite number.
    """
    if not len(log_likelihoods):
        return []
    rows = distributions(log_likelihoods).tolist()
    return [row[: len(given)] for row, given in zip(rows, log_likelihoods, strict=True)]


def distributions(log_likelihoods: Rows) -> Array:
    """
    As [`probabilities_of`], of at least one row, as an array `[N, C]`: a choice that a row does not have is 0.
    """
    padded_NC = _padded(log_likelihoods, -np.inf)
    top_N1 = padded_NC.max(axis=1, keepdims=True)
    if not np.isfinite(top_N1).all():
        index = int(np.flatnonzero(~np.isfinite(top_N1[:, 0]))[0])
        raise InputError(
            f"The scores of row {index} are {list(log_likelihoods[index])}, which is no distribution; leave the row "
            "out."
        )
    probabilities_NC = np.exp(padded_NC - top_N1)
    return probabilities_NC / probabilities_NC.sum(axis=1, keepdims=True)


def calibration_scores(probabilities_NC: Rows, labels_N: Sequence[int]) -> dict[str, float]:
    """
    What runs say of probabilities: `log_loss`, `brier`, `ece` and `ece_adaptive`, see the functions below.

    Arguments and errors are the same as of [`log_loss`].
    """
    wide_NC, label_N = checked(probabilities_NC, labels_N)
    confidence_N, right_N = confidences(wide_NC, label_N)
    return {
        "log_loss": float(log_losses(wide_NC, label_N).mean()),
        "brier": float(brier_scores(wide_NC, label_N).mean()),
        "ece": calibration_error(confidence_N, right_N),
        "ece_adaptive": calibration_error(confidence_N, right_N, adaptive=True),
    }


def divergences(teacher_NC: Rows, student_NC: Rows) -> Array:
    """
    KL(teacher || student) of each row, `[N]`, in nats: what the student's probabilities lose against the teacher's.

    Args:
        teacher_NC, student_NC (`Sequence[Sequence[float]]`): probabilities of the same choices of each row.

    Raises:
        InputError: without a row, for rows that are no distribution, and for rows of other choices.
    """
    if [*map(len, teacher_NC)] != [*map(len, student_NC)]:
        raise InputError(
            f"The teacher's probabilities are of {len(teacher_NC)} rows and the student's of {len(student_NC)}, or of "
            "other choices; compare the same rows."
        )
    first = [0] * len(teacher_NC)  # no label is read
    (theirs_NC, _), (ours_NC, _) = checked(teacher_NC, first), checked(student_NC, first)
    logs_NC = np.log(np.maximum(theirs_NC, _SMALLEST)) - np.log(np.maximum(ours_NC, _SMALLEST))
    return (theirs_NC * logs_NC).sum(axis=1)


def log_loss(probabilities_NC: Rows, labels_N: Sequence[int]) -> float:
    """
    The mean negative logarithm of the probability of the right choice, in nats; 0 is best.

    Args:
        probabilities_NC (`Sequence[Sequence[float]]`): of the choices of each row; rows may differ in how many they
            have.
        labels_N (`Sequence[int]`): the index of each right choice.

    Raises:
        InputError: without a row, for rows that are no distribution, and for a label that is none of its row's
            choices.
    """
    return float(log_losses(*checked(probabilities_NC, labels_N)).mean())


def brier_score(probabilities_NC: Rows, labels_N: Sequence[int]) -> float:
    """
    The mean over rows of the squared distance, summed over all choices, from the right answer, in [0, 2]; 0 is best.

    This is the score as Brier (1950) has it; of two choices it is twice the square of one choice's distance, which
    scikit-learn gives by default.

    Arguments and errors are the same as of [`log_loss`].
    """
    return float(brier_scores(*checked(probabilities_NC, labels_N)).mean())


def expected_calibration_error(
    probabilities_NC: Rows, labels_N: Sequence[int], bins: int = BINS, adaptive: bool = False
) -> float:
    """
    The mean over rows of the distance between the accuracy of a bin and its mean confidence, in [0, 1]; 0 is best.

    Args:
        probabilities_NC, labels_N: as of [`log_loss`].
        bins (`int`, *optional*, defaults to `15`): how many.
        adaptive (`bool`, *optional*, defaults to `False`): bins of equally many rows (Nguyen and O'Connor 2015) in
            place of bins of equal width (Guo et al. 2017, arXiv:1706.04599, equation 3); rows with the same confidence
            share a bin.

    Raises:
        InputError: as of [`log_loss`], and for fewer than 1 bin.
    """
    confidence_N, right_N = confidences(*checked(probabilities_NC, labels_N))
    return calibration_error(confidence_N, right_N, bins, adaptive)


def calibration_error(confidence_N: Array, right_N: Array, bins: int = BINS, adaptive: bool = False) -> float:
    """
    As [`expected_calibration_error`], of the probability of each row's chosen answer, and whether it is right.

    Args:
        confidence_N (`np.ndarray`): the top probability of each row, in (0, 1].
        right_N (`np.ndarray` of `bool`): whether its choice is right.
        bins, adaptive: as of [`expected_calibration_error`].
    """
    bin_N, _ = bins_of(confidence_N, bins, adaptive)
    gap_N = right_N - confidence_N
    return float(np.abs(np.bincount(bin_N, weights=gap_N)).sum() / len(confidence_N))


@dataclass(frozen=True)
class ReliabilityBin:
    """
    A bar of a reliability diagram: the rows whose confidence is in (low, high].

    Attributes:
        low, high (`float`): the bin's edges, in [0, 1].
        count (`int`): rows, at least 1.
        confidence (`float`): the mean probability of their chosen answers, in (0, 1].
        accuracy (`float`): the share of them that is right, in [0, 1].
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(
    probabilities_NC: Rows, labels_N: Sequence[int], bins: int = BINS, adaptive: bool = False
) -> list[ReliabilityBin]:
    """
    The bins of [`expected_calibration_error`] that hold rows, from low to high confidence.

    Arguments and errors are the same as there.
    """
    confidence_N, right_N = confidences(*checked(probabilities_NC, labels_N))
    bin_N, edges = bins_of(confidence_N, bins, adaptive)
    found = []
    for place in np.unique(bin_N).tolist():
        inside_N = bin_N == place
        found.append(
            ReliabilityBin(
                float(edges[place]),
                float(edges[place + 1]),
                int(inside_N.sum()),
                float(confidence_N[inside_N].mean()),
                float(right_N[inside_N].mean()),
            )
        )
    return found


def checked(probabilities_NC: Rows, labels_N: Sequence[int]) -> tuple[Array, Array]:
    """
    Probabilities as an array `[N, C]`, in which a choice that a row does not have is 0, and labels as an array `[N]`.

    Raises:
        InputError: see [`log_loss`].
    """
    if len(probabilities_NC) != len(labels_N) or not len(labels_N):
        raise InputError(
            f"There are {len(probabilities_NC)} rows of probabilities for {len(labels_N)} labels; give one row for "
            "each label, and at least one."
        )
    wide_NC = _padded(probabilities_NC, 0.0)
    broken_N = (wide_NC < 0).any(axis=1) | ~(np.abs(wide_NC.sum(axis=1) - 1) <= _SLACK * wide_NC.shape[1])
    if broken_N.any():
        index = int(np.flatnonzero(broken_N)[0])
        raise InputError(
            f"The probabilities of row {index} are {list(probabilities_NC[index])}, which is no distribution: they "
            "are to be 0 or more and to sum to 1."
        )
    given_N = np.asarray(labels_N)
    for index, (label, row) in enumerate(zip(given_N.tolist(), probabilities_NC, strict=True)):
        if not 0 <= label < len(row):
            raise InputError(f"The label of row {index} is {label}, but the row has {len(row)} choices.")
    return wide_NC, given_N.astype(np.int64)


def log_losses(probabilities_NC: Array, labels_N: Array) -> Array:
    """The negative logarithm of the right choice's probability of each row, `[N]`, of what [`checked`] gives."""
    right_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return -np.log(np.maximum(right_N, _SMALLEST))


def brier_scores(probabilities_NC: Array, labels_N: Array) -> Array:
    """The Brier score of each row, `[N]`, of what [`checked`] gives."""
    right_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return (probabilities_NC**2).sum(axis=1) - 2 * right_N + 1


def confidences(probabilities_NC: Array, labels_N: Array) -> tuple[Array, Array]:
    """The probability of each row's chosen answer `[N]`, and whether it is right `[N]`, of what [`checked`] gives."""
    return probabilities_NC.max(axis=1), probabilities_NC.argmax(axis=1) == labels_N


def bins_of(confidence_N: Array, bins: int = BINS, adaptive: bool = False) -> tuple[Array, Array]:
    """
    The bin of each row, `[N]`, and the edges of all bins, `[B + 1]`; a bin holds its upper edge.

    Args:
        confidence_N (`np.ndarray`): in [0, 1].
        bins, adaptive: as of [`expected_calibration_error`]. Adaptive bins are fewer where confidences are the same.

    Raises:
        InputError: for fewer than 1 bin.
    """
    if bins < 1:
        raise InputError(f"bins is {bins}; give 1 or more.")
    shares = np.arange(1, bins) / bins
    inner = np.unique(np.quantile(confidence_N, shares, method="inverted_cdf")) if adaptive else shares
    return np.digitize(confidence_N, inner, right=True), np.concatenate([[0.0], inner, [1.0]])


def _padded(rows: Rows, value: float) -> Array:
    """Rows of unlike lengths as one array, filled up with `value`."""
    lengths_N = np.fromiter(map(len, rows), np.int64, len(rows))
    padded_NC = np.full((len(rows), max(int(lengths_N.max()), 1)), value)
    present_NC = np.arange(padded_NC.shape[1]) < lengths_N[:, None]
    padded_NC[present_NC] = np.concatenate([np.asarray(row, float) for row in rows])
    return padded_NC
