"""A run ends at the first number that is not finite, and nothing of it is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.training.checkpoints import last_whole
from sinkd_llm.training.finite import SKIPPED_AT_MOST, FiniteGate, check_sound


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("settings", "term"),
    [
        ({}, "ce"),
        ({"alpha": 1.0, "sinkhorn_weight": 0.0}, "kl"),
        ({"alpha": 1.0, "sinkhorn_weight": 0.0, "divergence": "rkl"}, "rkl"),
        ({"alpha": 1.0, "divergence": "none"}, "sinkhorn"),
    ],
    ids=["ce", "kl", "rkl", "sinkhorn"],
)
def test_a_student_that_breaks_ends_the_run_with_step_term_and_examples(
    settings: dict[str, Any], term: str, train_and_save: Any, tmp_path: Path
) -> None:
    trainer = train_and_save(**settings)

    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                trainer.model.model.norm.weight.data[3] = float("nan")

    trainer.add_callback(Breaks())
    with pytest.raises(NonFiniteError, match=rf"before update 3: the term '{term}' of the loss is nan") as error:
        trainer.train()
    assert "opinion-" in str(error.value)
    assert "weight model.norm.weight is not finite" in str(error.value)
    assert "checkpoint-2 is whole" in str(error.value)
    assert last_whole(tmp_path / "out") == tmp_path / "out" / "checkpoint-2"
    assert not (tmp_path / "out" / "checkpoint-3").exists()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_weights_change(
    accumulation: int, train_and_save: Any
) -> None:
    trainer = train_and_save(gradient_accumulation_steps=accumulation, per_device_train_batch_size=4, max_grad_norm=0)
    before = weights(trainer.model).clone()
    trainer.model.lm_head.weight.register_hook(lambda grad: grad.masked_fill(torch.ones_like(grad).bool(), torch.inf))
    with pytest.raises(NonFiniteError, match=r"before update 1: the norm of the gradient is (inf|nan)"):
        trainer.train()
    assert torch.equal(weights(trainer.model), before)


@pytest.mark.parametrize(("optim", "learning_rate"), [("adamw_torch", 1e30), ("sgd", 1e36)])
@pytest.mark.parametrize("max_steps", [1, 4])
def test_a_learning_rate_out_of_all_proportion_saves_nothing(
    optim: str, learning_rate: float, max_steps: int, train_and_save: Any, tmp_path: Path
) -> None:
    trainer = train_and_save(max_steps=max_steps, optim=optim, warmup_steps=0, lr_scheduler_type="constant")
    trainer.args.learning_rate = learning_rate  # which a configuration refuses
    with pytest.raises(NonFiniteError, match="was not saved"):
        trainer.train()
    assert last_whole(tmp_path / "out") is None
    with pytest.raises(NonFiniteError, match="was not saved"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


def test_weights_that_the_last_update_broke_are_not_saved(train_and_save: Any, tmp_path: Path) -> None:
    trainer = train_and_save(max_steps=1, save_strategy="no")
    trainer.train()
    trainer.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


def test_a_student_that_was_not_trained_is_saved(train_and_save: Any, tmp_path: Path) -> None:
    train_and_save().save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / "model.safetensors").exists()


def test_a_gate_lets_a_scaler_skip_updates_but_not_for_ever() -> None:
    gate, model = FiniteGate(scaled=True), torch.nn.Linear(2, 2)

    def look(norm: float) -> None:
        gate.add({"ce": torch.tensor(1.0)}, ["a"])
        gate.look(1, norm, model, lambda: "")

    for _ in range(SKIPPED_AT_MOST):
        look(float("inf"))
    look(1.0)  # and the count begins again
    for _ in range(SKIPPED_AT_MOST):
        look(float("nan"))
    with pytest.raises(NonFiniteError, match="norm of the gradient"):
        look(float("inf"))
    gate.add({"ce": torch.tensor(float("nan"))}, ["a"])
    with pytest.raises(NonFiniteError, match="'ce' of the loss is nan, over the examples a"):
        gate.look(1, float("inf"), model, lambda: "")


def test_a_gate_names_the_micro_batch_that_is_at_fault() -> None:
    gate, model = FiniteGate(), torch.nn.Linear(2, 2)
    gate.add({"ce": torch.tensor(1.0), "kl": torch.tensor(2.0)}, ["a", "b"])
    gate.add({"ce": torch.tensor(1.0), "kl": torch.tensor(float("inf"))}, [f"c{i}" for i in range(9)])
    with pytest.raises(NonFiniteError, match="'kl' of the loss is inf, over the examples c0, c1, c2, c3, c4 and 4"):
        gate.look(7, torch.tensor(float("nan")), model, lambda: "Go on.")
    gate.add({"ce": torch.tensor(1.0)}, ["a"])  # what was refused is not looked at again
    gate.look(8, None, model, lambda: "")


def test_a_look_before_a_save_changes_nothing(train_and_save: Any, tiny_causal_lm: Any) -> None:
    def run(strategy: str) -> torch.Tensor:
        trainer = train_and_save(model=tiny_causal_lm(seed=1, attention_dropout=0.2), save_strategy=strategy)
        trainer.train()
        assert trainer.model.training
        return weights(trainer.model)

    assert torch.equal(run("no"), run("steps"))


def test_every_process_hears_of_outputs_that_one_of_them_finds_broken(train_and_save: Any) -> None:
    trainer = train_and_save()
    batch = trainer.data_collator(list(trainer.train_dataset.select(range(2))))
    check_sound(trainer.model, trainer.kind, batch, lambda number: number)
    for at_fault, message in ((1, "of another process"), (2, "outputs are NaN or infinite")):
        asked: list[torch.Tensor] = []

        def together(
            number: torch.Tensor, asked: list[torch.Tensor] = asked, at_fault: int = at_fault
        ) -> torch.Tensor:
            asked.append(number)
            return number + (len(asked) == at_fault)

        with pytest.raises(NonFiniteError, match=message):
            check_sound(trainer.model, trainer.kind, batch, together)


def test_the_error_is_one_of_input() -> None:
    assert issubclass(NonFiniteError, InputError)
