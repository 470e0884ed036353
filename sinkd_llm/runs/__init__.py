"""The workflows of the commands: load, score, train, save, score again, report.

Each takes dataclasses and returns one, so that a script can call them as the command line does.
"""

from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.evaluate import Evaluations, run_evaluations
from sinkd_llm.runs.training import RunResult, TrainingInterrupted, run_distill, run_finetune

__all__ = [
    "Evaluations",
    "RunResult",
    "TaskArguments",
    "TrainingInterrupted",
    "run_distill",
    "run_evaluations",
    "run_finetune",
]
