"""Comparisons whose runs are stand-ins that write what runs write."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from trl import ModelConfig

from sinkd_llm.report.comparison import Comparison
from sinkd_llm.report.predictions import EVALUATION, HELD_OUT, TEACHER, Predictions, write_predictions
from sinkd_llm.report.results import AFTER, ResultRow, RunRecord
from sinkd_llm.runs import TaskArguments
from sinkd_llm.runs.comparing.compare import Request, run_compare
from sinkd_llm.runs.comparing.processes import Command
from sinkd_llm.runs.data import RunData, load_run_data
from sinkd_llm.training.config import SinKDConfig
from tests.support.launch import Ended
from tests.support.task_files import write_task

ROWS = [{"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": i % 2} for i in range(120)]
# How good a student is, by what it learns from: on held-out rows, and on the rows for evaluation.
SKILL = {
    "kl": (0.70, 0.70),
    "strong": (0.95, 0.95),
    "lucky": (0.60, 0.97),
    "gold": (0.60, 0.60),
}


@functools.cache
def rows_of(task: str, share: float) -> RunData:
    """The stand-ins answer the same rows, also where a file has changed since."""
    return load_run_data(TaskArguments(task=task, heldout_share=share), 0)


class Runs:
    """Stands in for the processes of a comparison, and remembers them."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.commands: list[list[str]] = []
        self.fails: dict[str, str] = {}  # a part of the recipe's text -> what is printed
        self.stops_after: int | None = None

    def __call__(self, command: Command, environment: dict[str, str]) -> Ended:
        argv = command.argv
        self.commands.append(argv)
        recipe = Path(argv[argv.index("--config") + 1])
        settings = yaml.safe_load(recipe.read_text())
        if argv[0] == "cache":
            self.started.append(["cache"])
            return Ended(0)
        if self.stops_after is not None and len(self.trained) >= self.stops_after:
            raise KeyboardInterrupt
        self.started.append([argv[0], recipe.read_text()])
        for part, said in self.fails.items():
            if part in recipe.read_text():
                command.log.write_text(said)
                return Ended(2)
        self.write(Path(argv[argv.index("--output_dir") + 1]), settings)
        return Ended(0)

    @property
    def trained(self) -> list[str]:
        return [entry[1] for entry in self.started if entry[0] != "cache"]

    def write(self, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("weights")
        rate = settings.get("learning_rate", 1e-4)
        name = "gold" if settings.get("alpha") == 0 else {1e-4: "kl", 1e-3: "strong", 1e-2: "lucky"}[float(rate)]
        data = rows_of(settings["task"], settings["heldout_share"])
        answers = {}
        for rows, place, skill in ((data.held_out, HELD_OUT, 0), (data.evaluation, EVALUATION, 1)):
            if rows is not None:
                answers[place] = self.answers(rows, SKILL[name][skill], settings["seed"])
        answers[TEACHER] = self.answers(data.evaluation, 0.9, 0)
        write_predictions(folder, answers)
        training = {"steps": 3, "resumed_at": 0, "seconds": 2.5, "loss": 1.0, "loss_from_step": 0}
        row = ResultRow(AFTER, answers[EVALUATION].metrics)
        RunRecord(*("distill", "", "mine", settings["seed"], "", "cpu", 10**8, "", training, [row], {}, {}, {})).write(
            folder
        )
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')

    def answers(self, rows: Any, skill: float, seed: int) -> Predictions:
        labels = np.array(rows["label"])
        # The same rows are easy for all.
        right = np.random.default_rng(99).permutation(len(labels)) < round(skill * len(labels)) + seed % 2
        said = np.where(right, labels, 1 - labels)
        return Predictions(rows["id"][:], labels.tolist(), said.tolist(), {"acc": float((said == labels).mean())})


def parsed(settings: Any, flags: Any = ()) -> Any:
    """As the command line does, without making its parsers."""
    kinds = (TaskArguments, SinKDConfig, ModelConfig)
    names = [{one.name for one in dataclasses.fields(kind)} for kind in kinds]
    folder: dict[str, Any] = {"output_dir": "runs/never-made"}
    given = [{name: value for name, value in settings.items() if name in own} for own in names]
    return kinds[0](**given[0]), kinds[1](**folder, **given[1]), kinds[2](**given[2])


def recipe_of(folder: Path, teacher: Path) -> dict[str, Any]:
    """A recipe with a task of its own."""
    task = write_task(folder / "task" / "mine.yaml", ROWS)
    return {
        **{"teacher_model_name_or_path": str(teacher), "student_layers": 2, "task": str(task), "use_cpu": True},
        **{"report_to": "none", "max_length": 64, "max_steps": 3, "save_strategy": "no", "sinkhorn_weight": 0.0},
    }


def comparer(folder: Path, recipe: dict[str, Any]) -> Callable[..., Comparison]:
    """Compares the variants of a grid by stand-ins, from a recipe with changes."""

    def run(grid: dict[str, Any], start: Runs, changes: dict[str, Any] | None = None, **more: Any) -> Comparison:
        (folder / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
        parse = more.pop("parse", parsed)
        given = {**recipe, **(changes or {})}
        return run_compare(Request(given, folder / "grid.yaml", str(folder / "out"), parse, **more), start).comparison

    return run
