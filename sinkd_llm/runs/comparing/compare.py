"""`compare`: a grid of settings with several seeds, each run by itself, scored on the same rows, and compared."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.environment import versions
from sinkd_llm.errors import InputError
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.locks import LOCK_FILES, folder_lock, refuse_if_locked
from sinkd_llm.report.comparison import Comparison, write_comparison
from sinkd_llm.runs.balancing import balance_asked
from sinkd_llm.runs.comparing.baselines import control_cells, gold_cells
from sinkd_llm.runs.comparing.grid import DEFAULT_HELDOUT_SHARE, Cell, Grid, read_grid
from sinkd_llm.runs.comparing.identity import Arguments, draws_by_seed
from sinkd_llm.runs.comparing.processes import Start, start_process
from sinkd_llm.runs.comparing.results import compared, curves_of, entry_of
from sinkd_llm.runs.comparing.runs import Plan, notes_on_answers, run_all
from sinkd_llm.runs.comparing.scores import check_metric
from sinkd_llm.runs.data import RunData, load_run_data
from sinkd_llm.runs.folder import no_empty_folder
from sinkd_llm.runs.inputs import check_path, refuse_inputs, run_inputs, user_path
from sinkd_llm.runs.training import check_distill, check_finetune
from sinkd_llm.secrets import masked, masked_command, recordable_command
from sinkd_llm.teachers.balance import LABELS
from sinkd_llm.terminal import say
from sinkd_llm.training.settings.rules import NEEDS_TEACHER

if TYPE_CHECKING:
    from sinkd_llm.tasks import Task

# Says that a folder is a comparison's.
PLAN_FILE = "compare.json"


@dataclass(frozen=True)
class Request:
    """
    What is asked of `sinkd compare`.

    Args:
        recipe (`Mapping[str, Any]`): the settings of the recipe.
        grid (`Path`): the file of the grid.
        output (`str`): the folder of the comparison.
        parse (`Callable`): makes the arguments of a run of its settings, and refuses what is wrong with them.
        flags (`list[str]`, *optional*): of `sinkd distill`; they win over recipe and grid.
        jobs (`int`, *optional*, defaults to 1): runs at the same time.
        seeds (`list[int]`, *optional*): in place of the grid's.
        baselines (`bool`, *optional*, defaults to `False`): whether the baselines are run, too.
        keep_models (`bool`, *optional*, defaults to `False`): whether the students stay after they are scored.
        argv (`Sequence[str]`, *optional*): the words this came from, for the record.
    """

    recipe: Mapping[str, Any]
    grid: Path
    output: str
    parse: Callable[[Mapping[str, Any]], Arguments]
    flags: Sequence[str] = ()
    jobs: int = 1
    seeds: list[int] | None = None
    baselines: bool = False
    keep_models: bool = False
    argv: Sequence[str] = ()


@dataclass(frozen=True)
class CompareResult:
    """What `sinkd compare` gives."""

    folder: Path
    comparison: Comparison


@termination_raises()
def run_compare(request: Request, start: Start = start_process) -> CompareResult:
    """
    Run every cell of a grid with every seed, and compare.

    The runs are those of `sinkd distill`, or of `sinkd finetune` where no teacher is named. What is finished already,
    from the same recipe, grid, data, models and version, is not run again.

    Args:
        request ([`Request`]): what is asked.
        start (`Callable`, *optional*): starts a process.

    Raises:
        InputError: for a grid, a recipe or a folder that does not fit, before anything is written; and if no run of
            the baseline has a result.
    """
    grid = read_grid(request.grid, request.seeds)
    if request.jobs < 1:
        raise InputError(f"--jobs is {request.jobs}; give 1 or more.")
    cells, arguments = _cells(request, grid)
    first = arguments[cells[0].name]
    task = _task(first)
    metric = check_metric(grid.metric, _metrics(task), request.grid)
    folder = _folder(request, first)
    data = load_run_data(first[0], grid.seeds[0])
    _check_balance(cells, arguments, data)
    _check_models(arguments)
    _check_layers(arguments)
    notes: list[str] = []
    if request.baselines:
        cells, arguments, notes = _with_baselines(request, grid, cells, arguments, data)
    plan = Plan(folder, request.recipe, list(request.flags), metric, grid.teacher_cache == "auto", request.keep_models)
    with no_empty_folder(folder), folder_lock(folder, "wait for it, or give another --output"):
        _write_plan(folder, request, grid, cells)
        runs = [run for cell in cells for run in plan.runs_of(cell, arguments[cell.name], grid.seeds)]
        for run in runs:
            refuse_if_locked(run.folder, "wait for it, or end it")
        problems = run_all(plan, runs, arguments, request.jobs, start)
        entries = [entry_of(run, problems.get((run.cell.name, run.seed))) for run in runs]
        found = compared(grid, metric, entries, data, _rows_by_seed(first) if request.baselines else None)
        found = replace(
            found,
            command_line=recordable_command(["sinkd", "compare", *request.argv]),
            notes=[*found.notes, *notes, *notes_on_answers(folder)],
            finished=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            versions=versions(),
        )
        write_comparison(folder, found, curves_of(found))
    return CompareResult(folder, found)


def _cells(request: Request, grid: Grid) -> tuple[list[Cell], dict[str, Arguments]]:
    """The cells with the share that is held out, and the arguments of each, all of them checked."""
    share = grid.heldout_share
    if share is None:
        default = DEFAULT_HELDOUT_SHARE if grid.select_on == "heldout" else 0.0
        share = float(request.recipe.get("heldout_share") or default)
    cells = [replace(cell, settings={**cell.settings, "heldout_share": share}) for cell in grid.cells]
    arguments = {cell.name: _arguments(request, cell) for cell in cells}
    if not any(training_args.has_teacher for _, training_args, _ in arguments.values()):
        _refuse_without_teacher(request, cells)
        say("No teacher is named, so the runs fine-tune on the labels (sinkd finetune).")
    return cells, arguments


def _refuse_without_teacher(request: Request, cells: Sequence[Cell]) -> None:
    """Without a teacher no cell differs by what is learnt from one."""
    without = next((name for cell in cells for name in cell.settings if name in NEEDS_TEACHER), None)
    if without is not None:
        raise InputError(
            f"{request.grid} varies {without}, which is of what a student learns from a teacher, and no teacher is "
            "named; give --teacher_model_name_or_path, --teacher_url, --teacher_file or --teacher_cache."
        )


def _arguments(request: Request, cell: Cell) -> Arguments:
    settings = {**request.recipe, **cell.settings}
    if settings.get("dataset_name") is not None:
        raise InputError(
            "A comparison scores the answers to a task, row by row, and the recipe has a dataset_name; give a task "
            "(for rows of your own, a task file: docs/tasks.md)."
        )
    arguments = request.parse(settings)
    task_args, training_args, model_args = arguments
    if training_args.has_teacher:
        check_distill(training_args, model_args)
    else:
        check_finetune(training_args, model_args, task_args)
    if training_args.load_best_model_at_end:
        raise InputError(
            "load_best_model_at_end is set, and it chooses a step by the rows on which cells are compared; leave it "
            "out: a comparison scores the last step."
        )
    return arguments


def _check_balance(cells: Sequence[Cell], arguments: Mapping[str, Arguments], data: RunData) -> None:
    """A prior that does not fit the rows is refused before any teacher is asked."""
    for cell in cells:
        task_args = arguments[cell.name][0]
        # Which rows have a label may differ by cell.
        if task_args.balance == LABELS or task_args.task != arguments[cells[0].name][0].task:
            continue
        try:
            balance_asked(replace(data, arguments=task_args))
        except InputError as error:
            raise InputError(f"{cell.name}: {error}") from error


def _check_models(arguments: Mapping[str, Arguments]) -> None:
    """A model that is not there is said before any teacher is asked; whether the hub has one, the runs find out."""
    from sinkd_llm.models.names import resolve_model_source

    for cell, (_, training_args, model_args) in arguments.items():
        teacher = training_args.teacher_model_name_or_path if training_args.teacher_cache is None else None
        for name in filter(None, (model_args.model_name_or_path, teacher)):
            try:
                resolve_model_source(name)
            except InputError as error:
                raise InputError(f"{cell}: {error}") from error


def _check_layers(arguments: Mapping[str, Arguments]) -> None:
    """
    Layers that a model does not have are refused before any teacher is asked.

    What else may be wrong with a model is left to the runs, which load it.
    """
    from sinkd_llm.models.blueprint import blueprint
    from sinkd_llm.training.layer_selection import cut_student

    @functools.cache
    def shape_of(name: str, revision: str | None, trust_remote_code: bool) -> Any:
        try:
            return blueprint(name, revision=revision or "main", trust_remote_code=trust_remote_code)
        except InputError:
            return None

    for cell, (_, training_args, model_args) in arguments.items():
        if training_args.student_layers is None:
            continue
        name, revision = model_args.model_name_or_path, model_args.model_revision
        if name is None:  # the student is cut from its teacher
            name, revision = training_args.teacher_model_name_or_path, training_args.teacher_model_revision
        model = shape_of(str(name), revision, training_args.trust_remote_code)
        if model is None:
            continue
        try:
            cut_student(model, training_args, None, None)
        except InputError as error:
            raise InputError(f"{cell}: {error}") from error


def _rows_by_seed(arguments: Arguments) -> Callable[[int], RunData]:
    """The rows that a seed is trained on; where nothing is drawn, the same for all."""
    task_args, training_args, _ = arguments

    @functools.cache
    def rows(seed: int) -> RunData:
        return load_run_data(task_args, seed)

    drawn = draws_by_seed(arguments)
    return lambda seed: rows(training_args.data_seed if training_args.data_seed is not None else seed if drawn else 0)


def _task(arguments: Arguments) -> "Task":
    from sinkd_llm.tasks import load_task

    return load_task(str(arguments[0].task))


def _metrics(task: "Task") -> list[str]:
    ranked = task.output_type == "multiple_choice"
    names = dict.fromkeys((task.primary_metric, *task.metric_names))
    return [*names, *(["acc_norm"] if ranked and "acc_norm" not in names else [])]


def _folder(request: Request, arguments: Arguments) -> Path:
    """The folder of the comparison, if it may have it. Nothing is written."""
    if not request.output.strip():
        raise InputError("--output is empty; give the folder of the comparison.")
    folder = user_path("--output", request.output)
    check_path(f"--output {folder}", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder.")
    refuse_inputs("--output", folder, run_inputs(*arguments, argv=request.argv))
    names = [entry.name for entry in folder.iterdir() if entry.name not in LOCK_FILES] if folder.is_dir() else []
    if names and PLAN_FILE not in names:
        raise InputError(
            f"--output {folder} holds {sorted(names)[0]}, and no {PLAN_FILE} of a comparison says that it may be "
            "written over; give another folder."
        )
    refuse_if_locked(folder, "wait, or give another folder")
    return folder


def _with_baselines(
    request: Request, grid: Grid, cells: list[Cell], arguments: dict[str, Arguments], data: RunData
) -> tuple[list[Cell], dict[str, Arguments], list[str]]:
    known = [(cell, arguments[cell.name]) for cell in cells]
    gold = gold_cells([entry for entry in known if entry[0].variant == grid.baseline], data)
    controls, notes = control_cells(known)
    more = [*gold, *controls]
    return [*cells, *more], {**arguments, **{cell.name: _arguments(request, cell) for cell in more}}, notes


def _write_plan(folder: Path, request: Request, grid: Grid, cells: Sequence[Cell]) -> None:
    from sinkd_llm.files import write_whole

    content = {
        "recipe": masked(dict(request.recipe)),
        "flags": masked_command(request.flags),
        "cells": [{"name": cell.name, "kind": cell.kind, "settings": dict(cell.settings)} for cell in cells],
        "seeds": list(grid.seeds),
        "baseline": grid.baseline,
    }
    write_whole(folder / PLAN_FILE, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
