"""A small world in which commands run: a model, a task, rows; and what holds for every command that runs in it."""

import hashlib
import json
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.models import save
from tests.support.task_files import write_task

TEXTS = ("a good film", "a bad film", "the food was great", "the plot was awful", "not bad", "not good")
# C0 but tab, line feed and carriage return (progress), DEL, and C1: nothing of a file or flag may send these to a
# terminal.
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")


@dataclass
class World:
    """
    Inputs that a command may read, and a folder beside them in which it may write.

    Args:
        inputs (`Path`): holds `base` (a model), `task` (`mine.yaml` and its rows) and what tests add.
        scratch (`Path`): the working directory of every command.
    """

    inputs: Path
    scratch: Path
    made: int = 0

    @property
    def base(self) -> Path:
        return self.inputs / "base"

    @property
    def task(self) -> Path:
        return self.inputs / "task" / "mine.yaml"

    def new_folder(self) -> Path:
        """A path in `scratch` that nothing is at."""
        self.made += 1
        return self.scratch / f"run{self.made}"

    def fingerprint(self) -> dict[str, str]:
        """Each input file with a hash of its content."""
        files = sorted(file for file in self.inputs.rglob("*") if file.is_file())
        return {str(f.relative_to(self.inputs)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    def distill(self, *more: str, output: Path | None = None) -> list[str]:
        """A short distillation of two layers of `base`, on the task's rows."""
        return [
            *("distill", "--teacher_model_name_or_path", str(self.base), "--student_layers", "2"),
            *("--task", str(self.task), "--output_dir", str(output or self.new_folder()), "--max_steps", "2"),
            *("--per_device_train_batch_size", "4", "--max_length", "64", "--use_peft", "--lora_r", "2"),
            *("--use_cpu", "true", "--report_to", "none", *more),
            *(() if "--save_strategy" in more else ("--save_strategy", "no")),
        ]


def build_world(root: Path, tiny_causal_lm: Any, tiny_tokenizer: Any) -> World:
    """Writes the inputs."""
    world = World(root / "inputs", root / "scratch")
    world.scratch.mkdir()
    save(world.base, tiny_causal_lm(layers=3), tiny_tokenizer)
    write_task(world.task, [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)])
    return world


@dataclass(frozen=True)
class Answer:
    """What a command did: its exit code and its two streams."""

    code: int
    out: Path
    err: Path
    argv: list[str]

    @property
    def message(self) -> str:
        """The one error line of a refused command."""
        errors = re.findall(r"^sinkd: error.*$", self.text(self.err), flags=re.MULTILINE)
        assert len(errors) == 1, f"{len(errors)} error lines: {self}"
        return str(errors[0])

    @staticmethod
    def text(file: Path) -> str:
        return file.read_bytes().decode("utf-8", errors="replace")

    def __str__(self) -> str:
        return f"{self.argv} gave {self.code}\n{self.text(self.out)}\n{self.text(self.err)}"

    def checked(self, before: dict[str, str], after: dict[str, str]) -> "Answer":
        """Asserts that nothing was lost and nothing was a traceback."""
        assert after == before, f"inputs were changed: {self}"
        assert self.code in (0, 2), str(self)
        assert b"Traceback" not in self.err.read_bytes() + self.out.read_bytes(), str(self)
        for file in (self.out, self.err):
            assert not _CONTROL.search(file.read_bytes()), f"control characters: {self}"
        if self.code == 2:
            assert len(self.message) > len("sinkd: error: "), str(self)
            assert len(self.message) < 2_000, str(self)
        return self


def assert_right_run(folder: Path) -> None:
    """Asserts that a finished run holds finite scores, losses and weights."""
    import torch
    from safetensors.torch import load_file

    results = json.loads((folder / "results.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    assert results["rows"]
    for row in results["rows"]:
        assert all(math.isfinite(value) for value in row["metrics"].values()), results
    assert math.isfinite(results["training"]["loss"]), results
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=_refuse)
    files = list(folder.rglob("*.safetensors"))
    assert files
    for file in files:
        assert all(torch.isfinite(tensor.float()).all() for tensor in load_file(file).values()), file


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in a record of a finished run")


def places(world: World) -> dict[str, str]:
    """Files and folders that a command reads, or that are somebody's, in the ways that people write them."""
    base, task = world.base, world.task.parent
    link = world.scratch / "link"
    if not link.is_symlink():
        link.symlink_to(base)
    return {
        **{"teacher": str(base), "with a slash": f"{base}/", "doubled": f"{base}//", "link": "link"},
        **{"relative": str(Path("..") / "inputs" / "base"), "dots": f"{base}/../base", "inside": str(base / "new")},
        **{"around": str(world.inputs), "above": str(world.inputs.parent), "root": "/"},
        **{"file": str(base / "config.json"), "below a file": str(base / "config.json" / "x")},
        **{"task": str(task), "data": str(task / "train.jsonl"), "task file": str(world.task)},
    }


def damage(file: Path, seed: int) -> None:
    """Does to a file what disks, editors and half copies do."""
    draw = random.Random(seed)
    content = file.read_bytes()
    kinds = ["cut", "flip", "empty"] + ["values"] * 3 * (file.suffix == ".json")
    kind = draw.choice(kinds) if content else "flip"
    if kind == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "flip":
        place = draw.randrange(len(content)) if content else 0
        byte = content[place] if content else 0
        file.write_bytes(content[:place] + bytes([byte ^ (1 << draw.randrange(8))]) + content[place + 1 :])
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        file.write_text(_changed_json(json.loads(content), draw), encoding="utf-8")


def _changed_json(content: Any, draw: random.Random) -> str:
    """JSON in which one value, of the first or second level, is another one or gone."""
    odd: list[Any] = [None, [], {}, [1], "x", -1, 0, 1e30, 10**12, True, {"a": 1}, ["x", None]]
    if not isinstance(content, dict) or not content or draw.random() < 0.1:
        return json.dumps(draw.choice(odd))
    nested = [value for value in content.values() if isinstance(value, dict) and value]
    target = draw.choice(nested) if nested and draw.random() < 0.3 else content
    key = draw.choice(sorted(target))
    if draw.random() < 0.2:
        del target[key]
    else:
        target[key] = draw.choice(odd)
    return json.dumps(content)
