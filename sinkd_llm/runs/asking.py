"""A teacher that is no model here: a server or a file is asked about all rows of a run, and its answers are cached."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.files import cache_dir
from sinkd_llm.inputs.answer_choices import class_names
from sinkd_llm.inputs.over_choices import row_print
from sinkd_llm.report.results import TEACHER
from sinkd_llm.runs.asking_evaluation import TRAIN, answers_of_evaluation, by_position, evaluation_splits
from sinkd_llm.runs.asking_server import ask_server
from sinkd_llm.runs.balancing import balance_asked, balanced_answers, balanced_sets
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.examining import learns_from_pairs, say_examination, say_shares
from sinkd_llm.runs.scorer import named_rows, rows_hash
from sinkd_llm.teachers.answer_file import answers_in, file_rows
from sinkd_llm.teachers.cache.answers import Said, refuse_another, write_answers
from sinkd_llm.teachers.cache.in_groups import check_objective
from sinkd_llm.teachers.cache.manifest import Manifest
from sinkd_llm.teachers.group_file import finds_groups_by, sets_in
from sinkd_llm.teachers.questions import Question, each_row, questions_of, rows_of_pairs
from sinkd_llm.terminal import is_main_process, say
from sinkd_llm.training.prepare import check_over_choices
from sinkd_llm.training.signal import check_choice_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.training.config import SinKDConfig


def use_answers(data: RunData, args: "SinKDConfig") -> None:
    """
    Asks the server or the file that `args` name, unless a cache is named, and lets the run learn from the answers.

    Of several processes one asks, and the others find what it wrote.

    Args:
        data ([`RunData`]): the rows.
        args ([`SinKDConfig`]): `teacher_cache` is set to the cache that is written.

    Raises:
        InputError: for rows without choices, and as [`cache_answers`].
    """
    check_use(data, args)
    if args.teacher_cache is not None or (args.teacher_url is None and args.teacher_file is None):
        return
    with args.main_process_first(local=False, desc="asking the teacher"):
        folder = cache_dir() / "answers" / _name(data, args)
        manifest = cache_answers(folder, data, args, own_folder=True) if is_main_process() else None
        args.teacher_cache = str(folder)
    if manifest is not None:
        say(f"The teacher's answers are in {folder} (sinkd cache --output keeps them elsewhere)")


def check_use(data: RunData, args: "SinKDConfig") -> None:
    """
    Refuses what [`use_answers`] would refuse, before a server is asked or a file is read.

    Args:
        data, args: as for [`use_answers`].

    Raises:
        InputError: as [`use_answers`].
    """
    if args.teacher_cache is not None:
        _refuse_another(args.teacher_cache, args)
    elif args.teacher_url is not None or args.teacher_file is not None:
        if args.teacher_rows_per_request > 1:
            _check_lists(args)
        _check_asking(data, args)
        # A server is paid for its answers: what the trainer would refuse of them is refused now.
        check_over_choices(args)
        check_choice_rows(args, data.train)
    elif balance_asked(data):
        raise InputError(
            "--balance is over the answers to all rows, and a teacher that is a model here answers in every step; "
            "write its cache ('sinkd cache'), balance that ('sinkd cache --merge CACHE --balance …'), and train "
            "with --teacher_cache."
        )


def _check_lists(args: "SinKDConfig") -> None:
    """Before anything is asked: can a student learn from lists?"""
    check_objective(args.objective(), True, f"lists of {args.teacher_rows_per_request} rows a request")
    if args.per_device_train_batch_size < args.teacher_rows_per_request:
        raise SettingError(
            "teacher_rows_per_request",
            f"is {args.teacher_rows_per_request}, and a batch has {args.per_device_train_batch_size} rows: the rows "
            "of a request are a group, which stays in one batch. Set per_device_train_batch_size to as many or more.",
        )


def _refuse_another(folder: str, args: "SinKDConfig") -> None:
    """Refuses a cache beside a server or a file that it is not of."""
    for name in ("teacher_url", "teacher_file"):
        given = getattr(args, name)
        if given is not None and (of := Manifest.load(Path(folder).expanduser()).teacher.name) != str(given):
            raise InputError(
                f"{name} is {given}, and the cache {folder} is of {of}: a run has one teacher, so leave out one of "
                "the two."
            )


def cache_answers(
    folder: Path,
    data: RunData,
    args: "SinKDConfig",
    *,
    score: bool = True,
    overwrite: bool = False,
    learns: bool = True,
    own_folder: bool = False,
) -> Manifest:
    """
    Asks the server or the file that `args` name, and writes its answers as a cache over the answer choices.

    Args:
        folder (`Path`): of the cache.
        data ([`RunData`]): the rows.
        args ([`SinKDConfig`]): the teacher.
        score (`bool`, *optional*, defaults to `True`): ask about the evaluation rows, too.
        overwrite (`bool`, *optional*, defaults to `False`): replace another cache in the folder.
        learns (`bool`, *optional*, defaults to `True`): whether the run of `args` learns from the answers, so that
            answers of which its loss can make nothing are refused as soon as they are known to be such.
        own_folder (`bool`, *optional*, defaults to `False`): whether no user has named the folder: what else it holds
            is replaced.

    Raises:
        InputError: for rows without choices; as the server or the file is asked; if no row has an answer; and for a
            folder that holds a cache of something else or of other answers, as far as that is known before anything
            is asked.
    """
    _check_asking(data, args)
    teacher = str(args.teacher_url or args.teacher_file)
    how = {"choice_normalisation": args.choice_normalisation} if args.teacher_url is not None else {}
    questions, balanced = questions_of(data.train, args.group_column), balance_asked(data)
    rows = prints_of(data.train, questions)
    if not overwrite and not own_folder:
        refuse_another(folder, rows, task=data.name, teacher=teacher, asked={**how, **data.asked, **balanced})
    held_out = questions_of(data.evaluation) if score and data.evaluation is not None else []
    answers, theirs = _asked(data, args, questions, held_out, learns)
    if isinstance(answers, Mapping):
        answers, theirs = balanced_answers(data, questions, answers, held_out, theirs)
        say_examination(data, questions, answers, held_out, theirs, learns_from_pairs(args))
    else:
        answers, theirs = balanced_sets(data, questions, answers, held_out, theirs)
        say_shares(data, answers)
        if own := rows_of_pairs(answers):
            say_examination(data, questions, own, held_out, theirs)
        how |= {} if args.group_column is None else {"group_column": args.group_column}
        how |= {} if args.teacher_url is None else {"rows_per_request": str(args.teacher_rows_per_request)}
    record = _score(data, held_out, theirs) if theirs else None
    classes = class_names(data.train)
    return write_answers(
        folder,
        rows,
        questions,
        answers,
        task=data.name,
        teacher=teacher,
        asked={**how, **data.asked, **balanced},
        classes=classes if classes is not None and len(classes) > 1 else None,
        score=record,
        overwrite=overwrite,
        own_folder=own_folder,
    )


def _check_asking(data: RunData, args: "SinKDConfig") -> None:
    """Refuses rows and settings about which a server or a file cannot be asked."""
    if "choices" not in data.train.column_names:
        raise InputError(
            f"The rows of {data.name} have no answer choices, and a teacher that is a file or a server says something "
            "of choices; give --task with choices."
        )
    if args.signal == "tokens":
        raise InputError(
            "signal is tokens, and a teacher that is a file or a server says something of answer choices; leave "
            "signal out."
        )
    if args.group_column is not None and args.group_column not in data.train.column_names:
        raise InputError(
            f"group_column is {args.group_column!r}, and the rows of {data.name} have the columns "
            f"{', '.join(data.train.column_names)}; give one of these."
        )
    if args.teacher_file is not None and data.asked:
        raise InputError(
            f"{' and '.join(data.asked)} say what a teacher reads that is asked now, and {args.teacher_file} has its "
            "answers already; leave them out."
        )
    if args.teacher_rows_per_request > 1 and data.asked:
        raise InputError(
            f"{' and '.join(data.asked)} say what a teacher reads of a row alone, and teacher_rows_per_request is "
            f"{args.teacher_rows_per_request}: a list has the rows' texts; leave one of both out."
        )
    balance_asked(data)  # refuses a prior that is not of these choices


def check_asked(data: RunData, folder: str) -> None:
    """Refuses a cache whose teacher read something else than this run says."""
    loading = Manifest.load(Path(folder).expanduser()).teacher.loading
    for name, value in {**data.asked, **balance_asked(data)}.items():
        if loading.get(name) != value:
            raise InputError(
                f"{name} is {value}, and the teacher of the cache {folder} was asked with "
                f"{loading.get(name, 'none')}; leave it out, or write the cache again."
            )


def _asked(
    data: RunData, args: "SinKDConfig", questions: Sequence[Question], held_out: Sequence[Question], learns: bool
) -> tuple[Said, Mapping[str, Any]]:
    """The answers about the training rows, and those about the rows for evaluation."""
    if args.teacher_file is not None:
        return _in_file(data, args, questions, held_out, learns)
    return ask_server(args, questions, held_out)


def _in_file(
    data: RunData, args: "SinKDConfig", questions: Sequence[Question], held_out: Sequence[Question], learns: bool
) -> tuple[Said, Mapping[str, Any]]:
    file = Path(str(args.teacher_file)).expanduser()
    if file.is_dir():
        raise InputError(f"teacher_file {file} is a folder; give the file of answers in it.")
    rows, own = file_rows(file), data.arguments.id_column if data.arguments is not None else None
    column = finds_groups_by(rows, own, args.group_column)
    if column is not None:
        if learns:  # the cache would say it of its own folder, which the user has not named
            check_objective(args.objective(), False, str(args.teacher_file))
        sets = sets_in(rows, column, questions, TRAIN)
        for sentence in sets.sentences():
            say(sentence)
        return sets.sets, {}  # rows for evaluation have no groups
    advice = "or set group_column where answers are of groups of rows"
    if args.group_column is not None:
        advice = f"or, where answers are of groups of rows, name the column of these {args.group_column!r} or 'group'"
    found = answers_in(rows, questions, TRAIN, own, advice)
    if by_position(found, own) and not data.places_known:
        raise InputError(
            f"{found.source} finds rows by their position (the column {found.found_by!r}), and the rows of this run "
            "are a part of their split, or have ids that do not say it; give the file a column 'id' with the rows' "
            "own ids, or 'text'."
        )
    for sentence in found.sentences():
        say(sentence)
    splits = evaluation_splits(data.task, data.arguments)
    taught = [question for question in questions if question.name in found.answers]
    return found.answers, answers_of_evaluation(rows, taught, held_out, own, splits)


def _score(data: RunData, held_out: Sequence[Question], theirs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The teacher's row of the results table, over the rows for evaluation that it answered."""
    known = [i for i, question in enumerate(held_out) if question.name in theirs]
    if not known or data.task is None or data.evaluation is None:
        return None
    rows = data.evaluation.select(known)
    chosen = [int(np.argmax(theirs[held_out[i].name])) for i in known]
    return {
        "rows": rows_hash(data),
        "predictions": chosen,
        **named_rows(rows),
        "name": TEACHER,
        "metrics": data.task.compute_metrics(chosen, rows["label"][:], rows=rows),
        "num_examples": len(known),
    }


def prints_of(rows: "Dataset", questions: Sequence[Question]) -> "Dataset":
    """What a cache over answer choices knows rows by: their names, and what they say."""
    import datasets

    prints = [row_print(row) for row in each_row(rows)]
    columns = {"example_id": [question.name for question in questions], "row_print": prints}
    kinds = {"example_id": datasets.Value("string"), "row_print": datasets.Value("int64")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def _name(data: RunData, args: "SinKDConfig") -> str:
    """Of a folder for these answers to these rows."""
    digest = hashlib.blake2b(digest_size=12)
    about: list[Any] = [data.name, args.teacher_url, args.teacher_model, args.teacher_samples, args.teacher_way]
    about += [args.choice_normalisation, balance_asked(data), args.group_column]
    about += [args.teacher_rows_per_request]
    if args.teacher_file is not None:
        file = Path(args.teacher_file).expanduser()
        about += [str(file.resolve()), file.stat().st_mtime_ns if file.is_file() else None]
    digest.update(repr(about).encode())
    for rows, column in ((data.train, args.group_column), (data.evaluation, None)):
        for question in [] if rows is None else questions_of(rows, column):
            digest.update(repr(question).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
