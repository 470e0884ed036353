"""How well a model does on each class."""

from collections.abc import Sequence
from dataclasses import dataclass

from sinkd_llm.errors import InputError


@dataclass(frozen=True)
class ClassScores:
    """
    Scores of each class, in the order of their indices.

    Attributes:
        precision, recall, f1 (`list[float]`): in [0, 1]; 0 where a class is never chosen or never right, for which
            they are undefined.
        support (`list[int]`): rows of which the class is the right answer.
        confusion (`list[list[int]]`): rows of each right answer (outer) and each chosen one (inner).
    """

    precision: list[float]
    recall: list[float]
    f1: list[float]
    support: list[int]
    confusion: list[list[int]]


def class_scores(predictions: Sequence[int], references: Sequence[int], classes: int) -> ClassScores:
    """
    Precision, recall, F1 and support of each class, and how often each was taken for which other one.

    Args:
        predictions, references (`Sequence[int]`): the index of each chosen and of each right answer.
        classes (`int`): how many there are.

    Raises:
        InputError: without a row, for different lengths, and for an index that is none of the classes.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if len(predictions) != len(references) or not len(references):
        raise InputError(
            f"There are {len(predictions)} predictions for {len(references)} references; give one for each, and at "
            "least one."
        )
    outside = [index for index in (*predictions, *references) if not 0 <= index < classes]
    if outside:
        raise InputError(f"The choice {outside[0]} is none of {classes} classes, which are numbered from 0.")
    labels = list(range(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        references, predictions, labels=labels, zero_division=0.0
    )
    confusion = confusion_matrix(references, predictions, labels=labels)
    return ClassScores(precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), confusion.tolist())
