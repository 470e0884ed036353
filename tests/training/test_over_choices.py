"""Training over the answer choices: any kind of teacher and student, rows without a label or without a teacher."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor

from sinkd_llm import SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.teachers import LocalTeacher
from sinkd_llm.teachers.contract import TeacherRows
from sinkd_llm.training.transport_cost import predict
from tests.support import naive
from tests.support.over_choices import BOTH, naive_loss, naive_scores
from tests.support.rows import opinions, regression_rows
from tests.support.trainers import gradients, microbatches, short_config

# Two words of several tokens, and one of one: trees with branches.
CHOICES = [" not a good film", " great", " not bad"]


def three_choices(count: int = 6, unlabelled: tuple[int, ...] = ()) -> Dataset:
    rows = []
    for i, row in enumerate(opinions(count)):
        label = -1 if i in unlabelled else i % 3
        rows.append({**row, "choices": CHOICES, "label": label, "completion": "" if label < 0 else CHOICES[label]})
    return Dataset.from_list(rows)


@pytest.fixture
def models(tiny_model: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, marked_tokenizer: Any) -> Callable[..., Any]:
    """A model in fp64 and its tokenizer, by kind."""

    def make(kind: str, seed: int, labels: int = 3) -> tuple[Any, Any]:
        if kind == "decoder":
            return tiny_causal_lm(seed=seed).double(), tiny_tokenizer
        family = {"encoder": "bert", "masked": "roberta", "encoder-decoder": "t5"}[kind]
        head = {"encoder": "SequenceClassification", "masked": "MaskedLM", "encoder-decoder": ""}[kind]
        more = {"num_labels": labels} if kind == "encoder" else {}
        return tiny_model(family, head, seed=seed, **more).double(), marked_tokenizer(family)

    return make


PAIRS = [
    ("decoder", "encoder"),
    ("encoder", "decoder"),
    ("encoder-decoder", "encoder"),
    ("encoder", "encoder-decoder"),
    ("decoder", "encoder-decoder"),
]


@pytest.mark.parametrize(("teacher_kind", "student_kind"), PAIRS, ids=str)
@pytest.mark.parametrize("unlabelled", [(), (1, 4)], ids=["labelled", "some without a label"])
def test_loss_and_gradient_are_those_of_one_forward_a_choice(
    tmp_path: Path, models: Any, teacher_kind: str, student_kind: str, unlabelled: tuple[int, ...]
) -> None:
    (teacher, theirs), (student, ours) = models(teacher_kind, 2), models(student_kind, 1)
    rows = three_choices(unlabelled=unlabelled)
    arguments = {"model": student, "teacher_model": teacher, "processing_class": ours, "train_dataset": rows}
    trainer = SinKDTrainer(
        **arguments,
        teacher_processing_class=theirs,
        args=short_config(tmp_path, signal="choices", **BOTH),
    )
    loss, gradient = update(trainer, [len(rows)])
    scores = torch.stack([naive_scores(student, ours, student_kind, row) for row in rows])
    with torch.no_grad():
        targets = torch.stack([naive_scores(teacher, theirs, teacher_kind, row) for row in rows])
    expected = naive_loss(scores, targets, rows["label"], list(range(len(rows))))
    student.zero_grad()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    twin = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in student.parameters()])
    # Llama and T5 normalise in fp32, whatever their weights are.
    atol = 1e-10 if student_kind == "encoder" else 5e-7
    torch.testing.assert_close(gradient, twin, rtol=1e-7, atol=atol)


def update(trainer: SinKDTrainer, sizes: list[int]) -> tuple[float, Tensor]:
    """Loss and gradient of one accumulation window."""
    batches = microbatches(trainer, sizes)
    trainer.open_window(batches)
    return gradients(trainer, batches)


class Forgetful(LocalTeacher):
    """A teacher that has nothing to say of some rows."""

    silent = ("opinion-0", "opinion-3")

    def signal(self, batch: Mapping[str, Any]) -> TeacherRows:
        whole = super().signal(batch)
        names = enumerate(batch["example_id"])
        kept = torch.tensor([i for i, name in names if name not in self.silent], dtype=torch.long)
        assert isinstance(whole.signal, Tensor)
        return TeacherRows(whole.signal[kept], whole.position_N[kept], kept)

    def count(self, batch: Mapping[str, Any]) -> int:
        return sum(name not in self.silent for name in batch["example_id"])


@pytest.mark.parametrize("sizes", [[6], [1, 2, 3]], ids=str)
def test_each_term_counts_its_own_rows_however_they_are_batched(tmp_path: Path, models: Any, sizes: list[int]) -> None:
    (teacher, theirs), (student, ours) = models("decoder", 2), models("encoder", 1)
    rows = three_choices(unlabelled=(1, 3, 4))
    arguments = {"model": student, "teacher_model": teacher, "processing_class": ours, "train_dataset": rows}
    trainer = SinKDTrainer(
        **arguments,
        teacher_processing_class=theirs,
        args=short_config(tmp_path, **{**BOTH, "transport_scope": "sequence"}),
    )
    forgetful = Forgetful(teacher, choices="sum")
    trainer.forward.teacher = forgetful
    loss, _ = update(trainer, sizes)
    with torch.no_grad():
        scores = torch.stack([naive_scores(student, ours, "encoder", row) for row in rows])
        targets = torch.stack([naive_scores(teacher, theirs, "decoder", row) for row in rows])
        known, taught = [0, 2, 5], [1, 2, 4, 5]
        labels = torch.tensor([rows["label"][i] for i in known])
        expected = (1 - BOTH["alpha"]) * naive.cross_entropy(scores[known], labels).mean()
        s, t, T = scores[taught], targets[taught], BOTH["temperature"]
        expected += BOTH["alpha"] * T**2 * naive.divergence("kl", s, t, T).mean()
        sides = [naive.softmax(x, BOTH["sinkhorn_temperature"]) for x in (s, t)]
        each = [naive.cost(a[None], b[None]) for a, b in zip(*sides, strict=True)]
        expected += BOTH["sinkhorn_weight"] * torch.stack(each).mean()
    assert loss == pytest.approx(float(expected), rel=1e-9)


def test_auto_takes_choices_where_tokens_cannot_be_compared_and_says_why(
    tmp_path: Path, models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (teacher, theirs), (student, ours) = models("decoder", 2, 2), models("encoder", 1, 2)
    arguments = {"model": student.float(), "teacher_model": teacher.float(), "processing_class": ours}
    arguments |= {"train_dataset": opinions(), "eval_dataset": opinions(8, 100)}
    with caplog.at_level(logging.WARNING):
        trainer = SinKDTrainer(**arguments, teacher_processing_class=theirs, args=short_config(tmp_path))
    assert "over the answer choices, for the teacher is a decoder-only model and the student an encoder" in caplog.text
    trainer.train()
    record = next(r for r in trainer.state.log_history if "loss" in r)
    weights = {"ce": 0.1, "kl": 0.9, "sinkhorn": 0.8}
    assert record["loss"] == pytest.approx(sum(weights[name] * record[name] for name in weights), rel=1e-4)
    assert 0 <= trainer.evaluate()["eval_agreement"] <= 1
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "config.json").is_file()


def test_one_tokenizer_stays_with_tokens(train: Callable[..., SinKDTrainer]) -> None:
    assert not train().teacher.over_choices  # type: ignore[union-attr]
    assert train(signal="choices").teacher.over_choices  # type: ignore[union-attr]


def test_tokens_of_two_tokenizers_are_refused_and_choices_named(tmp_path: Path, models: Any) -> None:
    (teacher, _), (student, ours) = models("decoder", 2, 2), models("encoder", 1, 2)
    arguments = {"model": student, "teacher_model": teacher, "processing_class": ours, "train_dataset": opinions()}
    with pytest.raises(InputError, match="signal choices"):
        SinKDTrainer(**arguments, args=short_config(tmp_path, signal="tokens"))


def test_rows_without_a_label_need_choices(train: Callable[..., SinKDTrainer]) -> None:
    rows = three_choices(unlabelled=(2,))
    with pytest.raises(InputError, match=r"some rows have no label.*set signal to choices"):
        train(train_dataset=rows, signal="tokens")
    assert train(train_dataset=rows).teacher.over_choices  # type: ignore[union-attr]


def test_a_regression_learns_the_expected_number(
    tmp_path: Path, tiny_model: Any, marked_tokenizer: Any, models: Any
) -> None:
    choices = ["0", "1", "2"]
    rows = [{**row, "choices": choices, "label": int(row["target"]) % 3} for row in regression_rows(6)]
    rows = [{**row, "target": float(row["label"]), "completion": choices[row["label"]]} for row in rows]
    teacher, theirs = models("decoder", 2)
    student, ours = tiny_model("bert", num_labels=1, seed=1).double(), marked_tokenizer("bert")
    trainer = SinKDTrainer(
        model=student,
        teacher_model=teacher,
        processing_class=ours,
        teacher_processing_class=theirs,
        train_dataset=Dataset.from_list(rows),
        args=short_config(tmp_path, alpha=0.6, sinkhorn_weight=0.0),
    )
    loss, _ = update(trainer, [6])
    with torch.no_grad():
        predicted = torch.stack([model_number(student, ours, row) for row in rows])
        targets = torch.stack([naive_scores(teacher, theirs, "decoder", row) for row in rows]).softmax(-1)
    expected = targets @ torch.tensor([0.0, 0.5, 1.0]).double()
    gold = torch.tensor([row["label"] / 2 for row in rows]).double()
    wanted = 0.4 * (predicted - gold).square().mean() + 0.6 * (predicted - expected).square().mean()
    assert loss == pytest.approx(float(wanted), rel=1e-6)


def model_number(model: Any, tokenizer: Any, row: Mapping[str, Any]) -> Tensor:
    ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
    number: Tensor = model(input_ids=ids).logits[0, 0]
    return number


def test_choices_that_differ_from_row_to_row_are_padded_and_sinkd_is_refused(
    train: Callable[..., SinKDTrainer],
) -> None:
    rows = [{**row, "choices": row["choices"] + [" bad"] * (i % 2)} for i, row in enumerate(opinions(6))]
    with pytest.raises(InputError, match=r"2 different lists of choices.*sinkhorn_weight to 0"):
        train(train_dataset=Dataset.from_list(rows), signal="choices")
    trainer = train(train_dataset=Dataset.from_list(rows), signal="choices", sinkhorn_weight=0.0, eval_dataset=None)
    (whole, gradient), (parts, alone) = update(trainer, [6]), update(trainer, [1] * 6)
    assert np.isfinite(whole)
    assert whole == pytest.approx(parts, rel=1e-5)
    torch.testing.assert_close(gradient, alone, rtol=1e-4, atol=1e-6)
    trainer.train()


def test_a_sequence_of_one_row_is_said_to_be_no_transport(
    tmp_path: Path, models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (teacher, theirs), (student, ours) = models("decoder", 2), models("encoder", 1)
    rows = three_choices()
    settings = {"signal": "choices", "alpha": 1.0, "divergence": "none", "sinkhorn_weight": 1.0}
    trainer = SinKDTrainer(
        model=student,
        teacher_model=teacher,
        processing_class=ours,
        teacher_processing_class=theirs,
        train_dataset=rows,
        args=short_config(tmp_path, transport_scope="sequence", sinkhorn_temperature=1.5, **settings),
    )
    assert "the control without transport" in caplog.text
    with torch.no_grad():
        scores = [naive_scores(student, ours, "encoder", row) for row in rows]
        targets = [naive_scores(teacher, theirs, "decoder", row) for row in rows]
        sides = [naive.softmax(torch.stack(x), 1.5) for x in (scores, targets)]
    assert update(trainer, [6])[0] == pytest.approx(float((sides[0] - sides[1]).abs().sum(-1).mean()), rel=1e-9)


def test_the_window_is_one_transport_problem(tmp_path: Path, models: Any) -> None:
    (teacher, theirs), (student, ours) = models("decoder", 2), models("encoder", 1)
    arguments = {"model": student, "teacher_model": teacher, "processing_class": ours}
    trainer = SinKDTrainer(
        **arguments,
        teacher_processing_class=theirs,
        train_dataset=three_choices(),
        args=short_config(tmp_path, **BOTH, transport_accumulation=True),
    )
    (whole, gradient), (parts, together) = update(trainer, [6]), update(trainer, [2, 4])
    assert parts == pytest.approx(whole, rel=1e-9)
    torch.testing.assert_close(together, gradient, rtol=1e-7, atol=1e-10)


def test_what_transport_will_take_is_that_of_the_choices(tmp_path: Path, models: Any, capsys: Any) -> None:
    (teacher, theirs), (student, ours) = models("encoder", 2), models("decoder", 1)
    trainer = SinKDTrainer(
        model=student.float(),
        teacher_model=teacher.float(),
        processing_class=ours,
        teacher_processing_class=theirs,
        train_dataset=three_choices(8, unlabelled=(1, 3, 4)),
        args=short_config(tmp_path, max_steps=1),
    )
    assert predict(trainer).counts.rows == 8
    trainer.train()
    assert "about 8 rows in groups of at most 8" in " ".join("".join(capsys.readouterr()).split())
