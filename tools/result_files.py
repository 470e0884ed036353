"""What lies in `experiments/results`: a folder for each comparison that was run, see experiments/README.md."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
Row = dict[str, str]
_AGAIN = "restore it with git, or run its step again (experiments/README.md)."


@dataclass(frozen=True)
class Result:
    """
    What one comparison found.

    Attributes:
        name (`str`): of its folder.
        rows (`dict[str, Row]`): of its table, by name.
        about (`dict`): how it was made, and what it says in words.
    """

    name: str
    rows: Mapping[str, Row]
    about: Mapping[str, Any]

    @classmethod
    def read(cls, name: str) -> "Result":
        """
        Raises:
            SystemExit: for a result whose files are not whole.
        """
        rows = {row["name"]: row for row in _lines(name, "table.csv")}
        try:
            about = json.loads((RESULTS / name / "about.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SystemExit(f"experiments/results/{name}/about.json cannot be read ({error}); {_AGAIN}") from error
        if about["baseline"] not in rows:
            raise SystemExit(f"experiments/results/{name}/table.csv has no row {about['baseline']!r}; {_AGAIN}")
        return cls(name, rows, about)

    @property
    def baseline(self) -> str:
        return str(self.about["baseline"])

    def runs(self) -> list[Row]:
        """All runs, also those of settings that were not chosen."""
        return _lines(self.name, "runs.csv")

    def curves(self) -> list[Row]:
        """What was logged while training, means over the seeds."""
        return _lines(self.name, "curves.csv")


def found_of(wanted: Mapping[str, str]) -> dict[str, Result]:
    """Those results that are there, from titles to names of folders."""
    return {title: Result.read(name) for title, name in wanted.items() if (RESULTS / name).is_dir()}


def _lines(name: str, file: str) -> list[Row]:
    try:
        with (RESULTS / name / file).open(encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened))
    except OSError as error:
        raise SystemExit(f"experiments/results/{name}/{file} cannot be read ({error}); {_AGAIN}") from error
