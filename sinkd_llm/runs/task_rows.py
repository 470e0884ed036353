"""The rows of a task that a run trains and is scored on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.tasks import Task

# Evaluation rows are drawn with one seed for all runs: runs with different seeds meet the same rows.
EVALUATION_SAMPLE_SEED = 0


def training_rows(task: "Task", arguments: "TaskArguments", seed: int) -> "Dataset":
    """The rows of a task to train on: labelled ones, and then those without labels, if there are any."""
    import datasets

    limit = arguments.max_train_samples
    labelled = False if arguments.allow_unlabelled else None
    drawn = None if limit is None else seed
    train = task.load("train", arguments.data_dir, limit=limit, seed=drawn, labelled=labelled)
    if arguments.unlabelled_file is None:
        return train
    limit = arguments.max_unlabelled_samples
    more = task.load_unlabelled(arguments.unlabelled_file, limit=limit, seed=None if limit is None else seed)
    return datasets.concatenate_datasets([train, more])


def task_split(task: "Task", split: str, data_dir: str | None, limit: int | None) -> "Dataset":
    """The rows of a split to score on, all labelled; with `limit`, the same sample for every run."""
    seed = None if limit is None else EVALUATION_SAMPLE_SEED
    return task.load(split, data_dir, limit=limit, seed=seed, labelled=True)
