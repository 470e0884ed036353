"""Scores of a model on a task: choices are ranked, free text is generated."""

from sinkd_llm.evaluation.evaluator import TaskScore, evaluate_task, shortest
from sinkd_llm.evaluation.ranking import refuse_non_finite
from sinkd_llm.evaluation.trainer_metrics import accuracy, ranking_metrics

__all__ = [
    "TaskScore",
    "accuracy",
    "evaluate_task",
    "ranking_metrics",
    "refuse_non_finite",
    "shortest",
]
