"""The rows of a task that a run trains and is scored on."""

import random
from collections import Counter
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.runs.held_out import hold_out, smallest, without_texts_of
from sinkd_llm.tasks.loading import SPLIT_KEYS
from sinkd_llm.tasks.sample import drawn_rows
from sinkd_llm.terminal import say

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.tasks import Task

# Evaluation rows are drawn with one seed for all runs: runs with different seeds meet the same rows.
EVALUATION_SAMPLE_SEED = 0


def training_rows(task: "Task", arguments: "TaskArguments", seed: int) -> "Dataset":
    """The rows of a task to train on: labelled ones, and then those without labels, if there are any."""
    import datasets

    train, held_out = hold_out(_given_rows(task, arguments, seed), arguments.heldout_share)
    if not len(train):
        raise InputError(f"heldout_share is {arguments.heldout_share:g}, and no row is left to train on; lower it.")
    if arguments.labels_per_class is not None:
        train = _with_few_labels(train, arguments.labels_per_class, seed)
    if arguments.labelled_rows_only and "label" in train.column_names:
        train = train.select([i for i, label in enumerate(train["label"][:]) if label != NO_LABEL])
    more = None if arguments.labelled_rows_only else _unlabelled_rows(task, arguments, seed)
    if more is None:
        return train
    for kept_apart in (held_out, _split_by_hash(task, arguments)[1]):
        if len(kept_apart):
            more = without_texts_of(more, kept_apart)
    return datasets.concatenate_datasets([train, more])


def _unlabelled_rows(task: "Task", arguments: "TaskArguments", seed: int) -> "Dataset | None":
    """The rows without labels that a run asks for beside the training split."""
    limit, split = arguments.max_unlabelled_samples, arguments.dataset_unlabelled_split
    drawn = None if limit is None else seed
    if arguments.unlabelled_file is not None:
        return task.load_unlabelled(arguments.unlabelled_file, limit=limit, seed=drawn)
    if split is None:
        return None
    rows = task.load(split, arguments.data_dir, limit=limit, seed=drawn, labelled=False)
    if "label" not in rows.column_names:
        raise InputError(
            "dataset_unlabelled_split is set, but the answers of this task are generated: a row without one has no "
            "token to compare; leave it out."
        )
    return _with_labels(rows, frozenset())


def held_out_rows(task: "Task", arguments: "TaskArguments", seed: int) -> "Dataset | None":
    """
    The rows that [`training_rows`] leaves out, all with their labels; at most `max_eval_samples` of them.

    Raises:
        InputError: if `heldout_share` is set, and holds out no row.
    """
    if not arguments.heldout_share:
        return None
    _, held_out = hold_out(_given_rows(task, arguments, seed), arguments.heldout_share)
    if not len(held_out):
        raise InputError(
            f"heldout_share is {arguments.heldout_share:g}, and none of the labelled training rows falls into it; "
            "raise it, or take more rows."
        )
    return held_out if arguments.max_eval_samples is None else smallest(held_out, arguments.max_eval_samples)


def _given_rows(task: "Task", arguments: "TaskArguments", seed: int) -> "Dataset":
    """The rows of the training split, with all labels that there are, without those that are a validation split."""
    limit = arguments.max_train_samples
    drawn = None if limit is None else seed
    if arguments.validation_share:
        train, _ = _split_by_hash(task, arguments)
        return train.select(drawn_rows(len(train), limit, drawn))
    return task.load("train", arguments.data_dir, limit=limit, seed=drawn, labelled=_labelled(arguments))


def _labelled(arguments: "TaskArguments") -> bool | None:
    return False if arguments.allow_unlabelled else None


def _split_by_hash(task: "Task", arguments: "TaskArguments") -> "tuple[Dataset, Dataset]":
    """All rows of the training file: those to train on, and those that `validation_share` makes a validation split."""
    if not arguments.validation_share:
        return (nothing := _no_rows()), nothing
    rows = task.load("train", arguments.data_dir, labelled=_labelled(arguments))
    return split_by_hash(rows, arguments.validation_share)


def _no_rows() -> "Dataset":
    import datasets

    return datasets.Dataset.from_dict({})


def split_by_hash(rows: "Dataset", share: float) -> "tuple[Dataset, Dataset]":
    """
    The rows to train on, and those to evaluate on: a row's text decides, so that neither the order of the rows nor a
    seed changes anything, and equal texts are on one side.

    Args:
        rows ([`~datasets.Dataset`]): rows of a task, or with a prompt and a completion.
        share (`float`): about so much of the rows is to evaluate on, in (0, 1). These have a label.

    Raises:
        InputError: if no row is on one of the sides.
    """
    train, validation = hold_out(rows, share, "validation")
    for part, side, change in ((train, "to train on", "lower"), (validation, "with a label to evaluate on", "raise")):
        if not len(part):
            raise InputError(
                f"validation_share is {share:g}, and of {len(rows):,} rows none is left {side}; {change} it, or take "
                "more rows."
            )
    return train, validation


def validation_rows(task: "Task", arguments: "TaskArguments") -> "Dataset":
    """
    The rows of a task to evaluate on: its validation split, or what `validation_share` takes of its training rows.

    Args:
        task ([`Task`]): the task.
        arguments ([`TaskArguments`]): `data_dir`, `validation_share`, `max_eval_samples`.

    Raises:
        InputError: if there is no validation split and no share, or both.
    """
    share, has_split = arguments.validation_share, SPLIT_KEYS["validation"] in task.config
    if share and has_split:
        raise InputError(
            f"validation_share is {share:g}, and the task {task.name!r} has a validation split of its own; leave "
            f"validation_share out, or write a task file with {SPLIT_KEYS['validation']}: null."
        )
    if not share and not has_split:
        raise InputError(
            f"The task {task.name!r} has no validation split to evaluate on: {SPLIT_KEYS['validation']} is not set in "
            f"{task.path}. Set it there, or set validation_share to 0.1, which takes a tenth of the training rows, by "
            "a hash of their text."
        )
    limit = arguments.max_eval_samples
    if not share:
        return task_split(task, "validation", arguments.data_dir, limit)
    _, rows = _split_by_hash(task, arguments)
    return rows if limit is None else smallest(rows, limit)


def _with_few_labels(rows: "Dataset", count: int, seed: int) -> "Dataset":
    """The rows with the labels of `count` of each answer."""
    if "label" not in rows.column_names:
        raise InputError("labels_per_class is set, but the answers of this task are generated; leave it out.")
    labels = rows["label"][:]
    fewer = {label: n for label, n in Counter(labels).items() if n < count and label != NO_LABEL}
    if fewer:
        least = min(fewer, key=fewer.__getitem__)
        choices = rows["choices"][labels.index(least)]
        say(
            f"labels_per_class is {count}, and {len(fewer)} of the classes have fewer labels, the fewest "
            f"{choices[least].strip()!r} with {fewer[least]}: all of theirs are kept."
        )
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    left = Counter(dict.fromkeys(set(labels) - {NO_LABEL}, count))
    kept = set()
    for index in order:
        if left[labels[index]] > 0:
            left[labels[index]] -= 1
            kept.add(index)
    known = sum(label != NO_LABEL for label in labels)
    say(f"labels_per_class is {count}: {len(kept):,} of {known:,} labels are kept, and the others forgotten.")
    return _with_labels(rows, kept)


def _with_labels(rows: "Dataset", kept: AbstractSet[int]) -> "Dataset":
    """The rows without the labels of all but some."""
    few = [label if index in kept else NO_LABEL for index, label in enumerate(rows["label"][:])]
    texts = [text if index in kept else "" for index, text in enumerate(rows["completion"][:])]
    kinds = {name: rows.features[name] for name in ("label", "completion")}
    rest = rows.remove_columns([*kinds])
    columns = rest.add_column("label", few, feature=kinds["label"])
    return columns.add_column("completion", texts, feature=kinds["completion"]).select_columns(rows.column_names)


def task_split(task: "Task", split: str, data_dir: str | None, limit: int | None) -> "Dataset":
    """The rows of a split to score on, all labelled; with `limit`, the same sample for every run."""
    seed = None if limit is None else EVALUATION_SAMPLE_SEED
    return task.load(split, data_dir, limit=limit, seed=seed, labelled=True)
