"""A cache is replaced by one that is whole; manifests and arrays of another kind are refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sinkd_llm import files
from sinkd_llm.errors import InputError
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.cache import folder as replacing
from sinkd_llm.teachers.cache.arrays import file_checksum
from sinkd_llm.teachers.cache.manifest import MANIFEST, Manifest
from sinkd_llm.teachers.cache.writer import CacheWriter, RowOrder
from tests.support.caches import Crash, CrashingRename, add_rows, contents, features, new_manifest, write


def replace(folder: Path, rows: Any, stop_after: int | None = None) -> None:
    ordered = RowOrder(rows)
    with CacheWriter(folder, new_manifest(ordered), ordered, 100, overwrite=True) as writer:
        if writer.manifest.complete:
            return
        if stop_after is not None:
            assert next(iter(writer.batches(stop_after)))
            raise InputError("the teacher's logits are NaN")
        add_rows(writer, rows)
        writer.finish()


def test_the_old_cache_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "other", features(9))
    whole = contents(tmp_path / "other")
    folder = tmp_path / "cache"
    write(folder, features(23))
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(InputError, match="NaN"):
        replace(folder, features(9), stop_after=4)
    assert contents(folder) == before
    replace(folder, features(9))
    assert contents(folder) == whole | {"notes.txt": b"mine"}


def test_a_kill_at_every_rename_of_the_replacement_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "old", features(23))
    write(tmp_path / "new", features(9))
    whole, rename = contents(tmp_path / "new"), CrashingRename()
    monkeypatch.setattr(files.os, "replace", rename)
    assert replacing.os is files.os
    for at in range(1, 40):
        folder, rename.count, rename.at = tmp_path / str(at), 0, at
        shutil.copytree(tmp_path / "old", folder)
        try:
            replace(folder, features(9))
        except Crash:
            # Before the first file is moved, the old one can be read; then the new one can be finished.
            if (folder / MANIFEST).exists():
                assert CachedTeacher(folder).manifest.rows.examples == 23
            replace(folder, features(9))
            assert contents(folder) == whole
        else:
            assert contents(folder) == whole
            assert at > 8
            return
    raise AssertionError("it never ran through")


def test_a_folder_that_is_no_cache_is_not_touched(tmp_path: Path) -> None:
    for name in ("manifest.json", "shard-notes.txt", "thesis.part", "index.safetensors"):
        (tmp_path / name).write_text('{"name": "a web page"}')
    before = contents(tmp_path)
    with pytest.raises(InputError, match="but no teacher cache"):
        replace(tmp_path, features(9))
    assert contents(tmp_path) == before
    assert sorted(before) == sorted(file.name for file in tmp_path.iterdir())


def test_nothing_is_left_of_a_cache_that_had_no_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NaN"):
        replace(tmp_path / "cache", features(9), stop_after=4)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write(folder, features(23))
    return folder


ODD: tuple[Any, ...] = (None, [], {}, [1], ["x"], "x", -1, 0, 1.5, True, [None], {"a": 1}, [[]])


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of all values of a JSON document; of lists the first entry stands for the others."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, part in value.items():
            found += paths(part, (*path, key))
    elif isinstance(value, list) and value:
        found += paths(value[0], (*path, 0))
    return found


def test_every_value_of_the_manifest_may_be_of_another_kind(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    good = (folder / MANIFEST).read_text()
    free = ("versions", "loading", "teacher_score", "complete")
    tried = 0
    for path in paths(json.loads(good)):
        if path[0] in free or path[-1] in free:
            continue
        for odd in ODD:
            content = json.loads(good)
            target = content
            for key in path[:-1]:
                target = target[key]
            if target[path[-1]] == odd and type(target[path[-1]]) is type(odd):
                continue
            target[path[-1]] = odd
            (folder / MANIFEST).write_text(json.dumps(content))
            tried += 1
            try:
                CachedTeacher(folder)
            except InputError:
                continue
            # What only names the cache may be any text or number; what is reckoned with may not.
            named = path[0] in ("teacher", "rows") or path[-1] in ("sampled_tokens", "always", 0, "tail_sums")
            assert named, (path, odd)
    assert tried > 300
    (folder / MANIFEST).write_text(good)
    CachedTeacher(folder)


def rewrite(folder: Path, name: str, arrays: dict[str, Any]) -> None:
    """Writes other arrays, with a manifest that agrees."""
    save_file(arrays, folder / name)
    content = json.loads((folder / MANIFEST).read_text())
    for record in (*content["shards"], content["index"]):
        if record["file"] == name:
            record["bytes"] = (folder / name).stat().st_size
            record["checksum"] = file_checksum(folder / name)
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("logits"),
        lambda a: a.update(logits=a["logits"][:-1]),
        lambda a: a.update(logits=a["logits"].astype(np.float32)),
        lambda a: a.update(ids=a["ids"][:, :3].copy()),
        lambda a: a.update(more=a["step"]),
        lambda a: {name: a.update({name: array[:-1].copy()}) for name, array in list(a.items())},
    ],
)
def test_a_shard_of_other_arrays(whole: Path, tmp_path: Path, change: Any) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    arrays = load_file(folder / "shard-00001.safetensors")
    change(arrays)
    rewrite(folder, "shard-00001.safetensors", arrays)
    with pytest.raises(InputError, match=r"shard-00001\.safetensors does not hold \d+ rows of this layout"):
        CachedTeacher(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("key"),
        lambda a: a.update(first=a["first"] + np.uint32(10_000)),
        lambda a: a.update(count=a["count"].astype(np.float32)),
        lambda a: a.update(key=a["key"][::-1].copy()),
        lambda a: a.update(count=a["count"][:-1].copy()),
    ],
)
def test_an_index_of_other_arrays(whole: Path, tmp_path: Path, change: Any) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    arrays = load_file(folder / "index.safetensors")
    change(arrays)
    rewrite(folder, "index.safetensors", arrays)
    with pytest.raises(InputError, match="the index"):
        CachedTeacher(folder)


@pytest.mark.parametrize("header", [b"[]", b"1", b'{"a": 1}', b'{"a": {"dtype": [], "data_offsets": 1}}', b"[" * 9999])
def test_a_header_of_another_kind(whole: Path, tmp_path: Path, header: bytes) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    name = "shard-00001.safetensors"
    (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    content = json.loads((folder / MANIFEST).read_text())
    content["shards"][1]["bytes"] = (folder / name).stat().st_size
    content["shards"][1]["checksum"] = file_checksum(folder / name)
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"shard-00001\.safetensors"):
        CachedTeacher(folder)


def test_a_manifest_of_a_damaged_cache_can_be_replaced(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="write the cache again with --overwrite"):
        write(folder, features(23))
    replace(folder, features(23))
    assert contents(folder) == contents(whole)
    assert Manifest.load(folder).complete


@pytest.mark.parametrize(
    ("keys", "predictions"),
    [(["00"], [1, 0]), (["0x"], [1]), ([7], [1]), (["00"], ["1"]), (["00"], [-1]), (["00"], None), ("00", [1])],
)
def test_a_damaged_record_of_the_teachers_choices_is_refused(
    keys: Any, predictions: Any, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    content = json.loads((folder / MANIFEST).read_text())
    score = {"rows": "hash", "name": "teacher", "metrics": {"acc": 0.5}}
    content["teacher_score"] = {**score, "predictions": [1], "keys": ["00"]}
    (folder / MANIFEST).write_text(json.dumps(content))
    CachedTeacher(folder)
    content["teacher_score"] = {**score, "predictions": predictions, "keys": keys}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        CachedTeacher(folder)


@pytest.mark.parametrize("classes", ["ab", [1], {"0": "a"}, 3])
def test_damaged_names_of_the_teachers_classes_are_refused(classes: Any, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    content = json.loads((folder / MANIFEST).read_text())
    content["teacher"]["classes"] = classes
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*teacher\.classes"):
        CachedTeacher(folder)
