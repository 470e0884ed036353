"""`compare`: a grid of settings with several seeds, each run by itself, scored on the same rows, and compared."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.environment import versions
from sinkd_llm.errors import InputError, plain
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.locks import LOCK_FILES, folder_lock, refuse_if_locked
from sinkd_llm.report.comparison import Comparison, write_comparison
from sinkd_llm.runs.asking import check_asked
from sinkd_llm.runs.balancing import balance_asked
from sinkd_llm.runs.comparing.baselines import control_cells, gold_cells
from sinkd_llm.runs.comparing.grid import DEFAULT_HELDOUT_SHARE, Cell, Grid, by_setting, read_grid
from sinkd_llm.runs.comparing.identity import Arguments
from sinkd_llm.runs.comparing.processes import Start, start_process
from sinkd_llm.runs.comparing.results import compared, curves_of, entry_of
from sinkd_llm.runs.comparing.rows import CellRows, check_same_rows
from sinkd_llm.runs.comparing.runs import Plan, notes_on_answers, run_all
from sinkd_llm.runs.comparing.scores import check_metric
from sinkd_llm.runs.folder import no_empty_folder
from sinkd_llm.runs.inputs import check_path, refuse_inputs, run_inputs, user_path
from sinkd_llm.runs.training import check_distill, check_finetune
from sinkd_llm.secrets import masked, masked_command, recordable_command
from sinkd_llm.terminal import say
from sinkd_llm.training.settings.rules import NEEDS_TEACHER

if TYPE_CHECKING:
    from sinkd_llm.tasks import Task

# Says that a folder is a comparison's.
PLAN_FILE = "compare.json"
# Schedules that go by what an evaluation gives.
_BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True)
class Request:
    """
    What is asked of `sinkd compare`.

    Args:
        recipe (`Mapping[str, Any]`): the settings of the recipe.
        grid (`Path`): the file of the grid.
        output (`str`): the folder of the comparison.
        parse (`Callable`): makes the arguments of a run of its settings and flags, and refuses what is wrong with
            them.
        flags (`list[str]`, *optional*): of `sinkd distill`; they win over the recipe.
        jobs (`int`, *optional*, defaults to 1): runs at the same time.
        seeds (`list[int]`, *optional*): in place of the grid's.
        baselines (`bool`, *optional*, defaults to `False`): whether the baselines are run, too.
        keep_models (`bool`, *optional*, defaults to `False`): whether the students stay after they are scored.
        argv (`Sequence[str]`, *optional*): the words this came from, for the record.
    """

    recipe: Mapping[str, Any]
    grid: Path
    output: str
    parse: Callable[[Mapping[str, Any], Sequence[str]], Arguments]
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
    baseline = next(cell for cell in cells if cell.variant == grid.baseline)
    metric = check_metric(grid.metric, _metrics(_task(arguments[baseline.name])), request.grid)
    folder = _folder(request, arguments[baseline.name])
    rows = CellRows(arguments)
    data = rows.of(baseline.name, grid.seeds[0])
    check_same_rows(cells, baseline, rows, grid.seeds[0])
    _check_metric(arguments, metric, request.grid)
    _check_balance(arguments, rows, grid.seeds[0])
    _check_models(arguments)
    _check_layers(arguments)
    notes: list[str] = []
    if request.baselines:
        cells, arguments, notes = _with_baselines(request, grid, cells, arguments, rows)
    plan = Plan(folder, request.recipe, list(request.flags), metric, grid.teacher_cache == "auto", request.keep_models)
    with no_empty_folder(folder), folder_lock(folder, "wait for it, or give another --output"):
        _write_plan(folder, request, grid, cells)
        runs = [run for cell in cells for run in plan.runs_of(cell, arguments[cell.name], grid.seeds)]
        for run in runs:
            refuse_if_locked(run.folder, "wait for it, or end it")
        problems = run_all(plan, runs, arguments, request.jobs, start)
        entries = [entry_of(run, problems.get((run.cell.name, run.seed))) for run in runs]
        found = compared(grid, metric, entries, data, rows.of if request.baselines else None)
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
    _refuse_flags(request, grid)
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


def _refuse_flags(request: Request, grid: Grid) -> None:
    """A flag wins in all runs, and cells that differ in its setting would be one."""
    varied = dict.fromkeys(name for cell in grid.cells for name in cell.settings)
    for name, words in by_setting(request.flags):
        if name in varied:
            raise InputError(
                f"{words[0].split('=')[0]} is given for all runs, and {request.grid} sets {name} for its cells; leave "
                "one of both out."
            )


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
    arguments = request.parse(settings, cell.flags(request.flags))
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
    scheduler = str(plain(training_args.lr_scheduler_type))
    if scheduler in _BY_EVALUATION:
        raise InputError(
            f"lr_scheduler_type is {scheduler}, which sets the learning rate by the rows on which cells are compared; "
            "give a schedule that goes by steps alone (linear, cosine, constant_with_warmup)."
        )
    return arguments


def _check_balance(arguments: Mapping[str, Arguments], rows: CellRows, seed: int) -> None:
    """A prior that does not fit the rows or the teacher is refused before any teacher is asked."""
    for cell, (task_args, training_args, _) in arguments.items():
        if task_args.balance is None or not training_args.has_teacher:
            continue
        if training_args.teacher_cache is None and training_args.teacher_model_name_or_path is not None:
            raise InputError(
                f"{cell}: balance is {task_args.balance}, which is over the answers to all rows, and a teacher that "
                "is a model here still has to give them. Write its cache ('sinkd cache'), balance that ('sinkd cache "
                f"--merge CACHE --balance {task_args.balance} --output FOLDER'), and compare variants with the "
                "teacher_cache of each."
            )
        data = replace(rows.of(cell, seed), asked={})
        try:
            if training_args.teacher_cache is not None:
                check_asked(data, training_args.teacher_cache)
            else:
                balance_asked(data)
        except InputError as error:
            raise InputError(f"{cell}: {error}") from error


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


def _task(arguments: Arguments) -> "Task":
    from sinkd_llm.tasks import load_task

    return load_task(str(arguments[0].task))


def _check_metric(arguments: Mapping[str, Arguments], metric: str, grid: Path) -> None:
    """A task of a cell that does not have the metric is said before anything runs."""
    for name, own in {str(own[0].task): (name, own) for name, own in arguments.items()}.values():
        try:
            check_metric(metric, _metrics(_task(own)), grid)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


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
    request: Request, grid: Grid, cells: list[Cell], arguments: dict[str, Arguments], rows: CellRows
) -> tuple[list[Cell], dict[str, Arguments], list[str]]:
    known = [(cell, arguments[cell.name]) for cell in cells]
    gold = gold_cells([entry for entry in known if entry[0].variant == grid.baseline], rows.of, grid.seeds[0])
    controls, notes = control_cells(known)
    made: dict[str, Arguments] = {}
    for cell in (*gold, *controls):
        try:
            made[cell.name] = _arguments(request, cell)
        except InputError as error:
            raise InputError(f"{cell.name}, which --baselines adds, cannot be run: {error}") from error
    return [*cells, *gold, *controls], {**arguments, **made}, notes


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
