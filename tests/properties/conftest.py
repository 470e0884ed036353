"""What the property tests share: a small world of real inputs, the command line in children, and a count of outcomes.

`make test` tries a few inputs of each property, `make fuzz` many (`$SINKD_FUZZ` multiplies them). Each outcome is
counted, so that a run shows how many inputs were answered and how many were refused: a property whose inputs are all
refused says nothing.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import Answer, World, build_world

OUTCOMES: Counter[tuple[str, str]] = Counter()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Counts an outcome of the running property: `count("answered")`, `count("refused")`."""
    name = request.node.originalname

    def add(outcome: str) -> None:
        OUTCOMES[name, outcome] += 1

    return add


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_causal_lm: Any, tiny_tokenizer: Any) -> World:
    """A model, a task with its files, and nothing else."""
    return build_world(tmp_path_factory.mktemp("world"), tiny_causal_lm, tiny_tokenizer)


@pytest.fixture(scope="session")
def sinkd(world: World, zygote: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs `sinkd` in a child and checks what holds for every command, whatever it was given."""
    logs = tmp_path_factory.mktemp("logs")

    def run(argv: list[str], *, limit: float = 120.0) -> Answer:
        out, err = logs / "out", logs / "err"
        before = world.fingerprint()
        answer = zygote(argv, out, err=str(err), cwd=str(world.scratch), limit=limit)
        return Answer(answer["codes"][0], out, err, argv).checked(before, world.fingerprint())

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line a property: how many inputs, and what became of them."""
    if not OUTCOMES:
        return
    total = sum(OUTCOMES.values())
    terminalreporter.section(f"{total} inputs tried")
    for name in sorted({name for name, _ in OUTCOMES}):
        found = {outcome: n for (other, outcome), n in sorted(OUTCOMES.items()) if other == name}
        terminalreporter.write_line(f"{name}: " + ", ".join(f"{n} {outcome}" for outcome, n in found.items()))


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Gives a fresh empty folder for each input."""
    return lambda: tmp_path_factory.mktemp("input")
