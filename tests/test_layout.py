"""Tests lie where the package has what they test, share what tests/support/ has, and are marked by their folder."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.launch import MARKED_FILES, MARKED_FOLDERS, REPOSITORY

TESTS = REPOSITORY / "tests"
FILES = sorted(TESTS.rglob("*.py"))
# What no folder of the package answers for: helpers, recorded numbers, and what holds for every input.
APART = {"support", "golden", "properties"}


def imported(file: Path) -> set[str]:
    """The modules that a file imports, wherever in it, and the names that it takes from packages."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_no_test_imports_another(file: Path) -> None:
    for name in imported(file):
        parts = name.split(".")
        if parts[0] != "tests":
            continue
        assert not any(part.startswith("test_") or part == "conftest" for part in parts), f"{name}: tests/support/"
        if file.is_relative_to(TESTS / "support"):
            assert parts[1:2] in ([], ["support"]), f"{name}: a helper needs no test"


def test_folders_are_those_of_the_package() -> None:
    package = {folder.name for folder in (REPOSITORY / "sinkd_llm").iterdir() if folder.is_dir()}
    folders = {folder.name for folder in TESTS.iterdir() if folder.is_dir() and folder.name != "__pycache__"}
    assert folders - package == {*APART, *MARKED_FOLDERS}


def test_files_of_the_top_folder_are_of_modules_of_the_top_folder_or_of_the_whole_repository() -> None:
    whole = {"arrows", "benchmark_tables", "layout", "private_names", "results_page"}
    names = {file.stem.removeprefix("test_") for file in TESTS.glob("test_*.py")}
    assert names - whole <= {file.stem for file in (REPOSITORY / "sinkd_llm").glob("*.py")}


def test_what_the_pages_name_of_a_file_is_in_it() -> None:
    sources: dict[str, str] = {}
    for path in (REPOSITORY / "sinkd_llm").rglob("*.py"):
        sources[path.name] = sources.get(path.name, "") + path.read_text(encoding="utf-8")
    named = [
        (page.name, file, name)
        for page in (REPOSITORY / "docs").glob("*.md")
        if page.name != "log.md"
        for file, names in re.findall(r"(\w+\.py)`, ((?:`[\w.]+`(?:, )?)+)", page.read_text(encoding="utf-8"))
        for name in re.findall(r"`([\w.]+)`", names)
        if file in sources and not name.endswith(".py")
    ]
    assert len(named) > 10
    missing = [one for one in named if one[2].split(".")[-1] not in sources[one[1]]]
    assert not missing


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    gives = packages_distributions()
    for file in (REPOSITORY / "sinkd_llm").rglob("*.py"):
        tops = {name.partition(".")[0] for name in imported(file)} - {"sinkd_llm", *sys.stdlib_module_names}
        for top in tops:
            packages = {canonicalize_name(name) for name in gives.get(top, [top])}
            assert packages & declared, f"{file.name} imports {top}: pyproject.toml has none of {packages}"


def test_every_test_is_in_one_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    long = re.search(r"^LONG := (.*)$", makefile, re.M)
    assert long is not None
    marks = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert {*long[1].split(" or "), "served"} == {mark.split(":")[0] for mark in marks} == {*MARKED_FOLDERS}
    selections = re.findall(r'pytest .*-m ("[^"]*"|\S+)', makefile)
    assert selections == ['"not ($(LONG) or served)"', '"$(LONG)"', "served"]
    continuous = (REPOSITORY / ".ci" / "run").read_text()
    assert re.findall(r"^make (\S+)$", continuous, re.M) == ["test", "test-long"]


def test_marked_files_are_there_and_not_in_marked_folders() -> None:
    assert all((TESTS / file).is_file() and file.split("/")[0] not in MARKED_FOLDERS for file in MARKED_FILES)
    assert set(MARKED_FILES.values()) <= set(MARKED_FOLDERS)
