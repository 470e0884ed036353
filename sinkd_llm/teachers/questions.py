"""What a teacher is asked of a row, and what it says: one number for each answer choice.

Shape suffixes: C choices of a row, M teacher rows of a group.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.models.kinds import TEACHER
from sinkd_llm.teachers.answer_columns import text_of

if TYPE_CHECKING:
    from datasets import Dataset

# The log-score of the choices that a teacher did not give, where it gives an answer alone: e^-30 is 1e-13.
HARD = -30.0
# The id that a task makes for a row: `<task>-<split>-<place>-<hash>`.
_MADE = re.compile(r"-(train|validation|test|unlabelled)-(\d+)-[0-9a-f]{8}$")


@dataclass(frozen=True)
class Question:
    """
    A row as a teacher is asked.

    Args:
        name (`str`): the row's id.
        prompt (`str`): rendered.
        choices (`tuple[str, ...]`): the answers as they continue the prompt, each with its delimiter.
        text (`str`, *optional*): the row's bare text, where its task names it.
        position (`int`, *optional*): the row's place in its split, from 0; `None` where that is not known.
        group (`str`, *optional*): the group that the row is of.
        split (`str`, *optional*): the split, as the row's id calls it: `train`, `validation`, `test`, or `unlabelled`
            for a raw file. An id of the data does not say it: beside ids that do, the row is called `unlabelled`,
            without a position; `None` where no id of the rows says it.
    """

    name: str
    prompt: str
    choices: tuple[str, ...]
    text: str | None = None
    position: int | None = 0
    group: str | None = None
    split: str | None = None

    def longest_answer(self, length: Callable[[str], int] = len) -> int:
        """The length of the longest answer, measured by `length`."""
        return max(map(length, self.choices))


# Rows that are read together.
_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class AnswerSet:
    """
    What a teacher says of the rows of a group.

    Args:
        names (`tuple[str, ...]`): the group's rows, in the order of the run's.
        scores_MC (`np.ndarray`): log-scores `[M, C]`, finite, of which only the softmax matters.
        times_M (`np.ndarray`): how often the group has each of them, `[M]`, above 0.
        paired (`bool`): whether teacher row i is of row i; then M is the number of rows, each once.
    """

    names: tuple[str, ...]
    scores_MC: "np.ndarray[Any, Any]"
    times_M: "np.ndarray[Any, Any]"
    paired: bool = False

    @property
    def mass_M(self) -> "np.ndarray[Any, Any]":
        """How many of the group's rows each teacher row stands for, `[M]`."""
        return np.asarray(self.times_M * (len(self.names) / self.times_M.sum()))


def rows_of_pairs(sets: Iterable[AnswerSet]) -> dict[str, "np.ndarray[Any, Any]"]:
    """The scores `[C]` of the rows whose own teacher row is known, by their names."""
    return {
        name: scores_C for one in sets if one.paired for name, scores_C in zip(one.names, one.scores_MC, strict=True)
    }


def each_row(dataset: "Dataset") -> Iterator[dict[str, Any]]:
    """The rows of a data set, read some at a time: one by one, each takes `datasets` about a millisecond."""
    for columns in dataset.iter(_AT_ONCE):
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def questions_of(dataset: "Dataset", group_column: str | None = None) -> list[Question]:
    """
    What a teacher is asked of the rows of a data set: their prompt and choices, or what their column `teacher` holds.

    Args:
        dataset ([`~datasets.Dataset`]): rows with `id`, `prompt` and `choices`, and perhaps `text` and `teacher`.
        group_column (`str`, *optional*): the column that says of which group a row is; nothing or white space: none.
    """
    asked = []
    ids = dataset["id"][:] if "id" in dataset.column_names else [None] * len(dataset)
    names = [f"row {index}" if own is None else str(own) for index, own in enumerate(ids)]
    places = [place_of(name) for name in names]
    # Beside rows whose ids say their place, the place of a row with an id of its own is not known: the row is of a raw
    # file with ids, or, with an `id_column`, of the training split beside a raw file without.
    in_file = ("unlabelled", None) if any(places) else None
    for index, row in enumerate(each_row(dataset)):
        theirs = {**row, **{k: v for k, v in (row.get(TEACHER) or {}).items() if v is not None}}
        text = row.get("text")
        # The rows may be a sample, whose ids say where they stand in the whole.
        split, position = places[index] or in_file or (None, index)
        group = text_of(row.get(group_column)) or None if group_column is not None else None
        asked.append(Question(names[index], theirs["prompt"], tuple(theirs["choices"]), text, position, group, split))
    return asked


def place_of(name: str) -> tuple[str, int] | None:
    """The split of a row and its place there, from 0, as an id says that a task made; `None` of any other id."""
    made = _MADE.search(name)
    return None if made is None else (made[1], int(made[2]))


def answer_scores(index: int, count: int) -> "np.ndarray[Any, Any]":
    """The scores `[C]` of an answer without probabilities: the choice of this index, of so many."""
    scores_C = np.full(count, HARD, np.float32)
    scores_C[index] = 0
    return scores_C


def bounded(scores: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Scores `[..., C]` of which none is further than [`HARD`] below the largest of its row, which is finite."""
    return np.maximum(scores, scores.max(axis=-1, keepdims=True) + HARD).astype(np.float32)


class Answers(Mapping[str, Any]):
    """
    What a teacher says of rows: their names to C log-scores, of which only the softmax matters.

    A row of which it says nothing is not in it.
    """

    def __init__(self) -> None:
        self._scores: dict[str, np.ndarray[Any, Any]] = {}

    def add(self, question: Question, scores_C: "np.ndarray[Any, Any]") -> None:
        """
        Keeps the scores of a row.

        Args:
            question ([`Question`]): the row.
            scores_C (`np.ndarray`): one number a choice; -inf is kept as [`HARD`] below the largest.

        Raises:
            `ValueError`: for another number of scores, NaN or +inf.
        """
        scores = np.asarray(scores_C, np.float32)
        if scores.shape != (len(question.choices),) or np.isnan(scores).any() or not np.isfinite(scores.max()):
            raise ValueError(f"{question.name} needs {len(question.choices)} scores, got {scores}.")
        self._scores[question.name] = bounded(scores)

    def add_answer(self, question: Question, index: int) -> None:
        """Keeps an answer without probabilities: the choice of this index."""
        self._scores[question.name] = answer_scores(index, len(question.choices))

    def __getitem__(self, name: str) -> "np.ndarray[Any, Any]":
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)
