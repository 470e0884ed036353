"""Scores of choices, numbers and texts, and the averages of the benchmarks."""

from sinkd_llm.metrics.averages import GLUE, SUPERGLUE, glue_score, superglue_score
from sinkd_llm.metrics.scores import (
    CHOICE_METRICS,
    CLASSIFICATION,
    REGRESSION,
    TEXT_METRICS,
    UNDEFINED_FOR_ONE_CLASS,
    check_metric_names,
    compute_metrics,
    compute_text_metrics,
    on_target_scale,
    right_rows,
)
from sinkd_llm.metrics.texts import normalize_answer, perplexity, rouge_l

__all__ = [
    "CHOICE_METRICS",
    "CLASSIFICATION",
    "GLUE",
    "REGRESSION",
    "SUPERGLUE",
    "TEXT_METRICS",
    "UNDEFINED_FOR_ONE_CLASS",
    "check_metric_names",
    "compute_metrics",
    "compute_text_metrics",
    "glue_score",
    "normalize_answer",
    "on_target_scale",
    "perplexity",
    "right_rows",
    "rouge_l",
    "superglue_score",
]
