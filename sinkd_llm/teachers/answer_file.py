"""A teacher that is a file: what another tool, a person or a batch of requests answered, row by row."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.row_files import BY_SUFFIX, Rows, read_text
from sinkd_llm.teachers.answer_columns import Row, Said, Teller, find_teller, named, text_of, whole_number
from sinkd_llm.teachers.answer_texts import SameNames, choice_words, folded, named_answers
from sinkd_llm.teachers.questions import Answers, Question
from sinkd_llm.values import listed, shown

# What a row is found by, in the order in which it is tried, and the columns that hold it.
KEY_COLUMNS = {"id": ("id",), "position": ("row", "position", "index"), "text": ("text", "prompt", "sentence")}
SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class FileAnswers:
    """
    What a file says of the rows that were asked for.

    Args:
        answers ([`Answers`]): by row.
        source (`str`): the file.
        found_by (`str`): the column by which rows are found.
        said_by (`str`): what is read of them, as a part of a sentence.
        asked (`int`): questions.
        rows (`int`): rows of the file, of the wanted split where it has a column for it.
        unmatched (`int`): of these, rows that are none of the questions.
        repeated (`int`): rows that say again what an earlier one said of the same row.
        empty (`int`): rows that say nothing.
        no_choice (`dict[str, int]`): answers that are no choice, each with the number of its rows.
        not_read (`tuple[str, ...]`): columns that could have been read in place of those that are.
    """

    answers: Answers
    source: str
    found_by: str
    said_by: str
    asked: int
    rows: int
    unmatched: int
    repeated: int
    empty: int
    no_choice: Mapping[str, int]
    not_read: tuple[str, ...]

    def sentences(self) -> list[str]:
        """What a user should know: what was read, and what was not."""
        lines = [
            f"{self.source} answers {len(self.answers):,} of {self.asked:,} rows: rows are found by the column "
            f"{self.found_by!r}, and what it says is {self.said_by}."
        ]
        if self.not_read:
            lines.append(f"What its columns {listed(self.not_read)} say of the rows is not looked at.")
        if self.no_choice:
            count = sum(self.no_choice.values())
            lines.append(
                f"Rows without a teacher because their answer is no choice: {count:,}, with "
                f"{named_answers(self.no_choice)}."
            )
        counts = {
            "without an answer": self.empty,
            "for rows that are not asked": self.unmatched,
            "that repeat an earlier one": self.repeated,
        }
        if any(counts.values()):
            said = "; ".join(f"{count:,} {what}" for what, count in counts.items() if count)
            lines.append(f"Among its {self.rows:,} rows: {said}.")
        return lines


def read_answer_file(
    path: Path, questions: Sequence[Question], split: str | None = None, id_column: str | None = None
) -> FileAnswers:
    """
    What a file says of rows.

    A row is found by an `id`, else by its position from 0 (`row`, `position` or `index`), else by its text or prompt
    (`text`, `prompt` or `sentence`, equal without the white space around): by the first of these columns that finds
    any, but by no position beside ids that find none. Where there is a column `split` that knows a split of the
    questions, rows of others are not read, and a position is one of its row's split; where it knows none, ids and
    texts are looked for in all rows, and positions are not. Without this column positions are those of `split`. What
    a row says is a probability for each choice (a column `probabilities` with a list or a mapping of choices; columns
    named by the choices, alone or after `p_`; or `prob_0`, `prob_1`, …), else an answer (`answer`, `prediction` or
    `label`: the choice's text, or its index where all of the column are indices).

    Args:
        path (`Path`): a .csv, .tsv, .jsonl, .json or .parquet file.
        questions (`Sequence[Question]`): the rows to find, at least one.
        split (`str`, *optional*): what the file calls the split of the first question. Questions whose ids name
            another split are of that one.
        id_column (`str`, *optional*): another name of the column `id`.

    Returns:
        [`FileAnswers`]: rows that the file does not have, or of which it says nothing or no choice, are not in it.

    Raises:
        InputError: for a file that cannot be read, or has no row of the questions or no answer to one; for two of its
            rows that say different things of one question; and for what [`find_teller`] and its columns refuse.
    """
    return answers_in(file_rows(path), questions, split, id_column)


def answers_in(
    rows: Rows,
    questions: Sequence[Question],
    split: str | None = None,
    id_column: str | None = None,
    if_in_groups: str = "answers of groups of rows say nothing of single ones, which are asked here",
) -> FileAnswers:
    """As [`read_answer_file`], of rows that are read already; `if_in_groups` says what to do with a file of groups."""
    columns = columns_of(rows)
    splits = splits_of(rows, questions, split)
    if not key_columns(columns, id_column):
        raise InputError(
            f"The file {rows.source} has no column that says which row an answer is for; its columns are "
            f"{listed(columns)}. Name one 'id', 'row' (counted from 0) or 'text'; {if_in_groups}."
        )
    key, found = _find(rows, splits, columns, questions, id_column)
    if key.kind == "position":
        _check_positions(rows, splits, key, questions)
        _check_texts(rows, columns, found, questions)
    asked = [
        (rows.rows[index], question.choices, rows.where(index))
        for index, theirs in found.items()
        for question in theirs
    ]
    used = {key.column, *named(columns, SPLIT_COLUMN)}
    tell, said_by, others = find_teller([name for name in columns if name not in used], asked, rows.source)
    answers, counts, no_choice = _collected(rows, found, tell)
    if not answers:
        said = named_answers(no_choice) if no_choice else "nothing at all"
        raise InputError(
            f"The file {rows.source} has {len(found):,} of the rows, but answers none of them with a choice: it says "
            f"{said}, where the choices are {choice_words(asked[0][1])}; write the choices as the task does."
        )
    return FileAnswers(
        answers=answers,
        source=rows.source,
        found_by=key.column,
        said_by=said_by,
        asked=len(questions),
        rows=len(splits.kept),
        unmatched=len(splits.kept) - len(found),
        repeated=counts["repeated"],
        empty=counts["empty"],
        no_choice=dict(no_choice),
        not_read=(*key.others, *others),
    )


def _collected(
    rows: Rows, found: Mapping[int, Sequence[Question]], tell: Teller
) -> tuple[Answers, Counter[str], Counter[str]]:
    """What the rows say; how many say nothing, or the same again; and the answers that are no choice."""
    answers, counts, no_choice = Answers(), Counter[str](), Counter[str]()
    before: dict[str, tuple[int, Said]] = {}
    for index, theirs in found.items():
        for number, question in enumerate(theirs):
            said = tell(rows.rows[index], question.choices, rows.where(index))
            # A row of the file counts once, however many questions have its text.
            once = number == 0
            if said is None:
                counts["empty"] += once
                continue
            first, earlier = before.setdefault(question.name, (index, said))
            if first != index:
                if not _same(earlier, said):
                    raise InputError(
                        f"The file {rows.source} says two things of the row {question.name!r}: "
                        f"{_shown(earlier, question)} on {rows.where(first)}, and {_shown(said, question)} on "
                        f"{rows.where(index)}; keep one of both, or give the row probabilities."
                    )
                counts["repeated"] += once
            elif isinstance(said, np.ndarray):
                answers.add(question, said)
            elif isinstance(said, int):
                answers.add_answer(question, said)
            if isinstance(said, str):
                no_choice[said] += once
    return answers, counts, no_choice


@dataclass(frozen=True)
class _Key:
    kind: str
    column: str
    others: tuple[str, ...]


def file_rows(path: Path) -> Rows:
    """
    The rows of a teacher's file.

    Raises:
        InputError: for a file that is none of a table's, or cannot be read.
    """
    reader = BY_SUFFIX.get(path.suffix.lower())
    if reader is None:
        read_text(path)  # says what a packed or binary file is, and what to do
        raise InputError(
            f"The file {path} ends in {path.suffix or 'nothing'}; name it by what it holds: {', '.join(BY_SUFFIX)}."
        )
    return reader(path)


def columns_of(rows: Rows) -> list[str]:
    """The columns that any of the rows has."""
    return list(dict.fromkeys(name for row in rows.rows for name in row))


def key_columns(columns: list[str], id_column: str | None) -> list[tuple[str, str]]:
    """What a file finds single rows by, and the columns of it, the first to try first."""
    own = [("id", column) for column in columns if column == id_column]
    known = [(kind, column) for kind, names in KEY_COLUMNS.items() for column in named(columns, *names)]
    return [*own, *((kind, column) for kind, column in known if column != id_column)]


@dataclass(frozen=True)
class SplitRows:
    """
    Of which splits the rows of a file are, and of which the questions.

    Args:
        source (`str`): the file.
        names (`tuple[str, ...]`): the splits that its column `split` has; empty without the column.
        of_row (`Sequence[str | None]`): the split of each row: where it is not said, that of the first question.
        wanted (`list[str | None]`): the split of each question, as the file would call it; `None` without a name.
        kept (`list[int]`): the rows that may be of the questions: of their splits, or all where there are none.
        unknown (`bool`): whether there is a column, and it does not say which rows are of the questions' splits.
    """

    source: str
    names: tuple[str, ...]
    of_row: Sequence[str | None]
    wanted: list[str | None]
    kept: list[int]
    unknown: bool

    def refusal(self, why: str, otherwise: str) -> InputError:
        """What to say where rows cannot be found because of [`unknown`]."""
        asked = listed([name for name in dict.fromkeys(self.wanted) if name is not None]) or "one that has no name"
        return InputError(
            f"The file {self.source} has rows of the split {listed(self.names)}, and the rows that are asked are of "
            f"{asked}: {why}. Name the split as the task does, or {otherwise}."
        )


def splits_of(rows: Rows, questions: Sequence[Question], split: str | None) -> SplitRows:
    """The splits of the rows of a file and of questions; `split` as of [`read_answer_file`]."""
    own = [split if question.split == questions[0].split else question.split for question in questions]
    wanted = [None if name is None else name.strip().casefold() for name in own]
    of_row, everything = splits_in(rows), list(range(len(rows)))
    names = tuple(dict.fromkeys(of_row))
    if split is None or not of_row:
        return SplitRows(rows.source, names, wanted[:1] * len(rows), wanted, everything, unknown=len(names) > 1)
    asked = {*wanted}
    kept = [index for index in everything if of_row[index] in asked]
    return SplitRows(rows.source, names, of_row, wanted, kept or everything, unknown=not kept)


def splits_in(rows: Rows) -> list[str]:
    """The split of each row of a file, in lower case; none without a column `split`."""
    column = next(iter(named(columns_of(rows), SPLIT_COLUMN)), None)
    return [] if column is None else [text_of(row.get(column)).casefold() for row in rows.rows]


def _find(
    rows: Rows, splits: SplitRows, columns: list[str], questions: Sequence[Question], id_column: str | None
) -> tuple[_Key, dict[int, list[Question]]]:
    """What the rows are found by, and the questions that each row of the file is for."""
    keys = key_columns(columns, id_column)
    for place, (kind, column) in enumerate(keys):
        if kind == "position" and (splits.unknown or keys[0][0] == "id"):
            continue  # ids of other rows: the file may be of another task, and a position would not show it
        asked = _asked_by(kind, questions, splits)
        found = {index: asked(index, _value(kind, rows.rows[index], column)) for index in splits.kept}
        found = {index: theirs for index, theirs in found.items() if theirs}
        if found:
            return _Key(kind, column, tuple(name for _, name in [*keys[:place], *keys[place + 1 :]])), found
    if keys[0][0] == "position" and splits.unknown:
        why = f"positions (column {keys[0][1]!r}) count within one split"
        raise splits.refusal(why, "find the rows by 'id' or 'text'")
    sides = "; ".join(
        f"the column {column!r} has {_examples(_value(kind, rows.rows[index], column) for index in splits.kept)}, the "
        f"rows have {_examples(_called(kind, questions))}"
        for kind, column in keys
    )
    raise InputError(
        f"No row of the file {rows.source} is one of the {len(questions):,} rows that are asked: {sides}. Check that "
        "the file is of this task and this split, or write its rows' ids, positions or texts as these are (positions "
        "are not looked at beside a column 'id'). Where the data have ids of their own, set id_column."
    )


def _asked_by(kind: str, questions: Sequence[Question], splits: SplitRows) -> Callable[[int, Any], list[Question]]:
    """What says which questions a row of the file is for, by its number and by what it calls a row."""
    if kind == "position":
        places: dict[tuple[str | None, str | int], list[Question]] = defaultdict(list)
        for question, split in zip(questions, splits.wanted, strict=True):
            if question.position is not None:
                places[split, question.position].append(question)
        return lambda index, value: places.get((splits.of_row[index], value), [])
    table = _called(kind, questions)
    known = SameNames(table)
    return lambda _, value: table.get(known.of(str(value)), [])


def _called(kind: str, questions: Sequence[Question]) -> dict[Any, list[Question]]:
    """The questions by what a file may call them: a text that is one row's text and another's prompt is the text."""
    table: dict[Any, list[Question]] = defaultdict(list)
    if kind != "text":
        for question in questions:
            table[question.name.strip() if kind == "id" else question.position].append(question)
        return dict(table)
    prompts: dict[Any, list[Question]] = defaultdict(list)
    for question in questions:
        prompts[question.prompt.strip()].append(question)
        if question.text is not None:
            table[question.text.strip()].append(question)
    return {**prompts, **table}


def _value(kind: str, row: Row, column: str) -> str | int:
    text = text_of(row.get(column))
    number = whole_number(text) if kind == "position" else None
    return text if number is None else number


def _examples(values: Any) -> str:
    found = [shown(value) for value in dict.fromkeys(values)]
    return ", ".join(found[:3]) + (", …" if len(found) > 3 else "")


def _check_positions(rows: Rows, splits: SplitRows, key: _Key, questions: Sequence[Question]) -> None:
    """Refuses positions that are none, and those that count from 1."""
    numbers: dict[str | None, list[int]] = defaultdict(list)
    for index in splits.kept:
        value = _value("position", rows.rows[index], key.column)
        if isinstance(value, str) or value < 0:
            raise InputError(
                f"The column {key.column!r} on {rows.where(index)} is {shown(value)}; give the row's position in its "
                "split, a whole number from 0."
            )
        numbers[splits.of_row[index]].append(value)
    places: dict[str | None, list[int]] = defaultdict(list)
    for question, split in zip(questions, splits.wanted, strict=True):
        if question.position is not None:
            places[split].append(question.position)
    for split, asked in places.items():
        last, given = max(asked), numbers[split]
        if given and min(given) == 1 and max(given) == last + 1 == len(asked):
            raise InputError(
                f"The column {key.column!r} of {rows.source} counts from 1 to {last + 1:,}, but the rows from 0 to "
                f"{last:,}; subtract 1 from each."
            )


def _check_texts(
    rows: Rows, columns: Sequence[str], found: Mapping[int, Sequence[Question]], questions: Sequence[Question]
) -> None:
    """Refuses positions where the file's own texts are those of other rows."""
    table = _called("text", questions)
    known = SameNames(table)
    for column in named(columns, *KEY_COLUMNS["text"]):
        for index, theirs in found.items():
            text = text_of(rows.rows[index].get(column))
            others = table.get(known.of(text), [])
            if others and not any(question in others for question in theirs):
                raise InputError(
                    f"On {rows.where(index)}, the position is {theirs[0].position}, which is the row "
                    f"{theirs[0].name!r}, but the text {shown(text)} is the one of {others[0].name!r}; correct the "
                    "positions, or drop their column: rows are then found by their texts."
                )


def _same(one: Said, other: Said) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return folded(one) == folded(other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    return type(one) is type(other) and one == other


def _shown(said: Said, question: Question) -> str:
    if isinstance(said, np.ndarray):
        return "[" + ", ".join(f"{value:.3g}" for value in np.exp(said)[:8]) + (", …]" if len(said) > 8 else "]")
    return shown(question.choices[said].strip() if isinstance(said, int) else said)
