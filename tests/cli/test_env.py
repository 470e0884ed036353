"""`sinkd env`: every extra of the package, and what is missing of it."""

import tomllib
from pathlib import Path

import pytest

from sinkd_llm.cli import env, main
from tests.support.launch import REPOSITORY


def test_every_extra_has_a_purpose() -> None:
    project = tomllib.loads((Path(REPOSITORY) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*env.PURPOSES} == {*project["optional-dependencies"]}


def test_what_is_missing_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert env.extras()["export"] == ["onnx", "onnxruntime", "onnxscript"]
    present = {"onnx": "1.2"}
    monkeypatch.setattr(env, "package_version", present.get)
    assert main(["env"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "export missing onnxruntime, onnxscript: pip install 'sinkd-llm[export]' (students for ONNX" in said
    present |= {"onnxruntime": "1.3", "onnxscript": "0.5"}
    assert main(["env"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "export onnx 1.2, onnxruntime 1.3, onnxscript 0.5 (students" in said
    assert "serve missing fastapi" in said
