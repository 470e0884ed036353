"""A teacher that is a file of groups: what is said of the rows of a group, and not of which of them.

Shape suffixes: C choices of a row, M teacher rows of a group.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.row_files import Rows
from sinkd_llm.teachers.answer_columns import (
    TOLERANCE,
    ListColumn,
    Row,
    by_choice,
    find_teller,
    is_missing,
    named,
    number_of,
    text_of,
    whole_number,
)
from sinkd_llm.teachers.answer_file import SPLIT_COLUMN, columns_of, key_columns, splits_of
from sinkd_llm.teachers.answer_texts import SameNames, choice_words, named_answers
from sinkd_llm.teachers.questions import AnswerSet, Question, answer_scores, bounded
from sinkd_llm.values import listed, plain, shown

GROUP_COLUMN, COUNT_COLUMN, COUNTS_COLUMN = "group", "count", "counts"
# What to do where probabilities were read as counts.
_NOT_COUNTS = (
    " If they are no counts, but probabilities or percentages of each row of the group, give numbers from 0 to 1, in "
    "a column for each choice or in a column 'probabilities'."
)
Array = np.ndarray[Any, Any]
# Scores `[M, C]` of teacher rows, how often each is there, and an answer that is no choice.
Part = tuple[Array, Array, str | None]


@dataclass(frozen=True)
class FileSets:
    """
    What a file says of groups of the rows that were asked for.

    Args:
        sets (`list[AnswerSet]`): of the groups that it knows, in the order of the rows.
        source (`str`): the file.
        found_by (`str`): the column by which groups are found.
        said_by (`str`): what is read of them, as a part of a sentence.
        asked (`int`): questions.
        alone (`int`): questions without a group.
        without (`dict[str, int]`): the groups of which it says nothing, each with the number of its rows.
        unmatched (`tuple[str, ...]`): groups of the file that no question is of.
        unequal (`dict[str, tuple[float, int]]`): groups of which it has more or fewer teacher rows than there are
            rows: both numbers.
        empty (`int`): rows of the file that say nothing.
        no_choice (`dict[str, int]`): answers that are no choice, each with how often it is given.
        not_read (`tuple[str, ...]`): columns that could have been read in place of those that are.
    """

    sets: list[AnswerSet]
    source: str
    found_by: str
    said_by: str
    asked: int
    alone: int
    without: Mapping[str, int]
    unmatched: tuple[str, ...]
    unequal: Mapping[str, tuple[float, int]]
    empty: int
    no_choice: Mapping[str, int]
    not_read: tuple[str, ...]

    def sentences(self) -> list[str]:
        """What a user should know: what was read, and what was not."""
        taught = sum(len(one.names) for one in self.sets)
        lines = [
            f"{self.source} answers {taught:,} of {self.asked:,} rows, in {len(self.sets):,} groups: groups are found "
            f"by the column {self.found_by!r}, and what it says of their rows, in any order, is {self.said_by}."
        ]
        if self.not_read:
            lines.append(f"What its columns {listed(self.not_read)} say of the groups is not looked at.")
        if self.without:
            lines.append(
                "Rows without a teacher because the file says nothing of their group: "
                f"{sum(self.without.values()):,} ({listed([*self.without], 3)})."
            )
        if self.alone:
            lines.append(f"Rows without a teacher because they have no group: {self.alone:,}.")
        if self.unequal:
            name, (said, rows) = next(iter(self.unequal.items()))
            lines.append(
                f"Groups with more or fewer answers than rows: {len(self.unequal):,} (of {shown(name)} {said:g} for "
                f"{rows}); there each answer stands for its share of the rows. Settings that leave rows out, as "
                "heldout_share, max_train_samples and labelled_rows_only do, leave fewer rows, too."
            )
        if self.unmatched:
            lines.append(
                f"Groups of the file that no row is of: {len(self.unmatched):,} ({listed(self.unmatched, 3)})."
            )
        if self.no_choice:
            lines.append(
                f"Answers that are no choice, and are left out of their group: {sum(self.no_choice.values()):,}, with "
                f"{named_answers(self.no_choice)}."
            )
        if self.empty:
            lines.append(f"Rows of the file without an answer: {self.empty:,}.")
        return lines


def finds_groups_by(rows: Rows, id_column: str | None, group_column: str | None) -> str | None:
    """
    The column by which a file finds groups of rows: one that is called like `group_column`, or `group`, where no
    column says which single row is meant; `None` for a file that finds rows one by one.

    Args:
        rows ([`Rows`]): of the file.
        id_column (`str`, *optional*): another name of the column `id`.
        group_column (`str`, *optional*): what the rows that are asked call their group.

    Raises:
        InputError: for a file of groups where the rows that are asked have none.
    """
    columns = columns_of(rows)
    if key_columns(columns, id_column):
        return None
    wanted = [group_column.strip().casefold()] if group_column is not None else []
    found = next(iter(named(columns, *wanted, GROUP_COLUMN)), None)
    if found is not None and group_column is None:
        raise InputError(
            f"The file {rows.source} says something of groups of rows (its column {found!r}), and nothing says of "
            "which group a row is: set group_column to a column of the training rows, and transport_scope to group."
        )
    return found


def sets_in(rows: Rows, column: str, questions: Sequence[Question], split: str | None = None) -> FileSets:
    """
    What a file says of groups of rows.

    It has, in any order, several rows a group, one for each row of the group: a distribution or an answer, as
    [`~sinkd_llm.teachers.answer_file.read_answer_file`] reads them; beside these a column `count` may say how often
    the group has this one. Or it has one row a group with a count for each choice: columns named by the choices, of
    which not all rows sum to 1, or a column `counts` with a list or a mapping of choices (a choice without a number
    has 0). More or fewer than the group has rows are its shares.

    Args:
        rows ([`Rows`]): of the file.
        column (`str`): [`finds_groups_by`].
        questions (`Sequence[Question]`): the rows, at least one.
        split (`str`, *optional*): as of [`~sinkd_llm.teachers.answer_file.read_answer_file`].

    Returns:
        [`FileSets`]: groups of which the file says nothing, or no choice, are not in it.

    Raises:
        InputError: for a file without a group of the questions, or with a column `split` that knows none of their
            splits, or that answers none; for groups whose rows have
            different choices; for counts that are no whole numbers of at least 0, all 0, or said twice; where each
            group has one distribution, which might be meant as the shares of its rows; and as [`find_teller`].
    """
    columns = columns_of(rows)
    splits = splits_of(rows, questions, split)
    if splits.unknown:
        raise splits.refusal(f"groups (column {column!r}) are those of one split", "leave its column out")
    members: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        if question.group is not None:
            members[question.group].append(question)
    by_group: dict[str, list[int]] = defaultdict(list)
    known_names = SameNames(members)
    for index in splits.kept:
        by_group[known_names.of(text_of(rows.rows[index].get(column)))].append(index)
    found = [index for name in members for index in by_group.get(name, [])]
    if not found:
        raise InputError(
            f"No group of the file {rows.source} is one of the {len(members):,} groups of the {len(questions):,} rows "
            f"that are asked: its column {column!r} has {listed([*by_group], 3)}, the rows have "
            f"{listed([*members], 3) or 'no group'}. Write the groups as the rows have them."
        )
    choices = _choices(members, by_group)
    used = {column, *named(columns, SPLIT_COLUMN)}
    asked = [(rows.rows[index], choices, rows.where(index)) for index in found]
    reading = _find_reading([name for name in columns if name not in used], asked, rows.source)
    sets, unequal, no_choice, empty = [], {}, Counter[str](), 0
    soft_alone: list[str] = []
    for name, theirs in members.items():
        parts: list[Part] = []
        for index in by_group.get(name, []):
            part = reading.read(rows.rows[index], name, rows.where(index))
            if part is None:
                empty += 1
            elif part[2] is not None:
                no_choice[part[2]] += int(part[1].sum())
            else:
                parts.append(part)
        if reading.at_most_one and len(where := by_group.get(name, [])) > 1:
            raise InputError(
                f"The file {rows.source} counts the answers of the group {shown(name)} twice, on "
                f"{rows.where(where[0])} and on {rows.where(where[1])}; add them up, or keep one of both.{_NOT_COUNTS}"
            )
        if not parts:
            continue
        said = AnswerSet(
            tuple(question.name for question in theirs),
            np.concatenate([scores_MC for scores_MC, _, _ in parts]),
            np.concatenate([times_M for _, times_M, _ in parts]),
        )
        if not len(said.times_M):
            raise InputError(
                f"All counts of the group {shown(name)} in {rows.source} are 0, so that nothing is said of it; leave "
                "its rows out, or correct them."
            )
        sets.append(said)
        if said.times_M.sum() != len(theirs):
            unequal[name] = float(said.times_M.sum()), len(theirs)
        if len(theirs) > 1 and len(said.times_M) == 1 and _is_soft(said.scores_MC[0]):
            soft_alone.append(name)
    if not sets:
        said_instead = named_answers(no_choice) if no_choice else "nothing at all"
        raise InputError(
            f"The file {rows.source} has {len(found):,} rows for the groups, but none with a choice: it says "
            f"{said_instead}, where the choices are {choice_words(choices)}; write the choices as the task does."
        )
    if soft_alone and len(soft_alone) == sum(len(one.names) > 1 for one in sets):
        raise InputError(
            f"The file {rows.source} has one distribution for each group, such as {shown(soft_alone[0])} with "
            f"{len(members[soft_alone[0]])} rows: it may be the shares of the answers in the group, or one answer "
            "that is not sure. Give whole counts for shares, or a distribution for each row of the group."
        )
    known = {name for one in sets for name in one.names}
    return FileSets(
        sets=sets,
        source=rows.source,
        found_by=column,
        said_by=reading.said_by,
        asked=len(questions),
        alone=sum(question.group is None for question in questions),
        without={name: len(theirs) for name, theirs in members.items() if theirs[0].name not in known},
        unmatched=tuple(name for name in by_group if name not in members),
        unequal=unequal,
        empty=empty,
        no_choice=dict(no_choice),
        not_read=tuple(reading.not_read),
    )


def _choices(members: Mapping[str, Sequence[Question]], by_group: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of all rows that the file speaks of."""
    asked = chain.from_iterable(theirs for name, theirs in members.items() if name in by_group)
    first = next(asked)
    for other in asked:
        if other.choices != first.choices:
            raise InputError(
                f"The rows {first.name} and {other.name} have different choices ({choice_words(first.choices, 4)}, "
                f"and {choice_words(other.choices, 4)}): what is known of a group must be about the same choices for "
                "all of its rows, and one plan compares them by their place. Give a file that answers single rows."
            )
    return first.choices


def _is_soft(scores_C: Array) -> bool:
    """Whether a distribution gives more than one choice a part."""
    shares_C = np.exp(scores_C - np.logaddexp.reduce(scores_C))
    return float(shares_C.max()) < 1 - TOLERANCE


@dataclass(frozen=True)
class _Reading:
    """
    How the rows of a file are read.

    Args:
        read (`Callable`): a row, its group, and its place for messages, to what it says; `None`: nothing.
        said_by (`str`): in words, as a part of a sentence.
        not_read (`list[str]`): columns that could be read in place of these.
        at_most_one (`bool`, *optional*, defaults to `False`): a row says everything that there is of its group.
    """

    read: Callable[[Row, str, str], Part | None]
    said_by: str
    not_read: list[str]
    at_most_one: bool = False


def _find_reading(columns: list[str], asked: Sequence[tuple[Row, tuple[str, ...], str]], source: str) -> _Reading:
    choices = asked[0][1]
    own = by_choice(columns, choices)
    of_choices = [name for name in own if name is not None]
    counts = named(columns, COUNTS_COLUMN)
    times = [name for name in named(columns, COUNT_COLUMN) if name not in own]
    if counts:
        listing = ListColumn(counts[0], "count")

        def of_list(row: Row, group: str, where: str) -> Part | None:
            values = listing.values(row, choices, where)
            return None if values is None else _counted(values, choices, where)

        said_by = f"the counts of the column {counts[0]!r}"
        return _Reading(of_list, said_by, [*counts[1:], *times, *of_choices], at_most_one=True)
    if len(of_choices) == len(choices) and _are_counts(
        [[row.get(name) for name in of_choices] for row, _, _ in asked]
    ):
        if times:
            raise InputError(
                f"The file {source} has counts of each choice ({listed(of_choices, 3)}) and a column {times[0]!r} "
                f"beside them: it is not known which of both counts; leave out {times[0]!r}."
            )

        def of_columns(row: Row, group: str, where: str) -> Part | None:
            return _counted([row.get(name) for name in of_choices], choices, where)

        return _Reading(of_columns, f"the counts of the columns {listed(of_choices)}", [], at_most_one=True)
    tell, said_by, others = find_teller([name for name in columns if name not in times], list(asked), source)
    first: dict[tuple[str, Any], str] = {}

    def of_teller(row: Row, group: str, where: str) -> Part | None:
        said = tell(row, choices, where)
        if said is None:
            return None
        times_M = np.ones(1)
        if times:
            times_M = np.array([_whole(row.get(times[0]), f"The count on {where}")], float)
            before = first.setdefault((group, said.tobytes() if isinstance(said, np.ndarray) else said), where)
            if before != where:
                raise InputError(
                    f"The file {source} counts one answer of the group {shown(group)} twice, on {before} and on "
                    f"{where}; add them up, or keep one of both."
                )
            if not times_M[0]:
                return np.empty((0, len(choices))), times_M[:0], None
        if isinstance(said, str):
            return np.empty((0, len(choices))), times_M, said
        scores_C = bounded(said) if isinstance(said, np.ndarray) else answer_scores(said, len(choices))
        return scores_C[None], times_M, None

    return _Reading(of_teller, said_by + (f", each as often as {times[0]!r} says" if times else ""), others)


def _are_counts(cells: Sequence[Sequence[Any]]) -> bool:
    """Whether columns hold counts and no probabilities: one is above 1, or all are whole and a row sums to no 1."""
    texts = [[text_of(value) for value in row if not is_missing(value)] for row in cells]
    texts = [row for row in texts if row]
    # A negative number is neither, and may have made another one of its row exceed 1.
    sound = [row for row in texts if not any(number_of(text) < 0 for text in row)]
    if any(number_of(text) > 1 + TOLERANCE for row in sound for text in row):
        return True
    numbers = [[whole_number(text) for text in row] for row in sound or texts]
    if any(None in row for row in numbers):
        return False
    return not sound or any(sum(filter(None, row)) != 1 for row in numbers)


def _counted(values: Sequence[Any], choices: tuple[str, ...], where: str) -> Part | None:
    """A teacher row for each choice that was counted; an empty cell is 0, as tables of counts have it."""
    if all(map(is_missing, values)):
        return None
    counts = [
        0
        if is_missing(value)
        else _whole(
            value,
            f"The count of {shown(choice.strip())} on {where}",
            _NOT_COUNTS if number_of(value) % 1 > 0 else "",
        )
        for choice, value in zip(choices, values, strict=True)
    ]
    if not any(counts):
        raise InputError(
            f"All counts on {where} are 0, so that nothing is said of the group; leave the row out, or correct it."
        )
    there = [index for index, count in enumerate(counts) if count]
    scores_MC = np.stack([answer_scores(index, len(choices)) for index in there])
    return scores_MC, np.array([counts[index] for index in there], float), None


def _whole(value: Any, place: str, advice: str = "") -> int:
    number = whole_number(text_of(value))
    if number is None or number < 0:
        said = "missing" if is_missing(value) else shown(plain(value))
        raise InputError(f"{place} is {said}; give a whole number of at least 0.{advice}")
    return number
