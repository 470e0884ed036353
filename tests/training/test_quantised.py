"""Students whose base is quantised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.models import load_model
from sinkd_llm.models.adapters import add_adapter
from tests.support.rows import opinions

pytest.importorskip("bitsandbytes")

FOUR_BITS = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}


def test_scoring_a_student_leaves_its_gradient(tiny_causal_lm: Callable[..., Any], tmp_path: Path) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks weights in evaluation, and gradients stop at them."""
    tiny_causal_lm(hidden=64).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    student = add_adapter(load_model(tmp_path, **FOUR_BITS), config)
    ids = torch.arange(3, 11)[None]

    def gradient() -> torch.Tensor:
        student.train()
        student.zero_grad()
        student(input_ids=ids).logits.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    before = gradient()
    student.eval()
    with torch.no_grad():
        student(input_ids=ids)
    torch.testing.assert_close(gradient(), before, rtol=1e-4, atol=1e-7)
    assert before.abs().sum() > 0


def test_a_new_head_on_a_quantised_encoder_is_trained_whole(
    tiny_model: Callable[..., Any], marked_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model("bert", "MaskedLM", hidden=64).save_pretrained(tmp_path / "base")
    trainer = SinKDTrainer(
        model=str(tmp_path / "base"),
        args=SinKDConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            model_kind="sequence-classification",
        ),
        train_dataset=opinions(),
        eval_dataset=opinions(8, 100),
        processing_class=marked_tokenizer("bert"),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        **FOUR_BITS,
    )
    head = next(p for n, p in trainer.model.named_parameters() if "classifier.modules_to_save" in n and "weight" in n)
    assert head.requires_grad
    assert head.is_floating_point()
    start = head.detach().clone()
    trainer.evaluate()
    trainer.train()
    assert not torch.equal(head, start)
    before = trainer.evaluate()
    trainer.save_model()
    loaded = load_model(tmp_path / "out", **FOUR_BITS)
    again = SinKDTrainer(
        model=loaded,
        args=SinKDConfig(output_dir=str(tmp_path / "again"), use_cpu=True, disable_tqdm=True),
        train_dataset=opinions(),
        eval_dataset=opinions(8, 100),
        processing_class=marked_tokenizer("bert"),
    ).evaluate()
    assert again["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-4)
