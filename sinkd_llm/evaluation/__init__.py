"""Scores of a model on a task: choices are ranked, free text is generated."""

from sinkd_llm.evaluation.evaluator import TaskEvaluator, TaskScore, evaluate_task
from sinkd_llm.evaluation.ranking import accuracy, agreement, ranking_metrics, refuse_non_finite

__all__ = [
    "TaskEvaluator",
    "TaskScore",
    "accuracy",
    "agreement",
    "evaluate_task",
    "ranking_metrics",
    "refuse_non_finite",
]
