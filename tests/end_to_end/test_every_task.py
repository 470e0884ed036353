"""Every built-in task trains two steps with a teacher with every kind of model that can do it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from sinkd_llm import SinKDTrainer, evaluate_task, load_task
from sinkd_llm.errors import InputError
from sinkd_llm.evaluation import ranking_metrics
from tests.support.models import train_tokenizer
from tests.support.samples import SAMPLES
from tests.support.trainers import short_config

TASKS = [*SAMPLES, "quickstart"]
# A head has the same classes for every row.
VARYING = ("copa", "record")
INSTRUCTIONS = [
    {"instruction": "Name a film.", "input": "", "output": "The plot."},
    {"instruction": "Is this good?", "input": "awful food", "output": "No, it is bad."},
]


@pytest.fixture(scope="session")
def task_tokenizer() -> Any:
    """One tokenizer for all tasks, which knows their answers."""
    from transformers import PreTrainedTokenizerFast

    choices = [choice for name in TASKS for choice in load_task(name).choices or SAMPLES[name].choices or ()]
    words = [before + choice.strip() for choice in choices for before in ("", "\n")]  # behind a space, and alone
    tokenizer = train_tokenizer(["<pad>", "<eos>", "<mask>"], words, vocab_size=900)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", mask_token="<mask>"
    )


def rows_of(name: str, folder: Path) -> tuple[Any, Dataset]:
    task = load_task(name)
    if name == "quickstart":
        return task, task.load("train", limit=4)
    SAMPLES[name].write(folder)
    return task, task.load("validation", data_dir=folder)


def two_steps(models: list[Any], tokenizer: Any, task: Any, rows: Dataset, folder: Path) -> SinKDTrainer:
    trainer = SinKDTrainer(
        model=models[0],
        teacher_model=models[1],
        args=short_config(folder, per_device_train_batch_size=2),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=ranking_metrics(task, rows) if "choices" in rows.column_names else None,
    )
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == 2
    assert all(np.isfinite(record[name]) for record in records for name in ("loss", "grad_norm", "sinkhorn"))
    metrics = trainer.evaluate()
    assert np.isfinite(metrics["eval_loss"])
    if "choices" in rows.column_names:
        assert {f"eval_{name}" for name in task.metric_names} <= metrics.keys()
        score = evaluate_task(trainer.model, tokenizer, task, rows, batch_size=1)
        assert metrics[f"eval_{task.metric_names[0]}"] == pytest.approx(score.metrics[task.metric_names[0]])
    return trainer


@pytest.mark.parametrize("name", TASKS)
def test_a_decoder(name: str, tiny_causal_lm: Callable[..., Any], task_tokenizer: Any, tmp_path: Path) -> None:
    models = [tiny_causal_lm(seed=seed, vocab=len(task_tokenizer)) for seed in (1, 2)]
    two_steps(models, task_tokenizer, *rows_of(name, tmp_path), tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_an_encoder_decoder(name: str, tiny_model: Callable[..., Any], task_tokenizer: Any, tmp_path: Path) -> None:
    models = [tiny_model("t5", seed=seed, vocab=len(task_tokenizer)) for seed in (1, 2)]
    two_steps(models, task_tokenizer, *rows_of(name, tmp_path), tmp_path)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in VARYING])
def test_a_classification_head(name: str, tiny_model: Callable[..., Any], task_tokenizer: Any, tmp_path: Path) -> None:
    task, rows = rows_of(name, tmp_path)
    classes = 1 if name == "stsb" else len(task.choices)
    # A fresh head predicts nearly one number for all rows. The correlation of nearly equal numbers magnifies the
    # rounding of fp32, which differs with the batch and the machine.
    models = [tiny_model("bert", seed=s, vocab=len(task_tokenizer), num_labels=classes).double() for s in (1, 2)]
    trainer = two_steps(models, task_tokenizer, task, rows, tmp_path)
    record = next(record for record in trainer.state.log_history if "loss" in record)
    # STS-B is a regression: its softmax would be constant and its loss 0.
    assert ("mse" in record) == (name == "stsb")
    assert record["sinkhorn"] > 0


@pytest.mark.parametrize("name", VARYING)
def test_answers_that_vary_are_no_classes(name: str, tiny_model: Any, task_tokenizer: Any, tmp_path: Path) -> None:
    task, rows = rows_of(name, tmp_path)
    models = [tiny_model("bert", seed=seed, vocab=len(task_tokenizer), num_labels=2) for seed in (1, 2)]
    with pytest.raises(InputError, match=r"different lists of choices|4 answer choices"):
        two_steps(models, task_tokenizer, task, rows, tmp_path)


@pytest.mark.parametrize("name", ["sst2", "rte", "mnli"])
def test_a_mask(name: str, tiny_model: Callable[..., Any], task_tokenizer: Any, tmp_path: Path) -> None:
    models = [tiny_model("bert", "MaskedLM", seed=seed, vocab=len(task_tokenizer)) for seed in (1, 2)]
    two_steps(models, task_tokenizer, *rows_of(name, tmp_path), tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "t5", "bert"])
def test_instructions_are_answered_freely(
    model_type: str, tiny_causal_lm: Any, tiny_model: Any, task_tokenizer: Any, tmp_path: Path
) -> None:
    task = load_task("instruct")
    examples = [task.render(row, index, "train") for index, row in enumerate(INSTRUCTIONS)]
    rows = Dataset.from_list([{"id": e.id, "prompt": e.prompt, "completion": e.completion} for e in examples])
    build = tiny_causal_lm if model_type == "llama" else tiny_model
    models = [build(model_type, seed=seed, vocab=len(task_tokenizer)) for seed in (1, 2)]
    if model_type == "bert":
        with pytest.raises(InputError, match="no answer choices"):
            two_steps(models, task_tokenizer, task, rows, tmp_path)
    else:
        two_steps(models, task_tokenizer, task, rows, tmp_path)


def test_a_regression_predicts_the_number(tiny_model: Any, task_tokenizer: Any, tmp_path: Path) -> None:
    """One output, between the smallest and the largest choice; the nearest choice is the answer."""
    from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
    from sinkd_llm.inputs.dataset import tokenize_dataset
    from sinkd_llm.inputs.reading import Reading
    from sinkd_llm.models.kinds import SupervisedRows, kind_of
    from sinkd_llm.models.kinds.choices import score_choices

    _, rows = rows_of("stsb", tmp_path)
    model = tiny_model("bert", vocab=len(task_tokenizer), num_labels=1)
    reader, collator = row_tokenizer(model, task_tokenizer, Reading()), row_collator(model, task_tokenizer)
    batch = collator(list(tokenize_dataset(rows, reader)))
    assert batch["labels"].tolist() == pytest.approx([target / 5 for target in rows["target"]])
    supervised = kind_of(model).supervised_rows(model, batch)
    assert supervised.logits_NV.shape == (len(rows), 1)

    ranking = collator(list(tokenize_dataset(rows, reader, ranking=True)))
    perfect = SupervisedRows(batch["labels"][:, None], batch["labels"], supervised.example_N, supervised.position_N)
    kind = SimpleNamespace(supervised_rows=lambda *_: perfect)
    scores = score_choices(kind, model, ranking).log_likelihood_BC
    assert scores.argmax(-1).tolist() == list(rows["label"])
