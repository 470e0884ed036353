"""What a row of the results table says of a model that was scored on a task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinkd_llm.evaluation.ranking import agreement
from sinkd_llm.metrics.calibration import divergences
from sinkd_llm.metrics.classes import class_scores
from sinkd_llm.metrics.intervals import mean_interval, share_interval
from sinkd_llm.metrics.scores import row_column
from sinkd_llm.report.results import ClassTable, ResultRow

if TYPE_CHECKING:
    from sinkd_llm.evaluation import TaskEvaluator, TaskScore
    from sinkd_llm.tasks import Task


def fill_in(row: ResultRow, evaluator: "TaskEvaluator", score: "TaskScore") -> None:
    """
    Writes a model's score into its row of the results table, with the scores of each class where all rows have the
    same choices.

    Args:
        row ([`ResultRow`]): of the model.
        evaluator ([`TaskEvaluator`]): that scored it.
        score ([`TaskScore`]): what it found.
    """
    row.metrics, row.intervals = dict(score.metrics), dict(score.intervals)
    row.num_examples, row.seconds = score.num_examples, score.seconds
    names = choice_names(evaluator.task)
    if names is not None and "answers" not in evaluator.task.as_scored(evaluator.dataset).column_names:
        found = class_scores(score.predictions, evaluator.dataset["label"][:], len(names))
        cells = [
            [right, chosen, count]
            for right, counts in enumerate(found.confusion)
            for chosen, count in enumerate(counts)
            if count
        ]
        row.classes = ClassTable(names, found.precision, found.recall, found.f1, found.support, cells)


def compare_with_teacher(
    row: ResultRow,
    rows: Any,
    score: "TaskScore",
    predictions: Sequence[int],
    probabilities: Sequence[Sequence[float]] | None = None,
) -> None:
    """
    Adds to a student's row how close it is to its teacher, with intervals, as far as that is known of all rows.

    `agreement` is the share of rows where it chooses what its teacher chose, `kl_to_teacher` the mean
    KL(teacher || student) over the choices of a row, in nats.

    Args:
        row ([`ResultRow`]): of the student.
        rows ([`~datasets.Dataset`]): that were scored, as the task's metrics read them ([`Task.as_scored`]).
        score ([`TaskScore`]): of the student.
        predictions (`Sequence[int]`): what the teacher chose; -1 where that is not known.
        probabilities (`Sequence[Sequence[float]]`, *optional*): of the teacher.
    """
    groups = row_column(rows, "group")
    agrees = agreement(score.predictions, predictions)
    if agrees is not None:
        row.metrics["agreement"] = agrees
        same = [chosen == theirs for chosen, theirs in zip(score.predictions, predictions, strict=True)]
        row.intervals["agreement"] = share_interval(same, groups)
    if probabilities is not None and score.probabilities is not None:
        apart = divergences(probabilities, score.probabilities)
        row.metrics["kl_to_teacher"] = float(apart.mean())
        row.intervals["kl_to_teacher"] = mean_interval(apart, groups)


def choice_names(task: "Task") -> list[str] | None:
    """The answer choices of a task as a user writes them; `None` where rows have others."""
    return None if task.choices is None else [choice.strip() for choice in task.choices]
