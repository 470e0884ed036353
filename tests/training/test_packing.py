"""Runs whose batches are packed train what padded ones train, and what cannot be packed is refused before training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, PackingCollator
from sinkd_llm.inputs.pair import TEACHER
from sinkd_llm.models.kinds.packing import ROW_OF
from sinkd_llm.models.probes import check_packing
from sinkd_llm.training.blank_rows import BlankingCollator, RowsAndBlanks
from tests.support.rows import ID_ROWS, opinions, several_tokens
from tests.support.trainers import gradients

SGD = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "max_steps": 3, "per_device_train_batch_size": 4}


def trained(trainer: SinKDTrainer) -> tuple[dict[str, float], list[float], torch.Tensor]:
    """Scores after a run, its losses, and the weights."""
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return {name: trainer.evaluate()[name] for name in ("eval_loss", "eval_acc")}, losses, weights


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"transport_scope": "position", "fused": "never"},
        {"transport_scope": "sequence", "train_sampling_strategy": "random"},
        {"gradient_accumulation_steps": 2, "transport_accumulation": True},
        {"gradient_checkpointing": True, "vocabulary": "verbalizers"},
    ],
    ids=lambda settings: "-".join(settings) or "defaults",
)
def test_a_packed_run_is_the_padded_run(settings: dict[str, Any], train: Callable[..., SinKDTrainer]) -> None:
    data = opinions(16) if "vocabulary" in settings else several_tokens(16)
    runs = []
    for packing in (False, True):
        trainer = train(train_dataset=data, packing=packing, **{**SGD, **settings})
        batch = next(iter(trainer.get_train_dataloader()))
        assert (ROW_OF in batch) is packing
        assert (len(batch["labels"]) == 1) is packing
        runs.append(trained(trainer))
    (padded, padded_losses, padded_weights), (packed, packed_losses, packed_weights) = runs
    assert packed_losses == pytest.approx(padded_losses, rel=1e-5)
    torch.testing.assert_close(packed_weights, padded_weights, rtol=0, atol=1e-5)
    assert packed == pytest.approx(padded, rel=1e-4)


def test_a_teacher_of_another_kind_reads_its_own_part(
    train: Callable[..., SinKDTrainer],
    tiny_causal_lm: Callable[..., Any],
    tiny_model: Callable[..., Any],
    marked_tokenizer: Callable[[str], Any],
) -> None:
    tokenizer, found = marked_tokenizer("roberta"), []
    for packing in (False, True):
        trainer = train(
            model=tiny_causal_lm(seed=1, vocab=len(tokenizer)),
            teacher_model=tiny_model("roberta", "MaskedLM", seed=2),
            processing_class=tokenizer,
            packing=packing,
            **SGD,
        )
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch[TEACHER]["attention_mask"].shape[0] == 4
        found.append(gradients(trainer, [batch]))
    (padded_loss, padded_gradient), (packed_loss, packed_gradient) = found
    assert packed_loss == pytest.approx(padded_loss, rel=1e-5)
    torch.testing.assert_close(packed_gradient, padded_gradient, rtol=1e-4, atol=1e-6)


def test_blank_rows_are_left_out_and_a_batch_of_them_supervises_nothing() -> None:
    rows = RowsAndBlanks(ID_ROWS)
    collate = BlankingCollator(PackingCollator(DecoderOnlyCollator(0)))
    some = collate(rows.__getitems__([2, 3, 3]))
    assert some["example_id"] == ["c"]
    assert some["input_ids"].shape == (1, 5)
    none = collate(rows.__getitems__([3, 3]))
    assert none["example_id"] == []
    assert none["input_ids"].shape == none["row_of"].shape == (1, 7)
    assert (none["labels"] == -100).all()


@pytest.mark.parametrize("whose", ["model", "teacher_model"])
def test_a_model_that_mixes_rows_is_refused(
    whose: str, train: Callable[..., SinKDTrainer], tiny_causal_lm: Callable[..., Any]
) -> None:
    role = whose.split("_")[0].replace("model", "student")
    with pytest.raises(InputError, match=rf"the {role} \(OPTForCausalLM\) lets the rows of a packed batch read"):
        train(**{whose: tiny_causal_lm("opt")}, packing=True)
    train(**{whose: tiny_causal_lm("opt")})


def test_an_adapter_that_mixes_rows_is_refused(
    train: Callable[..., SinKDTrainer], tiny_causal_lm: Callable[..., Any]
) -> None:
    train(packing=True, peft_config=LoraConfig(r=2, target_modules="all-linear"))
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InputError, match=r"the student .* lets the rows of a packed batch read"):
        check_packing(get_peft_model(tiny_causal_lm(), prompts), "the student", torch.float32)


def test_padding_and_packing_exclude_each_other() -> None:
    with pytest.raises(InputError, match="packing and pad_to_multiple_of are both set"):
        SinKDConfig("out", packing=True, pad_to_multiple_of=8, use_cpu=True)


def test_rows_that_are_not_ranked_are_evaluated_with_padding(train: Callable[..., SinKDTrainer]) -> None:
    plain = Dataset.from_list(
        [{"prompt": f"Review: {word}", "completion": f" {word} film"} for word in ("good", "bad", "great", "the plot")]
    )
    losses = [
        train(train_dataset=plain, eval_dataset=plain, packing=packing).evaluate()["eval_loss"]
        for packing in (False, True)
    ]
    assert losses[0] == losses[1]
