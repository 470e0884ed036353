"""What docs/using_a_student.md shows of a server is what a server does."""

import json
import re
import shlex
from dataclasses import fields
from http.client import HTTPConnection
from pathlib import Path

import pytest

from sinkd_llm.answering.calibration import Calibration
from sinkd_llm.answering.routing import Route
from sinkd_llm.serving.limits import ServeLimits
from tests.support.launch import REPOSITORY
from tests.support.served import running
from tests.support.students import save_student

SECTION = (
    (REPOSITORY / "docs" / "using_a_student.md").read_text(encoding="utf-8").split("\n## Serve")[1].split("\n## ")[0]
)


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, flags=re.DOTALL)[number]


def test_the_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"calibration": Calibration(2.0), "route": Route(0.5, 0.98, "accuracy")}
    with running(save_student(tmp_path / "student", "classifier", **facts)) as (_, port):
        capsys.readouterr()  # what libraries print while they are loaded
        exec(block("python").replace(":8000", f":{port}"), {})
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["a", "b"]
        words = shlex.split(block("bash", 1))
        assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/decisions"]
        header, body = (words[words.index(flag) + 1] for flag in ("-H", "-d"))
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/decisions", body, dict([header.split(": ")]))
        reply, shown = json.loads(connection.getresponse().read()), json.loads(block("json"))
        assert list(reply) == list(shown)
        assert list(reply["answers"][0]) == list(shown["answers"][0])
        assert list(reply["answers"][0]["probabilities"]) == list(shown["answers"][0]["probabilities"])
        connection.close()


def test_the_limits_and_refusals_are_those_of_the_code() -> None:
    shown = dict(re.findall(r"^\| `--(\w+)`[^|]*\| ([^|]+) \|", SECTION, flags=re.MULTILINE))
    defaults = {field.name: field.default for field in fields(ServeLimits)}
    assert {name: defaults[name] for name in shown} == {
        name: 1_000_000 if value == "1 MB" else float(value.replace(",", "")) for name, value in shown.items()
    }
    assert {*defaults} - {*shown} == {"max_batch", "max_wait_ms"}
    folder = REPOSITORY / "sinkd_llm" / "serving"
    code = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    kinds = set(re.findall(r"Refusal\(\s*[\w.]+,\s*\"(\w+)\"", code))
    assert kinds >= {"too_long", "queue_full", "own_choices", "wrong_row", "internal"}
    assert kinds <= set(re.findall(r"`(\w+)`", SECTION))
