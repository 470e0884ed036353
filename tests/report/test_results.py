"""`results.json` and `metrics.jsonl`, written and read."""

import json

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.report.results import (
    ClassTable,
    ResultRow,
    RunRecord,
    append_record,
    begin_records,
    is_finished,
    read_records,
)
from tests.support.results import AFTER, ROWS, TEACHER, record


def test_the_share_is_of_the_first_metric():
    assert AFTER.share_of(TEACHER) == pytest.approx(0.9)
    assert ResultRow("x", {"mcc": 0.2}).share_of(ResultRow("teacher", {"mcc": -0.1})) is None
    assert ResultRow("x", {"loss": 0.2}).share_of(ResultRow("teacher", {"loss": 0.1})) is None
    assert ResultRow("x").share_of(TEACHER) is None


def test_a_record_is_read_as_it_was_written(tmp_path):
    assert not is_finished(tmp_path)
    record(ROWS).write(tmp_path)
    assert is_finished(tmp_path)
    assert RunRecord.read(tmp_path) == record(ROWS)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["rows"][2]["share_of_teacher"] == pytest.approx(0.9)
    assert content["rows"][2]["examples_per_second"] == 100


def test_intervals_classes_and_times_are_read_as_they_were_written(tmp_path):
    cells = [[0, 0, 1], [1, 0, 1], [1, 1, 1]]
    table = ClassTable(["no", "yes"], [0.5, 1.0], [1.0, 0.5], [2 / 3, 2 / 3], [1, 2], cells)
    row = ResultRow("student after", {"acc": 2 / 3}, intervals={"acc": (0.2, 0.9)}, classes=table)
    row.latency_ms_p50, row.latency_ms_p95, row.peak_memory_bytes = 3.5, 4.5, 7
    record([row]).write(tmp_path)
    assert RunRecord.read(tmp_path).rows == [row]
    content = json.loads((tmp_path / "results.json").read_text())
    content["rows"][0]["classes"]["precision"] = None
    del content["rows"][0]["classes"]["support"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no finished run"):
        RunRecord.read(tmp_path)


def test_entries_of_another_version_are_left_out(tmp_path):
    record(ROWS).write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    content["rows"][0]["colour"] = content["weather"] = "blue"
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert RunRecord.read(tmp_path) == record(ROWS)


def test_a_record_of_an_earlier_version_has_no_layers(tmp_path):
    record(ROWS).write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content.pop("layers") is None
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert RunRecord.read(tmp_path) == record(ROWS)
    (tmp_path / "results.json").write_text(json.dumps({**content, "layers": 3}))
    with pytest.raises(InputError, match="no finished run"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("name", ["training", "settings", "all_settings", "versions", "rows", "command"])
def test_a_record_without_an_entry_is_none(tmp_path, name):
    record(ROWS).write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    if name != "command":
        (tmp_path / "results.json").write_text(json.dumps(content | {name: 5}))
        with pytest.raises(InputError, match="no finished run"):
            RunRecord.read(tmp_path)
    del content[name]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no finished run"):
        RunRecord.read(tmp_path)


def test_records_go_on_where_training_begins(tmp_path):
    file = tmp_path / "run" / "metrics.jsonl"
    begin_records(file, 0)
    for step in (5, 10, 15):
        append_record(file, step, {"loss": float(step)})
    append_record(file, 10, {"train_runtime": 1.0})
    begin_records(file, 10)
    assert read_records(file) == [{"step": 5, "loss": 5.0}, {"step": 10, "loss": 10.0}]


def test_lines_that_are_no_records_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n5\n[1]\nnull\n{"step": "x"}\n\xff\xfe\n{"step": 2}\n{"st')
    assert read_records(file) == [{"step": 1}, {"step": 2}]
