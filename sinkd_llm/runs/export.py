"""`export`: write a student in another program's format, and see that it answers as before."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sinkd_llm.errors import InputError
from sinkd_llm.files import bytes_under, write_whole
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.locks import folder_lock
from sinkd_llm.runs.folder import no_empty_folder, source_size_bytes
from sinkd_llm.terminal import progress, say

if TYPE_CHECKING:
    from sinkd_llm.answering.routing import Route
    from sinkd_llm.answering.torch_student import TorchStudent
    from sinkd_llm.exporting.comparison import Comparison
    from sinkd_llm.exporting.formats import Exported
    from sinkd_llm.models.names import ModelSource
    from sinkd_llm.tasks import Example, Task

_WEIGHTS = (".safetensors", ".onnx", ".gguf")


@dataclass(frozen=True)
class Profile:
    """
    A model before or after its export.

    Args:
        size_bytes (`int`, *optional*): of its weights on disk; `None` on the hub.
        latency_ms (`tuple[float, float]`, *optional*): median and 95th percentile of one row; `None` where another
            program runs the model.
    """

    size_bytes: int | None
    latency_ms: tuple[float, float] | None


@dataclass(frozen=True)
class ExportResult:
    """
    What `sinkd export` gives.

    Args:
        folder (`Path`): where the export is.
        format (`str`): its format.
        before, after ([`Profile`]): the student and the export.
        comparison ([`Comparison`]): of what both answered.
        without_route ([`Route`], *optional*): the student's, where it was left out: its guarantee is about the
            probabilities that it was chosen on, and the export's are others.
        route_command (`str`, *optional*): what chooses such a route for the export, where this package runs it.
    """

    folder: Path
    format: str
    before: Profile
    after: Profile
    comparison: "Comparison"
    without_route: "Route | None" = None
    route_command: str | None = None


@termination_raises()
def run_export(
    student: str,
    output: str | Path,
    format: str,
    *,
    task: str | None = None,
    data_dir: str | None = None,
    rows: str | None = None,
    check: int = 256,
    threads: int | None = None,
    numbers: str = "f16",
    allow_differences: bool = False,
    **loading: Any,
) -> ExportResult:
    """
    Write a student in another program's format, after both have answered the same rows.

    Args:
        student (`str`): the folder of a run; with `task` any model that [`load_student`] takes.
        output (`str` or `Path`): the folder of the export; an earlier export in it is replaced.
        format (`str`): `"merged"`, `"adapter"`, `"onnx"`, `"onnx-int8"` or `"gguf"`.
        task (`str`, *optional*): a task's name or YAML file, for a model without one, or to say where its rows are.
        data_dir (`str`, *optional*): the folder of the task's data.
        rows (`str`, *optional*): a file of rows to compare on, without labels. Default: the task's evaluation rows.
        check (`int`, *optional*, defaults to `256`): at most so many rows are compared.
        threads (`int`, *optional*): of the processor, for both. Default: as many as torch takes.
        numbers (`str`, *optional*, defaults to `"f16"`): the type of a GGUF file's matrices: `"f32"`, `"f16"`,
            `"q8_0"`.
        allow_differences (`bool`, *optional*, defaults to `False`): keep an export that answers otherwise.
        loading: more keyword arguments of [`load_student`].

    Raises:
        InputError: for a student that the format does not take, a folder that holds something else, no rows to
            compare on, and an export that answers otherwise than the student.
    """
    import torch

    from sinkd_llm.answering.onnx_student import ONNX_FILE
    from sinkd_llm.answering.timing import latencies_ms
    from sinkd_llm.exporting.comparison import check_same, compare, said_of
    from sinkd_llm.exporting.formats import FORMATS, Exported, check_packages
    from sinkd_llm.exporting.place import check_export_place, export_folder
    from sinkd_llm.models import resolve_model_source
    from sinkd_llm.runs.inputs import check_path, model_inputs, refuse_inputs, user_path

    for name, value in (("check", check), ("threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; give 1 or more.")
    if not str(output).strip():
        raise InputError("--output is empty; give the folder that the export is to be written to.")
    if (Path(student).expanduser() / ONNX_FILE).is_file():
        raise InputError(f"{student} is an ONNX export already; give the folder of the run that it was made from.")
    check_packages(format)
    source = resolve_model_source(student)
    folder = user_path("--output", output)
    check_path(f"--output {folder}", folder)
    refuse_inputs("--output", folder, model_inputs("the student", student))
    check_export_place(folder, 0)
    _check_precision(source, format, allow_differences, loading)
    if threads is not None:
        torch.set_num_threads(threads)

    made, loaded = FORMATS[format], _load(student, task, loading)
    exported = Exported(loaded, source, numbers)
    made.check(exported)
    weights = sum(weight.numel() * weight.element_size() for weight in loaded.model.parameters())
    check_export_place(folder, int(weights * made.room))
    examples = _examples(loaded, student, data_dir, rows, check)
    # What an adapter adds is compared with its sum with the base.
    folded = format == "merged" and source.kind == "adapter"
    reference = _load(student, task, {**loading, "merge_adapter": False}) if folded else loaded
    with progress(f"The student answers {len(examples)} rows") as on_progress:
        before = said_of(reference, examples, on_progress)
    waiting = folder_lock(folder, "wait until it has ended, or give another --output")
    with no_empty_folder(folder), waiting, export_folder(folder) as staging:
        say(f"Writing {format} …")
        made.write(exported, staging)
        replace(loaded.facts, model_sum=None).write(staging)  # of a model that is not whole yet
        with progress(f"The export answers {len(examples)} rows") as on_progress:
            written = made.load(staging, exported)
            after = said_of(written, examples, on_progress)
        found = compare(before, after)
        check_same(found, made.exact(exported), allow_differences)
        # A GGUF file is for another program, whose time this is not.
        timed = [reference] if format == "gguf" else [reference, written]
        first, *last = latencies_ms(timed, examples)
        left_out = loaded.facts.route if not made.exact(exported) or found.beyond_rounding else None
        command = None
        if left_out is not None and format != "gguf":  # which another program runs
            command = _route_command(folder, loaded.task, left_out, task, data_dir)
        result = ExportResult(
            folder=folder,
            format=format,
            before=Profile(source_size_bytes(student), first),
            after=Profile(_size(staging), last[0] if last else None),
            comparison=found,
            without_route=left_out,
            route_command=command,
        )
        text = _complete(staging, exported, result)
    # The folder is whole without it, and a page that somebody has written on is no part of a save.
    write_whole(folder / "README.md", text)
    return result


def _check_precision(source: "ModelSource", format: str, allowed: bool, loading: dict[str, Any]) -> None:
    """Refuses what would export another model than was trained, or in a type that its format does not have."""
    from sinkd_llm.models.student_record import trained_over

    dtype = loading.get("dtype")
    if format in ("onnx", "onnx-int8", "gguf") and dtype not in (None, "float32"):
        raise InputError(f"--dtype {dtype} goes with --format merged; {format} is made of float32 weights.")
    trained = trained_over(source)
    if trained is not None and format != "adapter" and not allowed:
        raise InputError(
            f"The student in {source.name} was trained over a base in {trained}: beside or in an unpacked base its "
            "adapter computes other logits than those that were trained. Give --format adapter, and load the base "
            "packed there; or --allow_differences to export it over the unpacked base."
        )


def _load(student: str, task: str | None, loading: dict[str, Any]) -> "TorchStudent":
    from sinkd_llm.answering.load import load_student

    say(f"Loading {student} …")
    found = cast("TorchStudent", load_student(student, task, **loading))
    found.model.to("cpu")  # where exports are written, and run most of the time
    return found


def _examples(
    student: "TorchStudent", name: str, data_dir: str | None, rows: str | None, limit: int
) -> "Sequence[Example]":
    """The rows to compare on."""
    if rows is not None:
        from sinkd_llm.answering.new_rows import new_rows

        with new_rows(rows, student.task, student.columns) as stream:
            found = [example for _, _, example in islice(student.examples(stream), limit)]
    else:
        found = _evaluation_rows(student.task, name, data_dir, limit)
    if not found:
        raise InputError("There is no row to compare the export on; give a file of rows with --rows.")
    return found


def _evaluation_rows(task: "Task", name: str, data_dir: str | None, limit: int) -> "list[Example]":
    from sinkd_llm.runs.task_rows import task_split
    from sinkd_llm.runs.unseen_rows import examples_of, refuse_no_place_of_data

    try:
        refuse_no_place_of_data(task, name)
        return examples_of(task_split(task, "validation", data_dir, limit))
    except InputError as error:
        raise InputError(
            f"There are no evaluation rows to compare the export on: {error} Or give --rows FILE, rows without labels."
        ) from error


def _route_command(folder: Path, answered: "Task", route: "Route", task: str | None, data_dir: str | None) -> str:
    """What chooses a route like `route` for an export: an export's folder knows no teacher and no place of data."""
    from sinkd_llm.answering.routing import LEVEL
    from sinkd_llm.runs.routing import AGREEMENT
    from sinkd_llm.runs.unseen_rows import refuse_no_place_of_data

    words = ["sinkd", "route", str(folder)]
    if task is None:
        try:
            refuse_no_place_of_data(answered, str(folder))
        except InputError:
            task = "TASK.yaml"
    words += [] if task is None else ["--task", task]
    words += [] if data_dir is None else ["--data_dir", data_dir]
    words += ["--target", f"{route.target:g}", "--of", route.of]
    if (level := route.measured.get("level", LEVEL)) != LEVEL:
        words += ["--level", f"{level:g}"]
    words += ["--teacher_model_name_or_path", "TEACHER"] if route.of == AGREEMENT else []
    return shlex.join(words)


def _size(folder: Path) -> int:
    """Bytes of the weights of an export."""
    return bytes_under(folder, keep=lambda file: file.suffix in _WEIGHTS)


def _complete(staging: Path, exported: "Exported", result: ExportResult) -> str:
    """Writes what an export says of itself, and its checksums; gives its README."""
    from sinkd_llm.answering.facts import ANSWERS_FILE
    from sinkd_llm.environment import versions
    from sinkd_llm.exporting.describing import readme
    from sinkd_llm.exporting.place import EXPORT_FILE
    from sinkd_llm.integrity import MANIFEST_FILE, manifest_sum
    from sinkd_llm.models.names import STUDENT_RECORD
    from sinkd_llm.models.placing import write_record
    from sinkd_llm.models.student_record import trained_over

    files = {file.relative_to(staging).as_posix() for file in staging.rglob("*") if file.is_file()}
    files |= {EXPORT_FILE, STUDENT_RECORD, MANIFEST_FILE, ANSWERS_FILE, "README.md"}
    content = {
        "format": result.format,
        "student": Path(exported.source.name).name,
        "before": asdict(result.before),
        "after": asdict(result.after),
        "comparison": asdict(result.comparison),
        "versions": versions(),
        "files": sorted(files),
    }
    (staging / EXPORT_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_record(staging, {"base_quantisation": trained_over(exported.source), "merged_in": None})
    facts = exported.student.facts
    route = None if result.without_route is not None else facts.route
    # A calibration holds for an export that answers alike, as was just seen.
    replace(facts, route=route, model_sum=manifest_sum(staging)).write(staging)
    return readme(exported, result.format, result.comparison)
