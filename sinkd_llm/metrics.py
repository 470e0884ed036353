"""Scores of a classification or regression task, under lm-evaluation-harness's names.

The numbers come from scikit-learn and scipy; this module checks the input and settles the cases that
have no defined value.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

from sinkd_llm.errors import InputError, nearest

Values = Sequence[int] | Sequence[float]


def accuracy(predictions: Values, references: Values) -> float:
    """Share of predictions that equal their reference, in [0, 1]."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def matthews_correlation(predictions: Values, references: Values) -> float:
    """Matthews correlation, in [-1, 1], any number of classes; 0 where one side has a single class."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions, references):
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def f1(predictions: Values, references: Values) -> float:
    """F1 of class 1 among the classes 0 and 1, in [0, 1]; 0 where class 1 occurs on neither side."""
    from sklearn.metrics import f1_score

    others = sorted({*predictions, *references} - {0, 1})
    if others:
        raise InputError(
            f"The metric f1 is binary (choices 0 and 1), but the labels contain {others[0]}; use f1_macro."
        )
    return float(f1_score(references, predictions, zero_division=0.0))


def f1_macro(predictions: Values, references: Values) -> float:
    """Unweighted mean, in [0, 1], of the F1 of every class that occurs on either side."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0.0))


def pearson(predictions: Values, references: Values) -> float:
    """Pearson correlation, in [-1, 1]; 0 where one side is constant, for which it is undefined."""
    from scipy.stats import pearsonr

    return _defined_correlation(pearsonr, predictions, references)


def spearman(predictions: Values, references: Values) -> float:
    """Spearman rank correlation, in [-1, 1]; 0 where one side is constant."""
    from scipy.stats import spearmanr

    return _defined_correlation(spearmanr, predictions, references)


def _defined_correlation(correlation: Callable, predictions: Values, references: Values) -> float:
    if _constant(predictions, references):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of nearly constant input; checked just below
        value = float(correlation(predictions, references).statistic)
    return value if math.isfinite(value) else 0.0


def _constant(predictions: Values, references: Values) -> bool:
    # A student early in training often predicts one value for every row: that shows no relation, and
    # must not put NaN into a log or stop a run.
    return len(set(predictions)) < 2 or len(set(references)) < 2


CLASSIFICATION: dict[str, Callable[[Values, Values], float]] = {
    "acc": accuracy,
    "mcc": matthews_correlation,
    "f1": f1,
    "f1_macro": f1_macro,
}
REGRESSION: dict[str, Callable[[Values, Values], float]] = {"pearson": pearson, "spearman": spearman}
METRICS = CLASSIFICATION | REGRESSION


def compute_metrics(names: Iterable[str], predictions: Sequence, references: Sequence) -> dict[str, float]:
    """
    Score predictions against references.

    Args:
        names (`Iterable[str]`): any of `acc`, `mcc`, `f1`, `f1_macro` (of choice indices) and `pearson`,
            `spearman` (of numbers).
        predictions (`Sequence`): one index or number a row. Numpy and torch scalars are taken too.
        references (`Sequence`): the gold index or number of each row, in the same order.

    Returns:
        `dict[str, float]`: name to score, in the order of `names`. Where a score is undefined because
        one side holds a single value, it is 0: `mcc`, `pearson` and `spearman`, and `f1` without any
        row of class 1.

    Raises:
        InputError: for an unknown name, no rows, two different lengths, a number that is not finite,
            a class that is no integer, an unlabelled (negative) reference, or `f1` of more than two
            classes.
    """
    names = list(names)
    check_metric_names(names)
    if len(predictions) != len(references):
        raise InputError(
            f"There are {len(predictions)} predictions for {len(references)} references; a metric needs "
            "one prediction for each reference."
        )
    if not len(references):
        raise InputError("There are no predictions to score; give at least one row.")
    predictions, references = _numbers(predictions), _numbers(references)
    if any(name in CLASSIFICATION for name in names):
        _check_classes(predictions, references)
    return {name: METRICS[name](predictions, references) for name in names}


def check_metric_names(names: Iterable[str]) -> None:
    """Raises `InputError` for the first name that is no metric."""
    for name in names:
        if name not in METRICS:
            raise InputError(
                f"Unknown metric {name!r}.{nearest(name, list(METRICS))} Known metrics: {', '.join(METRICS)}."
            )


def _numbers(values: Sequence) -> list:
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    for index, value in enumerate(plain):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(
                f"Row {index} of the scored values is {value!r}; metrics take finite numbers and choice indices only."
            )
    return plain


def _check_classes(predictions: list, references: list) -> None:
    fractional = [value for value in (*predictions, *references) if value != int(value)]
    if fractional:
        raise InputError(f"The value {fractional[0]!r} is no choice index; for numbers use {' or '.join(REGRESSION)}.")
    unlabelled = sum(value < 0 for value in references)
    if unlabelled:
        raise InputError(
            f"{unlabelled} of {len(references)} references are unlabelled (negative), as the test splits "
            "of GLUE and SuperGLUE are; score a labelled split such as validation."
        )
