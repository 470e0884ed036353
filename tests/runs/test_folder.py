"""The folder of a run: overwriting, sizes."""

import json
import os

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.runs.folder import check_output_dir, run_folder, weights_size_bytes

RESULTS = json.dumps({"command": "distill", "rows": []})


def check(folder, *, overwrite=False, checkpoint=None, inputs=()):
    return check_output_dir(folder, overwrite=overwrite, checkpoint=checkpoint, inputs=inputs)


def test_a_finished_run_is_not_overwritten(make_checkpoint, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(RESULTS)
    with pytest.raises(InputError, match="holds a finished run"):
        check(folder)
    elsewhere = tmp_path / "other" / "checkpoint-5"
    with pytest.raises(InputError, match="holds a finished run"):  # it goes on from another run's checkpoint
        check(folder, checkpoint=elsewhere)
    checkpoint = make_checkpoint(5)
    with run_folder(check(folder, checkpoint=checkpoint), overwrite=False, continuing=True):
        assert (folder / "results.json").exists()
    assert (folder / "results.json").exists()


def test_an_unfinished_run_is_not_lost(make_checkpoint, tmp_path):
    make_checkpoint(5)
    with pytest.raises(InputError, match="checkpoint-5 of an unfinished run"):
        check(tmp_path / "run")


@pytest.fixture
def earlier(make_checkpoint):
    """A finished run with a checkpoint, its model, and a file of the user's."""
    folder = make_checkpoint(5).parent
    for name in ("metrics.jsonl", "report.html", "notes.txt", "config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("earlier")
    (folder / "results.json").write_text(RESULTS)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_overwriting_deletes_what_runs_write_and_nothing_else(earlier):
    with run_folder(check(earlier, overwrite=True), overwrite=True, continuing=False):
        kept = [name for name in names(earlier) if not name.startswith(".")]
        assert kept == ["notes.txt"]
        (earlier / "results.json").write_text("new")
    assert names(earlier) == ["notes.txt", "results.json"]
    assert (earlier / "results.json").read_text() == "new"


def test_checking_touches_nothing(earlier, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in earlier.rglob("*")}
    check(earlier, overwrite=True)
    check(tmp_path / "a" / "b")
    assert {path: path.stat().st_mtime_ns for path in earlier.rglob("*")} == before
    assert not (tmp_path / "a").exists()


def test_a_run_that_fails_early_gives_the_earlier_one_back(earlier):
    before = {path.relative_to(earlier): path.read_bytes() for path in earlier.rglob("*") if path.is_file()}

    def fail():
        with run_folder(earlier, overwrite=True, continuing=False):
            (earlier / "metrics.jsonl").write_text("new")
            (earlier / "model.safetensors").write_text("half")
            raise InputError("later")

    with pytest.raises(InputError, match="later"):
        fail()
    assert {path.relative_to(earlier): path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == before


def test_what_a_killed_replacement_has_left_is_not_lost_in_silence(earlier):
    (earlier / ".replaced-x").mkdir()
    for name in ("results.json", "checkpoint-5"):
        (earlier / name).rename(earlier / ".replaced-x" / name)
    with pytest.raises(InputError, match=r"holds \.replaced-x, an earlier run whose successor was killed"):
        check(earlier)
    with run_folder(check(earlier, overwrite=True), overwrite=True, continuing=False):
        pass
    assert names(earlier) == ["notes.txt"]


def test_a_run_that_has_something_whole_keeps_both(earlier, make_checkpoint, capsys):

    def stop():
        with run_folder(earlier, overwrite=True, continuing=False):
            make_checkpoint(7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert (earlier / "checkpoint-7").exists()
    (aside,) = earlier.glob(".replaced-*")
    assert (aside / "model.safetensors").read_text() == "earlier"
    assert f"The earlier run is kept in {aside}" in capsys.readouterr().err
    with run_folder(earlier, overwrite=False, continuing=True):
        pass
    assert not list(earlier.glob(".replaced-*"))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_of_a_run_that_was_gone_on_from_stays_until_the_next_is_whole(earlier, make_checkpoint, fails):
    def go_on():
        with run_folder(earlier, overwrite=False, continuing=True) as run:
            (earlier / "metrics.jsonl").write_text("longer")
            make_checkpoint(7)
            run.set_aside(checkpoints=False)
            assert not (earlier / "model.safetensors").exists()
            (earlier / "model.safetensors").write_text("half" if fails else "new")
            if fails:
                raise OSError("full")
            run.model_is_whole = True

    if fails:
        with pytest.raises(OSError, match="full"):
            go_on()
    else:
        go_on()
    assert (earlier / "model.safetensors").read_text() == ("earlier" if fails else "new")
    assert (earlier / "tokenizer.json").exists() == fails
    assert (earlier / "metrics.jsonl").read_text() == "longer"
    assert {"checkpoint-5", "checkpoint-7", "notes.txt"} <= set(names(earlier))
    assert not list(earlier.glob(".replaced-*"))


def test_a_folder_that_was_made_for_a_failed_run_is_removed(tmp_path):
    with pytest.raises(InputError), run_folder(tmp_path / "a" / "b", overwrite=False, continuing=False):
        raise InputError("no")
    assert names(tmp_path) == []


def test_an_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check(tmp_path / "run")
    with pytest.raises(InputError, match=r"lies below .*run, which is a file"):
        check(tmp_path / "run" / "deeper")


@pytest.mark.parametrize("place", ["", "  ", "/", "~", "a\0b", "x" * 300])
def test_places_that_no_run_may_have(place):
    with pytest.raises(InputError, match="output_dir"):
        check(place)


def test_the_working_folder_with_files_of_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(".")
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(InputError, match=r"the working folder or one above it, and holds thesis\.tex"):
        check(".")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(InputError, match="the working folder or one above it"):
        check("..")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    ["config.json", "adapter_config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "tokenizer.json"],
)
def test_somebodys_model_is_not_written_over(tmp_path, name, overwrite):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"holds {name}, and no results.json of a run"):
        check(tmp_path, overwrite=overwrite)
    (tmp_path / "results.json").write_text('{"eval_loss": 1.0}')  # another tool's
    with pytest.raises(InputError, match=r"holds (a finished run|results\.json)"):
        check(tmp_path, overwrite=overwrite)


def test_two_runs_in_one_folder(tmp_path):
    with run_folder(tmp_path / "run", overwrite=False, continuing=False):
        for refused in (lambda: check(tmp_path / "run"), lambda: enter(tmp_path / "run")):
            with pytest.raises(InputError, match=rf"Another process is writing to .*run \(process {os.getpid()} on"):
                refused()
    enter(tmp_path / "run")


def enter(folder):
    with run_folder(folder, overwrite=False, continuing=False):
        pass


def test_sizes_leave_checkpoints_out(make_checkpoint, tmp_path):
    folder = make_checkpoint(5).parent
    assert weights_size_bytes(folder) is None
    (folder / "base").mkdir()
    (folder / "model.safetensors").write_bytes(b"0" * 10)
    (folder / "base" / "model.safetensors").write_bytes(b"0" * 7)
    assert weights_size_bytes(folder) == 17
    assert weights_size_bytes(folder / "model.safetensors") == 10
    assert weights_size_bytes("organisation/model") is None
