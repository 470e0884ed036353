"""The manifest of a folder: it names the file that is missing or changed, and gives back the facts."""

import json

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.integrity import MANIFEST_FILE, check_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "model"
    (model / "base").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (model / "base" / "config.json").write_text("{}")
    for name in ("results.json", "metrics.jsonl", ".lock", "README.md"):
        (model / name).write_text("changes later")
    (model / "checkpoint-3").mkdir()
    (model / "checkpoint-3" / "optimizer.pt").write_bytes(b"state")
    write_manifest(model, {"seed": 3})
    return model


def test_the_facts_come_back_and_only_the_model_is_recorded(folder):
    assert check_manifest(folder) == {"seed": 3}
    files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    assert list(files) == ["base/config.json", "model.safetensors"]
    (folder / "metrics.jsonl").write_text("more")
    (folder / "added.txt").write_text("a file of the user's")
    (folder / "checkpoint-3" / "optimizer.pt").unlink()
    assert check_manifest(folder) == {"seed": 3}


def test_a_folder_without_a_manifest_passes(tmp_path):
    assert check_manifest(tmp_path) == {}


def test_one_flipped_byte_is_seen(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"bytes of .*model\.safetensors are not those that were written"):
        check_manifest(folder)


def test_a_missing_and_a_shorter_file_are_named(folder):
    (folder / "base" / "config.json").write_text("{ }")
    with pytest.raises(InputError, match=r"base/config\.json has 3 bytes instead of the 2"):
        check_manifest(folder)
    (folder / "base" / "config.json").unlink()
    with pytest.raises(InputError, match=r"lacks base/config\.json"):
        check_manifest(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{}",
        '"text"',
        '{"format": 1}',
        '{"format": 1, "facts": [], "files": {}}',
        '{"format": 1, "facts": {}, "files": []}',
        '{"format": 1, "facts": {}, "files": {"a": 1}}',
        '{"format": 1, "facts": {}, "files": {"a": {"bytes": "1", "sha256": 2}}}',
        '{"format": 1, "facts": {}, "files": {"../a": {"bytes": 1, "sha256": "x"}}}',
        '{"format": 2, "facts": {}, "files": {}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_manifest_is_one_error(folder, content):
    (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(InputError, match=MANIFEST_FILE):
        check_manifest(folder)
