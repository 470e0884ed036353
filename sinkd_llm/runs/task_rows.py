"""The rows of a task that a run trains and is scored on."""

import random
from collections import Counter
from typing import TYPE_CHECKING

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.over_choices import NO_LABEL

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
    if arguments.labels_per_class is not None:
        train = _with_few_labels(train, arguments.labels_per_class, seed)
    if arguments.unlabelled_file is None:
        return train
    limit = arguments.max_unlabelled_samples
    more = task.load_unlabelled(arguments.unlabelled_file, limit=limit, seed=None if limit is None else seed)
    return datasets.concatenate_datasets([train, more])


def _with_few_labels(rows: "Dataset", count: int, seed: int) -> "Dataset":
    """The rows with the labels of `count` of each answer."""
    if "label" not in rows.column_names:
        raise InputError("labels_per_class is set, but the answers of this task are generated; leave it out.")
    labels = list(rows["label"])
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    left = Counter(dict.fromkeys(labels, count))
    kept = set()
    for index in order:
        if left[labels[index]] > 0:
            left[labels[index]] -= 1
            kept.add(index)
    few = [label if index in kept else NO_LABEL for index, label in enumerate(labels)]
    texts = [text if index in kept else "" for index, text in enumerate(rows["completion"])]
    kinds = {name: rows.features[name] for name in ("label", "completion")}
    rest = rows.remove_columns([*kinds])
    columns = rest.add_column("label", few, feature=kinds["label"])
    return columns.add_column("completion", texts, feature=kinds["completion"]).select_columns(rows.column_names)


def task_split(task: "Task", split: str, data_dir: str | None, limit: int | None) -> "Dataset":
    """The rows of a split to score on, all labelled; with `limit`, the same sample for every run."""
    seed = None if limit is None else EVALUATION_SAMPLE_SEED
    return task.load(split, data_dir, limit=limit, seed=seed, labelled=True)
