"""Rows: the text of a file is the text of the prompt, row by row, or the file is refused."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from sinkd_llm import load_task
from tests.support import values
from tests.support.properties import attempt, examples
from tests.support.task_files import TASK

TABLE_TEXTS = st.lists(values.texts.filter(lambda text: "\x00" not in text), min_size=1, max_size=5)
QUOTING = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE])
JSON = b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
CSV = b'text,label\na,0\n"b, c",1\n'
BOM = b"\xef\xbb\xbf"
WHOLE = [(JSON, "json"), (b"[" + JSON.replace(b"}\n{", b"}, {") + b"]", "json"), (BOM + JSON, "json")]
WHOLE += [(CSV, "csv"), (CSV.replace(b"\n", b"\r\n"), "csv"), (BOM + CSV, "csv")]
DEEP = b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b', "label": 0}\n'


@st.composite
def edited_files(draw: st.DrawFn) -> tuple[bytes, str]:
    """A file of two rows in which a few bytes are others, more or fewer; and its format."""
    whole, form = draw(st.sampled_from(WHOLE))
    start = draw(st.integers(0, len(whole)))
    new = draw(st.sampled_from([b"", b" ", b"x", b'"', b",", b"\n", b"0", b"}"]) | st.binary(max_size=3))
    return whole[:start] + new + whole[start + draw(st.integers(0, 2)) :], form


def load(folder: Path, name: str, form: str, **keys: Any) -> Any:
    data = {"data_files": {"train": name}, **keys}
    (folder / "mine.yaml").write_text(json.dumps({**TASK, "dataset_path": form, "dataset_kwargs": data}))
    return load_task(str(folder / "mine.yaml")).load("train")


def shown(prompt: str) -> str:
    """The text that the template has put between its own words."""
    return prompt.removeprefix("Review: ").removesuffix("\nSentiment:")


def encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@examples(60, 240)
@example(rows=[(None, 1)])
@example(rows=[(float("nan"), 1)])
@example(rows=[("\ud800", 1)])
@example(rows=[("a", 1), (["x"], 0)])
@given(rows=st.lists(st.tuples(values.json_values, st.integers(0, 1)), min_size=1, max_size=4))
def test_json_texts_reach_the_prompt(rows: list[Any], folder: Callable[[], Path], count: Any) -> None:
    where = folder()
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (where / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data, message = attempt(lambda: load(where, "rows.jsonl", "json"))
    if message is not None:
        assert "rows.jsonl" in message
        assert not all(isinstance(text, str) and encodable(text) for text, _ in rows), (rows, message)
        count("refused")
        return
    count("answered")
    assert list(data["label"]) == [label for _, label in rows]
    for (text, _), prompt in zip(rows, data["prompt"], strict=True):
        assert text is not None
        assert text == text, "NaN was rendered"
        if isinstance(text, str):
            assert shown(prompt) == text
        else:
            assert shown(prompt) in (str(text), json.dumps(text), json.dumps(text, ensure_ascii=False)), (text, prompt)


@examples(60, 240)
@example(texts=['"Great film', 'Poor film"', "fine"], delimiter="\t", quoting=csv.QUOTE_NONE)
@example(texts=["x" * 200_000], delimiter=",", quoting=csv.QUOTE_ALL)
@given(texts=TABLE_TEXTS, delimiter=st.sampled_from([",", "\t", ";", "|"]), quoting=QUOTING)
def test_tables_keep_their_rows(
    texts: list[str], delimiter: str, quoting: int, folder: Callable[[], Path], count: Any
) -> None:
    where = folder()
    if quoting == csv.QUOTE_NONE:
        # As GLUE writes its files: what would need a quote cannot stand in them.
        texts = [text.translate({ord(c): " " for c in f"{delimiter}\r\n"}) for text in texts]
        content = "".join(f"{text}{delimiter}{index % 2}\n" for index, text in enumerate(texts))
        content = f"text{delimiter}label\n{content}"
    else:
        if quoting == csv.QUOTE_MINIMAL:
            texts = [text.replace("\r", " ") for text in texts]  # Python 3.11 leaves it unquoted, which ends a line
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writerows([["text", "label"], *([text, index % 2] for index, text in enumerate(texts))])
        content = stream.getvalue()
    (where / "rows.csv").write_text(content, encoding="utf-8", newline="")
    data, message = attempt(lambda: load(where, "rows.csv", "csv", delimiter=delimiter))
    if message is not None:
        assert "rows.csv" in message
        ordinary = all(text.strip() and not set(text) & set("\"'\r\n") for text in texts)
        assert not ordinary, (texts, delimiter, quoting, message)
        count("refused")
        return
    count("answered")
    assert len(data) == len(texts), (texts, list(data["prompt"]))
    assert list(data["label"]) == [index % 2 for index in range(len(texts))]
    if all(text.lower() in ("true", "false") for text in texts):
        return  # a column of truth values is read as such, and shown as Python and `datasets` write them
    for text, prompt in zip(texts, data["prompt"], strict=True):
        # A file without quoting may give a text without its own quotes, but never another text.
        unquoted = text[1:-1].replace('""', '"') if text[:1] == text[-1:] == '"' else text
        assert shown(prompt) == text or (quoting == csv.QUOTE_NONE and shown(prompt) == unquoted), (text, prompt)


@examples(40, 120)
@example(content=b"\xff\xfet\x00e\x00x\x00t\x00")
@example(content=b"\x1f\x8b\x08\x00text")
@example(content=b'{"text": "a", "text": "b", "label": 0}\n')
@example(content=DEEP)
@example(content=b'{"text": "a", "label": ' + b"9" * 6_000 + b"}\n")
@example(content=b'{"text": "a", "label": 1e400}\n')
@given(content=st.binary(max_size=60) | values.texts.map(str.encode))
def test_any_bytes_are_rows_or_one_message(content: bytes, folder: Callable[[], Path], count: Any) -> None:
    for form in ("json", "csv"):
        read_bytes(folder(), content, form, count)


@examples(60, 300)
@given(edited=edited_files())
def test_an_edited_file_is_rows_or_one_message(
    edited: tuple[bytes, str], folder: Callable[[], Path], count: Any
) -> None:
    read_bytes(folder(), *edited, count)


def read_bytes(where: Path, content: bytes, form: str, count: Any) -> None:
    (where / f"rows.{form}").write_bytes(content)
    data, message = attempt(lambda: load(where, f"rows.{form}", form))
    count("answered" if message is None else "refused")
    if message is None:
        assert len(data) > 0
        assert b'"text": "a", "text"' not in content, "a key stands twice, and the last one won"
