"""Two processes write the cache that one writes, and go on with what other numbers of processes have begun.

Two processes over gloo write all caches in one launch (cache_worker.py); the tests read them beside the caches of one.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.cache.manifest import Manifest
from tests.distributed import cache_worker as worker
from tests.support.launch import ranks, run_ranks

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Any,
    tiny_causal_lm: Callable[..., Any],
    zygote: Callable[..., dict[str, Any]],
) -> Path:
    """Caches of one process, and of two."""
    folder = tmp_path_factory.mktemp("caches")
    tiny_causal_lm(seed=2, initializer_range=0.3).save_pretrained(folder / "teacher")
    tiny_tokenizer.save_pretrained(folder / "teacher")
    for name in worker.KINDS:
        worker.write(folder, name, folder / f"one-{name}")
    with pytest.raises(InputError, match="NaN"):
        worker.write(folder, "tokens", folder / "begun-by-one", spoiling(15))
    run_ranks(zygote, "cache_worker", str(folder), log=folder / "log.txt", limit=200)
    return folder


def spoiling(at: int) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
    """A hook that makes the logits of a batch NaN."""
    batches = []

    def spoil(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        batches.append(logits)
        return logits * float("nan") if len(batches) == at else logits

    return spoil


def assert_same(folder: Path, other: Path) -> None:
    """Both caches give every row the same numbers, bit for bit."""
    names = [row["id"] for row in worker.rows_of("causal", worker.ROWS)]
    ones, twos = CachedTeacher(folder), CachedTeacher(other)
    assert ones.manifest.differences(twos.manifest) == []
    assert twos.manifest.gaps() == []
    batch = {"example_id": names, "labels": torch.zeros(1)}
    first, second = ones.signal(batch), twos.signal(batch)
    assert torch.equal(torch.as_tensor(first.signal), torch.as_tensor(second.signal))
    assert torch.equal(first.position_N, second.position_N)
    assert len(first.position_N) >= worker.ROWS
    kept = [file.name for file in other.iterdir()]
    assert not [name for name in kept if name.startswith((".", "part"))]
    assert len([name for name in kept if name.startswith("shard")]) == len(twos.manifest.shards)


@pytest.mark.parametrize("name", worker.KINDS)
def test_two_processes_write_what_one_does(name: str, folder: Path) -> None:
    assert_same(folder / f"one-{name}", folder / f"two-{name}")
    # Each has written some: the numbers of its files are odd or even.
    numbers = [int(shard["file"][6:11]) for shard in Manifest.load(folder / f"two-{name}").shards]
    assert {number % 2 for number in numbers} == {0, 1}


def test_two_processes_go_on_where_one_ended(folder: Path) -> None:
    assert_same(folder / "one-tokens", folder / "begun-by-one")


def test_an_error_of_one_ends_both_with_its_message_and_nothing_is_lost(folder: Path) -> None:
    said = [(folder / f"failed-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("InputError: The teacher's logits are NaN or infinite for opinion-")
    # One process goes on, with what both had written.
    before = worker.write(folder, "tokens", folder / "failed")
    assert 4 <= before < worker.ROWS
    assert_same(folder / "one-tokens", folder / "failed")


def test_another_cache_is_refused_by_both(folder: Path) -> None:
    said = [(folder / f"other-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]
    assert said[0] == said[1]
    assert "holds a cache of something else (rows.hash" in said[0]


def test_a_launch_that_is_killed_goes_on_with_another_number_of_processes(
    folder: Path, zygote: Callable[..., dict[str, Any]]
) -> None:
    log = folder / "killed.txt"
    answer = zygote([str(folder), "dies"], log, module="tests.distributed.cache_worker", env=ranks(), limit=100)
    assert answer["codes"][1] == -signal.SIGKILL
    assert "lost contact with another one" in log.read_text(encoding="utf-8")
    begun = Manifest.load(folder / "killed")
    part = json.loads((folder / "killed" / "part-00001.json").read_text(encoding="utf-8"))
    assert begun.shards
    assert part["shards"]
    assert worker.write(folder, "tokens", folder / "killed") == begun.done + sum(
        shard["stop"] - shard["start"] for shard in part["shards"]
    )
    assert_same(folder / "one-tokens", folder / "killed")
