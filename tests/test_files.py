"""Files that are written whole or not at all."""

import errno

import pytest

from sinkd_llm.files import write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_whole(file, "first")
    with monkeypatch.context() as patch:
        patch.setattr("sinkd_llm.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            write_whole(file, "second")
    assert [f.name for f in tmp_path.iterdir()] == ["results.json"]
    assert file.read_text() == "first"
