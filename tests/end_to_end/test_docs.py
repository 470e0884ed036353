"""What the pages show runs: shell lines on tiny models, Python as it stands but for fewer steps and rows.

A block below a line `<!-- not run: REASON -->` is passed over; these reasons are counted here. A command that several
pages show runs once.
"""

import contextlib
import dataclasses
import json
import os
import pkgutil
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import pytest

from sinkd_llm.cli import COMMANDS, main, quickstart
from tests.support.launch import REPOSITORY
from tests.support.models import decoder, encoder_or_encoder_decoder, marked_tokenizer, save, word_tokenizer
from tests.support.samples import SAMPLES

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "recipes" / "README.md"]
STUDENT = REPOSITORY / "docs" / "using_a_student.md"
# The log says what was found on a day, with the names of that day.
TODAY = [page for page in PAGES if page.name != "log.md"]
# Languages of blocks that are shown to be read, or that other tests use (tests/tasks/test_docs.py: files of a task).
SHOWN = {"", "json", "yaml"}
NOT_RUN = {
    "README.md": ["docs/using_a_student.md has the whole walk, which is run"],
    "docs/compare.md": ["starts a process for every run; tests/runs/test_compare.py"],
    "docs/extending.md": [
        "lines for divergences.py, which tests/end_to_end/test_docs.py puts there",
        "a piece of a program that has a trainer; tests/training/test_trainer.py does the same",
    ],
    "docs/large_models.md": ["needs several devices"],
    "docs/many_devices.md": ["needs several devices"],
    "docs/models.md": ["needs a teacher of your own; tests/training/test_layer_selection.py"],
    "docs/served_teachers.md": ["needs a server", "needs a server"],
    "docs/small_classifiers.md": ["needs a server", "needs files of your own; tests/runs/test_teacher_groups.py"],
    "recipes/README.md": ["needs a server", "needs the answers of a large model"],
    "docs/teacher_cache.md": ["needs several devices"],
    "docs/using_a_student.md": ["needs the server; tests/serving/test_page.py"],
    "docs/tasks.md": [
        "needs the data of several tasks; tests/tasks/test_expand.py",
        "needs a download; tests/tasks/test_lm_eval.py reads the same files",
    ],
}
# Added to every command of this name, to the recipes of the quickstart, and to the Python: little of everything.
ROWS = {"max_train_samples": 8, "max_eval_samples": 4}
TRAIN, SCORE = ([f"--{name}", str(count)] for name, count in ROWS.items())
FEW = ["--max_steps", "1", *TRAIN, *SCORE, "--overwrite_output_dir", "--check_saved", "false"]
SHORT = {
    "quickstart": ["--max_steps", "1"],
    "finetune": FEW,
    "distill": FEW,
    "cache": TRAIN,
    "evaluate": SCORE,
}
# The walk of docs/using_a_student.md needs held-out rows, so that it takes all of its few rows.
WALK = ["--max_steps", "2", "--overwrite_output_dir", "--check_saved", "false"]
ON_REVIEWS = {"finetune": WALK, "distill": WALK, "route": ["--target", "0.3"]}
# Flags of the other programs that the pages call: pip, accelerate, deepspeed, torchrun, lm_eval, llama_cpp.server.
FLAGS_OF_OTHERS = {"--no-deps", "--config_file", "--num_gpus", "--module", "--nproc_per_node"}
FLAGS_OF_OTHERS |= {"--include_path", "--tasks", "--model", "--model_args", "--kv_overrides"}
FLAGS_OF_OTHERS |= {"--n_ctx", "--logits_all"}
# What the pages name as wrong, or as yours.
WRONG_FLAGS = {"--lr", "--epochs", "--bs", "--teacher", "--beta"}
YOURS = {"recipes/mine.yaml"}


class Block(NamedTuple):
    page: str
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> str:
        return f"{self.page}: {self.text.strip().splitlines()[0]}"

    @property
    def commands(self) -> list[list[str]]:
        """The command lines of a shell block, as words; of a session those behind a `$`."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks_of(page: Path) -> list[Block]:
    pattern = r"(?:^ *<!-- not run: ([^\n]+) -->\n)?^( *)```(\w*)\n(.*?)^\2```$"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    name = str(page.relative_to(REPOSITORY))
    return [Block(name, language, textwrap.dedent(text), reason or None) for reason, _, language, text in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "console") and not block.reason]
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.reason]


def test_every_block_is_run_or_says_why_not() -> None:
    assert {block.language for block in BLOCKS} == {*SHOWN, "bash", "console", "python"}
    for page in PAGES:  # no fence was missed
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), page
    reasons: dict[str, list[str]] = {}
    for block in BLOCKS:
        if block.reason:
            reasons.setdefault(block.page, []).append(block.reason)
    assert reasons == NOT_RUN
    markers = sum(page.read_text(encoding="utf-8").count("<!-- not run") for page in PAGES)
    assert markers == sum(map(len, NOT_RUN.values())), "a marker stands directly above its block"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes, with a few rows of every task that the pages name, and with the files of tasks.md."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(REPOSITORY / "recipes", folder / "recipes")
    for recipe in quickstart.RECIPES.glob("*.yaml"):
        lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.split(":")[0] not in ROWS]
        text = "".join(kept) + "".join(f"{key}: {value}\n" for key, value in ROWS.items())
        (folder / recipe.name).write_text(text, encoding="utf-8")
    for task, train in (("sst2", "train.tsv"), ("rte", "train.tsv"), ("ag_news", "train.csv")):
        file = SAMPLES[task].write(folder / "data")
        shutil.copy(file, file.with_name(train))
    rows = (f"a {word} film {i}\t{word == 'good':d}\n" for i in range(8) for word in ("good", "bad"))
    sst2 = "sentence\tlabel\n" + "".join(rows)
    for name in ("train.tsv", "dev.tsv"):
        (folder / "data" / "SST-2" / name).write_text(sst2)
    shown = {block.language: block.text for block in reversed(blocks_of(REPOSITORY / "docs" / "tasks.md"))}
    (folder / "tickets.yaml").write_text(shown["yaml"])
    for name in ("tickets_train.jsonl", "tickets_dev.jsonl"):
        (folder / name).write_text(shown["json"])
    (folder / "reviews.yaml").write_text(next(b.text for b in blocks_of(STUDENT) if b.language == "yaml"))
    for name, count in (("reviews", 200), ("reviews_dev", 20), ("new_reviews", 4)):
        labels = (("positive", "negative")[i % 3 % 2] for i in range(count))
        lines = (f"a {('good', 'bad')[i % 2]} film {name} {i},{label}" for i, label in enumerate(labels))
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (folder / "tickets_raw.txt").write_text("The printer is on fire.\nWhere is my invoice?\n")
    (folder / "my_instructions").mkdir()
    for name in ("train", "val"):
        row = {"instruction": "Name a film.", "input": "", "output": "The plot."}
        (folder / "my_instructions" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models in place of the bundled ones."""
    folder = tmp_path_factory.mktemp("models")
    llama = decoder(layers=15, hidden=16, max_position_embeddings=512)
    bert = encoder_or_encoder_decoder("bert", "MaskedLM", layers=6)
    return {
        "smollm2-135m": save(folder / "decoder", llama, word_tokenizer()),
        "minilm-l6": save(folder / "encoder", bert, marked_tokenizer("bert")),
    }


Run = Callable[[list[str]], None]


@pytest.fixture(scope="module")
def run(folder: Path, tiny: dict[str, Path]) -> Run:
    """Runs a command line in the folder, once, with the tiny models, and a launch of several processes up to it."""
    from accelerate.commands import launch

    from sinkd_llm.models import BUNDLED

    done: list[list[str]] = []
    launched: list[Any] = []

    def run(words: list[str]) -> None:
        if words in done:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(launch, "launch_command", launched.append)
            patch.setattr(quickstart, "RECIPES", folder)
            for name, path in tiny.items():
                patch.setitem(BUNDLED, name, dataclasses.replace(BUNDLED[name], locate=lambda path=path: path))
            if words[0] == "python":
                patch.setattr("sys.argv", words[1:])
                runpy.run_path(words[1], run_name="__main__")
            elif words[:2] == ["sinkd", "serve"]:
                serve(words)
            else:
                assert words[0] == "sinkd", words
                launches = len(launched) + any("zero3" in word for word in words)
                short = ON_REVIEWS if any("reviews" in word for word in words) else SHORT
                assert main([*words[1:], *short.get(words[1], [])]) == 0, words
                assert len(launched) == launches
        done.append(words)

    return run


def serve(words: list[str]) -> None:
    """Runs a server until it has answered the question that the page puts to it."""
    (question,) = (command for block in SHELL for command in block.commands if command[0] == "curl")
    header, body = (question[question.index(flag) + 1] for flag in ("-H", "-d"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    request = Request(question[1].replace(":8000", f":{port}"), body.encode(), dict([header.split(": ")]))
    replies: list[Any] = []

    def ask() -> None:
        for _ in range(1200):
            with contextlib.suppress(OSError):  # it is not there yet, or not ready
                replies.append(json.load(urlopen(request, timeout=30)))
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    assert main([*words[1:], "--port", str(port)]) == 0
    asking.join()
    (answer,) = replies[0]["answers"]
    assert answer["choice"] in ("negative", "positive")


TEACHER = ["sinkd", "finetune", "--config", "recipes/sst2_teacher.yaml", "--data_dir", "data"]


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in SHELL))
def test_shell_blocks_run(page: str, run: Run) -> None:
    commands = [words for block in SHELL if block.page == page for words in block.commands]
    if any("sst2_" in word for words in commands for word in words):
        run(TEACHER)  # which the first page that is read says to train
    for words in commands:
        if words[0] == "curl":  # asked while the server runs
            continue
        if words[0] == "make":
            words = made_by(words[1])
            if words[0] != "sinkd":
                assert words[:3] == ["python", "-m", "pytest"]
                continue
        run(words)


def test_the_readme_begins_with_quickstart_and_test() -> None:
    first = next(block for block in SHELL if block.page == "README.md")
    assert first.commands == [["make", "quickstart"], ["make", "test"]]


def made_by(target: str) -> list[str]:
    """The last command of a target of the Makefile, without the folder of its program."""
    make = ["make", "--no-print-directory", "-n", target]
    dry = subprocess.run(make, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    words = shlex.split(dry.stdout.splitlines()[-1])
    return [Path(words[0]).name, *words[1:]]


def names_smollm2(block: Block) -> bool:
    return '"smollm2-135m"' in block.text


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, id=b.name, marks=[pytest.mark.real_model] if names_smollm2(b) else []) for b in PYTHON],
)
def test_python_blocks_run(
    block: Block,
    run: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    if names_smollm2(block):
        request.getfixturevalue("smollm2")  # or skips
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    if '"runs/quickstart/teacher"' in block.text:
        run(["sinkd", "quickstart"])
        (tmp_path / "runs" / "quickstart").symlink_to(folder / "runs" / "quickstart")
    elif '"runs/reviews-student"' in block.text:
        for words in [words for other in SHELL if other.page == block.page for words in other.commands][:2]:
            run(words)
        (tmp_path / "runs" / "reviews-student").symlink_to(folder / "runs" / "reviews-student")
    elif '"runs/student"' in block.text and "output_dir" not in block.text:
        flags = ["--teacher_model_name_or_path", "smollm2-135m", "--student_layers", "2", "--use_peft"]
        run(["sinkd", "distill", "--task", "quickstart", "--output_dir", "runs/student", *flags])
        (tmp_path / "runs" / "student").symlink_to(folder / "runs" / "student")
    text = re.sub(r"\bmax_steps=\d+", "max_steps=1", block.text)
    text = re.sub(r"\blimit=\d\d+", "limit=4", text)
    text = text.replace("TaskArguments(", "TaskArguments(**ROWS, ")
    capsys.readouterr()
    exec(compile(text, block.page, "exec"), {"__name__": "shown", "ROWS": ROWS})
    assert bool(capsys.readouterr().out) == ("print(" in block.text)


def test_the_divergence_of_extending_is_what_it_is_called() -> None:
    import torch

    from sinkd_llm.objectives import divergences

    block = next(block for block in BLOCKS if block.page == "docs/extending.md" and block.language == "python")
    function, line = block.text.split("\n\n")
    namespace = dict(vars(divergences))
    exec(compile(function, block.page, "exec"), namespace)
    (name, made), *others = eval("{" + line + "}", namespace).items()
    assert not others
    assert name not in divergences.DIVERGENCES
    torch.manual_seed(0)
    student_NV, teacher_NV = torch.randn(2, 5, 7, dtype=torch.float64)
    overlap_N = (student_NV.softmax(-1) * teacher_NV.softmax(-1)).sqrt().sum(-1)
    assert torch.allclose(made(student_NV, teacher_NV), 1 - overlap_N)  # the squared Hellinger distance


def test_every_command_and_target_that_is_named_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`sinkd (\w+)", text))
    assert named
    assert named <= set(COMMANDS)
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert {"quickstart", "test"} <= targets
    assert targets <= set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_list_of_commands_has_every_command() -> None:
    page = (REPOSITORY / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `sinkd (\w+)` \|", page, flags=re.MULTILINE)) == sorted(COMMANDS)


def test_every_flag_that_is_named_exists(capsys: pytest.CaptureFixture) -> None:
    known: dict[str, set[str]] = {}
    for command in COMMANDS:
        shows_all = command in ("finetune", "distill", "cache")
        with pytest.raises(SystemExit):
            main([command, "--help_all" if shows_all else "--help"])
        known[command] = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    # `env --estimate` and `compare` take the flags of their runs; `show` and `check` have help of their own.
    known["env"] |= known["distill"]
    known["compare"] |= known["distill"]
    for action in ("show", "check"):
        with pytest.raises(SystemExit):
            main(["tasks", action, "--help"])
        known["tasks"] |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    every = set().union(*known.values())
    for page in TODAY:
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text(encoding="utf-8")))
        assert flags <= every | FLAGS_OF_OTHERS | WRONG_FLAGS, page
    for block in BLOCKS:  # those that are not run, too
        if block.language in ("bash", "console"):
            for words in block.commands:
                if words[0] == "sinkd":
                    assert {word for word in words if word.startswith("--")} <= known[words[1]], words


ROOTS = "sinkd_llm|tests|docs|recipes|ds_configs|benchmarks|tools"


def test_every_path_and_module_that_is_named_exists() -> None:
    found = 0
    for page in TODAY:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(rf"(?<![\w.-])(?<!\.cache/)(?:{ROOTS})/[\w./-]*\w", text):
            found += 1
            there = re.sub(r"NAME\.\w+$", "", path)  # a file that the reader makes, in a folder that is there
            assert path in YOURS or (REPOSITORY / there).exists(), f"{page.name}: {path}"
        for module in re.findall(r"(?<![\w.])(?:sinkd_llm|tools)(?:\.\w+)+", text):
            assert pkgutil.resolve_name(module) is not None, f"{page.name}: {module}"
    assert found > 20


def test_every_name_in_extending_is_in_the_sources() -> None:
    files = [file for folder in ("sinkd_llm", "tests") for file in (REPOSITORY / folder).rglob("*.py")]
    words = {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    names = set(re.findall(r"`([A-Za-z_][\w.]*)`", without_blocks(REPOSITORY / "docs" / "extending.md")))
    assert len(names) > 15
    assert {name for name in names if not set(name.split(".")) <= words} == set()


def without_blocks(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def heading_links(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    for page in [*PAGES, *REPOSITORY.glob("*/README.md"), REPOSITORY / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in heading_links(file), f"{page.name}: {target}"
