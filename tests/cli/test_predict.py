"""`sinkd predict`: rows from files and pipes, answers as lines and tables, and what every mistake reads like."""

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm.answering.facts import StudentFacts, kept_keys
from sinkd_llm.answering.routing import Route
from sinkd_llm.cli import main
from sinkd_llm.files import whole_file
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.tasks import load_task
from tests.support import models
from tests.support.task_files import write_task

ROWS = "id,text\na,good film\nb,awful plot\nc,great\n"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("predict")
    model, tokenizer = models.encoder_or_encoder_decoder("bert"), models.marked_tokenizer("bert")
    folder = models.save(tmp_path / "student", model, tokenizer)
    task = load_task(write_task(tmp_path / "mine.yaml", metadata={"texts": ["text"]}))
    StudentFacts(kept_keys(task), Reading(64), route=Route(0.5, 0.98, "accuracy")).write(folder)
    return folder


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], None]:
    def fill(content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    return fill


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_table_becomes_lines(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    assert main(["predict", str(student), str(tmp_path / "rows.csv")]) == 0
    said = capsys.readouterr()
    found = lines(said.out)
    assert [row["id"] for row in found] == ["a", "b", "c"]
    for row in found:
        assert list(row) == ["id", "choice", "probability", "decision", "probabilities"]
        assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["choice"]]
        assert row["decision"] == "answer"
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert "Answering 3 rows" in said.err


def test_lines_become_a_table(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.txt").write_text("good film\nawful plot\n")
    output = tmp_path / "made" / "answers.csv"
    argv = ["predict", str(student), str(tmp_path / "rows.txt"), "--format", "csv", "--output", str(output)]
    assert main(argv) == 0
    assert capsys.readouterr().out == ""
    with output.open() as stream:
        found = list(csv.DictReader(stream))
    assert list(found[0]) == ["id", "choice", "probability", "decision", "p_negative", "p_positive"]
    assert [row["id"] for row in found] == ["0", "1"]
    assert float(found[0]["p_negative"]) + float(found[0]["p_positive"]) == pytest.approx(1, abs=1e-5)
    assert main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (ROWS, None),
        (ROWS.replace(",", ";"), None),
        ("good film\nawful plot\ngreat\n", None),
        ('{"text": "good film"}\n{"text": "awful plot"}\n{"text": "great"}\n', None),
        ('[{"text": "good film"}, {"text": "awful plot"}, {"text": "great"}]', None),
        ("good film\nawful plot\ngreat", "txt"),
    ],
)
def test_what_is_piped_in(student: Path, content: str, form: str | None, pipe, capsys) -> None:
    pipe(content)
    assert main(["predict", str(student), "-", *(["--input_format", form] if form else [])]) == 0
    said = capsys.readouterr()
    assert [row["choice"] in ("negative", "positive") for row in lines(said.out)] == [True] * 3
    assert ("standard input is read as" in said.err) == (form is None)


def test_labels_are_not_looked_at(student: Path, pipe, capsys) -> None:
    pipe('{"text": "good", "label": "neither"}\n{"text": "bad"}\n{"text": "great", "label": null}\n')
    assert main(["predict", str(student), "-"]) == 0
    assert len(lines(capsys.readouterr().out)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"text\n", "The file standard input has no rows"),
        (b"text,other\ngood,1\n,2\n", "no text on line 3"),
        (b"text\ngood\nb\xff d\n", "Line 3 of standard input is not UTF-8"),
        (b'{"text": "good"}\n{"txt": "bad"}\n', "line 2"),
        (b'{"text": "good"}\n{"text": \n', "not valid JSON"),
        (b"text,b\ngood,1\nbad\n", "1 fields, but 2"),
    ],
)
def test_rows_that_cannot_be_answered_stop_before_the_first_answer(
    student: Path, content: bytes, message: str, pipe, capsys, tmp_path: Path
) -> None:
    pipe(content)
    output = tmp_path / "answers.jsonl"
    assert main(["predict", str(student), "-", "--output", str(output)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert not list(tmp_path.iterdir())


def test_output_that_would_destroy_something(student: Path, tmp_path: Path, capsys) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(ROWS)
    os.link(rows, tmp_path / "link.csv")
    for output, message in (
        (rows, "file of the rows"),
        (tmp_path / "link.csv", "file of the rows"),
        (tmp_path, "is a folder"),
        (student / "answers.jsonl", "folder of the student"),
        (rows / "answers.jsonl", "which is a file"),
    ):
        assert main(["predict", str(student), str(rows), "--output", str(output), "--overwrite"]) == 2
        assert message in capsys.readouterr().err
    assert rows.read_text() == ROWS


def test_output_that_another_process_writes(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinkd_llm.answering import load

    (tmp_path / "rows.csv").write_text(ROWS)
    output = tmp_path / "answers.jsonl"
    argv = ["predict", str(student), str(tmp_path / "rows.csv"), "--output", str(output)]
    with whole_file(output) as stream:
        stream.write(b"theirs")
        assert main(argv) == 2
        assert f"Another process is writing {output}" in capsys.readouterr().err
    assert output.read_text() == "theirs"
    output.unlink()
    load_student = load.load_student

    def after_another(*args: Any, **settings: Any) -> Any:
        output.write_text("theirs")
        return load_student(*args, **settings)

    monkeypatch.setattr(load, "load_student", after_another)
    assert main(argv) == 2
    assert "is there already" in capsys.readouterr().err
    assert output.read_text() == "theirs"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.jsonl", "rows.csv"]


def test_an_interrupted_file_is_not_there(student: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from sinkd_llm.answering import answer_rows

    seen = []

    def stop(answer):
        seen.append(answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(answer_rows, "as_record", stop)
    (tmp_path / "rows.csv").write_text(ROWS)
    output = tmp_path / "answers.jsonl"
    assert main(["predict", str(student), str(tmp_path / "rows.csv"), "--output", str(output)]) == 130
    assert seen
    assert not output.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_choices_that_vary_have_no_columns(tmp_path: Path, pipe, capsys) -> None:
    folder = models.save(tmp_path / "student", models.decoder(), models.word_tokenizer())
    file = write_task(tmp_path / "mine.yaml", doc_to_choice="{{options}}")
    rows = '{"text": "good", "options": ["yes", "no", "film"]}\n{"text": "bad", "options": ["plot", "food"]}\n'
    pipe(rows)
    assert main(["predict", str(folder), "-", "--task", str(file), "--format", "csv"]) == 2
    assert "--format jsonl" in capsys.readouterr().err
    pipe(rows)
    assert main(["predict", str(folder), "-", "--task", str(file)]) == 0
    assert [len(row["probabilities"]) for row in lines(capsys.readouterr().out)] == [3, 2]


def test_a_route_that_was_taken_away(student: Path, tmp_path: Path, pipe, capsys) -> None:
    facts = StudentFacts.load(student)
    assert facts is not None
    replace(facts, route=None).write(student)
    try:
        pipe("good\n")
        assert main(["predict", str(student), "-"]) == 0
        assert "decision" not in lines(capsys.readouterr().out)[0]
    finally:
        facts.write(student)
