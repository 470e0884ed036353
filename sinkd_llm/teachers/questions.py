"""What a teacher is asked of a row, and what it says: one number for each answer choice.

Shape suffixes: C choices of a row.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.models.kinds import TEACHER

if TYPE_CHECKING:
    from datasets import Dataset

# The log-score of the choices that a teacher did not give, where it gives an answer alone: e^-30 is 1e-13.
HARD = -30.0
# The name that a task gives to a row of a split: `<task>-<split>-<place>-<hash>`.
_NUMBERED = re.compile(r"-(?:train|validation|test)-(\d+)(?:-[0-9a-f]+)?$")


@dataclass(frozen=True)
class Question:
    """
    A row as a teacher is asked.

    Args:
        name (`str`): the row's id.
        prompt (`str`): rendered.
        choices (`tuple[str, ...]`): the answers as they continue the prompt, each with its delimiter.
        text (`str`, *optional*): the row's bare text, where its task names it.
        position (`int`): the row's place in its split, from 0.
    """

    name: str
    prompt: str
    choices: tuple[str, ...]
    text: str | None = None
    position: int = 0


def questions_of(dataset: "Dataset") -> list[Question]:
    """
    What a teacher is asked of the rows of a data set: their prompt and choices, or what their column `teacher` holds.

    Args:
        dataset ([`~datasets.Dataset`]): rows with `id`, `prompt` and `choices`, and perhaps `text` and `teacher`.
    """
    asked = []
    for index, row in enumerate(dataset):
        theirs = {**row, **{k: v for k, v in (row.get(TEACHER) or {}).items() if v is not None}}
        text = row.get("text")
        name = str(row.get("id") if row.get("id") is not None else f"row {index}")
        # The rows may be a sample, whose names say where they stand in the whole.
        numbered = _NUMBERED.search(name)
        position = int(numbered[1]) if numbered else index
        asked.append(Question(name, theirs["prompt"], tuple(theirs["choices"]), text, position))
    return asked


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
        self._scores[question.name] = np.maximum(scores, scores.max() + HARD)

    def add_answer(self, question: Question, index: int) -> None:
        """Keeps an answer without probabilities: the choice of this index."""
        scores = np.full(len(question.choices), HARD, np.float32)
        scores[index] = 0
        self._scores[question.name] = scores

    def __getitem__(self, name: str) -> "np.ndarray[Any, Any]":
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)
