"""The files of a run beside its model: `results.json`, and `metrics.jsonl` with one log record a line.

Each is written and read here alone. A page can be made of the two at any time, also from a folder that was copied to
another machine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole

RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"

TEACHER, BEFORE, AFTER = "teacher", "student before", "student after"

# Lower is better: no share of the teacher's score, and no bar in the page.
LOSSES = ("loss", "eval_loss", "perplexity", "log_loss", "brier", "ece", "ece_adaptive", "kl_to_teacher")

# Scores of a student's probabilities, which a run takes before any calibration.
OF_PROBABILITIES = ("log_loss", "brier", "ece", "ece_adaptive", "kl_to_teacher")


@dataclass(frozen=True)
class ClassTable:
    """
    How well a model does on each class of a task whose rows all have the same choices.

    Attributes:
        names (`list[str]`): the choices, in their order.
        precision, recall, f1 (`list[float]`): of each, in [0, 1]; 0 where it is undefined.
        support (`list[int]`): rows of which each is the right answer.
        confusion (`list[list[int]]`): how many rows there are of each right answer and each chosen one, as
            `[right, chosen, rows]`, where there are any.
    """

    names: list[str]
    precision: list[float]
    recall: list[float]
    f1: list[float]
    support: list[int]
    confusion: list[list[int]]


@dataclass
class ResultRow:
    """
    One model in the results table.

    Attributes:
        name (`str`): `"teacher"`, `"student before"`, `"student after"`, or what the command calls it.
        metrics (`dict[str, float]`): its scores, the task's primary metric first.
        parameters (`int`): parameters in all.
        trainable_parameters (`int`): those that this run trained.
        size_bytes (`int`, *optional*): bytes of its files on disk; `None` if it was not saved or is on
            the hub.
        num_examples (`int`): rows scored.
        seconds (`float`): time of scoring them.
        intervals (`dict[str, tuple[float, float]]`): the 95 % interval of each of its scores that has one.
        classes ([`ClassTable`], *optional*): the same for each class.
        latency_ms_p50, latency_ms_p95 (`float`, *optional*): median and 95th percentile of the time of one row alone.
        peak_memory_bytes (`int`, *optional*): its weights, and the most that one row needs beside them.
    """

    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: int = 0
    trainable_parameters: int = 0
    size_bytes: int | None = None
    num_examples: int = 0
    seconds: float = 0.0
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    classes: ClassTable | None = None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    peak_memory_bytes: int | None = None

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "ResultRow":
        """
        A row from what JSON holds of it; entries of later versions are left out.

        Raises:
            TypeError, KeyError, ValueError: if there are others than these fields have.
        """
        known = {entry.name for entry in fields(cls)}
        given = {name: value for name, value in entries.items() if name in known}
        given["intervals"] = {
            name: (float(low), float(high)) for name, (low, high) in (given.get("intervals") or {}).items()
        }
        if given.get("classes") is not None:
            given["classes"] = ClassTable(**given["classes"])
        return cls(**given)

    @property
    def examples_per_second(self) -> float | None:
        return self.num_examples / self.seconds if self.seconds > 0 else None

    @property
    def primary_metric(self) -> str | None:
        """The metric by which models are compared; `None` for a model that was not scored."""
        return next(iter(self.metrics), None)

    def share_of(self, teacher: "ResultRow | None") -> float | None:
        """The primary metric as a share of the teacher's; `None` if there is none to compare with."""
        metric = self.primary_metric
        if teacher is None or metric is None or metric in LOSSES:
            return None
        reference = teacher.metrics.get(metric, 0)
        return self.metrics[metric] / reference if reference > 0 else None

    def as_dict(self, teacher: "ResultRow | None" = None) -> dict[str, Any]:
        return asdict(self) | {
            "examples_per_second": self.examples_per_second,
            "share_of_teacher": self.share_of(teacher),
        }


def find_row(rows: Sequence[ResultRow], name: str) -> ResultRow | None:
    """The row called `name`, if there is one."""
    return next((row for row in rows if row.name == name), None)


@dataclass
class RunRecord:
    """
    What `results.json` holds of a finished run.

    Attributes:
        command (`str`): `"finetune"` or `"distill"`.
        command_line (`str`): how it was called, without secrets.
        task (`str`): what it was trained on.
        seed (`int`): of the run.
        finished (`str`): when, in UTC.
        device (`str`): what it ran on.
        peak_memory_bytes (`int`): most memory of the first process; 0 where the system does not say.
        evaluation (`str`): in words, how many rows were scored and how.
        training (`dict[str, float]`): `steps`, `resumed_at`, `seconds`, `loss`, `loss_from_step`.
        rows (`list[ResultRow]`): the models.
        settings (`dict[str, Any]`): those that differ from their defaults, and all of the objective.
        all_settings (`dict[str, Any]`): all of them.
        versions (`dict[str, str]`): of the packages that a result depends on.
        layers (`dict[str, Any]`, *optional*): which layers of another model the student has, and why.
    """

    command: str
    command_line: str
    task: str
    seed: int
    finished: str
    device: str
    peak_memory_bytes: int
    evaluation: str
    training: dict[str, float]
    rows: list[ResultRow]
    settings: dict[str, Any]
    all_settings: dict[str, Any]
    versions: dict[str, str]
    layers: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Write `results.json` into a folder, whole or not at all."""
        teacher = find_row(self.rows, TEACHER)
        content = {name: getattr(self, name) for name in self._names()}
        content["rows"] = [row.as_dict(teacher) for row in self.rows]
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        write_whole(folder / RESULTS_FILE, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """
        The record in a folder; entries of later versions are left out.

        Raises:
            InputError: if there is none, or it is not readable.
        """
        try:
            content = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
            rows = [ResultRow.of(row) for row in content["rows"]]
            for name in ("training", "settings", "all_settings", "versions"):
                if not isinstance(content[name], dict):
                    raise TypeError(f"{name} is no mapping")
            if not isinstance(content.setdefault("layers", None), dict | None):  # earlier versions have none
                raise TypeError("layers is no mapping")
            return cls(**{name: content[name] for name in cls._names()} | {"rows": rows})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise not_readable(folder) from error

    @property
    def subject(self) -> str:
        """What was trained, in a word: a `student` of a teacher, or a `model`."""
        return "student" if self.command == "distill" else "model"

    def shown_rows(self) -> list[ResultRow]:
        """The rows under the names that people read: without a teacher there is no student."""
        if self.command == "distill":
            return self.rows
        names = {"before": "model before", "after": "model after", "student": "model"}
        return [replace(row, name=names.get(row.name, row.name)) for row in self.rows]

    @classmethod
    def _names(cls) -> list[str]:
        return [entry.name for entry in fields(cls)]


def not_readable(folder: Path) -> InputError:
    """The error for a folder without a record that makes sense."""
    return InputError(f"{folder} holds no readable {RESULTS_FILE}, so it is no finished run.")


def is_finished(folder: Path) -> bool:
    """Whether a folder holds the record of a run, of any version of this package."""
    try:
        content = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"command", "rows"} <= content.keys()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The log records of `metrics.jsonl`; an unfinished last line of a killed run, and what is none, are left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step", 0), int | float):
            records.append(record)
    return records


def begin_records(path: Path, step: int) -> None:
    """
    Keep of `metrics.jsonl` what was logged up to a step: a run that goes on from there logs the later ones again.

    Args:
        path (`Path`): the file; its folder is made.
        step (`int`): where training begins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # `train_runtime` marks the closing record of a run, here of the part before the resumption.
    kept = [r for r in read_records(path) if r.get("step", 0) <= step and "train_runtime" not in r]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))


def append_record(path: Path, step: int, logs: Mapping[str, Any]) -> None:
    """Add one log record to `metrics.jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **logs}) + "\n")
