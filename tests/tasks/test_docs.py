"""The task that docs/tasks.md shows works as shown, and its tables name what exists."""

import re
from pathlib import Path

import pytest

from sinkd_llm.metrics import CHOICE_METRICS, TEXT_METRICS
from sinkd_llm.tasks import list_tasks, load_task
from sinkd_llm.tasks.schema import FORMATS, METADATA, METADATA_LOCAL, METADATA_SCORING, SUPPORTED

DOCS = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, flags=re.DOTALL)


def test_own_task_and_variant(tmp_path: Path) -> None:
    main, variant = blocks("yaml")[:2]
    (tmp_path / "tickets.yaml").write_text(main)
    (tmp_path / "tickets_question.yaml").write_text(variant)
    (tmp_path / "tickets_train.jsonl").write_text(blocks("json")[0])
    rows = load_task(tmp_path / "tickets.yaml").load("train")
    assert rows["completion"] == [" billing", " shipping"]
    assert rows["prompt"][0] == "Ticket: I was charged twice.\nTeam:"
    other = load_task(tmp_path / "tickets_question.yaml").load("train")
    assert other["prompt"][0].startswith("I was charged twice.\nWho should")


@pytest.mark.parametrize(
    ("index", "output"), [(0, "Review: "), (1, " -1"), (2, "total=0"), (3, "'pearson': 0.8"), (4, "0.675")]
)
def test_python_example_runs(index: int, output: str, capsys) -> None:
    exec(blocks("python")[index], {})
    assert output in capsys.readouterr().out


def test_tables_are_complete() -> None:
    for info in list_tasks():
        assert all(f"`{prompt}`" in DOCS for prompt in info.prompts)
        assert info.dataset == "json" or f"`{info.dataset}`" in DOCS
    assert all(f"`{key}`" in DOCS for key in SUPPORTED)
    assert all(f"`{name}`" in DOCS for name in (*CHOICE_METRICS, *TEXT_METRICS, *METADATA_SCORING))
    assert all(name in blocks("yaml")[2] for name in FORMATS)
    assert all(f"{key}:" in blocks("yaml")[2] for key in (*METADATA, *METADATA_LOCAL))
