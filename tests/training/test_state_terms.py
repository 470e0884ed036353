"""Training with the terms of hidden states: the projection learns, checkpoints have it, students do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.training.state_trainer import STATES_FILE
from tests.support.rows import several_tokens
from tests.support.trainers import gradients, microbatches

BOTH = {"hidden_weight": 2.0, "queue_weight": 0.5, "queue_size": 12}
Build = Callable[..., SinKDTrainer]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_both_terms_train_student_and_projection_and_the_student_s_folder_has_neither(
    adapter: bool, train: Build, tmp_path: Path
) -> None:
    from peft import LoraConfig

    trainer = train(**BOTH, peft_config=LoraConfig(r=2, target_modules="all-linear") if adapter else None)
    states = trainer.states
    before = states.weight_HG.detach().clone()
    trainer.train()
    assert before.shape == (48, trainer.model.config.hidden_size)
    assert (states.weight_HG.detach() - before).abs().max() > 1e-3
    assert len(states.queue_QH) == 12
    first, second = [record for record in trainer.state.log_history if "loss" in record]
    assert first["queue"] == pytest.approx(0, abs=1e-6)  # the queue is empty at first
    assert second["queue"] > 0.01
    for record in (first, second):
        weighted = 0.1 * record["ce"] + 0.9 * record["kl"] + 0.8 * record["sinkhorn"]
        assert record["loss"] == pytest.approx(weighted + 2 * record["hidden"] + 0.5 * record["queue"], rel=1e-4)
        assert 0 < record["hidden"] < 2
    trainer.save_model(str(tmp_path / "student"))
    for file in (tmp_path / "student").glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            assert not [name for name in weights.keys() if "weight_HG" in name or "queue" in name]  # noqa: SIM118
    assert not (tmp_path / "student" / STATES_FILE).exists()


def test_the_terms_are_means_over_examples_however_a_window_is_cut(train: Build) -> None:
    trainer = train(
        **{"alpha": 0.0, "sinkhorn_weight": 0.0, "hidden_weight": 3.0},
        train_dataset=several_tokens(),
        eval_dataset=None,
    )
    results = []
    for sizes in ([8], [1] * 8, [5, 3]):
        trainer.states.zero_grad()
        loss, gradient = gradients(trainer, microbatches(trainer, sizes))
        results.append((loss, gradient, trainer.states.weight_HG.grad.clone()))
    for loss, gradient, projection in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(projection, results[0][2], rtol=1e-4, atol=1e-6)
    assert results[0][2].abs().max() > 1e-4


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(train_and_save: Build, tmp_path: Path) -> None:
    whole = train_and_save(**BOTH)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    again = train_and_save(**BOTH)
    again.train(str(checkpoint))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.states.weight_HG, again.states.weight_HG)
    assert torch.equal(whole.states.queue_QH, again.states.queue_QH)

    (checkpoint / STATES_FILE).unlink()
    with pytest.raises(InputError, match=STATES_FILE):
        train_and_save(**BOTH).train(str(checkpoint))


def test_a_checkpoint_without_states_or_of_other_widths_is_refused(train_and_save: Build, tmp_path: Path) -> None:
    train_and_save().train()
    with pytest.raises(InputError, match="of a run without terms of hidden states"):
        train_and_save(**BOTH).train(str(tmp_path / "out" / "checkpoint-2"))
    states = train_and_save(**BOTH).states
    for kept, problem in (
        ({"projection": torch.zeros(3, 4), "queue": torch.zeros(0, 3)}, "other widths"),
        ([], "no projection"),
    ):
        with pytest.raises(ValueError, match=problem):
            states.restore(kept)


def test_equal_widths_begin_with_the_identity_and_the_seed_draws_others(
    train: Build, tiny_causal_lm: Callable[..., Any]
) -> None:
    student = tiny_causal_lm(seed=1)
    same = train(**BOTH, model=student, teacher_model=tiny_causal_lm(seed=2)).states.weight_HG
    assert torch.equal(same, torch.eye(student.config.hidden_size))
    one, again, other = (train(**BOTH, seed=seed).states.weight_HG for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("weight", ["hidden_weight", "queue_weight"])
@pytest.mark.parametrize("source", ["teacher_cache", "teacher_file", "teacher_url"])
def test_a_teacher_that_gives_no_states_is_refused(weight: str, source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{weight} is 1, and {source} gives what a teacher says but no hidden"):
        SinKDConfig(str(tmp_path), report_to="none", **{weight: 1.0, source: "http://127.0.0.1:9"})


def test_set_ups_without_the_projection_are_refused(train: Build, tiny_causal_lm: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="compared over the answer choices"):
        train(**BOTH, signal="choices")
    with pytest.raises(InputError, match="torch_compile is on"):
        train(**BOTH, torch_compile=True)
    trainer = train(**BOTH)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    with pytest.raises(InputError, match="`optimizers` were given"):
        trainer.check_states()


def test_without_a_teacher_there_are_none(train: Build) -> None:
    assert train(teacher=False, **BOTH).states is None
