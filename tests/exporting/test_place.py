"""An export has a folder of its own, as a whole or not at all."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.exporting.place import EXPORT_FILE, check_export_place, export_folder
from sinkd_llm.models.placing import write_record


def write(folder: Path, text: str, error: Exception | None = None) -> None:
    with export_folder(folder) as staging:
        (staging / "model.onnx").write_text(text, encoding="utf-8")
        if error is not None:
            raise error
        files = ["model.onnx", EXPORT_FILE, "sinkd_student.json", "sinkd_manifest.json", "README.md"]
        (staging / EXPORT_FILE).write_text(json.dumps({"files": files}), encoding="utf-8")
        write_record(staging, {})
    (folder / "README.md").write_text(text, encoding="utf-8")


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, "one")
    check_export_place(folder, 0)
    write(folder, "two")
    assert (folder / "model.onnx").read_text(encoding="utf-8") == "two"
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds notes\.txt, which no export wrote"):
        check_export_place(folder, 0)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is a file"):
        check_export_place(tmp_path / "file", 0)


def test_after_an_error_the_folder_is_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(InputError, match=r"disk of .*out is full"):
        write(folder, "half", RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not folder.exists()
    write(folder, "one")
    with pytest.raises(ZeroDivisionError):
        write(folder, "half", ZeroDivisionError())
    assert (folder / "model.onnx").read_text(encoding="utf-8") == "one"
    assert not list(folder.glob(".*"))


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=5_000_000))
    check_export_place(tmp_path / "a" / "b", 5_000_000)
    with pytest.raises(InputError, match=r"has 5\.0 MB left, and this export takes up to 90 MB"):
        check_export_place(tmp_path / "a" / "b", 90_000_000)
