"""How sure a student is: a temperature, or a scale and a shift of each class, fitted on rows it has not seen.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Shapes: N rows, C choices, K classes of a vector.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkd_llm.errors import InputError
from sinkd_llm.metrics.calibration import checked, log_losses

Floats = NDArray[np.float64]
Rows = Sequence[Sequence[float]]

# Beyond these a distribution is as sharp, or as even, as it will be: times the largest distance of a row's
# log-probabilities where that is less, or more, than 1.
TEMPERATURES = (0.02, 50.0)
# A vector has two numbers for each class, which few rows do not determine.
MOST_CLASSES = 20
ROWS_PER_CLASS = 50
FOLDS = 5
# Of the squared distances of log-scales and shifts from 0, over the number of rows: one made-up row.
_PENALTY = 1.0
# Less than this is never: a scale of it would be no number.
_LEAST = -1e3


class NothingToFitError(InputError):
    """Rows of which all are answered rightly, or wrongly, do not say how sure a student should be."""


@dataclass(frozen=True)
class Vector:
    """
    A scale and a shift of the log-probability of each class.

    Args:
        scale (`tuple[float, ...]`): `[K]`, each above 0.
        bias (`tuple[float, ...]`): `[K]`, in nats.
    """

    scale: tuple[float, ...]
    bias: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """
    What makes of a student's log-probabilities probabilities as frequent as they say.

    Args:
        temperature (`float`): log-probabilities are divided by it; above 1, the student is less sure than it says.
        vector ([`Vector`], *optional*): takes the place of the temperature, where rows have the same choices.
        measured (`dict`, *optional*): what it changed on rows that it was not fitted on: `rows`, and before and after
            it `log_loss`, `brier`, `ece`; of a vector also `row_prints`, by which the rows that it was fitted on are
            known again.
    """

    temperature: float
    vector: Vector | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(cls, log_probabilities_NC: Rows, labels_N: Sequence[int]) -> "Calibration":
        """
        The temperature under which the labels are most likely.

        Args:
            log_probabilities_NC (sequence of sequences of `float`): of each row's choices, in nats, up to a constant
                of the row; rows may have different numbers of choices.
            labels_N (sequence of `int`): the right choice of each row.

        Raises:
            NothingToFitError: if the student chooses right in all rows, or in none, of which no temperature follows.
            InputError: for no rows.
        """
        from scipy.optimize import minimize_scalar

        log_NC, labels = _normalised(log_probabilities_NC), np.asarray(labels_N, dtype=np.int64)
        right = int((log_NC.argmax(axis=1) == labels).sum()) if len(labels) else 0
        if right in (0, len(labels)):
            raise NothingToFitError(
                f"the student chooses the right answer in {right:,} of {len(labels):,} rows, and how sure it should "
                "be follows only from rows of which some are right and some wrong; take more rows."
            )
        apart_NC = log_NC.max(axis=1, keepdims=True) - log_NC
        largest = float(apart_NC[np.isfinite(apart_NC)].max()) or 1.0  # 0: all choices alike, at every temperature
        low, high = np.log(TEMPERATURES[0] * min(largest, 1.0)), np.log(TEMPERATURES[1] * max(largest, 1.0))
        # The loss is convex in 1/T, so it has one minimum along log T.
        found = minimize_scalar(
            lambda log_t: mean_log_loss(log_NC / np.exp(log_t), labels),
            bounds=(low, high),
            method="bounded",
            options={"xatol": 1e-7},
        )
        return cls(float(np.exp(found.x)))

    @classmethod
    def fit_vector(cls, log_probabilities_NC: Rows, labels_N: Sequence[int]) -> "Calibration":
        """
        A scale and a shift of each class under which the labels are most likely, beside the temperature of [`fit`].

        Arguments and errors are the same as those of [`fit`]; all rows have the same choices. Where a class was never
        chosen and never right, it keeps the temperature: scales and shifts are drawn to the temperature's with the
        weight of one row.
        """
        from scipy.optimize import minimize

        start = cls.fit(log_probabilities_NC, labels_N)
        log_NC, labels = _normalised(log_probabilities_NC), np.asarray(labels_N, dtype=np.int64)
        rows, classes = log_NC.shape
        scaled_NC = np.maximum(log_NC, _LEAST) / start.temperature
        chosen_NC = np.zeros_like(scaled_NC)
        chosen_NC[np.arange(rows), labels] = 1

        def loss(parameters: Floats) -> tuple[float, Floats]:
            scale_K, bias_K = np.exp(parameters[:classes]), parameters[classes:]
            shifted_NC = scaled_NC * scale_K + bias_K
            error_NC = np.exp(_log_softmax(shifted_NC)) - chosen_NC
            gradient = np.concatenate([(error_NC * scaled_NC * scale_K).sum(axis=0), error_NC.sum(axis=0)])
            value = mean_log_loss(shifted_NC, labels) + _PENALTY * float(parameters @ parameters) / rows
            return value, gradient / rows + 2 * _PENALTY * parameters / rows

        found = minimize(loss, np.zeros(2 * classes), jac=True, method="L-BFGS-B")
        scale_K = np.exp(found.x[:classes]) / start.temperature
        vector = Vector(tuple(map(float, scale_K)), tuple(map(float, found.x[classes:])))
        return cls(start.temperature, vector)

    def apply(self, log_probabilities: Rows) -> list[list[float]]:
        """
        Probabilities of the choices of each row, which add up to 1.

        Args:
            log_probabilities (sequence of sequences of `float`): as for [`fit`].

        Raises:
            InputError: if there is a vector and a row has another number of choices.
        """
        lengths = [len(row) for row in log_probabilities]
        if not lengths:
            return []
        log_NC = _normalised(log_probabilities)
        if self.vector is None:
            scaled_NC = log_NC / self.temperature
        else:
            if {*lengths} != {len(self.vector.scale)}:
                raise InputError(
                    f"the student was calibrated for {len(self.vector.scale)} choices, but a row has "
                    f"{next(n for n in lengths if n != len(self.vector.scale))}; calibrate it for this task."
                )
            scaled_NC = log_NC * np.asarray(self.vector.scale) + np.asarray(self.vector.bias)
        probabilities_NC = np.exp(_log_softmax(scaled_NC))
        return [row[:length].tolist() for row, length in zip(probabilities_NC, lengths, strict=True)]


NONE = Calibration(1.0)


def fit_best(
    log_probabilities_NC: Rows, labels_N: Sequence[int], *, same_choices: bool
) -> tuple[Calibration, list[list[float]]]:
    """
    The calibration to keep, and the probabilities of each row by one that was fitted on the other folds.

    A vector takes the place of a temperature where all rows have the same choices, where there are enough rows for it
    and where, over rows that neither was fitted on, its mean log-loss is lower by more than the standard error of the
    difference.

    Args:
        log_probabilities_NC, labels_N: as for [`Calibration.fit`].
        same_choices (`bool`): whether the choices of all rows are the same words in the same order. Where each row has
            choices of its own, a scale and a shift would be those of a place in its list.

    Raises:
        InputError: as [`Calibration.fit`], and for fewer rows than folds.
    """
    best = Calibration.fit(log_probabilities_NC, labels_N)
    unseen = cross_fitted(Calibration.fit, log_probabilities_NC, labels_N)
    classes = len(log_probabilities_NC[0])
    if not same_choices or classes > MOST_CLASSES or len(labels_N) < ROWS_PER_CLASS * classes:
        return best, unseen
    by_vector = cross_fitted(Calibration.fit_vector, log_probabilities_NC, labels_N)
    gain_N = log_losses(*checked(unseen, labels_N)) - log_losses(*checked(by_vector, labels_N))
    if gain_N.mean() > gain_N.std(ddof=1) / np.sqrt(len(gain_N)):
        return Calibration.fit_vector(log_probabilities_NC, labels_N), by_vector
    return best, unseen


def cross_fitted(
    fit: Callable[[Rows, Sequence[int]], Calibration], log_probabilities_NC: Rows, labels_N: Sequence[int]
) -> list[list[float]]:
    """
    The probabilities of each row by a calibration that was fitted on the rows of the other folds.

    Args:
        fit (`Callable`): [`Calibration.fit`] or [`Calibration.fit_vector`].
        log_probabilities_NC, labels_N: as for these.

    Raises:
        InputError: for fewer than 2 rows a fold; [`NothingToFitError`] if what is right, or wrong, is in one fold.
    """
    labels = np.asarray(labels_N, dtype=np.int64)
    if len(labels) < 2 * FOLDS:
        raise InputError(
            f"{len(labels)} rows are too few to calibrate on; give at least {2 * FOLDS}, better hundreds."
        )
    fold_N = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    found: list[list[float]] = [[] for _ in labels]
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(fold_N != fold).tolist(), np.flatnonzero(fold_N == fold).tolist()
        try:
            fitted = fit([log_probabilities_NC[i] for i in inside], labels[inside].tolist())
        except NothingToFitError as error:  # what is wrong, or right, is all in the fold that is left out
            raise NothingToFitError(
                f"of {len(labels):,} rows too few are wrong, or right, to fit how sure the student should be on some "
                "and to check it on others; take more rows."
            ) from error
        for i, row in zip(outside, fitted.apply([log_probabilities_NC[i] for i in outside]), strict=True):
            found[i] = row
    return found


def mean_log_loss(log_NC: Floats, labels: NDArray[np.int64]) -> float:
    """Minus the mean log-probability of the labels, in nats, of log-probabilities up to a constant of the row."""
    return float(-_log_softmax(log_NC)[np.arange(len(labels)), labels].mean())


def _log_softmax(log_NC: Floats) -> Floats:
    top_N1 = log_NC.max(axis=1, keepdims=True)
    shifted: Floats = log_NC - top_N1
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _normalised(rows: Rows) -> Floats:
    """Log-probabilities `[N, C]`, -inf where a row has fewer choices; constants of a row make no difference."""
    if not len(rows):
        raise InputError("there are no rows to calibrate on; give labelled rows that the student has not seen.")
    most = max(map(len, rows))
    padded = np.full((len(rows), most), -np.inf)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return _log_softmax(padded)
