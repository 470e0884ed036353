"""The rooms import each other one way only (CONTRIBUTING.md, "The rooms")."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sinkd_llm"
# Leaves know no room, only each other.
LEAVES: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "files": set(),
    "interrupts": set(),
    "secrets": set(),
    "environment": {"_version"},
    "integrity": {"errors", "files"},
    "library_errors": {"errors", "secrets"},
    "locks": {"errors"},
    "report": {"errors", "files"},
    "terminal": {"secrets"},
    "values": {"errors"},
    "yaml_files": {"errors", "values"},
}
# Each room and what it may import of ours, beside the leaves.
ROOMS: dict[str, set[str]] = {
    "optimal_transport": set(),
    "distributed": set(),
    "objectives": {"optimal_transport", "distributed"},
    "metrics": set(),
    "checkpoints": set(),
    "setting_rules": set(),
    "setting_checks": {"setting_rules"},
    "setting_combinations": {"models", "setting_checks", "setting_rules"},
    "tasks": {"metrics"},
    "models": set(),
    "teachers": {"models", "objectives"},
    "row_checks": set(),
    "data": {"models", "row_checks", "answer_choices"},
    "answer_choices": {"row_checks"},
    "row_tokenizers": {"data", "models", "row_checks"},
    "collator": {"data", "models", "row_checks", "row_tokenizers"},
    "pair_inputs": {"collator", "data", "models", "row_checks", "row_tokenizers"},
    "config": {"objectives", "setting_checks", "setting_combinations"},
    "evaluation": {"collator", "data", "distributed", "metrics", "models", "row_tokenizers", "tasks"},
    "pairing": {"config", "models", "teachers"},
    "transport": {"distributed", "models", "objectives", "pair_inputs", "teachers"},
    "term_log": {"objectives"},
    "training": {"checkpoints", "config", "data", "evaluation", "models", "objectives", "pair_inputs", "teachers"},
    "trainer": {
        *("checkpoints", "config", "data", "distributed", "evaluation", "models", "objectives", "pair_inputs"),
        *("pairing", "teachers", "term_log", "training", "transport"),
    },
    "task_check": {"data", "evaluation", "models", "row_tokenizers", "tasks"},
    "planning": {"models", "objectives"},
    "callbacks": {"checkpoints", "config"},
}
TOP = {
    "runs": {*ROOMS} - {"task_check"},
    "cli": {*ROOMS, "runs"},
    "__main__": {"cli"},
    "__init__": {*ROOMS} - {"planning", "task_check"},
}
# Rooms further up whose types a room names, without importing them when it runs.
NAMES_ONLY = {"answer_choices": {"data"}, "training": {"trainer"}}
# These are used without this package's words: they stand on nothing of ours.
ALONE = {"optimal_transport", "objectives", "metrics", "distributed"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str, package: list[str], *, types: bool) -> set[str]:
    """The rooms that a module of `package` imports when it runs, or, with `types`, for type checkers alone."""
    tree = ast.parse(source)
    guarded = {id(inner) for node in ast.walk(tree) if _is_type_checking(node) for inner in ast.walk(node)}
    rooms = set()
    for node in ast.walk(tree):
        if (id(node) in guarded) != types:
            continue
        names = []
        if isinstance(node, ast.ImportFrom):
            # `from . import x` and `from ..room import x` are the same arrows, written in another way.
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("sinkd_llm.")}
    return rooms


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    here = room(path)
    assert here in {*LEAVES, *ROOMS, *TOP}, f"{here} is no room of this table: give it a row"
    package = ["sinkd_llm", *path.relative_to(PACKAGE).parts[:-1]]
    source = path.read_text(encoding="utf-8")
    seen = imported_rooms(source, package, types=False) - {here}
    named = imported_rooms(source, package, types=True) - {here} - NAMES_ONLY.get(here, set())
    if here in LEAVES:
        allowed = LEAVES[here]
    elif here in ROOMS:
        allowed = ROOMS[here] | (set() if here in ALONE else {*LEAVES})
    else:
        allowed = TOP[here] | {*LEAVES}
    if here in ALONE:
        allowed |= {"errors"}
    assert seen | named <= allowed, f"{here} imports {sorted((seen | named) - allowed)}"


def test_the_table_has_no_circle() -> None:
    left = {**LEAVES, **ROOMS, **TOP}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"these rooms need each other: {sorted(left)}"
        for name in free:
            del left[name]


def test_relative_imports_are_arrows_too() -> None:
    source = "from ..trainer import SinKDTrainer\nfrom . import mixture\nfrom .. import config\nimport sinkd_llm.runs"
    package = ["sinkd_llm", "objectives"]
    assert imported_rooms(source, package, types=False) == {"trainer", "objectives", "config", "runs"}
    assert imported_rooms(source, package, types=True) == set()
    guarded = "if TYPE_CHECKING:\n    from ..trainer import SinKDTrainer\n"
    assert imported_rooms(guarded, package, types=True) == {"trainer"}
    assert imported_rooms(guarded, package, types=False) == set()
