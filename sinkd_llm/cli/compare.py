"""`sinkd compare`: a recipe with many settings and seeds, and which differences there are."""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sinkd_llm.cli.command_parser import CommandParser, meant_flag
from sinkd_llm.cli.printing import show_wrapped
from sinkd_llm.cli.recipe_file import read_config
from sinkd_llm.errors import InputError, shown

if TYPE_CHECKING:
    from sinkd_llm.runs.comparing.compare import CompareResult
    from sinkd_llm.runs.comparing.identity import Arguments

# Every run has its own.
_OWN = ("output_dir", "seed", "overwrite_output_dir", "resume_from_checkpoint", "heldout_share")
_NO_REHEARSAL = (
    "'sinkd compare' has no dry run. 'sinkd distill --config RECIPE.yaml --dry_run' with the settings of a cell "
    "rehearses its runs, and a comparison of a few steps (--max_steps 2) tries all cells."
)


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, run the grid, print the table and what it says; 1 where a run failed."""
    known, rest = _parser().parse_known_args(list(argv))
    for name in ("config", "grid"):
        if getattr(known, name) is None:
            raise InputError(f"--{name} is missing: {_MISSING[name]}")
    _check_flags(rest)
    recipe = read_config(known.config)
    if recipe.get("dry_run"):
        raise InputError(f"{known.config}: dry_run is set. {_NO_REHEARSAL}")
    from sinkd_llm.cli.flag_table import check_names

    check_names("distill", ["--config", known.config, *rest])
    from sinkd_llm.runs.comparing.compare import Request, run_compare

    request = Request(
        recipe,
        Path(known.grid).expanduser(),
        known.output,
        _parse(known.config, known.grid),
        rest,
        known.jobs,
        known.seeds,
        known.baselines,
        known.keep_models,
        argv,
    )
    result = run_compare(request)
    _show(result)
    return 1 if result.comparison.failed else 0


_MISSING = {
    "config": "the recipe of 'sinkd distill' that the cells have in common.",
    "grid": "a YAML file with the settings to compare; docs/compare.md has one.",
}


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="sinkd compare",
        usage="sinkd compare --config RECIPE.yaml --grid GRID.yaml [--flag VALUE ...]",
        description="Distil (without a teacher: fine-tune) with every combination of some settings and several seeds, "
        "choose on held-out training rows, and say which differences are more than chance. A comparison that was "
        "stopped goes on.",
        epilog="A flag of sinkd distill overrides the recipe in all runs; what each run has of its own (its seed, its "
        "folder) is refused, and so is what the grid varies.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", metavar="RECIPE.yaml", help="the recipe of 'sinkd distill' that all runs share")
    parser.add_argument("--grid", metavar="GRID.yaml", help="variants, a grid of settings, seeds, the baseline")
    parser.add_argument("--output", metavar="FOLDER", default="runs/compare", help="folder of all runs and results")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the grid's seeds (default there: 0 1 2)")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also the most frequent label, TF-IDF, gold labels only, the teacher, and the control of the transport",
    )
    parser.add_argument("--keep_models", action="store_true", help="keep the students, not only their scores")
    return parser


def _check_flags(rest: Sequence[str]) -> None:
    for word in rest:
        name = word.split("=")[0].replace("-", "_").removeprefix("__")
        if word.startswith("--") and name == "dry_run":
            raise InputError(_NO_REHEARSAL)
        if word.startswith("--") and name in _OWN:
            meant = {"seed": "--seeds", "output_dir": "--output"}.get(name, "")
            said = f"; it is {meant} here" if meant else ": every run has its own, or it stands in the grid's file"
            raise InputError(f"--{name} is no flag of 'sinkd compare'{said}.")
        # The parser of `distill` refuses other wrong names, with its own flags in mind.
        if word.startswith("--") and (meant := meant_flag(word, _parser()._option_string_actions)):
            close = meant.split("'")[1]
            if close.removeprefix("--") in ("grid", "jobs", "seeds", "baselines", "keep_models", "output"):
                raise InputError(f"unknown flag {shown(word)[1:-1]}.{meant} 'sinkd compare --help' shows the flags.")


def _parse(recipe: str, grid: str) -> "Callable[[Mapping[str, Any], Sequence[str]], Arguments]":
    """Settings and flags to the arguments of a run; a mistake is said of the file that a user knows."""

    def parse(settings: Mapping[str, Any], flags: Sequence[str]) -> "Arguments":
        from sinkd_llm.cli.parsing import parse_training

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.yaml"
            file.write_text(yaml.safe_dump(dict(settings), allow_unicode=True), encoding="utf-8")
            # TrainingArguments looks at its folder; that of a run is made by the run.
            words = ["--config", str(file), *flags, "--output_dir", str(Path(folder) / "run")]
            try:
                return parse_training("distill", words)
            except InputError as error:
                where = f"{recipe} with {grid}"
                raise InputError(str(error).replace(str(file), where)) from error

    return parse


def _show(result: "CompareResult") -> None:
    from sinkd_llm.report.comparison import CSV_FILE, JSON_FILE, PAGE_FILE, comparison_table, sentences
    from sinkd_llm.terminal import show

    show("")
    show(comparison_table(result.comparison))
    for sentence in sentences(result.comparison):
        show_wrapped(f"- {sentence}")
    show_wrapped(f"{CSV_FILE}, {JSON_FILE} and {PAGE_FILE} are in {result.folder}")
