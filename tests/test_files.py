"""Files that are written whole or not at all, and where the cache is."""

import errno
import os
import stat
from pathlib import Path

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.files import bytes_under, cache_dir, whole_file, write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_whole(file, "first")
    with monkeypatch.context() as patch:
        patch.setattr("sinkd_llm.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            write_whole(file, "second")
    assert [f.name for f in tmp_path.iterdir()] == ["results.json"]
    assert file.read_text() == "first"


def test_one_process_writes_a_file_at_a_time(tmp_path):
    file, part = tmp_path / "answers.jsonl", tmp_path / ".answers.jsonl.part"
    part.write_text("left over, and longer")
    with whole_file(file) as stream:
        stream.write(b"first")
        with pytest.raises(InputError, match="Another process is writing"), whole_file(file) as other:
            other.write(b"second")
    assert file.read_text() == "first"
    assert not part.exists()


def test_permissions_and_links_stay(tmp_path):
    file, link = tmp_path / "secret.json", tmp_path / "link.json"
    file.write_text("first")
    file.chmod(0o600)
    link.symlink_to(file)
    write_whole(link, "second")
    assert link.is_symlink()
    assert file.read_text() == "second"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_hard_link_is_not_written_through(tmp_path):
    data, file = tmp_path / "data.json", tmp_path / "out.json"
    data.write_text("rows")
    os.link(data, file)
    write_whole(file, "scores")
    assert (data.read_text(), file.read_text()) == ("rows", "scores")


@pytest.mark.parametrize("place", ["", "absent/file", "file/below", "x" * 300])
def test_what_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError) as raised:  # noqa: PT011 - any of its kinds; the path is what counts
        write_whole(tmp_path / place, "content")
    assert raised.value.filename == str(tmp_path / place)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_device_is_written_to_and_not_replaced():
    write_whole(Path(os.devnull), "nothing")
    assert not Path(os.devnull).is_file()


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SINKD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "sinkd_llm"


def test_bytes_are_those_of_all_files_that_are_meant(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "y").write_bytes(b"123")
    assert bytes_under(tmp_path) == 8
    assert bytes_under(tmp_path, "x") == 5
    assert bytes_under(tmp_path, keep=lambda file: file.parts[0] != "a") == 3
