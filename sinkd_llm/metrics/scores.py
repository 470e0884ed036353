"""Scores of choices, numbers and texts, under lm-evaluation-harness's names where it has one.

The numbers come from scikit-learn and scipy, and from `texts.py` where texts are compared; this module checks the
input and settles the cases that have no defined value.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.metrics.texts import mean_rouge_l, normalize_answer, overlap_f1

Values = Sequence[int] | Sequence[float]
# Squares of larger numbers, summed over many rows, may overflow.
_LARGE = 1e100
# The scored rows by column, such as a `datasets.Dataset` or a dict of lists.
Rows = Any


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
        warnings.simplefilter("ignore")  # scipy warns of nearly constant input, whose correlation is undefined, too
        # A correlation is the same at every scale, and squares of large numbers overflow.
        value = float(correlation(_scaled(predictions), _scaled(references)).statistic)
    return value if math.isfinite(value) else 0.0


def _scaled(values: Values) -> list[float]:
    largest = max(map(abs, values))
    return [value / largest for value in values] if largest > _LARGE else list(values)


def _constant(predictions: Values, references: Values) -> bool:
    # A student early in training often predicts one value for every row: that shows no relation, and
    # must not put NaN into a log or stop a run.
    return len(set(predictions)) < 2 or len(set(references)) < 2


def exact_match(predictions: Values, references: Values, rows: Rows) -> float:
    """
    Share of questions, in [0, 1], of which every row is answered right.

    Rows with the same `group` are one question; without that column every row is its own. A row is right if the
    text of its chosen answer is one of its `answers` after [`normalize_answer`]; without that column, if the chosen
    index is the gold one. This is MultiRC's exact match over questions (Khashabi et al. 2018) and ReCoRD's over
    queries (Zhang et al. 2018).
    """
    right = right_questions(predictions, references, rows)
    return sum(right) / len(right)


def right_questions(predictions: Values, references: Values, rows: Rows) -> list[bool]:
    """Whether each question is answered right, as [`exact_match`] counts them, in the order of their first rows."""
    right = right_rows(predictions, references, rows)
    groups = row_column(rows, "group") or range(len(right))
    by_question: dict[Any, list[bool]] = defaultdict(list)
    for group, row_right in zip(groups, right, strict=True):
        by_question[group].append(row_right)
    return list(map(all, by_question.values()))


def right_rows(predictions: Values, references: Values, rows: Rows) -> list[bool]:
    """Whether each row's chosen answer is right: one of its `answers`, or, without that column, the gold index."""
    answers = row_column(rows, "answers")
    if answers is None:
        return [chosen == gold for chosen, gold in zip(predictions, references, strict=True)]
    chosen_texts = [normalize_answer(text) for text in _chosen_texts(predictions, rows)]
    return [text in map(normalize_answer, golds) for text, golds in zip(chosen_texts, answers, strict=True)]


def token_f1(predictions: Values, references: Values, rows: Rows) -> float:
    """
    Mean over rows, in [0, 1], of the F1 of the words of the chosen answer against the best of the row's `answers`.

    Words are the words of [`normalize_answer`]. ReCoRD's F1 (Zhang et al. 2018); SQuAD's is the same.
    """
    scores = token_f1s(predictions, references, rows)
    return sum(scores) / len(scores)


def token_f1s(predictions: Values, references: Values, rows: Rows) -> list[float]:
    """The [`token_f1`] of each row."""
    answers = row_column(rows, "answers")
    if answers is None:
        raise InputError("The metric token_f1 compares texts and needs rows with a column 'answers'.")
    return [
        max((overlap_f1(text, gold) for gold in golds), default=0.0)
        for text, golds in zip(_chosen_texts(predictions, rows), answers, strict=True)
    ]


CLASSIFICATION: dict[str, Callable[[Values, Values], float]] = {
    "acc": accuracy,
    "mcc": matthews_correlation,
    "f1": f1,
    "f1_macro": f1_macro,
}
REGRESSION: dict[str, Callable[[Values, Values], float]] = {"pearson": pearson, "spearman": spearman}
QUESTION_ANSWERING: dict[str, Callable[[Values, Values, Rows], float]] = {"em": exact_match, "token_f1": token_f1}
# 0 by convention where all gold answers are one.
UNDEFINED_FOR_ONE_CLASS = ("mcc", *REGRESSION)
CHOICE_METRICS = (*CLASSIFICATION, *REGRESSION, *QUESTION_ANSWERING)
# Of generated texts. `perplexity` is of the reference texts and needs a model: see `perplexity`.
TEXT_METRICS = ("rouge_l", "perplexity")


def compute_metrics(
    names: Iterable[str],
    predictions: Sequence,
    references: Sequence,
    rows: Rows | None = None,
    numbers: Sequence[float] | None = None,
) -> dict[str, float]:
    """
    Score predictions against references.

    Args:
        names (`Iterable[str]`): any of `acc`, `mcc`, `f1`, `f1_macro` (of choice indices), `pearson`, `spearman` (of
            numbers), `em` and `token_f1` (of the texts of `rows`).
        predictions (`Sequence`): one index or number a row. Numpy and torch scalars are taken too.
        references (`Sequence`): the gold index or number of each row, in the same order.
        rows (`Dataset` or `Mapping[str, Sequence]`, *optional*): the scored rows in the same order, with the columns
            `choices` (list of texts) and, where a metric needs them, `group`, `answers` and `target`. With a column
            `target`, `pearson` and `spearman` compare the number that the chosen text stands for with it.
        numbers (`Sequence[float]`, *optional*): what the model predicts itself, one finite number a row, on the scale
            of the choices. `pearson` and `spearman` compare these instead.

    Returns:
        `dict[str, float]`: name to score, in the order of `names`. Where a score is undefined because one side holds a
        single value, it is 0: `mcc`, `pearson` and `spearman`, and `f1` without any row of class 1.

    Raises:
        InputError: for an unknown name, no rows, different lengths, a number that is not finite, a class that is no
            integer, an unlabelled reference, `f1` of more than two classes, `em` or `token_f1` without rows, or a
            choice that is no number where there are `target`s.
    """
    names = list(names)
    check_metric_names(names)
    _check_lengths(predictions, references, rows)
    predictions, references = _numbers(predictions), _numbers(references)
    numbers = None if numbers is None else _numbers(numbers)
    if any(name not in REGRESSION for name in names):
        _check_classes(predictions, references)
    scores: dict[str, float] = {}
    for name in names:
        if name in CLASSIFICATION:
            scores[name] = CLASSIFICATION[name](predictions, references)
        elif name in REGRESSION:
            scores[name] = REGRESSION[name](*on_target_scale(predictions, references, rows, numbers))
        elif rows is None:
            raise InputError(f"The metric {name} compares rows, not only indices: pass the scored data set as rows.")
        else:
            scores[name] = QUESTION_ANSWERING[name](predictions, references, rows)
    return scores


def compute_text_metrics(
    names: Iterable[str], predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """
    Mean scores of generated texts against reference texts.

    Args:
        names (`Iterable[str]`): of `rouge_l` and `perplexity`. The latter cannot be computed from texts and is left
            out: see [`perplexity`].
        predictions, references (`Sequence[str]`): one text a row.

    Raises:
        InputError: for an unknown name, no rows, different lengths, or something that is no text.
    """
    names = list(names)
    check_metric_names(names, TEXT_METRICS)
    _check_lengths(predictions, references, None)
    for index, text in enumerate((*predictions, *references)):
        if not isinstance(text, str):
            raise InputError(f"Row {index % len(references)} of the scored texts is {text!r}, not text.")
    if "rouge_l" not in names:
        return {}
    return {"rouge_l": mean_rouge_l(predictions, references)}


def check_metric_names(names: Iterable[str], known: Sequence[str] = CHOICE_METRICS) -> None:
    """Raises `InputError` for the first name that is none of the known metrics."""
    for name in names:
        if name not in known:
            raise InputError(
                f"Unknown metric {name!r}.{nearest(name, tuple(known))} Known metrics: {', '.join(known)}."
            )


def _check_lengths(predictions: Sequence, references: Sequence, rows: Rows | None) -> None:
    if len(predictions) != len(references):
        raise InputError(
            f"There are {len(predictions)} predictions for {len(references)} references; a metric needs "
            "one prediction for each reference."
        )
    if not len(references):
        raise InputError("There are no predictions to score; give at least one row.")
    for name in ("choices", "group", "answers", "target"):
        column = row_column(rows, name)
        if column is not None and len(column) != len(references):
            raise InputError(
                f"There are {len(column)} rows ({name}) for {len(references)} references; pass the rows that were "
                "scored, in their order."
            )


def row_column(rows: Rows | None, name: str) -> list | None:
    """A column of the scored rows, if they have it."""
    if rows is None:
        return None
    names = getattr(rows, "column_names", None) or list(rows)
    return list(rows[name]) if name in names else None


def _chosen_texts(predictions: Values, rows: Rows) -> list[str]:
    choices = row_column(rows, "choices")
    if choices is None:
        raise InputError("The scored rows have no column 'choices', so a chosen answer has no text.")
    return [row_choices[int(index)].strip() for row_choices, index in zip(choices, predictions, strict=True)]


def on_target_scale(
    predictions: Values, references: Values, rows: Rows | None, numbers: Values | None = None
) -> tuple[Values, Values]:
    """
    Predicted `numbers`, or what the chosen texts say in numbers, and the rows' own `target`s.

    Without that column: the given values, or the numbers and what the gold choices say.
    """
    targets = row_column(rows, "target")
    if targets is None:
        return (predictions, references) if numbers is None else (numbers, _choice_numbers(references, rows))
    if None in targets:
        raise InputError(f"{targets.count(None)} of {len(targets)} rows have no target; score a labelled split.")
    return _choice_numbers(predictions, rows) if numbers is None else numbers, targets


def _choice_numbers(indices: Values, rows: Rows | None) -> list[float]:
    values = []
    for text in _chosen_texts(indices, rows):
        try:
            values.append(float(text))
        except ValueError as error:
            raise InputError(
                f"The choice {text!r} is no number, but pearson and spearman compare numbers; write numbers into "
                "doc_to_choice."
            ) from error
    return values


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
