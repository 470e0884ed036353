"""Writing a cache: killed at any moment and started again, nothing is lost or doubled."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sinkd_llm import files
from sinkd_llm.errors import InputError
from sinkd_llm.teachers.cache.arrays import map_arrays
from sinkd_llm.teachers.cache.folder import remove_cache
from sinkd_llm.teachers.cache.layout import CacheLayout
from sinkd_llm.teachers.cache.manifest import MANIFEST, Manifest
from sinkd_llm.teachers.cache.writer import CacheWriter, RowOrder
from tests.support import naive
from tests.support.caches import (
    TOP_K,
    WIDTH,
    Crash,
    CrashingRename,
    contents,
    features,
    new_manifest,
    teacher_rows,
    write,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a cache that was written in one go."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = write(folder, features())
    assert len(manifest.shards) == 6
    return contents(folder)


@pytest.mark.parametrize("half", [False, True], ids=["before-the-rename", "half-written"])
def test_a_crash_at_every_single_write_is_survived(
    half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run for each of its writes crashes there, and is started again."""
    rows = features(9)
    write(tmp_path / "whole", rows)
    whole = contents(tmp_path / "whole")
    assert len(whole) == 5  # three shards, index, manifest

    def cut(source: Any, target: Any) -> None:  # what a file system without order may leave under the final name
        Path(target).write_bytes(Path(source).read_bytes()[:-7])

    rename = CrashingRename(cut if half else None)
    monkeypatch.setattr(files.os, "replace", rename)
    crashes = 0
    for at in range(1, 40):
        folder, rename.at = tmp_path / str(at), at
        for attempt in range(20):
            rename.count = 0 if attempt == 0 else at  # only the first run of a folder crashes
            try:
                write(folder, rows)
                break
            except Crash:
                crashes += 1
            except InputError:  # a half-written manifest, which only such a file system leaves, is started over
                assert half
                remove_cache(folder)
        assert contents(folder) == whole
        if crashes < at:
            return
    raise AssertionError("it never ran through")


SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
from sinkd_llm.teachers.cache.writer import CacheWriter, RowOrder
from tests.support.caches import add_rows, features, new_manifest

folder, rows, chance = Path(sys.argv[1]), features(120), random.Random(0)
ordered = RowOrder(rows)

def run(pipe):
    with CacheWriter(folder, new_manifest(ordered), ordered, 100) as writer:
        os.write(pipe, b"%d\\n" % writer.done)
        if not writer.manifest.complete:
            add_rows(writer, rows)
            writer.finish()
    os._exit(0)

def recorded():
    try:
        return (folder / "manifest.json").read_text().count("shard-")
    except FileNotFoundError:
        return 0

ends = []
while not ends or ends[-1] != 0:
    reader, pipe = os.pipe()
    child = os.fork()  # a process of its own, without the seconds that the imports take
    if child == 0:
        run(pipe)
    os.close(pipe)
    started = int(os.fdopen(reader).readline())
    if len(ends) < 10:
        # It is killed after its first write, or after its first record, however slow the machine is.
        look = (lambda: os.listdir(folder)) if len(ends) % 2 else recorded
        before, late = look(), time.time() + 20
        while look() == before and time.time() < late and len(os.listdir(folder)) < 33:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(started, ends[-1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_is_killed_again_and_again_ends_with_the_same_files(tmp_path: Path) -> None:
    """SIGKILL at random moments of real processes; each start must go on where the last whole shard ended."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    starts, ends = zip(*(map(int, line.split()) for line in lines), strict=True)
    assert list(starts) == sorted(starts)  # nothing that was whole is lost
    assert starts[-1] > 0
    assert ends.count(-signal.SIGKILL) >= 5
    write(tmp_path / "whole", features(120))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_shard_that_was_cut_or_changed_is_written_again(whole: dict[str, bytes], tmp_path: Path) -> None:
    rows = features()
    write(tmp_path, rows)
    shard = tmp_path / "shard-00002.safetensors"
    for damage in (b"", shard.read_bytes()[:-1], shard.read_bytes()[:-1] + b"\x07", None):
        if damage is None:
            shard.unlink()
        else:
            shard.write_bytes(damage)
        write(tmp_path, rows)
        assert contents(tmp_path) == whole
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    write(tmp_path, rows)  # nothing to do
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "another"}, "rows.task: another and made-up"),
        ({"tokenizer": "other"}, "rows.tokenizer: other and xyz"),
        ({"max_length": 32}, "rows.max_length: 32 and 64"),
        ({"add_eos": True}, "rows.add_eos: True and None"),
        ({"layout": CacheLayout("topk", WIDTH, 4, (1.0, 2.0), "fixed16")}, "layout.k: 4 and 8"),
        ({"rows": features(22)}, "rows.hash"),
        ({"rows": features(23, longest=2)}, "rows.hash"),
    ],
)
def test_a_folder_with_another_cache_is_refused_with_what_differs(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, features())
    before = contents(tmp_path)
    with pytest.raises(InputError, match=message):
        write(tmp_path, change.pop("rows", features()), **change)
    assert contents(tmp_path) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(InputError, match=r"holds thesis\.tex but no teacher cache"):
        write(tmp_path, features())


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    ordered = RowOrder(features())
    with CacheWriter(tmp_path, new_manifest(ordered), ordered):
        other = CacheWriter(tmp_path, new_manifest(ordered), ordered)
        with pytest.raises(InputError, match="Another process is writing"):
            other.__enter__()
    write(tmp_path, features())  # the lock is free again


def test_repeated_ids_are_refused_by_name() -> None:
    rows = Dataset.from_list([*features(4), features(1, start=2)[0]])
    with pytest.raises(InputError, match="Rows 2 and 4 have the same id 'row-2'"):
        RowOrder(rows)


def test_overwriting_removes_the_cache_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, features())
    (tmp_path / "notes.txt").write_text("mine")
    remove_cache(tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == ["notes.txt"]


def test_the_longest_rows_are_cached_first() -> None:
    rows = features()
    lengths = [len(row["prompt_ids"]) + len(row["answer_ids"]) for row in rows]
    assert [lengths[i] for i in RowOrder(rows).order] == sorted(lengths, reverse=True)


def test_the_tail_masses_are_those_of_the_teacher(tmp_path: Path) -> None:
    rows = features()
    manifest = write(tmp_path, rows)
    logits = torch.cat([teacher_rows(row["example_id"], len(row["answer_ids"])) for row in rows])
    for temperature in TOP_K.temperatures:
        ordered = naive.softmax(logits, temperature).sort(dim=-1, descending=True).values
        tail = ordered[:, 8:].sum(dim=-1).mean().item()
        assert manifest.mean_tail(temperature) == pytest.approx(tail, rel=1e-3)
        encoding = manifest.layout.cost_error(temperature)
        assert 0 < encoding < 3e-3
        assert manifest.cost_width(temperature) == 2 * manifest.mean_tail(temperature) + encoding
        # The sample is every row here: batches of four rows or a few more.
        sampled = manifest.sampled_tails(temperature)
        assert sampled[8] == pytest.approx(tail, rel=0.3)
        assert sorted(sampled.values(), reverse=True) == list(sampled.values())
    width = manifest.cost_width(2.0)
    assert manifest.width_warning(2.0, width + 1e-6) is None
    text = manifest.width_warning(2.0, width / 2)
    assert text is not None
    assert f"known only to within {width:.3f}" in text
    k = manifest.sufficient_k(2.0, width / 2)
    assert k in (16, 32)
    assert "--content full" in text  # more than a quarter of the vocabulary
    assert manifest.sufficient_k(2.0, 1e-9) is None


@pytest.mark.parametrize("width", [49_152, 151_936], ids=["SmolLM2", "Qwen"])
def test_at_k_32_a_token_takes_at_most_200_bytes_on_disk(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand tokens, one a row: the worst case for the index."""
    rows = Dataset.from_dict(
        {
            "example_id": [f"row-{i}" for i in range(10_000)],
            "prompt_ids": [[1, 2, 3]] * 10_000,
            "answer_ids": [[4]] * 10_000,
        }
    )
    ordered = RowOrder(rows)
    layout = CacheLayout("topk", width, 32, (1.0, 2.0), "fixed16")
    logits = torch.randn(10, width)
    arrays = layout.encode(logits)
    new = new_manifest(ordered, layout)
    new.tail_at = [1]
    with CacheWriter(tmp_path, new, ordered) as writer:
        # The same ten rows a thousand times, which are not worth computing as often.
        many = {name: np.concatenate([array] * 50) for name, array in arrays.items()}
        monkeypatch.setattr(CacheLayout, "encode", lambda *_: many)
        for numbers in writer.batches(500):
            writer.add(numbers, logits, torch.arange(500))
        manifest = writer.finish()
    on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert manifest.tokens == 10_000
    assert manifest.bytes == on_disk - (tmp_path / MANIFEST).stat().st_size
    assert on_disk / 10_000 <= 200


def test_nothing_is_a_pickle(tmp_path: Path) -> None:
    write(tmp_path, features())
    for name, content in contents(tmp_path).items():
        if name == MANIFEST:
            continue
        assert name.endswith(".safetensors")
        header = int.from_bytes(content[:8], "little")
        assert content[8:9] == b"{"
        assert 0 < header < len(content)


def test_a_damaged_manifest_is_an_input_error(tmp_path: Path) -> None:
    write(tmp_path, features())
    path = tmp_path / MANIFEST
    good = path.read_text()
    for bad in ("", good[:100], "[]", good.replace('"format": 1', '"format": 2'), good.replace('"shards"', '"shard"')):
        path.write_text(bad)
        with pytest.raises(InputError, match="write the cache again"):
            Manifest.load(tmp_path)


def test_safetensors_reads_the_shards_too(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write(tmp_path, features())
    ours = map_arrays(tmp_path / "shard-00000.safetensors").arrays
    theirs = load_file(tmp_path / "shard-00000.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
