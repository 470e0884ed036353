"""The rows of a comparison's cells: each set of them is loaded once, and all are scored on the same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.runs.comparing.identity import Arguments, draws_by_seed
from sinkd_llm.runs.comparing.scores import other_rows
from sinkd_llm.runs.data import RunData, load_run_data
from sinkd_llm.runs.task_rows import validation_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.runs.comparing.grid import Cell

# Settings of the task that change neither the rows nor what they say.
_NOT_OF_ROWS = {
    *("balance", "balance_strength", "balance_method", "teacher_examined_rows", "overwrite_output_dir"),
    *("score_before", "profile", "keep_probabilities"),
}
# What the rows for evaluation follow from, beside `max_eval_samples`, which no cell has of its own.
_OF_EVALUATION = ("task", "data_dir", "id_column", "validation_share", "allow_unlabelled")


class CellRows:
    """
    The rows of cells.

    Args:
        arguments (`Mapping[str, Arguments]`): of each cell, by its name.
    """

    def __init__(self, arguments: Mapping[str, Arguments]) -> None:
        self.arguments = arguments
        self._loaded: dict[str, RunData] = {}

    def of(self, cell: str, seed: int) -> RunData:
        """
        What a cell is trained and scored on.

        Args:
            cell (`str`): its name.
            seed (`int`): of the run, by which rows may be drawn.

        Raises:
            InputError: as [`~sinkd_llm.runs.data.load_run_data`].
        """
        task_args, training_args, _ = self.arguments[cell]
        drawn = draws_by_seed(self.arguments[cell])
        with_seed = training_args.data_seed if training_args.data_seed is not None else seed if drawn else 0
        of_rows = {name: value for name, value in asdict(task_args).items() if name not in _NOT_OF_ROWS}
        keep = [] if training_args.group_column is None else [training_args.group_column]
        key = repr((of_rows, with_seed, keep))
        if key not in self._loaded:
            self._loaded[key] = load_run_data(task_args, with_seed, keep)
        return replace(self._loaded[key], arguments=task_args)


def check_same_rows(cells: Sequence["Cell"], first: "Cell", rows: CellRows, seed: int) -> None:
    """
    Refuses cells that would be scored on other rows than the first one, before anything is run. Rows are loaded for
    settings that could change them alone.

    Args:
        cells (sequence of [`Cell`]): all of them.
        first ([`Cell`]): with which they are compared.
        rows ([`CellRows`]): of the cells.
        seed (`int`): of the first run.

    Raises:
        InputError: naming the cell and its settings, and for rows that cannot be loaded.
    """
    ours = rows.arguments[first.name][0]
    expected = rows.of(first.name, seed).evaluation
    assert expected is not None  # of a task
    seen = {_asked(ours)}
    for cell in cells:
        theirs = rows.arguments[cell.name][0]
        if _asked(theirs) in seen:
            continue
        seen.add(_asked(theirs))
        differ = [name for name in _OF_EVALUATION if getattr(theirs, name) != getattr(ours, name)]
        try:
            reason = _differ(_evaluation_of(theirs), expected, _reads(theirs) == _reads(ours))
        except InputError as error:
            raise InputError(f"{cell.name}: {error}") from error
        if reason:
            raise InputError(
                f"{cell.name!r} would be scored on other rows than {first.name!r} ({reason}), so they could not be "
                f"compared; leave out what changes the rows for evaluation ({', '.join(differ)})."
            )


def _asked(arguments: "TaskArguments") -> tuple[Any, ...]:
    return tuple(getattr(arguments, name) for name in _OF_EVALUATION)


def _evaluation_of(arguments: "TaskArguments") -> "Dataset":
    from sinkd_llm.tasks import load_task

    return validation_rows(load_task(str(arguments.task), id_column=arguments.id_column), arguments)


def _reads(arguments: "TaskArguments") -> Any:
    """From which columns a task has the texts of its rows."""
    from sinkd_llm.tasks import load_task

    return load_task(str(arguments.task)).config.get("metadata", {}).get("texts")


def _differ(rows: "Dataset", expected: "Dataset", read_alike: bool) -> str:
    """How the rows differ, in words, or nothing; another prompt over the same rows is no difference, nor are other
    texts that are read from other columns."""
    reason = other_rows(rows["id"][:], _references(rows), expected["id"][:], _references(expected))
    if not reason and read_alike and all("text" in part.column_names for part in (rows, expected)):
        return "other texts" if _texts(rows) != _texts(expected) else ""
    return reason


def _references(rows: "Dataset") -> list[Any]:
    return list(rows["label" if "label" in rows.column_names else "completion"][:])


def _texts(rows: "Dataset") -> list[list[str]]:
    """The texts of each row, of which a task may put either first."""
    columns = [rows[name][:] for name in ("text", "text_pair") if name in rows.column_names]
    return [sorted(str(text) for text in texts if text) for texts in zip(*columns, strict=True)]
