"""The averages of GLUE and SuperGLUE over their tasks."""

import math
from collections.abc import Mapping

from sinkd_llm.errors import InputError

# The official metrics of each task of a benchmark, as (name of a result, metric): MNLI's two validation sets count as
# one task, as on the leaderboard.
GLUE: dict[str, tuple[tuple[str, str], ...]] = {
    "cola": (("cola", "mcc"),),
    "sst2": (("sst2", "acc"),),
    "mrpc": (("mrpc", "acc"), ("mrpc", "f1")),
    "stsb": (("stsb", "pearson"), ("stsb", "spearman")),
    "qqp": (("qqp", "acc"), ("qqp", "f1")),
    "mnli": (("mnli", "acc"), ("mnli_mismatched", "acc")),
    "qnli": (("qnli", "acc"),),
    "rte": (("rte", "acc"),),
    "wnli": (("wnli", "acc"),),
}
SUPERGLUE: dict[str, tuple[tuple[str, str], ...]] = {
    "boolq": (("boolq", "acc"),),
    "cb": (("cb", "acc"), ("cb", "f1_macro")),
    "copa": (("copa", "acc"),),
    "multirc": (("multirc", "f1"), ("multirc", "em")),
    "record": (("record", "em"), ("record", "token_f1")),
    "sglue_rte": (("sglue_rte", "acc"),),
    "wic": (("wic", "acc"),),
    "wsc": (("wsc", "acc"),),
}


def glue_score(results: Mapping[str, Mapping[str, float]], partial: bool = False) -> float:
    """
    GLUE's average (Wang et al. 2018): the mean over its nine tasks of the mean over a task's metrics.

    Args:
        results (`Mapping[str, Mapping[str, float]]`): task name, such as `"sst2"`, to metric name to score. More tasks
            and more metrics than needed are ignored.
        partial (`bool`, *optional*, defaults to `False`): average over the tasks that are there. Such a number
            compares only with one over the same tasks.

    Returns:
        `float`: the average in the unit of the scores; the leaderboard shows 100 times it.

    Raises:
        InputError: if a task is missing (with `partial`: if all are), or a metric of a given task is.
    """
    return _average("GLUE", GLUE, results, partial)


def superglue_score(results: Mapping[str, Mapping[str, float]], partial: bool = False) -> float:
    """SuperGLUE's average (Wang et al. 2019) over its eight tasks; arguments and errors as in [`glue_score`]."""
    return _average("SuperGLUE", SUPERGLUE, results, partial)


# What a benchmark's name stands for: what it is called, and its tasks with their metrics.
BENCHMARKS = {"glue": ("GLUE", GLUE), "superglue": ("SuperGLUE", SUPERGLUE)}


def tasks_of(benchmark: str) -> list[str]:
    """The names of the tasks of one of `BENCHMARKS`."""
    _, entries = BENCHMARKS[benchmark]
    return list(dict.fromkeys(task for parts in entries.values() for task, _ in parts))


def average_of(benchmark: str, results: Mapping[str, Mapping[str, float]]) -> tuple[str, float] | None:
    """
    What one of `BENCHMARKS` averages over the tasks that there are, and what that is called.

    Args:
        benchmark (`str`): its name.
        results (`Mapping[str, Mapping[str, float]]`): as of [`glue_score`].

    Returns:
        `tuple[str, float]` or `None`: such as `("GLUE", 0.81)`, or `("GLUE, 7 of 9 tasks", 0.79)`; `None` without one.
    """
    name, entries = BENCHMARKS[benchmark]
    whole = sum(all(task in results for task, _ in parts) for parts in entries.values())
    if not whole:
        return None
    label = name if whole == len(entries) else f"{name}, {whole} of {len(entries)} tasks"
    return label, _average(name, entries, results, partial=True)


def _average(
    name: str,
    benchmark: dict[str, tuple[tuple[str, str], ...]],
    results: Mapping[str, Mapping[str, float]],
    partial: bool,
) -> float:
    missing = sorted({task for parts in benchmark.values() for task, _ in parts if task not in results})
    complete = {key: parts for key, parts in benchmark.items() if all(task in results for task, _ in parts)}
    if not complete or (missing and not partial):
        raise InputError(
            f"The {name} score needs results of every task, but there are none of {', '.join(missing)}; score them, "
            "or pass partial=True for the mean over the tasks that are there."
        )
    means = []
    for parts in complete.values():
        for task, metric in parts:
            if metric not in results[task]:
                raise InputError(
                    f"The {name} score needs {metric} of {task}, but its results are {', '.join(results[task])}."
                )
            if not math.isfinite(results[task][metric]):
                raise InputError(
                    f"The {name} score needs a number as {metric} of {task}, but it is {results[task][metric]}; score "
                    "the task again."
                )
        means.append(sum(results[task][metric] for task, metric in parts) / len(parts))
    return sum(means) / len(means)
