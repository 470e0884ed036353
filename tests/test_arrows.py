"""The rooms import each other one way only (CONTRIBUTING.md, "The rooms")."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sinkd_llm"
# Each room and what it may import of ours; `errors`, `_version` and `terminal` are free to all but the first two.
ALLOWED: dict[str, set[str]] = {
    "optimal_transport": set(),
    "distributed": set(),
    "objectives": {"optimal_transport", "distributed"},
    "metrics": set(),
    "checkpoints": set(),
    "tasks": {"metrics"},
    "models": set(),
    "teachers": {"models", "objectives"},
    "data": {"models"},
    "row_tokenizers": {"data", "models"},
    "collator": {"data", "models", "row_tokenizers"},
    "pair_inputs": {"collator", "data", "models", "row_tokenizers"},
    "config": {"objectives"},
    "evaluation": {"collator", "data", "distributed", "metrics", "models", "row_tokenizers", "tasks"},
    "pairing": {"config", "models", "teachers"},
    "transport": {"distributed", "models", "objectives", "pair_inputs", "teachers"},
    "term_log": {"objectives"},
    "trainer": {
        *("config", "data", "distributed", "evaluation", "models", "objectives", "pair_inputs", "pairing", "teachers"),
        *("checkpoints", "term_log", "transport"),
    },
    "task_check": {"data", "models", "row_tokenizers", "tasks"},
    "environment": {"models"},
    "planning": {"models", "objectives"},
    "callbacks": {"checkpoints", "report", "config"},
    "report": set(),
}
LEAVES = {"errors", "files", "_version", "terminal"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + ([f"sinkd_llm.{a.name}" for a in node.names] if node.module == "sinkd_llm" else [])
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("sinkd_llm.")}
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    here = room(path)
    seen = imported_rooms(path) - {here}
    assert "cli" not in seen or here in ("__main__", "cli"), "nothing imports the command line"
    if here in ALLOWED:
        free = set() if here in ("optimal_transport", "objectives") else LEAVES
        assert seen <= ALLOWED[here] | free, f"{here} imports {sorted(seen - ALLOWED[here] - free)}"
