"""The runs of a comparison: which are finished, which go on, and the teacher's answers that they share."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole
from sinkd_llm.report.predictions import EVALUATION, read_predictions
from sinkd_llm.report.results import RunRecord, is_finished
from sinkd_llm.runs.comparing.grid import Cell
from sinkd_llm.runs.comparing.identity import Arguments, answers_of, changed, made_of
from sinkd_llm.runs.comparing.processes import Command, Ended, Start, run_commands
from sinkd_llm.runs.folder import RECORDS
from sinkd_llm.terminal import say
from sinkd_llm.training.checkpoints import last_whole
from sinkd_llm.units import format_duration, format_score, format_share

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig

# What hundreds of students need not say of themselves, unless the recipe asks for it.
_NOT_COMPARED = {"score_before": False, "profile": False, "keep_probabilities": False}
# Of what has changed, so many things are named.
_NAMED = 3


@dataclass(frozen=True)
class Plan:
    """
    What all runs have in common.

    Args:
        folder (`Path`): of the comparison.
        recipe (`Mapping[str, Any]`): its settings.
        flags (`list[str]`): of the runs' command, which win over the recipe.
        metric (`str`): what is compared.
        shares_answers (`bool`): the teacher runs once, and its answers are kept.
        keep_models (`bool`): the students stay after they are scored.
    """

    folder: Path
    recipe: Mapping[str, Any]
    flags: list[str]
    metric: str
    shares_answers: bool
    keep_models: bool

    def runs_of(self, cell: Cell, arguments: Arguments, seeds: Sequence[int]) -> "list[Run]":
        """A cell with its seeds, in folders that are named by what they are made from: a change makes another one."""
        made = made_of(arguments)
        digest = hashlib.blake2b(json.dumps(made, sort_keys=True).encode(), digest_size=4).hexdigest()
        folder = self.folder / "runs" / cell.folder
        return [Run(cell, seed, folder / f"seed-{seed}-{digest}", made) for seed in seeds]

    def answers_in(self, name: str) -> Path:
        """The folder of a teacher's answers."""
        return self.folder / "teacher" / name


@dataclass(frozen=True, eq=False)
class Run:
    """
    A cell with a seed. Beside its folder lie its recipe, its log, and what it is made from.

    Attributes:
        cell ([`Cell`]), seed (`int`): what is run.
        folder (`Path`): its own.
        made (`Mapping[str, str]`): see [`~sinkd_llm.runs.comparing.identity.made_of`].
    """

    cell: Cell
    seed: int
    folder: Path
    made: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"

    def beside(self, ending: str) -> Path:
        """A file of this run outside its folder, which the run itself makes."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")

    @property
    def finished(self) -> bool:
        """Whether it has all that is compared."""
        try:
            return is_finished(self.folder) and EVALUATION in read_predictions(self.folder)
        except InputError:
            return False


def run_all(
    plan: Plan, runs: Sequence[Run], arguments: Mapping[str, Arguments], jobs: int, start: Start
) -> dict[tuple[str, int], str]:
    """
    Run what is not finished.

    Args:
        plan ([`Plan`]): of all.
        runs (`Sequence[Run]`): all of them.
        arguments (`Mapping[str, Arguments]`): of each cell, by its name.
        jobs (`int`): how many run at the same time.
        start (`Callable`): starts a process.

    Returns:
        `dict[tuple[str, int], str]`: by cell and seed, the last lines of those that failed.
    """
    left = [run for run in runs if not run.finished]
    for run in left:
        _say_changed(run)
    if len(left) < len(runs):
        say(f"{len(runs) - len(left)} of {len(runs)} runs are finished already")
    names = _answers(plan, left, arguments) if plan.shares_answers else {}
    problems = _ask_teachers(plan, names, arguments, jobs, start)
    failed = {(run.cell.name, run.seed): problems[names[run]] for run in left if names.get(run) in problems}
    left = [run for run in left if (run.cell.name, run.seed) not in failed]
    commands = [_command(plan, run, names.get(run), arguments[run.cell.name]) for run in left]
    for count, ended in enumerate(run_commands(commands, jobs, start), 1):
        run = left[ended.index]
        problem = _problem(run, ended)
        said = problem or _success(run, plan.metric)
        say(f"[{count}/{len(left)}] {run.name}: {said} ({format_duration(ended.seconds)})")
        if problem is not None:
            failed[run.cell.name, run.seed] = "\n".join(ended.said) or problem
            continue
        if not plan.keep_models:
            _remove_model(run.folder)
    return failed


def _takes_answers(args: "SinKDConfig") -> bool:
    """Whether a run can learn from answers that were kept, which have no hidden states, and has none of its own."""
    return args.has_teacher and args.teacher_cache is None and not args.objective().states.in_use


def _answers(plan: Plan, runs: Sequence[Run], arguments: Mapping[str, Arguments]) -> dict[Run, str]:
    """The names of the answers that runs learn from; labelled rows are among all rows, where these are answered."""
    of_run = {run: arguments[run.cell.name] for run in runs if _takes_answers(arguments[run.cell.name][1])}
    own = {run: answers_of(run.made, given, run.seed) for run, given in of_run.items()}
    found = dict(own)
    for run, given in of_run.items():
        if given[0].labelled_rows_only:
            whole = answers_of(run.made, given, run.seed, of_all_rows=True)
            if whole in own.values() or _holds(plan.answers_in(whole), _temperatures([given])):
                found[run] = whole
    return found


def _temperatures(of_runs: Sequence[Arguments]) -> set[float]:
    """At which some runs ask for the mass of ids that are not kept."""
    return {float(value) for _, args, _ in of_runs for value in args.objective().temperatures.values()}


def _holds(folder: Path, temperatures: set[float]) -> bool:
    """Whether a folder holds answers, all of them, for some temperatures."""
    from sinkd_llm.teachers.cache.manifest import Manifest

    if not (folder / "manifest.json").is_file():
        return False
    manifest = Manifest.load(folder)
    layout = manifest.layout
    return manifest.complete and (layout.names_all_ids or temperatures <= {*layout.temperatures})


def _say_changed(run: Run) -> None:
    """Why a run that is finished is run again: what it is made from was other then."""
    earlier = sorted(run.folder.parent.glob(f"seed-{run.seed}-*.json"), key=lambda file: file.stat().st_mtime)
    finished = [file for file in earlier if replace(run, folder=file.with_suffix("")).finished]
    if not finished:
        return
    try:
        before = json.loads(finished[-1].read_text(encoding="utf-8"))
        differs = changed(before, run.made)
    except (ValueError, AttributeError, TypeError):
        return  # it is run, whatever was before
    more = f" and {len(differs) - _NAMED} more" if len(differs) > _NAMED else ""
    if differs and not any(name in before for name in differs):  # earlier versions of this package looked at less
        why = f"{'was' if len(differs) == 1 else 'were'} not looked at then"
    else:
        why = f"{'has' if len(differs) == 1 else 'have'} changed"
    say(f"{run.name} is run again: {', '.join(differs[:_NAMED])}{more} {why}")


def _command(plan: Plan, run: Run, answers: str | None, arguments: Arguments) -> Command:
    """How a run is started: from its last checkpoint, if it has one."""
    goes_on = last_whole(run.folder) is not None
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(run.beside("json"), json.dumps(run.made, indent=1) + "\n")
    settings = {**_NOT_COMPARED, **plan.recipe, **run.cell.settings, "seed": run.seed}
    if answers is not None:
        settings["teacher_cache"] = str(plan.answers_in(answers))
    how = ["--resume_from_checkpoint", "true"] if goes_on else ["--overwrite_output_dir", "true"]
    command = "distill" if arguments[1].has_teacher else "finetune"
    words = [command, "--config", str(_written(run.beside("yaml"), settings)), *run.cell.flags(plan.flags)]
    return Command([*words, "--output_dir", str(run.folder), *how], run.beside("log"))


def _written(path: Path, settings: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    return path


def _ask_teachers(
    plan: Plan, names: Mapping[Run, str], arguments: Mapping[str, Arguments], jobs: int, start: Start
) -> dict[str, str]:
    """Let each teacher answer once what its runs need; by the name of the answers, why there are none."""
    from sinkd_llm.teachers.cache.manifest import Manifest

    users_of = {name: [run for run in names if names[run] == name] for name in dict.fromkeys(names.values())}
    asked_at = {name: _temperatures([arguments[run.cell.name] for run in users]) for name, users in users_of.items()}
    needed = [name for name in users_of if not _holds(plan.answers_in(name), asked_at[name])]
    if not needed:
        return {}
    what = f" in {len(needed)} ways, as the cells ask" if len(needed) > 1 else ""
    say(f"The teacher answers once for all runs{what} …")
    commands = []
    for name in needed:
        temperatures = {
            float(value)
            for run in users_of[name]
            for setting, value in vars(arguments[run.cell.name][1]).items()
            if setting.endswith("temperature") and not setting.startswith("queue_") and isinstance(value, int | float)
        }
        asks = min(users_of[name], key=lambda run: arguments[run.cell.name][0].labelled_rows_only)
        settings = {**plan.recipe, **asks.cell.settings, "seed": asks.seed}
        recipe, folder = _written(plan.answers_in(f"{name}.yaml"), settings), plan.answers_in(name)
        words = ["cache", "--config", str(recipe), *asks.cell.flags(plan.flags), "--output", str(folder)]
        kept = Manifest.load(folder).layout if (folder / "manifest.json").is_file() else None
        if kept is not None and not kept.names_all_ids and not asked_at[name] <= {*kept.temperatures}:
            temperatures |= {*kept.temperatures}
            words += ["--overwrite", "true"]
        words += ["--temperatures", *map(str, sorted(temperatures))]
        commands.append(Command(words, plan.answers_in(f"{name}.log")))
    problems = {}
    for ended in run_commands(commands, jobs, start):
        if ended.code != 0:
            said = "\n".join(ended.said) or f"exit code {ended.code}"
            problems[needed[ended.index]] = f"the teacher's answers could not be kept:\n{said}"
            users = users_of[needed[ended.index]]
            cells = ", ".join(dict.fromkeys(run.cell.name for run in users))
            say(
                f"The teacher's answers could not be kept, and {len(users)} runs need them, of {cells}: "
                f"{ended.said[-1] if ended.said else ended.code}"
            )
    return problems


def notes_on_answers(folder: Path) -> list[str]:
    """What is to be said of the teacher's answers that the runs of a comparison share, where a part was not kept."""
    from sinkd_llm.teachers.cache.manifest import Manifest

    for file in sorted((folder / "teacher").glob("*/manifest.json")):
        manifest = Manifest.load(file.parent)
        layout = manifest.layout
        if layout.content == "topk" and not layout.names_all_ids:
            tail = max(manifest.mean_tail(temperature) for temperature in layout.temperatures)
            return [
                f"Of the teacher's rows the {layout.k} largest logits are kept, and up to {format_share(tail)} of the "
                "mass is in the others; with 'teacher_cache: none' in the grid the teacher runs in every run."
            ]
    return []


def _problem(run: Run, ended: Ended) -> str | None:
    """Why a run has no result, on one line."""
    if ended.code == 0 and run.finished:
        return None
    last = ended.said[-1] if ended.said else "it said nothing"
    how = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
    return f"failed ({how}): {last}"


def _success(run: Run, metric: str) -> str:
    score = RunRecord.read(run.folder).rows[-1].metrics.get(metric)
    return "done" if score is None else f"{metric} {format_score(score)}"


def _remove_model(folder: Path) -> None:
    """What is compared stays; the student and its checkpoints go."""
    for entry in folder.iterdir():
        if entry.name in RECORDS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
