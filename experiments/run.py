"""
Runs what docs/results.md is made of, one experiment with all that it needs, and keeps what it gives:

    python experiments/run.py banking77-groups-32 --data_dir data --jobs 2

`experiments/experiments.yaml` has the commands. What a command made lies in `--work` (default: `runs/experiments`),
and is not made again; a comparison that was stopped goes on. What was found is written to `experiments/results`, from
which `python -m tools.results_page` makes the page.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from sinkd_llm.environment import processor
from sinkd_llm.errors import nearest
from sinkd_llm.report.predictions import PREDICTIONS_FILE
from sinkd_llm.report.results import METRICS_FILE, read_records

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
MODELS, IN_USE = RESULTS / "models.json", RESULTS / "in_use.json"
# What is kept of the course of training, the mean over seeds of every logged step.
CURVES = ("loss", "sinkhorn/diagonal_mass", "transported/diagonal_mass")
# Of the comparison's record: what a table says of a row, and what is said of its difference to the baseline.
OF_ROW = ("name", "kind", "cell", "mean", "sd", "held_out", "seconds", "memory_bytes")
OF_DIFFERENCE = ("estimate", "low", "high", "p", "p_holm", "p_seeds", "seeds", "examples")


def steps() -> dict[str, dict[str, Any]]:
    """The commands, by name, see the head of experiments.yaml."""
    content = yaml.safe_load((HERE / "experiments.yaml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for name, step in content["steps"].items():
        values = step.get("for", {})
        for chosen in product(*values.values()):
            words = dict(zip(values, map(str, chosen), strict=True))
            after = [_filled(other, words) for other in step.get("after", [])]
            found[_filled(name, words)] = {"command": _filled(step["command"], words), "after": after}
    return found


def _filled(text: str, words: Mapping[str, str]) -> str:
    """A text with the values of a step; `{work}` and `{data}` are left for the user's folders."""
    for name, value in words.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def in_order(name: str, known: dict[str, dict[str, Any]]) -> list[str]:
    """A step after all that it needs."""
    needed = [other for before in known[name]["after"] for other in in_order(before, known)]
    return list(dict.fromkeys([*needed, name]))


def command_of(name: str, known: dict[str, dict[str, Any]], work: str, data_dir: str) -> str:
    """The command of a step, on one line."""
    return " ".join(known[name]["command"].split()).format(work=shlex.quote(work), data=shlex.quote(data_dir))


def is_comparison(step: dict[str, Any]) -> bool:
    """Whether a step gives a result."""
    return "sinkd compare" in " ".join(step["command"].split())


def run(command: str) -> None:
    """Run a command with this Python; ends the program where it fails."""
    words = shlex.split(command)
    start = {"sinkd": [sys.executable, "-m", "sinkd_llm"], "python": [sys.executable]}[words[0]]
    print("$", command, flush=True)
    code = subprocess.run([*start, *words[1:]], check=False, cwd=ROOT).returncode
    if code:
        raise SystemExit(code)


def keep(name: str, folder: Path, command: str, models: Mapping[str, float]) -> None:
    """What a comparison found, without folders and logs, into `results/<name>`, with the `scores` of its models."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    into = RESULTS / name
    into.mkdir(parents=True, exist_ok=True)
    (into / "runs.csv").write_text((folder / "results.csv").read_text(encoding="utf-8"), encoding="utf-8")
    with (into / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*OF_ROW, *OF_DIFFERENCE])
        for row in found["rows"]:
            writer.writerow([*_cells(row, OF_ROW), *_cells(row["against"] or {}, OF_DIFFERENCE)])
    with (into / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cell", "step", *CURVES])
        writer.writerows(_curves(found["runs"], folder))
    about = {
        "command": command,
        "machine": processor(),
        "models": dict(models),
        **{key: found[key] for key in ("task", "metric", "baseline", "seeds", "examples", "held_out_examples")},
        **{key: found[key] for key in ("finished", "versions", "sentences")},
    }
    (into / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _curves(runs: list[dict[str, Any]], folder: Path) -> Iterator[list[Any]]:
    """For each cell and step the means over its seeds of what was logged in all of them; what nobody logs is empty."""
    for cell in dict.fromkeys(entry["cell"] for entry in runs):
        own = [
            folder / Path(entry["folder"]).relative_to(Path(entry["folder"]).parents[2])
            for entry in runs
            if entry["cell"] == cell
        ]
        logged = [{r["step"]: r for r in read_records(one / METRICS_FILE) if "loss" in r} for one in own]
        for step in sorted(set.intersection(*map(set, logged))):
            values = [[run[step].get(name) for run in logged] for name in CURVES]
            means = ["" if None in seen else float(f"{sum(seen) / len(seen):.5g}") for seen in values]
            if any(mean != "" for mean in means):
                yield [cell, step, *means]


def keep_model(name: str, folder: Path, command: str) -> None:
    """What a fine-tuned model scores, into `results/models.json`."""
    _add(MODELS, name, {"command": command, **{rows: said["metrics"] for rows, said in _predicted(folder).items()}})


def scores(names: Iterable[str], work: Path) -> dict[str, float]:
    """
    What the fine-tuned models among some steps score by the first metric of their task, as they lie in `work`: trained
    again on another machine, they differ in the third place.
    """
    found = {name: _predicted(work / name) for name in names if (work / name / PREDICTIONS_FILE).is_file()}
    return {name: next(iter(said["evaluation"]["metrics"].values())) for name, said in found.items()}


def _predicted(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    return content


def keep_in_use(name: str, folder: Path, command: str, models: Mapping[str, float]) -> None:
    """What a student is worth that was calibrated, routed and exported, into `results/in_use.json`."""
    found = json.loads((folder / "in_use.json").read_text(encoding="utf-8"))
    _add(IN_USE, name, {"command": command, "machine": processor(), "models": dict(models), **found})


def _add(file: Path, name: str, content: dict[str, Any]) -> None:
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[name] = content
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")


def _cells(values: dict[str, Any], names: tuple[str, ...]) -> Iterator[Any]:
    for name in names:
        value = values.get(name)
        yield "" if value is None else float(f"{value:.6g}") if isinstance(value, float) else value


def main() -> None:
    known = steps()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="name", help=", ".join(known))
    parser.add_argument("--data_dir", default="data", help="folder with the data in its original formats")
    parser.add_argument("--work", default="runs/experiments", help="where teachers, rows and runs lie")
    parser.add_argument("--jobs", type=int, default=1, help="students that are trained at the same time")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in known:
            parser.error(f"there is no step {name!r}.{nearest(name, known)} All: {', '.join(known)}.")
    if not Path(arguments.data_dir).is_dir():
        parser.error(f"--data_dir {arguments.data_dir} is no folder; give the one with the data sets")
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}; give 1 or more")
    # The recipes are named from the top of the repository, where the commands run.
    arguments.data_dir, arguments.work = (str(Path(path).resolve()) for path in (arguments.data_dir, arguments.work))
    for name in arguments.names:
        for step in in_order(name, known):
            command = command_of(step, known, arguments.work, arguments.data_dir)
            as_written, folder = command_of(step, known, "runs/experiments", "data"), Path(arguments.work) / step
            done = folder.with_name(f"{step}.done")
            if is_comparison(known[step]):
                run(f"{command} --jobs {arguments.jobs}")
                keep(step, folder, as_written, scores(in_order(step, known), Path(arguments.work)))
            elif not done.exists():
                run(command)
                done.touch()
            if command.startswith("sinkd finetune"):
                keep_model(step, folder, as_written)
            if command.startswith("python experiments/in_use.py"):
                keep_in_use(step, folder, as_written, scores(in_order(step, known), Path(arguments.work)))


if __name__ == "__main__":
    main()
