"""What is kept of a run's answers, row by row: to compare it with other runs, and to choose settings by."""

from typing import TYPE_CHECKING, Any

from sinkd_llm.metrics import REGRESSION, on_target_scale
from sinkd_llm.report.predictions import EVALUATION, HELD_OUT, TEACHER, Predictions
from sinkd_llm.runs.examining import texts_of
from sinkd_llm.runs.result_rows import choice_names
from sinkd_llm.tasks import Task

if TYPE_CHECKING:
    from sinkd_llm.evaluation import TaskScore
    from sinkd_llm.runs.scorer import Scorer


def predictions_of(scorer: "Scorer", name: str, model: Any) -> dict[str, Predictions]:
    """
    The answers of a model of a run, to the rows for evaluation, on which the scorer has scored it, and to held-out
    training rows, on which it is scored now; and what is known of the teacher's.

    Args:
        scorer ([`Scorer`]): has scored the model. All processes of a launch must call this.
        name (`str`): under which it did.
        model (`PreTrainedModel` or `PeftModel`): the model.

    Returns:
        `dict[str, Predictions]`: by `EVALUATION`, `HELD_OUT` and `TEACHER`; nothing for rows without a task.
    """
    data = scorer.data
    found: dict[str, Predictions] = {}
    if data.task is None:
        return found
    whole = data.arguments is None or data.arguments.keep_probabilities
    if name in scorer.scores:
        found[EVALUATION] = answers_to(data.task, data.evaluation, scorer.scores[name], whole)
        said = scorer.teacher_predictions
        if said is not None and -1 not in said:
            rows = data.evaluation
            metrics = data.task.compute_metrics(said, found[EVALUATION].references, rows=rows)
            theirs = scorer.teacher_probabilities if whole else None
            found[TEACHER] = as_predictions(data.task, rows, said, metrics, probabilities=theirs)
    if data.held_out is not None:
        score = scorer.score(scorer.evaluator_of_rows(data.held_out), f"{name}, on held-out rows", model)
        found[HELD_OUT] = answers_to(data.task, data.held_out, score, whole)
    return found


def answers_to(task: Task, rows: Any, score: "TaskScore", whole: bool = True) -> Predictions:
    """
    What a score says, row by row.

    Args:
        task ([`Task`]), rows ([`~datasets.Dataset`]), score ([`TaskScore`]): of the rows of the task.
        whole (`bool`, *optional*, defaults to `True`): keep probabilities and texts as well.
    """
    return as_predictions(
        task,
        rows,
        score.predictions,
        score.metrics,
        score.numbers,
        score.probabilities if whole else None,
        texts_of(rows) if whole else None,
    )


def as_predictions(
    task: Task,
    rows: Any,
    predictions: list[Any],
    metrics: dict[str, float],
    numbers: list[float] | None = None,
    probabilities: list[list[float]] | None = None,
    texts: list[str] | None = None,
) -> Predictions:
    """Answers to the rows of a task, as they are kept."""
    written = task.output_type == "generate_until"
    references = rows["completion"][:] if written else [int(label) for label in rows["label"]]
    said, targets = None, None
    if any(name in REGRESSION for name in task.metric_names):
        values = on_target_scale(predictions, references, task.as_scored(rows), numbers)
        said, targets = (list(map(float, side)) for side in values)
    choices = choice_names(task)
    return Predictions(
        rows["id"][:], references, list(predictions), dict(metrics), said, targets, choices, probabilities, texts
    )
