"""What is said of a teacher whose answers are balanced, and where its cache may be written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkd_llm import load_task
from sinkd_llm.cli.parsing import parse_recipe
from sinkd_llm.errors import InputError
from sinkd_llm.runs.cache import run_cache
from sinkd_llm.teachers import CachedTeacher
from tests.support.task_files import write_task

HARD = "leaves no probabilities to reweight"


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve rows of four teams, every third one positive."""
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "kept"))
    for split, count in (("train", 12), ("validation", 6)):
        rows = [{"text": f"{split} film {i}", "label": int(i % 3 == 0), "team": i % 4 + 1} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_task(tmp_path / "opinions.yaml", metadata={"version": 1, "texts": ["text"]})


def cached(task: Path, output: str, *words: str, **more: Any) -> CachedTeacher:
    settings = {"task": task, "use_cpu": "true", **more, "output": task.parent / output}
    given = [word for name, value in settings.items() for word in (f"--{name}", str(value))] + [*words]
    run_cache(*parse_recipe("cache", given)[:4], argv=given)
    return CachedTeacher(task.parent / output)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def scores(cache: CachedTeacher, task: Path) -> Any:
    names = load_task(task).load("train")["id"][:]
    return np.stack([cache.answers(names)[name] for name in names])


@pytest.fixture
def answers(task: Path) -> Path:
    """Each row's own answer, without probabilities."""
    lines = [f"{i},{('negative', 'positive')[i % 3 == 0]}" for i in range(12)]
    file = task.parent / "answers.csv"
    file.write_text("\n".join(["row,answer", *lines]) + "\n")
    return file


@pytest.fixture
def soft(task: Path) -> Path:
    file = task.parent / "soft.csv"
    file.write_text("row,negative,positive\n" + "".join(f"{i},{0.6 + i / 50},{0.4 - i / 50}\n" for i in range(12)))
    return file


def test_answers_without_probabilities_are_balanced_with_a_warning(
    task: Path, answers: Path, soft: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(task, "hard", teacher_file=answers, balance="uniform")
    assert f"Of 100% of the rows the teacher gives 0.99 or more to one answer, which {HARD}" in said(capsys)
    cached(task, "soft", teacher_file=soft, balance="uniform")
    assert HARD not in said(capsys)
    (task.parent / "counts.csv").write_text("team,negative,positive\n1,2,1\n2,2,1\n3,2,1\n4,3,0\n")
    grouped: dict[str, Any] = {"teacher_file": task.parent / "counts.csv", "group_column": "team"}
    cached(task, "counts", **grouped, balance="uniform")
    assert f"Of 100% of the rows the teacher gives 0.99 or more to one answer, which {HARD}" in said(capsys)
    # The prior that they have already changes none, and there is nothing to warn of.
    (task.parent / "prior.yaml").write_text("negative: 9\npositive: 3\n")
    cached(task, "same", **grouped, balance=task.parent / "prior.yaml")
    output = said(capsys)
    assert "answers follow the prior" in output
    assert "already, and are left as they are" in output
    assert HARD not in output


def test_a_balance_of_strength_0_says_that_nothing_is_changed(
    task: Path, soft: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = cached(task, "raw", teacher_file=soft)
    said(capsys)
    same = cached(task, "same", teacher_file=soft, balance="uniform", balance_strength=0)
    output = said(capsys)
    assert "balance_strength is 0: the teacher's answers are left as they are" in output
    assert "are balanced to" not in output
    assert "→" not in output
    np.testing.assert_array_equal(scores(same, task), scores(raw, task))


def test_a_cache_of_another_prior_is_refused_before_anything_is_asked(
    task: Path, soft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(task, "first", teacher_file=soft, balance="uniform")
    again = {"teacher_file": soft, "balance": "labels"}
    said(capsys)
    with pytest.raises(InputError, match=r"first holds a cache of something else \(teacher.loading: .*--overwrite"):
        cached(task, "first", **again)
    assert "answers 12 of 12" not in said(capsys)
    with pytest.raises(InputError, match=r"rows\.examples: 6 and 12"):
        cached(task, "first", teacher_file=soft, balance="uniform", max_train_samples=6)
    assert "answers 6 of 6" not in said(capsys)
    # The same goes on, and with --overwrite it is another one.
    cached(task, "first", teacher_file=soft, balance="uniform")
    cached(task, "first", "--overwrite", "true", **again)
    assert "labels" in CachedTeacher(tmp_path / "first").asked["balance"]
    # Of what is merged as well.
    raw = cached(task, "raw", teacher_file=soft)
    said(capsys)
    with pytest.raises(InputError, match="holds a cache of something else"):
        cached(task, "first", "--merge", str(raw.folder), balance="uniform")
    assert "balanced" not in said(capsys)


def test_a_cache_of_other_rows_or_of_groups_is_refused_before_and_the_same_goes_on(
    task: Path, soft: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (task.parent / "counts.csv").write_text("team,negative,positive\n1,2,1\n2,2,1\n3,2,1\n4,3,0\n")
    grouped: dict[str, Any] = {"teacher_file": task.parent / "counts.csv", "group_column": "team"}
    first = cached(task, "groups", **grouped, balance="uniform")
    assert first.asked["group_column"] == "team"
    assert cached(task, "groups", **grouped, balance="uniform").in_groups
    cached(task, "rows", teacher_file=soft, max_train_samples=6)
    said(capsys)
    with pytest.raises(InputError, match=r"holds a cache of something else \(rows\.hash"):
        cached(task, "rows", teacher_file=soft, max_train_samples=6, data_seed=7)
    with pytest.raises(InputError, match="holds a cache of something else"):
        cached(task, "groups", **grouped)
    assert "answers" not in said(capsys)
