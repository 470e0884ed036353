"""The rooms import each other one way only (CONTRIBUTING.md, "The rooms")."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sinkd_llm"
# Leaves know no room, only each other.
LEAVES: dict[str, set[str]] = {
    "_version": set(),
    "errors": {"secrets"},
    "files": {"errors"},
    "interrupts": set(),
    "secrets": set(),
    "environment": {"_version"},
    "quiet": {"environment", "terminal"},
    "units": {"errors"},
    "integrity": {"errors", "files"},
    "library_errors": {"errors", "secrets"},
    "locks": {"errors"},
    "terminal": {"secrets"},
    "values": {"errors"},
    "ranges": {"errors"},
    "text_lines": {"errors"},
    "row_streams": {"errors", "text_lines", "values"},
    "row_files": {"errors", "row_streams", "text_lines"},
    "row_splits": {"errors"},
    "yaml_files": {"errors", "values"},
    "distributed": {"errors"},
}
# Each room and what it may import of ours, beside the leaves.
ROOMS: dict[str, set[str]] = {
    "kernels": set(),
    "optimal_transport": {"kernels"},
    "objectives": {"optimal_transport"},
    "metrics": set(),
    "report": {"metrics"},
    "tasks": {"metrics"},
    "models": set(),
    "inputs": {"models"},
    "teachers": {"models", "objectives"},
    "evaluation": {"inputs", "metrics", "models", "teachers"},
    "answering": {"evaluation", "inputs", "metrics", "models", "tasks"},
    "exporting": {"answering", "inputs", "models", "report", "tasks"},
    "serving": {"answering", "models", "tasks"},
    "training": {"evaluation", "inputs", "models", "objectives", "optimal_transport", "report", "teachers"},
    "memory": {"inputs", "models", "objectives", "teachers", "training"},
}
TOP = {
    "runs": {*ROOMS},
    "cli": {*ROOMS, "runs"},
    "__main__": {"cli"},
    "__init__": {*ROOMS} - {"memory"},
}
# Rooms further up whose types a room names, without importing them when it runs.
NAMES_ONLY = {"evaluation": {"tasks"}}
# These are used without this package's words: they stand on few leaves.
ALONE = {
    "kernels": set(),
    "optimal_transport": {"errors", "ranges"},
    "objectives": {"errors", "distributed", "ranges"},
    "metrics": {"errors"},
    "report": {"errors", "files", "integrity", "secrets", "terminal", "units"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(source: str, package: list[str], *, types: bool) -> set[str]:
    """What a module of `package` imports of ours when it runs, or, with `types`, for type checkers alone."""
    tree = ast.parse(source)
    guarded = {id(inner) for node in ast.walk(tree) if _is_type_checking(node) for inner in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if (id(node) in guarded) != types:
            continue
        if isinstance(node, ast.ImportFrom):
            # `from . import x` and `from ..room import x` are the same arrows, written in another way.
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("sinkd_llm.")}


def imported_rooms(source: str, package: list[str], *, types: bool) -> set[str]:
    """The rooms of [`imported_names`]."""
    return {name.split(".")[1] for name in imported_names(source, package, types=types)}


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
        allowed = ROOMS[here] | ALONE.get(here, {*LEAVES})
    else:
        allowed = TOP[here] | {*LEAVES}
    assert seen | named <= allowed, f"{here} imports {sorted((seen | named) - allowed)}"


def test_the_table_has_no_circle() -> None:
    left = {**LEAVES, **ROOMS, **TOP}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"these rooms need each other: {sorted(left)}"
        for name in free:
            del left[name]


def test_relative_imports_are_arrows_too() -> None:
    source = "from ..training import SinKDTrainer\nfrom . import mixture\nfrom .. import inputs\nimport sinkd_llm.runs"
    package = ["sinkd_llm", "objectives"]
    assert imported_rooms(source, package, types=False) == {"training", "objectives", "inputs", "runs"}
    assert imported_rooms(source, package, types=True) == set()
    guarded = "if TYPE_CHECKING:\n    from ..training import SinKDTrainer\n"
    assert imported_rooms(guarded, package, types=True) == {"training"}
    assert imported_rooms(guarded, package, types=False) == set()


def circle(sources: dict[str, str]) -> list[str] | None:
    """
    Modules that import each other in a circle, wherever in them the imports stand.

    Args:
        sources (`dict[str, str]`): the text of each module, by its dotted name; a package's ends in `.__init__`.
    """
    modules = {name.removesuffix(".__init__") for name in sources}
    needs: dict[str, set[str]] = {}
    for file, source in sources.items():
        name, package = file.removesuffix(".__init__"), file.split(".")[:-1]
        names = imported_names(source, package, types=False)
        if file.endswith(".__init__"):  # what is imported on first use stands there as text
            texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
            names |= {text for text in texts | {f"{name}.{text}" for text in texts} if text in modules}
        # `from a.b import c` is the module a.b.c, or the name c in the module a.b.
        found = {text if text in modules else text.rpartition(".")[0] for text in names}
        needs[name] = (found & modules) - {name}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_no_modules_import_each_other_inside_a_room_either() -> None:
    sources = {
        ".".join(("sinkd_llm", *path.relative_to(PACKAGE).with_suffix("").parts)): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
    }
    assert circle(sources) is None


def test_circles_are_found() -> None:
    sources = {
        "sinkd_llm.cli.__init__": "COMMANDS = {'a': 'what a does'}",
        "sinkd_llm.cli.a": "def main():\n    from sinkd_llm.cli import b\n",
        "sinkd_llm.cli.b": "from .c import name\n",
        "sinkd_llm.cli.c": "if TYPE_CHECKING:\n    from sinkd_llm.cli.a import main\n",
    }
    assert circle(sources) is None
    assert set(circle(sources | {"sinkd_llm.cli.c": "from sinkd_llm.cli.a import main"}) or ()) == {
        *("sinkd_llm.cli.a", "sinkd_llm.cli.b", "sinkd_llm.cli.c"),
    }
    assert circle(sources | {"sinkd_llm.cli.c": "from sinkd_llm.cli import name"}) is not None


def test_the_picture_in_contributing_is_the_tree() -> None:
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = page[page.index("sinkd_llm/\n") : page.index("\ntests/  ")]
    folders: list[tuple[int, str]] = []
    shown = set()
    for line in picture.splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        folders = [folder for folder in folders if folder[0] < indent]
        first = line.split()[0]
        if first.endswith("/"):
            folders.append((indent, first))
        where = "".join(name for _, name in folders)
        shown |= {where + word.rstrip(":") for word in line.split() if word.rstrip(":").endswith(".py")}
    there = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert shown == there
