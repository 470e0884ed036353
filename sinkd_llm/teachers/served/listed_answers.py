"""What a server said of lists of rows: the sets that a student learns from, and what a user should know of them.

Shape suffixes: C choices of a row, M teacher rows of a group.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sinkd_llm.teachers.answer_texts import named_answers
from sinkd_llm.teachers.questions import AnswerSet, Question, answer_scores, bounded, rows_of_pairs
from sinkd_llm.teachers.served.lists import ListAnswers, ListQuestion, list_answers

# Of what has no answer, what a message names.
_NAMED = 3


def left_out(refused: Mapping[str, str], of: str) -> list[str]:
    """What a user should know of rows or lists without an answer: a sentence, or none."""
    if not refused:
        return []
    named = "; ".join(f"{name} ({why})" for name, why in [*refused.items()][:_NAMED])
    more = f"; and {len(refused) - _NAMED:,} others" if len(refused) > _NAMED else ""
    return [
        f"{len(refused):,} {of} have no teacher, because the server refused them or gave them no text: {named}{more}. "
        "The same command asks them again."
    ]


@dataclass
class ListedAnswers:
    """
    What a server said of lists of rows.

    Attributes:
        sets (`list[AnswerSet]`): of each list with an answer. With pairs it has the rows whose answer is a choice.
        lists (`int`): that were asked.
        rows (`int`): in these.
        without (`dict[str, int]`): lists without an answer that is a choice, and their rows.
        unequal (`Counter[str]`): lists whose answers are no pairs: `"fewer"` or `"more"` than rows, or `"unclear"`.
        copied (`int`): replies that repeat the choices.
        no_choice (`Counter[str]`): answers that are no choice.
        refused (`dict[str, str]`): lists that the server refused or gave no text to, and why.
    """

    sets: list[AnswerSet]
    lists: int
    rows: int
    without: dict[str, int] = field(default_factory=dict)
    unequal: Counter[str] = field(default_factory=Counter)
    copied: int = 0
    no_choice: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, asked: ListQuestion, replies: Sequence[str]) -> None:
        """
        Reads the replies to a list.

        Args:
            asked ([`ListQuestion`]): the list.
            replies (`Sequence[str]`): one, or as many as were drawn. If all have pairs, a row's scores are the shares
                of its answers; else all answers are one set.
        """
        n = len(asked.rows)
        read = [list_answers(reply, asked.choices, n) for reply in replies]
        for one in read:
            self.no_choice.update(one.other)
            self.copied += one.copied
        paired = all(one.paired for one in read)
        said = _of_pairs(asked.rows, read) if paired else _of_a_set(asked.rows, read)
        if said is None:
            self.without[asked.name] = n
            return
        if not paired:
            count = sum(len(one.choices) - n for one in read if not one.copied)
            self.unequal["fewer" if count < 0 else "more" if count > 0 else "unclear"] += 1
        self.sets.append(said)

    def answers(self) -> Mapping[str, Any]:
        """The scores of the rows whose own answer is known, by their names."""
        return rows_of_pairs(self.sets)

    def sentences(self) -> list[str]:
        """What a user should know of these answers, a sentence each."""
        kinds = {
            "fewer": "fewer answers than rows",
            "more": "more answers than rows",
            "unclear": "numbers that do not say which is whose",
        }
        lines = left_out(self.refused, f"of {self.lists:,} lists")
        whole = sum(one.paired for one in self.sets)
        lines.append(f"{whole:,} of {self.lists:,} lists ({self.rows:,} rows) have an answer for each row.")
        if self.unequal:
            said = "; ".join(
                f"{self.unequal[kind]:,} with {what}" for kind, what in kinds.items() if self.unequal[kind]
            )
            lines.append(f"The answers of other lists are known per list, and not per row: {said}.")
        if self.without:
            lines.append(
                f"{len(self.without):,} lists with {sum(self.without.values()):,} rows have no answer that is a "
                f"choice, and these rows no teacher; the first is {next(iter(self.without))}."
            )
        if self.copied:
            lines.append(f"{self.copied:,} replies repeat the list of choices, and answer nothing.")
        if self.no_choice:
            lines.append(f"{self.no_choice.total():,} answers are no choice: {named_answers(self.no_choice)}.")
        return lines


def _of_pairs(rows: Sequence[Question], read: Sequence[ListAnswers]) -> AnswerSet | None:
    """The rows with an answer that is a choice, each with the shares of its answers."""
    C = len(rows[0].choices)
    names, scores = [], []
    for place, row in enumerate(rows):
        counts_C = np.bincount([index for one in read if (index := one.choices[place]) is not None], minlength=C)
        if not counts_C.any():
            continue
        names.append(row.name)
        with np.errstate(divide="ignore"):
            scores.append(bounded(np.log(counts_C / counts_C.sum())))
    return AnswerSet(tuple(names), np.stack(scores), np.ones(len(names)), True) if names else None


def _of_a_set(rows: Sequence[Question], read: Sequence[ListAnswers]) -> AnswerSet | None:
    """All answers, each as often as it was given."""
    times = Counter(index for one in read for index in one.choices if index is not None)
    if not times:
        return None
    scores_MC = np.stack([answer_scores(index, len(rows[0].choices)) for index in times])
    return AnswerSet(tuple(row.name for row in rows), scores_MC, np.array([*times.values()], float))
