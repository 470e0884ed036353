"""What a file of answers says of the rows for evaluation, where it is known that it means these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.row_files import Rows
from sinkd_llm.row_splits import is_part, names_in
from sinkd_llm.tasks.loading import SPLIT_KEYS
from sinkd_llm.teachers.answer_file import KEY_COLUMNS, FileAnswers, answers_in, splits_in
from sinkd_llm.teachers.questions import Question, place_of
from sinkd_llm.terminal import say

if TYPE_CHECKING:
    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.tasks import Task

# What the splits of a task may be called in a file of answers.
TRAIN, _HELD_OUT = "train", ("validation", "dev", "test")
_KNOWN = (TRAIN, *_HELD_OUT, "unlabelled")


def by_position(found: FileAnswers, id_column: str | None) -> bool:
    """Whether a file's rows are found by their positions."""
    return found.found_by in KEY_COLUMNS["position"] and found.found_by != id_column


def _by_text(found: FileAnswers, id_column: str | None) -> bool:
    return found.found_by in KEY_COLUMNS["text"] and found.found_by != id_column


@dataclass(frozen=True)
class EvaluationSplits:
    """
    What a file of answers may call the split of the rows for evaluation.

    Args:
        names (`tuple[str, ...]`): at least one, the most usual one first.
        counted (`tuple[str, ...]`): those of them in which the positions of these rows are known.
    """

    names: tuple[str, ...]
    counted: tuple[str, ...]


def evaluation_splits(
    task: "Task | None", arguments: "TaskArguments | None", validation_share: float = 0.0
) -> EvaluationSplits:
    """
    What a file of answers may call the split of the rows for evaluation.

    Args:
        task ([`~sinkd_llm.tasks.Task`], *optional*): the task of the rows, if they have one.
        arguments ([`TaskArguments`], *optional*): what the rows were loaded by.
        validation_share (`float`, *optional*, defaults to `0.0`): the share that is known without `arguments`, in
            [0, 1).
    """
    if (validation_share if arguments is None else arguments.validation_share) > 0:
        return EvaluationSplits((TRAIN,), (TRAIN,))
    others: tuple[str, ...]
    usual: tuple[str, ...] = _HELD_OUT[:2]
    if task is not None:
        source = task.config.get(SPLIT_KEYS["validation"])
        if source is None:
            return EvaluationSplits(_HELD_OUT[:2], ())
        others = () if task.config.get(SPLIT_KEYS["test"]) else _HELD_OUT[2:]  # "test" is no name of another split
    elif arguments is None:
        return EvaluationSplits(_HELD_OUT, _HELD_OUT)
    else:
        source, others = arguments.dataset_test_split, ()
        usual = usual if source in usual else ()
    if not is_part(source):
        names = (*dict.fromkeys((*usual, source, *others)),)
        sampled = task is None and arguments is not None and arguments.max_eval_samples is not None
        return EvaluationSplits(names, () if sampled else names)
    # The ids of a task say the place within the part, and so may a file, unless it calls the part by its whole split.
    whole = names_in(source)
    usual = (*(name for name in (*usual, *others) if name not in whole),)
    return EvaluationSplits((*usual, *whole), usual)


def answers_of_evaluation(
    rows: Rows,
    taught: Sequence[Question],
    held_out: Sequence[Question],
    id_column: str | None,
    splits: EvaluationSplits,
) -> Mapping[str, Any]:
    """
    What a file says of the rows for evaluation, if it says anything of them and it is known that these rows are meant.

    Args:
        rows ([`~sinkd_llm.row_files.Rows`]): of the file.
        taught (sequence of [`Question`]): other rows of which it says something: those to train on, or those that a
            route is chosen on.
        held_out (sequence of [`Question`]): the rows for evaluation.
        id_column (`str`, *optional*): the column of the data with the rows' own ids.
        splits ([`EvaluationSplits`]): what the file may call their split.
    """
    known = {*splits_in(rows)}
    of_theirs = [name for name in splits.names if name.casefold() in known]
    # A file that knows none of these splits says the same of all.
    for split in of_theirs or splits.names[:1] if held_out else ():
        try:
            theirs = answers_in(rows, held_out, split, id_column)
        except InputError:
            continue  # a file of the training rows alone; what is wrong with it was said when these were read
        if by_position(theirs, id_column):
            # Positions without a split are those of the training rows.
            if split in splits.counted if known else split == TRAIN:
                return theirs.answers
            if known:
                say(
                    f"The positions in {rows.source} (the column {theirs.found_by!r}) are those of the whole split "
                    f"{split}, and the rows for evaluation are a part of it: the teacher is not scored. Let the file "
                    "find its rows by 'id' or 'text'."
                )
            continue
        if of_theirs or _by_text(theirs, id_column):
            return theirs.answers
        try:
            theirs = answers_in(_of_no_other_split(rows, held_out), held_out, split, id_column)
        except InputError:
            say(
                f"{rows.source} has ids of the rows for evaluation, but in rows of other splits: the teacher is not "
                f"scored. If they are for these rows, call their split {split!r} in its column 'split'."
            )
            continue
        if not (twice := _of_two_rows(held_out, taught)):
            return theirs.answers
        advice = f"Call their split {split!r} in its" if known else "Give the file a"
        say(
            f"{len(twice):,} rows for evaluation have the id of a training row (the first: {twice[0]}), and "
            f"{rows.source} does not say which of the two it answers: the teacher is not scored. {advice} column "
            "'split', or give each row an id of its own."
        )
    return {}


def _of_no_other_split(rows: Rows, held_out: Sequence[Question]) -> Rows:
    """
    The rows of a file without those of splits that are known to be others than the one of the rows for evaluation: an
    id of the data may be one of a row of each split. An id that a task made says its split.
    """
    of_row = splits_in(rows)
    if not of_row or all(place_of(question.name) for question in held_out):
        return rows
    kept = [index for index, name in enumerate(of_row) if name not in _KNOWN]
    return replace(rows, rows=[rows.rows[i] for i in kept], places=[rows.where(i) for i in kept])


def _of_two_rows(held_out: Sequence[Question], taught: Sequence[Question]) -> list[str]:
    """The ids of rows for evaluation that are also ids of other rows, to train on."""
    prompts = {question.name: question.prompt for question in taught}
    return [one.name for one in held_out if prompts.get(one.name, one.prompt) != one.prompt]
