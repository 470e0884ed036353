"""Readers: what GLUE and CSV files mean, and that every broken file is named with its line."""

from pathlib import Path

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks.files import READERS, read_csv, read_json, read_tsv
from sinkd_llm.tasks.formats import read_multirc, read_record, read_trec


@pytest.fixture
def write(tmp_path: Path):
    def _write(content: str | bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


def test_tsv_is_literal(write) -> None:
    rows = read_tsv(write('sentence\tlabel\n"quoted" and "open\t1\r\nline\u2028end \r in\t0\n\n'))
    assert rows.rows == [
        {"sentence": '"quoted" and "open', "label": "1"},
        {"sentence": "line\u2028end \r in", "label": "0"},
    ]
    assert [rows.where(i).split()[1] for i in range(2)] == ["2", "3"]


def test_tsv_without_header(write) -> None:
    rows = read_tsv(write("a\t1\t\tx\n"), column_names=["source", "label", "note", "sentence"])
    assert rows.rows == [{"source": "a", "label": "1", "note": "", "sentence": "x"}]


def test_csv_is_quoted_and_may_span_lines(write) -> None:
    rows = read_csv(write('\ufefflabel,text\r\n1,"a, ""b""\nc"\r\n\r\n2,d\r\n'))
    assert rows.rows == [{"label": "1", "text": 'a, "b"\nc'}, {"label": "2", "text": "d"}]
    assert rows.where(0).startswith("line 2 of")
    assert rows.where(1).startswith("line 5 of")


def test_json_lines_and_array_agree(write) -> None:
    lines = read_json(write('{"a": 1}\n\n{"a": null}\n'))
    assert lines.rows == [{"a": 1}, {"a": None}]
    assert lines.where(1).startswith("line 3 of")
    array = read_json(write('[{"a": 1},\n {"a": null}]'))
    assert array.rows == lines.rows
    assert array.where(1).startswith("row 1 of")


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_missing_empty_and_not_utf8(kind: str, write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        READERS[kind](tmp_path / "absent")
    with pytest.raises(InputError, match=r"is empty|has no rows"):
        READERS[kind](write(""))
    with pytest.raises(InputError, match=r"Line 3 of .* is not UTF-8 \(byte 0xe9\)"):
        READERS[kind](write("a\nb\ncaf\xe9\n".encode("latin1")))


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_tsv, "a\tb\n1\t2\n3", "Line 3 of .* has 1 fields, but 2 are expected"),
        (read_tsv, "a\tb\n1\t2\t3\n", "Line 2 of .* has 3 fields, but 2 are expected"),
        (read_tsv, "a\ta\n1\t2\n", "should name the columns, each once"),
        (read_tsv, "a\tb\n", "has no rows"),
        (read_csv, 'a,b\n1,2\n3,"cut', "Line 3 of .* is not valid CSV"),
        (read_csv, "a,b\n1\n", "Line 2 of .* has 1 fields"),
        (read_json, '{"a": 1}\n{"a": ', "Line 2 of .* is not valid JSON"),
        (read_json, '[{"a": 1},\n{"a"', "Line 2 of .* is not valid JSON"),
        (read_json, "[]", "has no rows"),
        (read_json, "3\n", "Line 1 of .* is int, not a JSON object"),
    ],
)
def test_broken_files(reader, content: str, message: str, write) -> None:
    with pytest.raises(InputError, match=message):
        reader(write(content))


def test_trec_is_latin1_with_a_stray_byte_or_utf8(write) -> None:
    rows = read_trec(write(b"DESC:def What is a caf\xe9 ?\n\nLOC:city A sister\xf0city : where ?\n"))
    assert rows.rows == [
        {"text": "What is a café ?", "coarse_label": "DESC", "fine_label": "DESC:def"},
        {"text": "A sister city : where ?", "coarse_label": "LOC", "fine_label": "LOC:city"},
    ]
    assert rows.where(1).startswith("line 3 of")
    assert read_trec(write("DESC:def What is a café ?\n")).rows == rows.rows[:1]


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_trec, "", "has no rows"),
        (read_trec, "DESC What ?\n", "Line 1 of .* is 'DESC What .', not COARSE:fine and a question"),
        (read_multirc, "", "has no rows"),
        (read_multirc, '{"idx": 0}\n', "Line 1 of .* has no 'passage' .a JSON object."),
        (
            read_multirc,
            '{"idx": 0, "passage": {"text": "t", "questions": [3]}}\n',
            "Question 0 on line 1 of .* 'answers'",
        ),
        (read_record, '{"idx": 0, "passage": {"entities": []}, "qas": []}\n', "Line 1 of .* has no 'text' .text."),
        (read_record, '{"idx": 0, "passage": {"text": "t", "entities": []}}\n', "Line 1 of .* has no 'qas' .a list."),
        (read_record, '{"idx": 0, "passage": {"text": "t", "entities": []}, "qas": [{}]}\n', "Query 0 on line 1 of"),
        (
            read_record,
            '{"idx": 0, "passage": {"text": "", "entities": []}, "qas": [{"idx": 0, "query": "", "answers": [{}]}]}\n',
            "Answer 0 to query 0 on line 1 of .* has no 'text'",
        ),
    ],
)
def test_broken_passages(reader, content: str, message: str, write) -> None:
    with pytest.raises(InputError, match=message):
        reader(write(content))
