"""The table of flags: it shows and refuses what the commands' own parsers do, and imports nothing heavy."""

import json
import subprocess
import sys

import pytest

from sinkd_llm.cli import flag_table
from sinkd_llm.cli.flag_table import TABLE, check_names, keep_table, table_parser, table_text
from sinkd_llm.cli.help_texts import hide_rare_flags
from sinkd_llm.cli.parsing import all_parsers
from sinkd_llm.environment import package_version
from sinkd_llm.errors import InputError

COMMANDS = ("finetune", "distill", "cache", "evaluate")
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "numpy"}


@pytest.fixture
def other_key(monkeypatch, tmp_path):
    """As if other versions were installed than the ones of the table that comes with the package."""
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(flag_table, "_key", lambda: "other")
    return tmp_path / "flags" / "other.json"


def test_the_table_that_comes_with_the_package_is_made_from_the_parsers():
    pins = (TABLE.parents[2] / "constraints.txt").read_text(encoding="utf-8").split()
    here = {name: f"{name}=={package_version(name)}" for name in ("transformers", "trl")}
    if not set(here.values()) <= set(pins):
        pytest.skip(f"the table is for the versions of constraints.txt, not for {here}")
    assert TABLE.read_text(encoding="utf-8") == table_text(all_parsers()), "run make docs"


def test_texts_of_other_packages_are_not_copied():
    flags = json.loads(TABLE.read_text(encoding="utf-8"))["flags"]
    assert flags["adam_beta2"][4] == {"of": "TrainingArguments"}
    assert flags["lora_alpha"][4] == {"of": "ModelConfig"}
    assert isinstance(flags["alpha"][4], str)


@pytest.mark.parametrize("columns", ["80", "160"])
@pytest.mark.parametrize("rare", [True, False])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_is_the_help_of_the_parser(command, rare, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    ours, real = table_parser(command, texts=True), all_parsers()[command]
    for parser in (ours, real):
        if not rare:
            hide_rare_flags(parser)
    assert ours.format_help() == real.format_help()
    assert ours._option_string_actions.keys() == real._option_string_actions.keys()


def test_other_versions_get_a_table_of_their_own(other_key):
    assert table_parser("distill", texts=True) is None
    assert check_names("distill", ["--no_such_flag"]) is None  # left to the real parser
    parsers = all_parsers()
    keep_table(parsers)
    assert table_parser("distill", texts=True).format_help() == parsers["distill"].format_help()
    written = other_key.stat().st_mtime_ns
    keep_table(parsers)
    assert other_key.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "content", ["", "{", '{"key": "other"}', '{"key": "other", "commands": {"distill": 1}}', "[]"]
)
def test_a_damaged_table_is_no_table(other_key, content):
    other_key.parent.mkdir()
    other_key.write_text(content)
    assert table_parser("distill", texts=False) is None
    keep_table(all_parsers())
    assert table_parser("distill", texts=False) is not None


def test_a_cache_folder_that_cannot_be_written_is_no_error(other_key, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "file"))
    keep_table(all_parsers())
    assert table_parser("distill", texts=False) is None


@pytest.mark.parametrize("command", ["finetune", "distill", "cache"])
@pytest.mark.parametrize(
    ("argv", "recipe"),
    [
        (["--sinkhorn_wight", "1"], ""),
        (["--lr", "1"], ""),
        (["–alpha", "1"], ""),
        (["recipe.yaml"], ""),
        ([], "alhpa: 0.5\n"),
        ([], "help: true\n"),
        ([], "- a\n"),
        (["--learning-rate"], ""),
        (["--config"], ""),
    ],
)
def test_wrong_names_are_refused_with_the_words_of_the_parser(command, argv, recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    words = [*argv, *(["--config", str(path)] if recipe else [])]
    said = []
    for check in (lambda: check_names(command, words), lambda: all_parsers()[command].parse(words)):
        with pytest.raises(InputError) as raised:
            check()
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_right_names_pass_with_any_value(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("alpha: much\nenv: {A: 1}\nlora_target_modules: [q, v]\n")
    check_names("distill", ["--config", str(path), "--divergence", "none-of-these", "--bf16", "--no-check-saved"])


@pytest.mark.parametrize(
    "argv",
    [["distill", "--help"], ["cache", "--help_all"], ["evaluate", "-h"], ["finetune", "--lrr", "1"], ["env", "--x"]],
)
def test_nothing_heavy_is_imported(argv):
    code = (
        f"import sys; from sinkd_llm.cli import main\ntry: main({argv!r})\nexcept SystemExit: pass\n"
        f"heavy = {HEAVY!r} & set(sys.modules); sys.exit(f'imported {{heavy}}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
