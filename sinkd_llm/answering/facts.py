"""`sinkd_answers.json`: what a student's folder keeps for its use, beside the model that it loads."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sinkd_llm._version import __version__
from sinkd_llm.answering.calibration import Calibration, Vector
from sinkd_llm.answering.routing import Route
from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.integrity import ANSWERS_FILE, manifest_sum
from sinkd_llm.tasks.task import Task

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class HeldOut:
    """
    The settings of a run by which the rows that it did not train on are found again.

    Args:
        heldout_share, max_train_samples, allow_unlabelled, id_column, validation_share: as in
            [`~sinkd_llm.runs.arguments.TaskArguments`].
        seed (`int`): that drew the samples of training rows.
        dataset_unlabelled_split, max_unlabelled_samples (*optional*): as there, of rows without labels that the run
            trained on as well.
        unlabelled_file (`str`, *optional*): the path of the file of these rows, from `unlabelled_from` on; its name
            alone where that is `None`.
        unlabelled_from (`str`, *optional*): `"task"`, the folder of the task file, or `"start"`, the one where the run
            was started. `None` for a file that lay below neither: a path of a machine is not kept.
    """

    heldout_share: float
    max_train_samples: int | None
    allow_unlabelled: bool
    id_column: str | None
    seed: int
    validation_share: float = 0.0
    unlabelled_file: str | None = None
    dataset_unlabelled_split: str | None = None
    max_unlabelled_samples: int | None = None
    unlabelled_from: str | None = None


@dataclass(frozen=True)
class StudentFacts:
    """
    What a student was trained to answer, how it reads rows, and what was found out about its answers.

    Args:
        task (`Mapping[str, Any]`): the keys of the task file, includes merged, without the places of its data.
        reading ([`Reading`]): how rows become tokens.
        calibration ([`Calibration`], *optional*): `None` until `sinkd calibrate` made one.
        route ([`Route`], *optional*): `None` until `sinkd route` made one.
        held_out ([`HeldOut`], *optional*): which training rows the run did not train on.
        model_sum (`str`, *optional*): of the manifest of the model that this is about. A calibration is of one model:
            beside another one it is left out.
        version (`str`): of this package, that wrote it.
    """

    task: Mapping[str, Any]
    reading: Reading
    calibration: Calibration | None = None
    route: Route | None = None
    held_out: HeldOut | None = None
    model_sum: str | None = None
    version: str = __version__

    @classmethod
    def of_run(cls, task: Task, reading: Reading, held_out: HeldOut | None, folder: Path) -> "StudentFacts":
        """
        Of a student that a run has saved.

        Args:
            task ([`Task`]): of the run.
            reading ([`Reading`]): how it read rows.
            held_out ([`HeldOut`], *optional*): which training rows it left out.
            folder (`Path`): where the student is saved.
        """
        return cls(kept_keys(task), reading, held_out=held_out, model_sum=manifest_sum(folder))

    @classmethod
    def load(cls, folder: Path) -> "StudentFacts | None":
        """
        What the folder of a student keeps; `None` where it keeps nothing.

        A calibration and a route of another model than lies there now are left out, with a warning.

        Raises:
            InputError: if the file is damaged, or of a later format.
        """
        path = folder / ANSWERS_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise InputError(
                    f"{path} is of format {content['format']!r} and this version reads {FORMAT}; update sinkd-llm, or "
                    "delete the file and give a task (--task, in Python task=)."
                )
            facts = cls(
                task=dict(content["task"]),
                reading=Reading(**content["reading"]),
                calibration=_calibration(content["calibration"]),
                route=_route(content["route"]),
                held_out=None if content["held_out"] is None else HeldOut(**content["held_out"]),
                model_sum=content["model_sum"],
                version=str(content["version"]),
            )
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path} is damaged ({type(error).__name__}: {error}); copy the folder again, or delete the file and "
                "give a task (--task, in Python task=), after which the student has no calibration."
            ) from error
        if facts.model_sum in (None, manifest_sum(folder)):
            return facts
        if facts.calibration is not None or facts.route is not None:
            logger.warning(
                "The calibration and the route in %s are of another model than the folder holds now, and are left "
                "out; calibrate this one.",
                path,
            )
        return replace(facts, calibration=None, route=None)

    def load_task(self, folder: Path) -> Task:
        """The task, of which `folder` keeps the keys."""
        return Task(folder / ANSWERS_FILE, keys=self.task)

    def answers(self, task: Task, folder: Path) -> bool:
        """Whether the student of `folder` chooses among a task's own answers: the prompt may differ."""
        own = self.load_task(folder)
        return (own.output_type, own.choices) == (task.output_type, task.choices)

    def write(self, folder: Path) -> None:
        """Write the file into a student's folder."""
        content = {"format": FORMAT, **asdict(self)}
        write_whole(folder / ANSWERS_FILE, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def kept_keys(task: Task) -> dict[str, Any]:
    """A task's keys without the places of its data, which are nothing to somebody else's machine."""
    keys = dict(task.config)
    if isinstance(options := keys.get("dataset_kwargs"), dict):
        kept = {name: value for name, value in options.items() if name not in ("data_files", "data_dir")}
        keys["dataset_kwargs"] = kept
    return keys


def _calibration(content: Any) -> Calibration | None:
    if content is None:
        return None
    vector = content["vector"]
    made = None if vector is None else Vector(tuple(vector["scale"]), tuple(vector["bias"]))
    found = Calibration(float(content["temperature"]), made, dict(content["measured"]))
    numbers = [] if made is None else [*made.scale, *made.bias]
    if not (found.temperature > 0 and all(map(math.isfinite, (found.temperature, *numbers)))):
        raise ValueError(f"the calibration has the temperature {found.temperature} and the vector {vector}")
    return found


def _route(content: Any) -> Route | None:
    if content is None:
        return None
    found = Route(float(content["threshold"]), float(content["target"]), str(content["of"]), dict(content["measured"]))
    if not (math.isfinite(found.threshold) and 0 < found.target < 1):
        raise ValueError(f"the route has the threshold {found.threshold} and the target {found.target}")
    return found
