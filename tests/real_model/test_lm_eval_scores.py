"""A saved student scores the same here and in lm-evaluation-harness (extra `eval`), row by row."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkd_llm import evaluate_task, load_model, load_task, load_tokenizer
from sinkd_llm.models import save_student

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `eval` is not installed")

NUM_ROWS = 200
# A second file that reads local rows, as a user would write it.
LOCAL = {
    "dataset_path": "json",
    "dataset_name": None,
    "training_split": "train",
    "validation_split": "validation",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


def sentences() -> list[dict[str, Any]]:
    path = load_task("quickstart").path.parent / "validation.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:NUM_ROWS]
    return [json.loads(line) for line in lines]


def sst2_rows() -> list[dict[str, Any]]:
    return [{"sentence": row["text"], "label": row["label"]} for row in sentences()]


def copa_rows() -> list[dict[str, Any]]:
    """Choices of several tokens each."""
    texts = [row["text"] for row in sentences()]
    return [
        {
            "premise": f"{text.capitalize()}.",
            "choice1": f"{texts[i - 1].capitalize()}.",
            "choice2": f"{texts[i - 2][: len(texts[i - 2]) // 2].capitalize()}.",
            "question": ("cause", "effect")[i % 2],
            "label": i // 2 % 2,
        }
        for i, text in enumerate(texts)
    ]


def local_task(name: str, rows: list[dict[str, Any]], folder: Path) -> Any:
    """The task over `rows`, by a file that includes the built-in one."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "include": str(load_task(name).path),
        "task": f"{name}_local",
        **LOCAL,
        "dataset_kwargs": {"data_files": {"train": str(file), "validation": str(file)}},
    }
    path = folder / f"{name}_local.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return load_task(str(path))


def compare(name: str, student: Path, folder: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = {"sst2": sst2_rows, "copa": copa_rows}[name]()
    assert len(rows) == NUM_ROWS
    task = local_task(name, rows, folder)
    ours = evaluate_task(load_model(student), load_tokenizer(student), task, task.load("validation"))
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(student), "dtype": "float32"},
        tasks=[task.name],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=16,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(theirs["samples"][task.name], key=lambda sample: sample["doc_id"])
    assert len(samples) == NUM_ROWS
    scores = [[float(score) for score, _ in sample["filtered_resps"]] for sample in samples]
    np.testing.assert_allclose(ours.log_likelihoods, scores, atol=1e-3, rtol=1e-5)
    assert ours.predictions == [int(np.argmax(row)) for row in scores]
    assert 0 < sum(ours.predictions) < NUM_ROWS
    results = theirs["results"][task.name]
    assert ours.metrics["acc"] == pytest.approx(results["acc,none"])
    assert ours.metrics["acc_norm"] == pytest.approx(results["acc_norm,none"])


@pytest.mark.parametrize("name", ["sst2", "copa"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_scores(name: str, family: str, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    import torch

    model = tiny_causal_lm(family, seed=1, max_position_embeddings=512)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)  # decided predictions
    save_student(model, tiny_tokenizer, tmp_path / "student")
    compare(name, tmp_path / "student", tmp_path)


@pytest.mark.real_model
def test_the_same_scores_of_a_real_model(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = smollm2
    save_student(model, tokenizer, tmp_path / "student")
    compare("sst2", tmp_path / "student", tmp_path)
