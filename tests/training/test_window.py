"""An accumulation window as one transport problem, in one process; several are in tests/distributed/."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from sinkd_llm import SinKDTrainer
from sinkd_llm.teachers.contract import signal_of
from tests.distributed.transport_worker import ONLY_SINKD
from tests.support.rows import sentences
from tests.support.trainers import gradients, microbatches

WINDOW = {"transport_accumulation": True, "max_steps": 1, "train_dataset": sentences(24)}


def window_gradients(trainer: SinKDTrainer, sizes: list[int]) -> tuple[float, torch.Tensor]:
    batches = microbatches(trainer, sizes)
    trainer.model.train()
    trainer.open_window(batches)
    return gradients(trainer, batches)


@pytest.mark.parametrize(
    "settings",
    [
        {"sinkhorn_gradient": "unrolled"},
        {"sinkhorn_gradient": "implicit"},
        {"sinkhorn_gradient": "envelope"},
        {"transport_scope": "position"},
        {"transport_scope": "sequence"},
        {"cost_norm": "sql2"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_a_window_of_8_times_1_equals_1_times_8(settings: dict[str, Any], train: Callable[..., SinKDTrainer]) -> None:
    trainer = train(**WINDOW, **{**ONLY_SINKD, **settings})
    once, once_gradient = gradients(trainer, microbatches(trainer, [8]))
    for sizes in ([1] * 8, [5, 3]):
        many, many_gradient = window_gradients(trainer, sizes)
        assert many == pytest.approx(once, rel=1e-5)
        torch.testing.assert_close(many_gradient, once_gradient, rtol=1e-4, atol=1e-6)
    if settings.get("transport_scope") != "sequence":  # without the setting they are other problems
        _, parts_gradient = gradients(trainer, microbatches(trainer, [1] * 8))
        assert (parts_gradient - once_gradient).norm() > 1e-2 * once_gradient.norm()


def test_verbalizers_and_the_mixture_over_a_window(train: Callable[..., SinKDTrainer]) -> None:
    trainer = train(transport_accumulation=True, vocabulary="verbalizers", alpha=0.6, max_steps=1)
    once, once_gradient = gradients(trainer, microbatches(trainer, [8]))
    many, many_gradient = window_gradients(trainer, [2] * 4)
    assert many == pytest.approx(once, rel=1e-5)
    torch.testing.assert_close(many_gradient, once_gradient, rtol=1e-4, atol=1e-6)


def test_both_passes_see_the_same_dropout_and_the_next_window_another(
    train: Callable[..., SinKDTrainer], tiny_causal_lm: Callable[..., Any]
) -> None:
    student = tiny_causal_lm("gpt_neo", seed=1)  # the tiny one with dropout behind every part
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    trainer = train(model=student, **WINDOW, **ONLY_SINKD)
    seen, supervised = [], trainer.kind.supervised_rows

    def spy(*arguments: Any, **settings: Any) -> Any:
        rows = supervised(*arguments, **settings)
        seen.append(signal_of(rows).logits().detach().clone())
        return rows

    trainer.forward.kind = SimpleNamespace(supervised_rows=spy)  # of the student alone: the kind itself is shared
    for _ in range(2):
        window_gradients(trainer, [2] * 3)
    assert len(seen) == 12
    for first, second in zip([*seen[:3], *seen[6:9]], [*seen[3:6], *seen[9:]], strict=True):
        assert torch.equal(first, second)
    assert not torch.allclose(seen[0], seen[6], atol=1e-3)


def test_dropout_does_not_depend_on_how_the_transport_is_solved(
    train: Callable[..., SinKDTrainer], tiny_causal_lm: Callable[..., Any]
) -> None:
    def records(**settings: Any) -> list[dict[str, float]]:
        student = tiny_causal_lm("gpt_neo", seed=1)
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        settings = {"max_steps": 2, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, **settings}
        trainer = train(model=student, alpha=0.5, sinkhorn_weight=1e-6, **settings)
        trainer.train()
        return [record for record in trainer.state.log_history if "loss" in record]

    for plain, window in zip(records(), records(transport_accumulation=True), strict=True):
        assert window["ce"] == pytest.approx(plain["ce"], rel=1e-4)
        assert window["kl"] == pytest.approx(plain["kl"], rel=1e-4)


def test_the_teacher_runs_once_and_the_student_twice(train: Callable[..., SinKDTrainer]) -> None:
    trainer = train(**WINDOW)
    runs = {"teacher": 0, "student": 0}
    for name, model in (("teacher", trainer.teacher.model), ("student", trainer.model)):
        model.register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    window_gradients(trainer, [2] * 4)
    assert runs == {"teacher": 4, "student": 8}
    assert trainer._window is None  # and nothing is kept


def test_training_with_windows_takes_the_last_and_smaller_one_and_scores_as_always(
    train: Callable[..., SinKDTrainer],
) -> None:
    settings = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "max_steps": -1}
    trainers = [
        train(
            **settings,
            num_train_epochs=1,
            train_dataset=sentences(20),  # ten micro-batches: windows of four, four and two
            eval_dataset=Dataset.from_list(sentences(5).to_list()),  # without choices: the loss itself is scored
            eval_strategy="steps",
            eval_steps=2,
            learning_rate=1e-12,
            transport_accumulation=accumulation,
        )
        for accumulation in (False, True)
    ]
    losses = []
    for trainer in trainers:
        trainer.train()
        assert trainer.state.global_step == 3
        losses.append([record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record])
    assert len(losses[0]) == 2  # after the second update, and at the end
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    records = [[record for record in t.state.log_history if "loss" in record] for t in trainers]
    for plain, window in zip(*records, strict=True):
        for name in ("ce", "kl"):
            assert window[name] == pytest.approx(plain[name], rel=1e-5)
        # More tokens to go to: fewer of them stay.
        assert window["sinkhorn/diagonal_mass"] < 0.8 * plain["sinkhorn/diagonal_mass"]


@pytest.mark.parametrize("accumulation", [False, True])
def test_the_weighted_terms_add_up_to_the_logged_loss(accumulation: bool, train: Callable[..., SinKDTrainer]) -> None:
    # Answers of different lengths: a mean of the micro-batches' means would not.
    trainer = train(
        train_dataset=sentences(24),
        alpha=0.6,
        sinkhorn_weight=0.3,
        max_steps=4,
        logging_steps=2,
        gradient_accumulation_steps=3,
        per_device_train_batch_size=2,
        transport_accumulation=accumulation,
    )
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == 2
    for record in records:
        mixture = 0.4 * record["ce"] + 0.6 * record["kl"] + 0.3 * record["sinkhorn"]
        assert record["loss"] == pytest.approx(mixture, abs=1e-4)
