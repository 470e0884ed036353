"""What a Python user gives to the trainer, looked at before anything is loaded."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from datasets import IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from sinkd_llm.errors import InputError, first_line, shown
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.settings.combinations import check_best_metric
from sinkd_llm.training.settings.without_effect import without_effect

logger = logging.getLogger(__name__)


def check_arguments(
    args: Any,
    train_dataset: Any,
    eval_dataset: Any,
    compute_metrics: Any,
    data_collator: Any = None,
    callbacks: Any = None,
) -> None:
    """
    Refuses arguments of [`SinKDTrainer`] that are of another kind than it takes.

    Raises:
        InputError: naming the argument and what to give.
    """
    if not isinstance(args, SinKDConfig):
        raise InputError(
            f"args is a {type(args).__name__}, but distillation has settings of its own; give a SinKDConfig, which "
            "takes everything that TrainingArguments takes: SinKDConfig(output_dir=…, alpha=…)."
        )
    args.check()
    for sentence in without_effect(args):
        logger.warning(sentence)
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs are visible to one process, which would split a batch and with it the "
            "transport problem; start with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    if compute_metrics is not None and not callable(compute_metrics):
        raise InputError(
            f"compute_metrics is a {type(compute_metrics).__name__}; give a function that takes an EvalPrediction, "
            "such as ranking_metrics(task)."
        )
    if data_collator is not None and not callable(data_collator):
        raise InputError(
            f"data_collator is a {type(data_collator).__name__}; give a function that takes a list of rows and "
            "returns a batch, or leave it out."
        )
    _check_callbacks(callbacks)
    check_dataset(train_dataset, "train_dataset", named=False, streamed=True)
    check_dataset(eval_dataset, "eval_dataset", streamed=True)
    if eval_dataset is None and str(args.eval_strategy).rsplit(".", 1)[-1].lower() != "no":
        raise InputError(
            f"eval_strategy is {getattr(args.eval_strategy, 'value', args.eval_strategy)!r}, but there is no "
            "eval_dataset; give one, or set eval_strategy to 'no'."
        )
    if eval_dataset is None and args.eval_on_start:
        raise InputError("eval_on_start is on, but there is no eval_dataset; give one, or leave eval_on_start out.")
    _check_metrics(args, eval_dataset, compute_metrics)


def _check_callbacks(callbacks: Any) -> None:
    if callbacks is None:
        return
    if not isinstance(callbacks, list | tuple):
        raise InputError(f"callbacks is a {type(callbacks).__name__}; give a list of transformers.TrainerCallback.")
    for callback in callbacks:
        if not isinstance(callback, TrainerCallback) and not (
            isinstance(callback, type) and issubclass(callback, TrainerCallback)
        ):
            raise InputError(
                f"callbacks holds {shown(callback)}, which is no transformers.TrainerCallback; give objects of "
                "classes made from it."
            )


def _check_metrics(args: SinKDConfig, eval_dataset: Any, compute_metrics: Any) -> None:
    """Rows without choices have a loss alone: there is nothing to compute a metric from, or to choose a step by."""
    parts = list(eval_dataset.values()) if isinstance(eval_dataset, Mapping) else [eval_dataset]
    columns = [getattr(part, "column_names", None) for part in parts]
    if not all(isinstance(names, list) and "prompt" in names and "choices" not in names for names in columns):
        return
    if not isinstance(eval_dataset, Mapping):  # of several, metrics have the names of their sets
        check_best_metric(args, [])
    if compute_metrics is not None:
        logger.warning(
            "compute_metrics is given, and the rows of eval_dataset have no choices: it ranks choices, so it will not "
            "be called, and an evaluation reports eval_loss alone."
        )


def named_or_loaded(given: Any, argument: str) -> Any:
    """
    A model as the trainer takes it: a name (a path is one, too), a loaded model, or `None`.

    Raises:
        InputError: for anything else, naming the argument.
    """
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    if given is None or isinstance(given, str | nn.Module):
        return given
    raise InputError(f"{argument} is a {type(given).__name__}; give a model's name or folder, or a loaded model.")


def check_tokenizer(given: Any, argument: str = "processing_class") -> None:
    """
    Refuses an argument that is no tokenizer.

    Raises:
        InputError: saying what to give.
    """
    if given is not None and not isinstance(given, PreTrainedTokenizerBase):
        raise InputError(
            f"{argument} is a {type(given).__name__}; give a tokenizer, such as load_tokenizer(name), or leave it out."
        )


def check_optimizers(optimizers: Any, student: Any) -> None:
    """
    Refuses an optimizer that would move nothing of the student.

    Args:
        optimizers: what was given: an optimizer or `None`, and a schedule or `None`.
        student (`nn.Module`): as it is trained, its adapter included.

    Raises:
        InputError: saying what to give.
    """
    if not isinstance(optimizers, (tuple, list)) or len(optimizers) != 2:
        raise InputError("optimizers is not a pair; give (optimizer, schedule), either of them None for the default.")
    groups = getattr(optimizers[0], "param_groups", None)
    if groups is None:
        return
    held = {id(parameter) for group in groups for parameter in group["params"]}
    if not any(parameter.requires_grad and id(parameter) in held for parameter in student.parameters()):
        raise InputError(
            "The optimizer that was given holds no trainable parameter of the student, so nothing would be trained; "
            "make it of the parameters of the very model that is given (with its adapter, if it has one), or leave "
            "it out and set optim."
        )


def check_collator(collator: Any, rows: Any) -> None:
    """
    Tries a collator that was given on the first rows; random numbers stay as they were.

    Args:
        collator (`Callable`): takes a list of tokenised rows.
        rows (`Dataset`, *optional*): the tokenised rows.

    Raises:
        InputError: if it fails, or returns no batch.
    """
    if not rows:
        return
    wanted = "it has to return a mapping of tensors with input_ids and labels (-100 where nothing is supervised)"
    try:
        with torch.random.fork_rng(devices=[]):
            batch = collator([rows[index] for index in range(min(2, len(rows)))])
    except InputError:
        raise
    except Exception as error:  # somebody's own function may fail in any way
        raise InputError(
            f"data_collator fails on the first rows ({type(error).__name__}: {first_line(error)}); {wanted}."
        ) from error
    if not isinstance(batch, Mapping):
        raise InputError(f"data_collator returns a {type(batch).__name__} for the first rows; {wanted}.")
    if "labels" not in batch:
        names = ", ".join(map(str, batch)) or "nothing"
        raise InputError(f"data_collator returns a batch without labels ({names}); {wanted}.")


def check_name(name: str, known: Mapping[str, Any]) -> None:
    """
    Refuses the name of no evaluation set.

    Args:
        name (`str`): what was given to `evaluate`.
        known (`Mapping[str, Dataset]`): the evaluation sets of the trainer, by name; empty where it has one or none.

    Raises:
        InputError: with the names that there are.
    """
    if name not in known:
        have = f"has {', '.join(known)}" if known else "was given no evaluation sets by name"
        raise InputError(f"eval_dataset is {shown(name)}, and the trainer {have}; give one of these names, or rows.")


def check_dataset(
    dataset: Any, argument: str, *, needed: bool = False, named: bool = True, streamed: bool = False
) -> None:
    """
    Refuses what is no `datasets.Dataset`, with the way to one.

    Args:
        dataset: what was given; `None` is none, unless it is `needed`.
        argument (`str`): its name.
        needed (`bool`, *optional*, defaults to `False`): whether there has to be one.
        named (`bool`, *optional*, defaults to `True`): whether several are taken, as a dictionary by name.
        streamed (`bool`, *optional*, defaults to `False`): whether a `datasets.IterableDataset` is taken.

    Raises:
        InputError: naming the argument and the type.
    """
    if dataset is None:
        if needed:
            raise InputError(f"There are no rows: give {argument} to the trainer or to this call.")
        return
    if isinstance(dataset, Mapping):
        names = ", ".join(map(str, dataset))
        if not named:
            raise InputError(
                f"{argument} is a {type(dataset).__name__} with the splits {names or '(none)'}; give one of them, "
                f"such as {argument}=data[{next(iter(dataset), 'train')!r}]."
            )
        if not dataset:
            raise InputError(f"{argument} is an empty {type(dataset).__name__}; give at least one data set, or None.")
        for name, part in dataset.items():
            check_dataset(part, f"{argument}[{name!r}]", needed=True, named=False, streamed=streamed)
        return
    if streamed and isinstance(dataset, IterableDataset):
        return
    if not isinstance(getattr(dataset, "column_names", None), list) or not hasattr(dataset, "__len__"):
        advice = " A stream has no length: collect its rows first." if "Iterable" in type(dataset).__name__ else ""
        raise InputError(
            f"{argument} is a {type(dataset).__name__}, and a data set is a datasets.Dataset; build one with "
            f"`datasets.Dataset.from_list(rows)` or `load_task(name).load(split)`.{advice}"
        )
