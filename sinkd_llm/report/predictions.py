"""`predictions.json` of a run: what its student answered to each row at the end. It is written and read here alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole

PREDICTIONS_FILE = "predictions.json"
# Whose answers, to which rows.
EVALUATION, HELD_OUT, TEACHER = "evaluation", "held out", "teacher"
# A probability is kept with so many digits after the point.
DIGITS = 5


@dataclass(frozen=True)
class Predictions:
    """
    What a model answered to some rows.

    Attributes:
        ids (`list[str]`): the rows.
        references (`list`): the index of each right choice, or the reference text.
        predictions (`list`): the index of each chosen one, or the written text.
        metrics (`dict[str, float]`): the scores of all rows, the primary one first.
        numbers, targets (`list[float]`, *optional*): where a task compares numbers: what the model said, and what is
            right.
        choices (`list[str]`, *optional*): the answer choices, where all rows have the same.
        probabilities (`list[list[float]]`, *optional*): of each row's choices, in [0, 1].
        texts (`list[str]`, *optional*): what the rows say.
    """

    ids: list[str]
    references: list[Any]
    predictions: list[Any]
    metrics: dict[str, float]
    numbers: list[float] | None = None
    targets: list[float] | None = None
    choices: list[str] | None = None
    probabilities: list[list[float]] | None = None
    texts: list[str] | None = None


def write_predictions(folder: Path, predictions: Mapping[str, Predictions]) -> None:
    """
    Write `predictions.json` into the folder of a run.

    Args:
        folder (`Path`): the folder.
        predictions (`Mapping[str, Predictions]`): by `EVALUATION`, `HELD_OUT` and `TEACHER`, as far as they are known.
    """
    content = {name: _kept(one) for name, one in predictions.items()}
    write_whole(folder / PREDICTIONS_FILE, json.dumps(content, ensure_ascii=False, default=float) + "\n")


def _kept(one: Predictions) -> dict[str, Any]:
    content = {entry.name: getattr(one, entry.name) for entry in fields(one)}
    if one.probabilities is not None:
        content["probabilities"] = rounded(one.probabilities)
    return content


def rounded(probabilities: Sequence[Sequence[float]]) -> list[list[float]]:
    """Probabilities with as many digits as files keep of them."""
    return [[round(float(value), DIGITS) for value in row] for row in probabilities]


def read_predictions(folder: Path) -> dict[str, Predictions]:
    """
    What [`write_predictions`] wrote into a folder; what earlier versions did not keep is `None`.

    Raises:
        InputError: if there is no such file, or it is damaged.
    """
    try:
        content = json.loads((folder / PREDICTIONS_FILE).read_text(encoding="utf-8"))
        found = {name: _read(one) for name, one in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder} holds no readable {PREDICTIONS_FILE}; run it again.") from error
    return found


def _read(content: Mapping[str, Any]) -> Predictions:
    given: dict[str, Any] = {
        entry.name: content[entry.name] if entry.default is MISSING else content.get(entry.name)
        for entry in fields(Predictions)
    }
    one = Predictions(**given)
    by_row = (one.references, one.predictions, one.numbers, one.targets, one.probabilities, one.texts)
    if any(part is not None and len(part) != len(one.ids) for part in by_row):
        raise ValueError("lists of different lengths")
    return one
