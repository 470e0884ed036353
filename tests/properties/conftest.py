"""What the property tests share: a small world of real inputs, the command line in children, and a count of outcomes.

`make test` tries a few inputs of each property, `make fuzz` many (`$SINKD_FUZZ` multiplies them). Each outcome is
counted, so that a run shows how many inputs were answered and how many were refused: a property whose inputs are all
refused says nothing.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from sinkd_llm.errors import InputError
from tests.properties.world import Answer, World, build_world
from tests.reliability.conftest import zygote  # noqa: F401 - a fixture

FACTOR = int(os.environ.get("SINKD_FUZZ", "0"))
OUTCOMES: Counter[tuple[str, str]] = Counter()


def examples(few: int, many: int) -> Any:
    """Hypothesis settings for `few` inputs, or `many` of them times `$SINKD_FUZZ`."""
    return settings(
        max_examples=many * FACTOR if FACTOR else few,
        deadline=None,
        derandomize=not FACTOR,  # `make test` is the same every time
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `call` gives, and the message with which it refuses; every other error is a failure."""
    try:
        return call(), None
    except InputError as error:
        message = str(error)
    assert 0 < len(message) < 2_000, f"a message of {len(message)} characters: {message[:200]}"
    return None, message


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
def sinkd(world: World, zygote: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: F811
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
