"""What a run of a comparison is made from: a finished one counts only while all of it is the same."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sinkd_llm._version import __version__
from sinkd_llm.models.names import BASE_FOLDER
from sinkd_llm.runs.inputs import task_inputs
from sinkd_llm.runs.record import every_setting
from sinkd_llm.secrets import masked

if TYPE_CHECKING:
    from trl import ModelConfig

    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.training.config import SinKDConfig


Arguments: TypeAlias = "tuple[TaskArguments, SinKDConfig, ModelConfig]"
# Where things are written, and what follows from that; how often a run is watched; what else is said of it.
_ELSEWHERE = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "logging_dir", "disable_tqdm"),
    *("report_to", "trackio_space_id", "project", "do_train", "do_eval", "do_predict", "dataloader_pin_memory"),
    *("score_before", "profile", "keep_probabilities"),
}
# What the teacher's answers depend on, beside its own settings and all that says which rows there are.
_OF_ANSWERS = {
    *("signal", "choice_normalisation", "vocabulary", "max_length", "apply_chat_template", "add_eos", "group_column"),
    *("model_name_or_path", "model_revision", "trust_remote_code", "dtype", "attn_implementation", "model_kind"),
}
# How a teacher is asked does not change what it says.
_NOT_OF_ANSWERS = {
    *("overwrite_output_dir", "teacher_examined_rows", "teacher_cache"),
    *("teacher_deepspeed", "teacher_concurrency", "teacher_max_requests"),
}
# Of a model's folder, beside its weights and its configuration.
_OF_MODEL = {
    "tokenizer": (
        *("tokenizer*", "vocab.*", "merges.txt", "*.model", "*.spm", "added_tokens.json", "special_tokens_map.json"),
        *("chat_template*", "additional_chat_templates/*"),
    ),
    "generation_config": ("generation_config.json",),
}
# With one of these the rows are drawn with the seed.
_DRAWN_BY_SEED = ("max_train_samples", "max_unlabelled_samples", "labels_per_class", "teacher_num_fewshot")


def made_of(arguments: "Arguments") -> dict[str, str]:
    """
    Everything that the results of a cell follow from but the seed, by name: its settings, the content of the files
    that are read, and the version of this package.

    Args:
        arguments (`tuple`): of the cell.
    """
    task_args, training_args, model_args = arguments
    settings = masked(every_setting(arguments))
    found = {
        name: json.dumps(value, sort_keys=True, default=str)
        for name, value in settings.items()
        if name not in _ELSEWHERE and name != "seed"
    }
    for file in _files(task_args, training_args):
        found[str(file)] = _checksum(file)
    for name in (model_args.model_name_or_path, training_args.teacher_model_name_or_path):
        if name is not None:  # a cache may have outlived its teacher
            found |= _model(name, training_args.teacher_cache is not None)
    return {**found, "the version of sinkd-llm": __version__}


def answers_of(made_of_run: Mapping[str, str], arguments: "Arguments", seed: int, of_all_rows: bool = False) -> str:
    """
    A name for the teacher's answers that a run needs; runs with the same name can share them.

    Args:
        made_of_run (`Mapping[str, str]`): of [`made_of`].
        arguments, seed: of the run.
        of_all_rows (`bool`, *optional*, defaults to `False`): the name of the answers to all rows, where the run reads
            the labelled ones alone.
    """
    settings = every_setting(arguments)
    of_rows = {one.name for one in fields(arguments[0])}
    about = {
        name: value
        for name, value in made_of_run.items()
        if name not in settings or name in of_rows | _OF_ANSWERS or name.startswith("teacher_")
    }
    about = {name: value for name, value in about.items() if name not in _NOT_OF_ANSWERS}
    if of_all_rows or not arguments[0].labelled_rows_only:
        about.pop("labelled_rows_only", None)
    if arguments[1].teacher_model_name_or_path is not None:  # it reads each row by itself
        about.pop("group_column", None)
    if draws_by_seed(arguments):
        about["drawn with"] = str(seed if arguments[1].data_seed is None else arguments[1].data_seed)
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=6).hexdigest()


def draws_by_seed(arguments: "Arguments") -> bool:
    """Whether the rows of a run, or what its teacher reads, follow from its seed."""
    return any(getattr(arguments[0], name) for name in _DRAWN_BY_SEED)


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of what is not the same in two results of [`made_of`]; of a model its weights come first."""
    differ = [name for name in {*before, *now} if before.get(name) != now.get(name)]
    beside = tuple(f"the {what} of " for what in _OF_MODEL)
    return sorted(differ, key=lambda name: (name.startswith(beside), name))


def _files(task_args: "TaskArguments", training_args: "SinKDConfig") -> list[Path]:
    from sinkd_llm.tasks import load_task
    from sinkd_llm.tasks.loading import local_files
    from sinkd_llm.tasks.unlabelled import find_file
    from sinkd_llm.teachers.balance import LABELS, UNIFORM

    folder = None if task_args.data_dir is None else Path(task_args.data_dir).expanduser()
    found: set[Path] = set()
    for name in filter(None, (task_args.task, task_args.teacher_task)):
        task = load_task(name)
        found |= {given.path for given in task_inputs(task, None) if given.path.is_file()}
        for split in filter(None, ("train", "validation", task_args.dataset_unlabelled_split)):
            found |= {*local_files(task.config, task.path, split, folder)}
        if task_args.unlabelled_file is not None:
            found.add(find_file(task_args.unlabelled_file, task.path))
    # Where `balance` names no file, nothing lies at its path; a file that is called so is not read.
    names = (training_args.teacher_file, task_args.balance if task_args.balance not in (UNIFORM, LABELS) else None)
    found |= {Path(name).expanduser() for name in names if name is not None}
    if training_args.teacher_cache is not None:
        found.add(Path(training_args.teacher_cache).expanduser() / "manifest.json")
    return sorted(file for file in found if file.is_file())


def _checksum(file: Path) -> str:
    state = file.stat()
    return _checksum_of(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _checksum_of(file: Path, size: int, modified: int) -> str:
    from sinkd_llm.teachers.cache.arrays import file_checksum

    return file_checksum(file)


def _model(name: str, may_be_gone: bool) -> dict[str, str]:
    """What a local model is, and the base of an adapter, by what it is called; nothing of the hub's models."""
    from sinkd_llm.errors import InputError
    from sinkd_llm.runs.inputs import model_inputs

    found: dict[str, str] = {}
    try:
        for given in model_inputs(name, name):
            found[f"the weights of {given.what}"] = _weights(given.path, _state(given.path))
            for what, patterns in _OF_MODEL.items():
                found[f"the {what} of {given.what}"] = _files_of(given.path, patterns) or "none"
    except InputError:
        if not may_be_gone:
            raise
    return found


def _state(path: Path) -> tuple[tuple[str, int, int], ...]:
    """By what it shows that files have changed, without reading them."""
    files = [path] if path.is_file() else [*path.glob("*"), *path.glob(f"{BASE_FOLDER}/*")]
    states = [(str(file), file.stat()) for file in sorted(files) if file.is_file()]
    return tuple((file, state.st_size, state.st_mtime_ns) for file, state in states)


@functools.lru_cache(maxsize=64)
def _weights(path: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    from sinkd_llm.teachers.cache.identity import weights_hash

    return str(weights_hash(str(path)))


def _files_of(folder: Path, patterns: Sequence[str]) -> str | None:
    """Of the content of some files of a model; `None` where it has none, as a file that holds all of a model."""
    places = [f"{place}{pattern}" for place in ("", f"{BASE_FOLDER}/") for pattern in patterns]
    found = {file for pattern in places for file in folder.glob(pattern) if file.is_file()} if folder.is_dir() else ()
    content = [f"{file.relative_to(folder)} {_checksum(file)}" for file in sorted(found)]
    return hashlib.blake2b("\n".join(content).encode(), digest_size=16).hexdigest() if content else None
