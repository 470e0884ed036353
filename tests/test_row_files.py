"""Readers: what GLUE and CSV files mean, and that every broken file is named with its line."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.row_files import READERS, read_csv, read_json, read_parquet, read_tsv


def test_tsv_is_literal(write_file) -> None:
    rows = read_tsv(write_file('sentence\tlabel\n"quoted" and "open\t1\r\nline\u2028end \r in\t0\n\n'))
    assert rows.rows == [
        {"sentence": '"quoted" and "open', "label": "1"},
        {"sentence": "line\u2028end \r in", "label": "0"},
    ]
    assert [rows.where(i).split()[1] for i in range(2)] == ["2", "3"]


def test_tsv_without_header(write_file) -> None:
    rows = read_tsv(write_file("a\t1\t\tx\n"), column_names=["source", "label", "note", "sentence"])
    assert rows.rows == [{"source": "a", "label": "1", "note": "", "sentence": "x"}]


def test_csv_is_quoted_and_may_span_lines(write_file) -> None:
    rows = read_csv(write_file('\ufefflabel,text\r\n1,"a, ""b""\nc"\r\n\r\n2,d\r\n'))
    assert rows.rows == [{"label": "1", "text": 'a, "b"\nc'}, {"label": "2", "text": "d"}]
    assert rows.where(0).startswith("line 2 of")
    assert rows.where(1).startswith("line 5 of")


def test_json_lines_and_array_agree(write_file) -> None:
    lines = read_json(write_file('{"a": 1}\n\n{"a": null}\n'))
    assert lines.rows == [{"a": 1}, {"a": None}]
    assert lines.where(1).startswith("line 3 of")
    array = read_json(write_file('[{"a": 1},\n {"a": null}]'))
    assert array.rows == lines.rows
    assert array.where(1).startswith("row 1 of")


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_missing_empty_and_not_utf8(kind: str, write_file, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        READERS[kind](tmp_path / "absent")
    with pytest.raises(InputError, match=r"is empty|has no rows"):
        READERS[kind](write_file(""))
    with pytest.raises(InputError, match=r"Line 3 of .* is not UTF-8 \(byte 0xe9\)"):
        READERS[kind](write_file('{"a": 1}\n{"a": 2}\ncaf\xe9\n'.encode("latin1")))


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
        (read_json, '{"a": 1\n', "Line 1 of .* is not valid JSON"),
        (read_json, '[{"a": 1},\n{"a"', "Line 2 of .* is not valid JSON"),
        (read_json, "[]", "has no rows"),
        (read_json, "3\n", "Line 1 of .* is int, not a JSON object"),
    ],
)
def test_broken_files(reader, content: str, message: str, write_file) -> None:
    with pytest.raises(InputError, match=message):
        reader(write_file(content))


def test_a_header_says_what_parts_the_fields(write_file) -> None:
    for mark in ("\t", ";", "|"):
        assert read_csv(write_file(f"text{mark}label\na, b{mark}1\n")).rows == [{"text": "a, b", "label": "1"}]
    assert read_csv(write_file("text,a;b\nx,1\n")).rows == [{"text": "x", "a;b": "1"}]


EXCEL = '{}Text;Wert;Klasse\r\n"Der Film; er war, ja, gut";3,5;gut\r\nSchlecht;-1,25;schlecht\r\n'


@pytest.mark.parametrize("before", ["", "\ufeff", "sep=;\r\n", "\ufeffsep=;\r\n", '\ufeff"sep=;"\r\n'])
def test_what_excel_exports(before: str, write_file) -> None:
    rows = read_csv(write_file(EXCEL.format(before)))
    assert rows.rows == [
        {"Text": "Der Film; er war, ja, gut", "Wert": "3,5", "Klasse": "gut"},
        {"Text": "Schlecht", "Wert": "-1,25", "Klasse": "schlecht"},
    ]
    assert rows.where(1).startswith(f"line {3 + ('sep' in before)} of")


def test_excel_s_line_counts_where_the_header_does_not_show_it(write_file) -> None:
    assert read_csv(write_file("sep=\t\r\na,b\tc\r\n1\t2\r\n")).rows == [{"a,b": "1", "c": "2"}]
    with pytest.raises(InputError, match=r"Line 4 of .* has 1 fields"):
        read_csv(write_file("sep=;\na;b\n1;2\n3\n"))
    with pytest.raises(InputError, match=r"Line 3 of .* is not valid CSV"):
        read_csv(write_file('sep=;\na;b\n"1;2\n'))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('"Text, as it came";label\na;1\n', ["Text, as it came", "label"]),
        ("text;score, in %;label\na, b;1,5;x\nc;2,5;y\n", ["text", "score, in %", "label"]),
        ("text\tsize; mm\na\t1\n", ["text", "size; mm"]),
        ("text\nwell; well\n", ["text"]),
        ("text\na|b\n", ["text"]),
        ('text\n"one, two"\n', ["text"]),
    ],
)
def test_what_parts_the_fields_is_no_part_of_a_name_or_a_text(content: str, names: list[str], write_file) -> None:
    assert list(read_csv(write_file(content)).rows[0]) == names


def test_the_index_of_pandas_has_its_name(write_file) -> None:
    assert read_csv(write_file(",text\n0,a\n")).rows == [{"Unnamed: 0": "0", "text": "a"}]
    with pytest.raises(InputError, match="should name the columns, each once"):
        read_csv(write_file("text,\na,b\n"))


def test_fields_of_any_length(write_file) -> None:
    import csv

    before = csv.field_size_limit()
    assert len(read_csv(write_file('text\n"' + "a" * 300_000 + '"\n')).rows[0]["text"]) == 300_000
    assert csv.field_size_limit() == before


TWO_READINGS = 'text{0}label\n"Great film{0}1\nPoor film"{0}0\nfine{0}1\n'


@pytest.mark.parametrize("mark", ["\t", ","])
def test_quotes_that_would_swallow_rows(mark: str, write_file) -> None:
    path = write_file(TWO_READINGS.format(mark))
    with pytest.raises(InputError, match=r"A quote on line 2 of .* \{quoting: 3\}"):
        read_csv(path, delimiter=mark)
    assert [row["label"] for row in read_csv(path, delimiter=mark, quoting=3).rows] == ["1", "0", "1"]
    assert read_csv(path, delimiter=mark, quoting=0).rows[0] == {"text": f"Great film{mark}1\nPoor film", "label": "0"}


def test_quotes_of_a_tab_separated_file(write_file) -> None:
    quoted = read_csv(write_file('text\tlabel\n"a ""b"" c"\t1\n"two\nlines"\t0\n'))
    assert [row["text"] for row in quoted.rows] == ['a "b" c', "two\nlines"]
    literal = read_csv(write_file('text\tlabel\n"a" b\t1\nc "d"\t0\n'))
    assert [row["text"] for row in literal.rows] == ['"a" b', 'c "d"']


def test_carriage_returns(write_file) -> None:
    assert read_csv(write_file("text,label\ra,1\rb,0\r")).rows == [
        {"text": "a", "label": "1"},
        {"text": "b", "label": "0"},
    ]
    assert read_csv(write_file('text,label\r\n"a\rb",1\r\n')).rows == [{"text": "a\rb", "label": "1"}]
    with pytest.raises(InputError, match="carriage returns within its lines"):
        read_csv(write_file("text,label\na\rb,1\n"))


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"text,label\na,1\n", mtime=0), "is packed with gzip, not text; unpack it first"),
        (b"PK\x03\x04rest", "is a zip archive or a spreadsheet"),
        (b"PAR1rest", r"is a Parquet file, not text; write it as JSON lines, .*pandas.read_parquet"),
        ("text,label\na,1\n".encode("utf-16"), "is UTF-16, not text; convert it with iconv -f utf-16"),
        ("text,label\na,1\n".encode("utf-16-le"), "Line 1 of .* holds NUL bytes"),
        (b'{"a": 1}\n{"a": 2}\nb\0,1\n', "Line 3 of .* holds NUL bytes"),
        (b"<!DOCTYPE html><html></html>", "is a web page, not text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_files_of_other_kinds_are_named(kind: str, content: bytes, message: str, write_file) -> None:
    with pytest.raises(InputError, match=message) as caught:
        READERS[kind](write_file(content))
    assert "latin1" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', "Line 2 of .* has the key 'a' twice"),
        ('{"a": {"b": 1, "b": 1}}\n', "Line 1 of .* has the key 'b' twice"),
        ('[{"a": 1},\n{"a": 1, "a": 2}]', "An object of .* has the key 'a' twice"),
        ('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}\n", "Line 1 of .* nests more than 50"),
        ('{"a": ' + "[" * 60 + "]" * 60 + "}\n", "Line 1 of .* nests more than 50"),
        ('{"a": ' + "9" * 5_000 + "}\n", "Line 1 of .* holds a number of thousands of digits"),
        ('{\n"a": 1\n}\n', "is one JSON object over several lines"),
    ],
)
def test_json_that_loses_or_breaks_something(content: str, message: str, write_file) -> None:
    with pytest.raises(InputError, match=message):
        read_json(write_file(content))


def test_brackets_in_text_are_no_nesting(write_file) -> None:
    row = {"a": "[" * 200 + '\\"{{' + "]", "b": [[1], [2]] * 100}
    assert read_json(write_file(json.dumps(row) + "\n")).rows == [row]


def test_parquet_has_its_types_and_no_words_for_what_is_missing(tmp_path: Path) -> None:
    table = pa.table({"id": ["007", "NA", None], "p": [0.5, None, 1.0], "m": pa.array([{"a": 1}, None, {"b": 2}])})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = read_parquet(tmp_path / "rows.parquet")
    assert [row["id"] for row in rows.rows] == ["007", "NA", None]
    assert [row["p"] for row in rows.rows] == [0.5, None, 1.0]
    assert rows.rows[0]["m"] == {"a": 1, "b": None}
    assert rows.where(1).startswith("row 1 of")
    maps = pa.table({"m": pa.array([[("a", 1.0)]], pa.map_(pa.string(), pa.float64()))})
    pyarrow.parquet.write_table(maps, tmp_path / "maps.parquet")
    assert read_parquet(tmp_path / "maps.parquet").rows == [{"m": {"a": 1.0}}]


def test_parquet_that_is_none_or_broken(tmp_path: Path, write_file) -> None:
    whole = tmp_path / "whole.parquet"
    pyarrow.parquet.write_table(pa.table({"a": list(range(1000))}), whole)
    for content in (b"", b"a,b\n1,2\n", whole.read_bytes()[:-20], b"PAR1" + bytes(100) + b"PAR1"):
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            read_parquet(write_file(content))
    with pytest.raises(InputError, match="There is no file"):
        read_parquet(tmp_path / "absent.parquet")
    pyarrow.parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), whole)
    with pytest.raises(InputError, match="name its columns, each once"):
        read_parquet(whole)
    pyarrow.parquet.write_table(pa.table({"a": []}), whole)
    with pytest.raises(InputError, match="has no rows"):
        read_parquet(whole)
