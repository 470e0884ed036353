"""`predictions.json` of a run: what its student answered to each row at the end. It is written and read here alone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole

PREDICTIONS_FILE = "predictions.json"
# Whose answers, to which rows.
EVALUATION, HELD_OUT, TEACHER = "evaluation", "held out", "teacher"


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
    """

    ids: list[str]
    references: list[Any]
    predictions: list[Any]
    metrics: dict[str, float]
    numbers: list[float] | None = None
    targets: list[float] | None = None


def write_predictions(folder: Path, predictions: Mapping[str, Predictions]) -> None:
    """
    Write `predictions.json` into the folder of a run.

    Args:
        folder (`Path`): the folder.
        predictions (`Mapping[str, Predictions]`): by `EVALUATION`, `HELD_OUT` and `TEACHER`, as far as they are known.
    """
    content = {name: asdict(one) for name, one in predictions.items()}
    write_whole(folder / PREDICTIONS_FILE, json.dumps(content, ensure_ascii=False, default=float) + "\n")


def read_predictions(folder: Path) -> dict[str, Predictions]:
    """
    What [`write_predictions`] wrote into a folder.

    Raises:
        InputError: if there is no such file, or it is damaged.
    """
    names = [entry.name for entry in fields(Predictions)]
    try:
        content = json.loads((folder / PREDICTIONS_FILE).read_text(encoding="utf-8"))
        found = {name: Predictions(**{key: one[key] for key in names}) for name, one in content.items()}
        for one in found.values():
            if not len(one.ids) == len(one.references) == len(one.predictions):
                raise ValueError("lists of different lengths")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder} holds no readable {PREDICTIONS_FILE}; run it again.") from error
    return found
