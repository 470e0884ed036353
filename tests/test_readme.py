"""What the README shows runs: its commands on a tiny model, its Python with the real one."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm.cli import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMAND_LINES = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    for line in block.splitlines()
    if language == "bash" and line.split("#")[0].strip()
]
PYTHON_BLOCKS = [block for language, block in BLOCKS if language == "python"]
SHORT = {
    "quickstart": ["--max_steps", "1", "--model_name_or_path", "BASE"],
    "finetune": ["--max_steps", "1", "--max_train_samples", "8", "--model_name_or_path", "BASE"],
    "distill": ["--max_steps", "1", "--max_train_samples", "8"],
    "evaluate": [],
}


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any
) -> Path:
    """A folder with the recipes, a model of twelve tiny layers, and a few rows in SST-2's own format."""
    tiny_causal_lm(layers=12, hidden=16).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    rows = "sentence\tlabel\n" + "".join(
        f"a {w} film {i}\t{w == 'good':d}\n" for i in range(8) for w in ("good", "bad")
    )
    (tmp_path / "data" / "SST-2").mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "data" / "SST-2" / name).write_text(rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_line_runs(workplace: Path) -> None:
    commands = [shlex.split(line) for line in COMMAND_LINES]
    assert ["make", "quickstart"] in commands
    assert ["make", "test"] in commands
    for words in commands:
        if words[0] == "make":
            dry = subprocess.run(
                ["make", "--no-print-directory", "-n", words[1]], cwd=REPOSITORY, capture_output=True, text=True
            )
            assert dry.returncode == 0, dry.stderr
            words = shlex.split(dry.stdout.splitlines()[-1])
            words[0] = Path(words[0]).name
            if words[0] != "sinkd":
                assert words[:3] == ["python", "-m", "pytest"]
                continue
        assert words[0] == "sinkd"
        extra = [str(workplace / "base") if word == "BASE" else word for word in SHORT[words[1]]]
        assert main([*words[1:], *extra]) == 0, words


def test_every_command_that_is_named_exists() -> None:
    pages = [README, *(p.read_text(encoding="utf-8") for p in sorted((REPOSITORY / "docs").glob("*.md")))]
    named = {name for page in pages for name in re.findall(r"`sinkd (\w+)", page)}
    assert named
    assert named <= set(COMMANDS)


def test_every_link_leads_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.real_model
@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_python_blocks_run(
    block: str, smollm2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out
