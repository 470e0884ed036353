"""The folder of a run: overwriting, sizes."""

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.runs.folder import prepare_output_dir, weights_size_bytes


def test_a_finished_run_is_not_overwritten(tmp_path):
    folder = prepare_output_dir(tmp_path / "run", overwrite=False, resuming=False)
    (folder / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds a finished run"):
        prepare_output_dir(folder, overwrite=False, resuming=False)
    prepare_output_dir(folder, overwrite=False, resuming=True)
    assert (folder / "results.json").exists()


def test_an_unfinished_run_is_not_lost(make_checkpoint, tmp_path):
    make_checkpoint(5)
    with pytest.raises(InputError, match="checkpoint-5 of an unfinished run"):
        prepare_output_dir(tmp_path / "run", overwrite=False, resuming=False)


def test_overwriting_deletes_what_runs_write_and_nothing_else(make_checkpoint, tmp_path):
    folder = make_checkpoint(5).parent
    for name in ("results.json", "metrics.jsonl", "report.html", "notes.txt"):
        (folder / name).write_text("{}")
    prepare_output_dir(folder, overwrite=True, resuming=False)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_an_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        prepare_output_dir(tmp_path / "run", overwrite=False, resuming=False)


def test_sizes_leave_checkpoints_out(make_checkpoint, tmp_path):
    folder = make_checkpoint(5).parent
    assert weights_size_bytes(folder) is None
    (folder / "base").mkdir()
    (folder / "model.safetensors").write_bytes(b"0" * 10)
    (folder / "base" / "model.safetensors").write_bytes(b"0" * 7)
    assert weights_size_bytes(folder) == 17
    assert weights_size_bytes(folder / "model.safetensors") == 10
    assert weights_size_bytes("organisation/model") is None
