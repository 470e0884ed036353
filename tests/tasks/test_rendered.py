"""Rendered rows that are kept: the same rows, under a name of everything that they depend on."""

import os

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks import load_task, rendered, task

FILE = """\
task: kept
dataset_path: json
dataset_kwargs: {data_files: {train: rows.jsonl}}
training_split: train
output_type: multiple_choice
doc_to_text: "{{text}} Answer:"
doc_to_choice: ["no", "yes"]
doc_to_target: label
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A task of 20 rows whose rows are kept, and a count of how often they are rendered."""
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(rendered, "CACHED_FROM", 10)
    monkeypatch.setattr(task, "_CACHED_FROM_BYTES", 1)
    (tmp_path / "kept.yaml").write_text(FILE)
    rows = "".join(f'{{"text": "text é {i}", "label": {i % 2}}}\n' for i in range(20))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    times = []
    plain = task.Task._rendered
    monkeypatch.setattr(task.Task, "_rendered", lambda *args: times.append(1) or plain(*args))

    def load(**options):
        times.clear()
        dataset = load_task(tmp_path / "kept.yaml").load("train", **options)
        return dataset, len(times)

    return load


def files(tmp_path):
    return sorted((tmp_path / "cache" / "rows").glob("*.arrow"))


def test_rows_from_the_disk_are_the_rows(kept, tmp_path):
    (first, rendered_first), (second, rendered_second) = kept(), kept()
    assert (rendered_first, rendered_second) == (1, 0)
    plain = load_task(tmp_path / "kept.yaml")._rendered("train", None, None, None, None)
    assert first.to_list() == second.to_list() == plain.to_list()
    assert first.features == second.features == plain.features
    assert first._fingerprint == second._fingerprint  # token ids are kept under it
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("options", [{"limit": 15}, {"limit": 15, "seed": 1}, {"labelled": False}])
def test_another_request_is_rendered_anew(kept, options):
    kept()
    other, times = kept(**options)
    assert times == 1
    assert len(other) == options.get("limit", 20)
    assert kept(**options)[1] == 0


def test_a_changed_file_is_rendered_anew(kept, tmp_path):
    kept()
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("text é 3", "word é 3"), encoding="utf-8")
    os.utime(path, ns=(1, 1))  # of the same size
    dataset, times = kept()
    assert times == 1
    assert dataset[3]["prompt"] == "word é 3 Answer:"
    before = path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace("word é 3", "WORD é 3"), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # and the same time, as copying tools leave it
    assert kept()[0][3]["prompt"] == "WORD é 3 Answer:"
    template = tmp_path / "kept.yaml"
    template.write_text(FILE.replace("Answer:", "So:"))
    dataset, times = kept()
    assert times == 1
    assert dataset[3]["prompt"] == "WORD é 3 So:"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-200],
        lambda content: b"x" * 500,
        lambda content: content.replace(b"Answer", b"answer"),
    ],
)
def test_a_damaged_file_is_not_read(kept, tmp_path, damage):
    rows, _ = kept()
    (path,) = files(tmp_path)
    # Through another file: the first one is still mapped into memory.
    other = tmp_path / "damaged"
    other.write_bytes(damage(path.read_bytes()))
    other.replace(path)
    again, times = kept()
    assert times == 1
    assert again.to_list() == rows.to_list()
    assert kept()[1] == 0


def test_few_rows_and_wrong_rows_are_not_kept(kept, tmp_path):
    kept(limit=9)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"label": 1', '"label": 7'), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(InputError, match="outside the choices"):
            kept()
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_no_error(kept, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "file"))
    assert len(kept()[0]) == 20
    assert kept()[1] == 1


def test_what_was_used_longest_ago_goes_first(kept, tmp_path, monkeypatch):
    kept()
    (first,) = files(tmp_path)
    monkeypatch.setattr(rendered, "MOST_BYTES", first.stat().st_size + 100)
    os.utime(first, ns=(1, 1))
    kept(labelled=False)
    (second,) = files(tmp_path)
    assert second != first
