"""The trainer end to end on tiny random models."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.inputs.dataset import tokenize_dataset
from tests.support.rows import opinions
from tests.support.trainers import gradients, microbatches

GOLDEN = Path(__file__).parents[1] / "golden" / "trajectory.json"


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 0.0},
        {"alpha": 0.7, "sinkhorn_weight": 0.0},
        {"alpha": 0.5, "transport_scope": "sequence"},
    ],
    ids=["ce", "kl", "sinkhorn-per-sequence"],
)
def test_accumulation_of_8_times_1_equals_1_times_8(settings: dict, train: Any) -> None:
    trainer = train(**settings)
    once, once_gradient = gradients(trainer, microbatches(trainer, [8]))
    many, many_gradient = gradients(trainer, microbatches(trainer, [1] * 8))
    uneven, uneven_gradient = gradients(trainer, microbatches(trainer, [5, 3]))
    assert many == pytest.approx(once, rel=1e-5)
    assert uneven == pytest.approx(once, rel=1e-5)
    torch.testing.assert_close(many_gradient, once_gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(uneven_gradient, once_gradient, rtol=1e-4, atol=1e-6)


def test_a_transport_problem_per_micro_batch_is_not_one_problem(train: Any) -> None:
    # What the documentation says of gradient accumulation: another plan, so another loss and gradient.
    trainer = train(alpha=1.0, divergence="none", sinkhorn_temperature=0.2)
    whole, whole_gradient = gradients(trainer, microbatches(trainer, [8]))
    parts, parts_gradient = gradients(trainer, microbatches(trainer, [4, 4]))
    assert abs(whole - parts) > 1e-4 * whole
    assert (whole_gradient - parts_gradient).norm() > 1e-2 * whole_gradient.norm()


def test_fine_tuning_minimises_the_loss_that_transformers_computes(train: Any) -> None:
    trainer = train(teacher=False)
    (batch,) = microbatches(trainer, [8])
    loss, _ = gradients(trainer, [batch])
    assert loss == pytest.approx(transformers_loss(trainer, batch), rel=1e-5)


def test_the_loss_is_the_mixture_of_its_logged_terms(train: Any) -> None:
    trainer = train(alpha=0.6, sinkhorn_weight=0.3, max_steps=1)
    trainer.train()
    record = next(r for r in trainer.state.log_history if "loss" in r)
    mixture = 0.4 * record["ce"] + 0.6 * record["kl"] + 0.3 * record["sinkhorn"]
    assert record["loss"] == pytest.approx(mixture, abs=1e-4)
    for name in ("sinkhorn/diagonal_mass", "sinkhorn/row_error", "teacher_entropy", "student_entropy"):
        assert np.isfinite(record[name])
    assert 0 <= record["sinkhorn/diagonal_mass"] <= 1


def test_another_objective_counts_from_the_next_update_and_changed_settings_are_said(
    train: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Change(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            args.alpha = 0.0
            if state.global_step == 1:
                objective = trainer.forward.objective
                trainer.forward.objective = replace(objective, alpha=0.0, sinkhorn_weight=0.0)

    trainer = train(alpha=0.6, sinkhorn_weight=0.3, max_steps=2, logging_steps=1, callbacks=[Change()])
    trainer.train()
    first, second = (r for r in trainer.state.log_history if "loss" in r)
    assert first["loss"] == pytest.approx(0.4 * first["ce"] + 0.6 * first["kl"] + 0.3 * first["sinkhorn"], rel=1e-4)
    assert second["loss"] == pytest.approx(second["ce"], rel=1e-4)
    assert caplog.text.count("has been changed in args since the trainer was made, which has no effect") == 1


def test_the_teacher_stays_as_it_was(train: Any, tiny_causal_lm: Any) -> None:
    teacher = tiny_causal_lm(seed=2, layers=4).train()
    before = copy.deepcopy(teacher.state_dict())
    trainer = train(teacher_model=teacher)
    trainer.train()
    assert not teacher.training
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_distillation_brings_the_student_nearer_to_the_teacher(train: Any) -> None:
    trainer = train(max_steps=30, alpha=1.0)
    trainer.train()
    records = [r for r in trainer.state.log_history if "loss" in r]
    assert records[-1]["kl"] < 0.2 * records[0]["kl"]
    assert records[-1]["sinkhorn"] < 0.6 * records[0]["sinkhorn"]


def test_the_same_seed_gives_the_same_student_and_another_seed_another(train: Any, tiny_causal_lm: Any) -> None:
    def weights(seed: int) -> torch.Tensor:
        trainer = train(seed=seed, max_steps=3, model=tiny_causal_lm(seed=1))
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(7))


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_resumed_run_equals_the_uninterrupted_one(
    adapter: bool, train: Any, tiny_causal_lm: Any, tmp_path: Path
) -> None:
    def run(output: str, resume: str | None = None, **settings: Any) -> SinKDTrainer:
        torch.manual_seed(0)
        trainer = train(
            model=tiny_causal_lm(seed=1),
            peft_config=lora() if adapter else None,
            output_dir=str(tmp_path / output),
            max_steps=6,
            save_strategy="steps",
            save_steps=3,
            per_device_train_batch_size=4,
            **settings,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_evaluation_reports_metric_loss_and_agreement(train: Any) -> None:
    trainer = train()
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_acc"] <= 1
    assert 0 <= metrics["eval_agreement"] <= 1
    # The evaluation loss is the cross-entropy of the gold answers.
    features = tokenize_dataset(opinions(8, 100), trainer._answer_tokenizer)
    batch = trainer.data_collator(list(features))
    assert metrics["eval_loss"] == pytest.approx(transformers_loss(trainer, batch), rel=1e-4)


def transformers_loss(trainer: SinKDTrainer, batch: dict[str, Any]) -> float:
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    inputs["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return float(trainer.model.eval()(**inputs).loss.detach())


def test_a_student_that_is_its_teacher_agrees_always(train: Any, tiny_causal_lm: Any) -> None:
    teacher = tiny_causal_lm(seed=2)
    metrics = train(model=copy.deepcopy(teacher), teacher_model=teacher).evaluate()
    assert metrics["eval_agreement"] == 1.0


def test_the_teacher_ranks_each_evaluation_example_once(train: Any) -> None:
    trainer = train()
    calls = []
    trainer.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    first = trainer.evaluate()
    assert calls
    calls.clear()
    assert trainer.evaluate()["eval_agreement"] == first["eval_agreement"]
    assert not calls


def test_plain_cross_entropy_spares_the_teachers_forward(train: Any) -> None:
    trainer = train(alpha=0.0, sinkhorn_weight=0.0)
    trainer.teacher.model.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    trainer.train()
    assert "kl" not in trainer.state.log_history[0]


def test_evaluation_is_the_same_for_every_batch_size(train: Any) -> None:
    varied = opinions(7, 100).map(
        lambda row, i: {"choices": row["choices"] + ([" a great film"] if i % 2 else [])}, with_indices=True
    )
    results = [train(eval_dataset=varied, per_device_eval_batch_size=size).evaluate() for size in (1, 3, 8)]
    for result in results[1:]:
        assert result["eval_acc"] == results[0]["eval_acc"]
        assert result["eval_agreement"] == results[0]["eval_agreement"]


def test_prompt_completion_rows_plain_and_conversational(train: Any, tiny_tokenizer: Any) -> None:
    plain = Dataset.from_list([{"prompt": "question:", "completion": " yes"}] * 8)
    trainer = train(train_dataset=plain, eval_dataset=plain)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    chat = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "question"}],
                "completion": [{"role": "assistant", "content": "yes"}],
            }
        ]
        * 8
    )
    trainer = train(train_dataset=chat, eval_dataset=None, processing_class=tokenizer)
    assert np.isfinite(trainer.train().training_loss)


def test_verbalizers_restrict_the_transport_and_its_gradient(train: Any) -> None:
    trainer = train(vocabulary="verbalizers", alpha=1.0, divergence="none")
    (batch,) = microbatches(trainer, [8])
    gradients(trainer, [batch])
    head = trainer.model.get_output_embeddings().weight.grad
    touched = set(head.abs().sum(dim=1).nonzero().flatten().tolist())
    assert touched == set(trainer.verbalizer_ids.tolist())


def test_a_padded_vocabulary_trains_over_the_shared_tokens(
    train: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    wide = tiny_causal_lm(seed=2, vocab=len(tiny_tokenizer) + 24)
    with pytest.raises(InputError, match="tokenizer could not be found"):
        train(teacher_model=wide)
    wide.save_pretrained(tmp_path / "wide")
    tiny_tokenizer.save_pretrained(tmp_path / "wide")
    trainer = train(teacher_model=str(tmp_path / "wide"))
    assert np.isfinite(trainer.train().training_loss)


def test_a_teacher_with_another_tokenizer_is_refused(
    train: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_causal_lm(seed=2).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    ids = vocabulary["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match=r"different tokenizers: token .* and signal choices"):
        train(teacher_model=str(tmp_path / "other"), signal="tokens")


def test_a_broken_teacher_is_named_by_example(train: Any, tiny_causal_lm: Any) -> None:
    teacher = tiny_causal_lm(seed=2)
    teacher.get_output_embeddings().weight.data[5] = float("nan")
    with pytest.raises(InputError, match=r"NaN or infinite for .*opinion-\d+"):
        train(teacher_model=teacher).train()


def test_a_student_from_the_teachers_own_layers(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    teacher = tiny_causal_lm(seed=2, layers=4)
    trainer = SinKDTrainer(
        teacher_model=teacher,
        args=SinKDConfig(str(tmp_path), student_layers=2, use_cpu=True),
        train_dataset=opinions(),
        processing_class=tiny_tokenizer,
    )
    assert trainer.model.config.num_hidden_layers == 2
    ours = trainer.model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(ours, teacher.model.layers[3].mlp.up_proj.weight)
    assert ours.requires_grad


def test_the_saved_adapter_loads_with_plain_transformers(
    train: Any, tiny_causal_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = train(model=tiny_causal_lm(seed=1), peft_config=lora())
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    moved = tmp_path / "elsewhere"
    (tmp_path / "student").rename(moved)
    monkeypatch.chdir(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained("elsewhere").eval()
    tokenizer = AutoTokenizer.from_pretrained("elsewhere")
    inputs = tokenizer("Review: good film\nSentiment:", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_layers": 1}, "student_layers"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "model_init_kwargs"),
        ({"teacher_load_in_4bit": True}, "the teacher is a model already"),
        ({"teacher_model_name_or_path": "x"}, "give one"),
        ({"train_dataset": [{"prompt": "a", "completion": "b"}]}, "Dataset.from_list"),
    ],
)
def test_combinations_that_cannot_mean_what_they_say_are_refused(changes: dict, message: str, train: Any) -> None:
    with pytest.raises(InputError, match=message):
        train(**changes)


def test_prompt_tuning_and_a_second_adapter_are_refused(train: Any, tiny_causal_lm: Any) -> None:
    from peft import PromptTuningConfig, get_peft_model

    with pytest.raises(InputError, match="virtual tokens"):
        train(peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match="PEFT model already"):
        train(model=get_peft_model(tiny_causal_lm(), lora()), peft_config=lora())


def test_dropout_can_be_disabled(train: Any, tiny_causal_lm: Any) -> None:
    trainer = train(model=tiny_causal_lm(seed=1), peft_config=lora(), disable_dropout=True)
    rates = [m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates
    assert not any(rates)


def test_the_trajectory_is_the_committed_one(train: Any, tiny_causal_lm: Any) -> None:
    """A change that is not meant to change the computation must not change these numbers.

    After a change that is meant to, delete the file, run the test once and commit the new numbers.
    """
    # A temperature at which the tiny models are not near uniform, so that the plan does something.
    trainer = train(
        max_steps=5, per_device_train_batch_size=4, gradient_accumulation_steps=2, sinkhorn_temperature=0.1
    )
    trainer.train()
    names = ("loss", "ce", "kl", "sinkhorn", "grad_norm")
    got = [{name: r[name] for name in names} for r in trainer.state.log_history if "loss" in r]
    if not GOLDEN.exists():
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(got, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was missing and has been written; run again")
    expected = json.loads(GOLDEN.read_text())
    assert len(got) == len(expected) == 5
    for a, b in zip(got, expected, strict=True):
        assert a == pytest.approx(b, rel=2e-3)
