"""Rows end to end: what a model says of them and what it learns of them is what it would be with padding."""

from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, PackingCollator
from sinkd_llm.models.head_forms import head_to_fuse
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.kinds.packing import packed
from sinkd_llm.models.probes import check_packing
from sinkd_llm.objectives import DistillationObjective
from sinkd_llm.teachers.contract import signal_of
from tests.support.rows import ID_ROWS

# The first prompt is longer than Gemma's window below.
ROWS = [{**ID_ROWS[0], "prompt_ids": list(range(5, 30))}, *ID_ROWS[1:]]
PADDING = DecoderOnlyCollator(0)


def test_the_layout_of_a_packed_batch() -> None:
    batch = PackingCollator(PADDING)(ID_ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
    assert batch["row_of"].tolist() == [[0] * 7 + [1] * 5 + [2] * 5]
    assert batch["labels"].tolist() == [[-100] * 6 + [11, -100, -100, 14, 15, 16, -100, -100, -100, 20, 21]]
    assert batch["example_id"] == ["a", "b", "c"]
    assert "attention_mask" not in batch


def test_padding_on_the_right_packs_alike() -> None:
    left = PADDING(ID_ROWS)
    turned = {name: value.flip(0, 1) for name, value in left.items() if isinstance(value, torch.Tensor)}
    turned["labels"][turned["labels"] >= 0] = -100
    assert torch.equal(packed(turned)["input_ids"], packed(left)["input_ids"].flip(1))
    assert packed(turned)["position_ids"].tolist() == [[*range(5), *range(5), *range(7)]]


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "llama"},
        {"family": "llama", "attn_implementation": "eager"},
        {"family": "gemma3_text", "sliding_window": 4, "layers": 6, "final_logit_softcapping": 20.0},
        {"family": "gpt2"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
@pytest.mark.parametrize("headless", [False, True])
def test_loss_and_gradients_are_those_of_the_padded_batch(
    changes: dict[str, Any], headless: bool, tiny_causal_lm: Any
) -> None:
    student, teacher = tiny_causal_lm(seed=1, **changes), tiny_causal_lm(seed=2, **changes)
    forms = [head_to_fuse(model, "model", "always") if headless else None for model in (student, teacher)]
    objective = DistillationObjective(alpha=0.5, transport_scope="position", sinkhorn_temperature=0.5)
    found = []
    for batch in (PADDING(ROWS), PackingCollator(PADDING)(ROWS)):
        student.zero_grad()
        rows = kind_of(student).supervised_rows(student, batch, forms[0])
        with torch.no_grad():
            theirs = kind_of(teacher).supervised_rows(teacher, batch, forms[1])
        loss = objective(
            *(signal_of(rows), signal_of(theirs), rows.labels_N),
            example_N=rows.example_N,
            position_N=rows.position_N,
        ).loss
        loss.backward()
        found.append((rows, loss.detach(), {n: p.grad.clone() for n, p in student.named_parameters()}))
    (padded, padded_loss, padded_gradients), (laid, laid_loss, laid_gradients) = found
    for name in ("labels_N", "example_N", "position_N"):
        assert torch.equal(getattr(laid, name), getattr(padded, name))
    torch.testing.assert_close(laid_loss, padded_loss, rtol=1e-5, atol=1e-6)
    for name, gradient in padded_gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(laid_gradients[name], gradient, rtol=0, atol=1e-5 * max(scale, 1e-2), msg=name)


def test_a_batch_without_a_supervised_token_gives_gradients_of_zeros(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm()
    batch = PackingCollator(PADDING)(ID_ROWS)
    batch["labels"].fill_(-100)
    rows = kind_of(model).supervised_rows(model, batch)
    assert rows.example_N.numel() == rows.position_N.numel() == 0
    rows.logits_NV.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_keep_rows_apart_pass(family: str, dtype: torch.dtype, tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm(family).to(dtype).train()
    check_packing(model, "the student", dtype)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_row_boundaries_is_found(dtype: torch.dtype, tiny_causal_lm: Any) -> None:
    with pytest.raises(InputError, match=r"the teacher \(OPTForCausalLM\) lets the rows of a packed batch read each"):
        check_packing(tiny_causal_lm("opt").to(dtype), "the teacher", dtype)


def test_positions_that_run_on_are_found(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("gpt2")
    embed = model.transformer.wpe.forward
    model.transformer.wpe.forward = lambda ids: embed(torch.arange(ids.shape[1]).expand_as(ids))
    with pytest.raises(InputError, match="gives other logits for packed rows than for padded ones"):
        check_packing(model, "the student", torch.float32)


def test_a_mask_of_fixed_length_is_refused(tiny_causal_lm: Any) -> None:
    with pytest.raises(InputError, match=r"keeps a mask of 128 tokens \(transformer\.h\.0\.attn\.attention\.bias\)"):
        check_packing(tiny_causal_lm("gpt_neo"), "the student", torch.float32)


def test_a_model_that_keeps_a_state_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match="keeps a state of what it has read"):
        check_packing(model, "the student", torch.float32)


@pytest.mark.parametrize(("family", "title"), [("t5", "an encoder-decoder"), ("bert", "an encoder with a classif")])
def test_other_kinds_are_refused(family: str, title: str, tiny_model: Any) -> None:
    with pytest.raises(InputError, match=f"is {title}.*only decoder-only models"):
        check_packing(tiny_model(family), "the student", torch.float32)


def test_a_model_that_does_not_run_is_refused(tiny_causal_lm: Any, monkeypatch: Any) -> None:
    model = tiny_causal_lm()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("only on a GPU")

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(InputError, match=r"could not be run on a few packed rows \(RuntimeError: only on a GPU\)"):
        check_packing(model, "the student", torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.pop("attention_mask"), "has no attention_mask"),
        (lambda batch: batch["labels"].copy_(batch["input_ids"]), "a label at its first token"),
    ],
)
def test_batches_that_cannot_be_packed_are_refused(change: Any, message: str) -> None:
    batch = PADDING(ID_ROWS)
    change(batch)
    with pytest.raises(InputError, match=message):
        packed(batch)
