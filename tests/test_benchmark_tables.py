"""The tables of the benchmarks, README's too, say what the committed results say."""

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
README = BENCHMARKS.parent / "README.md"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables")


def test_readme_shows_the_results(tables: Any) -> None:
    readme = README.read_text(encoding="utf-8")
    assert readme == tables.with_section(readme), "run python benchmarks/tables.py"


def test_every_table_is_made_of_its_results(tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import charts
    import common

    for name in (*tables.NAMES, *tables.ON_GPU):
        if not (BENCHMARKS / "results" / f"{name}.csv").exists():
            continue
        results = common.Results(name)
        with monkeypatch.context() as patch:
            patch.setattr(common, "RESULTS", tmp_path)
            patch.setattr(charts, "RESULTS", tmp_path)
            importlib.import_module(f"bench_{name.removesuffix(common.GPU)}").report(results)
        for file in (f"{name}.md", f"{name}.svg"):
            assert (BENCHMARKS / "results" / file).exists(), "run python benchmarks/tables.py"
        made = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        committed = (BENCHMARKS / "results" / f"{name}.md").read_text(encoding="utf-8")
        assert made == committed, "run python benchmarks/tables.py"


def test_every_row_names_a_machine_and_how_often_it_was_measured() -> None:
    machines = json.loads((BENCHMARKS / "results" / "hardware.json").read_text(encoding="utf-8"))
    found = 0
    for path in (BENCHMARKS / "results").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found += 1
                assert row["hardware"] in machines, f"{path.name}: {row}"
                assert row["memory_mb"] or int(row["repeats"]) > 0, f"{path.name}: {row}"
    assert found
