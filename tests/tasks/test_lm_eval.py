"""The same file gives the same prompts, choices and gold answers in lm-evaluation-harness (extra `eval`)."""

from pathlib import Path
from typing import Any

import datasets
import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from sinkd_llm.tasks import Task, list_tasks, load_task
from sinkd_llm.tasks.loading import SPLIT_KEYS, load_rows
from tests.support.samples import SAMPLES

PROMPTS = [(info.name, prompt) for info in list_tasks() for prompt in info.prompts]
# No real files of these are here: the samples of the tests stand in.
WITHOUT_FILES = ("cb", "mnli_mismatched", "mrpc", "trec")
FOLDERS = {"instruct": "instruct-rasbt"}


def assert_same(task: Task, rows: dict[str, list[dict[str, Any]]], monkeypatch: Any) -> None:
    """Compares every validation row; lm-evaluation-harness gets the rows in place of the hub's."""
    from lm_eval.tasks import TaskManager

    hub = datasets.DatasetDict(
        {task.config[SPLIT_KEYS[split]]: datasets.Dataset.from_list(r) for split, r in rows.items()}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: hub)
    manager = TaskManager(include_path=str(task.path.parent), include_defaults=False)
    theirs = manager.load([task.name])["tasks"][task.name]
    assert len(theirs.eval_docs) == len(rows["validation"])
    for index, doc in enumerate(theirs.eval_docs):
        ours = task.render(rows["validation"][index], index, "validation")
        prefix = theirs.doc_to_prefix(doc)
        context = theirs.fewshot_context(doc, 0, gen_prefix=prefix)
        requests = theirs.construct_requests(doc, context)
        target = theirs.doc_to_target(doc)
        if task.output_type == "generate_until":
            assert requests.args[0] == ours.prompt
            assert f"{theirs.config.target_delimiter}{target}" == ours.completion
            continue
        assert [request.args for request in requests] == [(ours.prompt, c) for c in ours.choices]
        words = theirs.doc_to_choice(doc)
        assert (words.index(target) if isinstance(target, str) else int(target)) == ours.label


@pytest.mark.parametrize(("name", "prompt"), [case for case in PROMPTS if case[0] not in WITHOUT_FILES])
def test_real_rows(name: str, prompt: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(prompt)
    folder = data_dir / FOLDERS.get(name, "")
    rows = {
        split: list(load_rows(task.config, task.path, split, folder).rows[:60]) for split in ("train", "validation")
    }
    assert_same(task, rows, monkeypatch)


@pytest.mark.parametrize(("name", "prompt"), [case for case in PROMPTS if case[0] in SAMPLES])
def test_samples(name: str, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SAMPLES[name].hub
    assert_same(load_task(prompt), {"train": rows, "validation": rows}, monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "Answer the question.\n\n"},
        {"description": "{{answers | length}} answers: ", "doc_to_text": "text"},
        {"gen_prefix": "I say"},
        {"gen_prefix": "{{gold}}", "doc_to_text": "{{text}}\n"},
        {"doc_to_choice": "answers"},
        {"doc_to_choice": "{{answers}}", "doc_to_target": "gold"},
        {"doc_to_choice": {"A": "no", "B": "yes"}, "doc_to_target": "{{1 - label}}"},
        {"doc_to_text": "{{text | regex_replace('[Qq]', 'k')}}\n", "target_delimiter": "\n"},
        {"doc_to_target": 0, "target_delimiter": ""},
    ],
)
def test_schema(changes, make_task, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"text": "Question?", "label": 1, "answers": ["maybe", "never"], "gold": "never"},
        {"text": "query", "label": 0, "answers": ["a", "b"], "gold": "a"},
    ]
    assert_same(make_task(**changes), {"train": rows, "validation": rows}, monkeypatch)
