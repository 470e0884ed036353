"""`sinkd recipes`, and `--config` with the name of one."""

import re
from importlib import metadata
from importlib.metadata import PackagePath

import pytest

from sinkd_llm.cli import main, shipped
from sinkd_llm.cli.recipe_file import read_config
from sinkd_llm.cli.recipes import about
from sinkd_llm.cli.shipped import find_recipe, recipes, shipped_files
from sinkd_llm.errors import InputError
from tests.support.launch import REPOSITORY


def test_every_recipe_is_listed_with_its_command_and_what_it_does(capsys):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    files = {file.stem for folder in ("recipes", "sinkd_llm/recipes") for file in (REPOSITORY / folder).glob("*.yaml")}
    assert {*re.findall(r"^(\w+)  \((?:finetune|distill|cache|, )+\)$", said, re.MULTILINE)} == files == {*recipes()}
    assert max(map(len, said.splitlines())) <= 80
    assert "An encoder teacher: MiniLM" in said


@pytest.mark.parametrize("name", sorted(recipes()))
def test_what_is_said_of_a_recipe_is_a_sentence(name):
    commands, what = about(recipes()[name])
    assert commands
    assert what.endswith(".")
    assert len(what) > 30
    assert "sinkd " not in what.replace("`sinkd quickstart`", "")


def test_a_recipe_is_printed_as_it_is(capsys):
    assert main(["recipes", "show", "minilm_teacher"]) == 0
    assert capsys.readouterr().out == (REPOSITORY / "recipes" / "minilm_teacher.yaml").read_text(encoding="utf-8")
    assert main(["recipes", "show", "minilm_teachr"]) == 2
    assert "Did you mean 'minilm_teacher'?" in capsys.readouterr().err


def test_a_name_is_a_recipe_and_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config("minilm_teacher")["model_name_or_path"] == "minilm-l6"
    (tmp_path / "minilm_teacher").write_text("task: sst2\n")
    assert read_config("minilm_teacher") == {"task": "sst2"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minilm_techer", r"no recipe that comes with the package\. Did you mean 'minilm_teacher'\?"),
        ("recipes/minilm_teacher.yaml", "give minilm_teacher, without folder and ending"),
        ("minilm_teacher.yaml", "give minilm_teacher, without folder and ending"),
    ],
)
def test_a_wrong_name_leads_to_the_right_one(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_recipe(name)


def test_an_installed_package_finds_its_files_by_its_record(tmp_path, monkeypatch):
    installed = []
    for name in (
        *("share/sinkd_llm/ds_configs/zero3.yaml", "share/sinkd_llm/ds_configs/zero3.json", "x/zero3.yaml"),
        *("share/sinkd_llm/recipes/mine.yaml", "sinkd_llm/recipes/quickstart.yaml"),
    ):
        path = PackagePath(name)
        path.dist = type("Record", (), {"locate_file": staticmethod(lambda p: tmp_path / str(p))})()
        installed.append(path)
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "site" / "sinkd_llm")
    monkeypatch.setattr(metadata, "files", lambda name: installed)
    assert shipped_files("ds_configs") == {"zero3": tmp_path / "share/sinkd_llm/ds_configs/zero3.yaml"}
    assert shipped_files("recipes") == {"mine": tmp_path / "share/sinkd_llm/recipes/mine.yaml"}
