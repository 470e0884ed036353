"""A head that is left to the loss: the same logits and gradients as the model's own, and a form only where it fits."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.head_forms import NoHeadFormError, describe_head, head_to_fuse
from sinkd_llm.models.heads import HeadForm, why_dense
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.teachers.contract import signal_of
from tests.support.models import DECODERS, ENCODER_DECODERS, ENCODERS, with_adapter
from tests.support.rows import CHOICE_ROWS, ID_ROWS, batch_for, collate_ids

SMALL = {"num_key_value_heads": 2, "intermediate_size": 64}
FORMS = {
    "gemma2": ({**SMALL, "head_dim": 8, "final_logit_softcapping": 0.5}, HeadForm(cap=0.5)),
    "granite": ({**SMALL, "logits_scaling": 4.0}, HeadForm(scale=0.25)),  # which divides by it
    "cohere": ({**SMALL, "logit_scale": 0.25}, HeadForm(scale=0.25)),  # which multiplies by it
    "phi": ({"intermediate_size": 64}, HeadForm()),  # with a bias
}


def scores(model: Any, batch: Any, form: HeadForm | None) -> Tensor:
    """The model's logits, or those that the objective would make of its hidden states."""
    rows = signal_of(kind_of(model).supervised_rows(model, batch, form))
    return rows if isinstance(rows, Tensor) else rows.logits()


def check_same(model: Any, batch: Any, **tolerance: float) -> None:
    """Logits, and the gradients to all weights."""
    form = describe_head(model)
    found = []
    for given in (None, form):
        model.zero_grad(set_to_none=True)
        logits_NV = scores(model, batch, given).float()
        weights_NV = torch.randn(logits_NV.shape, generator=torch.Generator().manual_seed(1))
        (weights_NV * logits_NV).sum().backward()
        gradients = {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((logits_NV.detach(), gradients))
    (dense_NV, dense), (ours_NV, ours) = found
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours_NV, dense_NV, **tolerance)
    assert dense
    assert ours.keys() == dense.keys()
    for name in dense:
        torch.testing.assert_close(ours[name], dense[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("family", DECODERS)
def test_decoders(family: str, tiny_causal_lm: Callable[..., Any]) -> None:
    check_same(tiny_causal_lm(family), collate_ids(ID_ROWS))


@pytest.mark.parametrize("family", FORMS)
def test_decoders_that_change_what_the_head_gives(family: str, tiny_causal_lm: Callable[..., Any]) -> None:
    options, form = FORMS[family]
    model = tiny_causal_lm(family, **options)
    assert describe_head(model) == form
    check_same(model, collate_ids(ID_ROWS))


@pytest.mark.parametrize("family", [*ENCODER_DECODERS, *ENCODERS])
def test_the_other_kinds(family: str, tiny_model: Callable[..., Any], marked_tokenizer: Callable[..., Any]) -> None:
    model = tiny_model(family, "MaskedLM")
    check_same(model, batch_for(model, marked_tokenizer(family), CHOICE_ROWS))


def test_tied_embeddings_scaled_before_the_head(
    tiny_model: Callable[..., Any], marked_tokenizer: Callable[..., Any]
) -> None:
    model = tiny_model("t5", tie_word_embeddings=True)
    assert model.config.scale_decoder_outputs
    check_same(model, batch_for(model, marked_tokenizer("t5"), CHOICE_ROWS))
    assert describe_head(model) == HeadForm()


def test_a_bias_that_is_added_is_read_anew_for_every_batch(
    tiny_model: Callable[..., Any], marked_tokenizer: Callable[..., Any]
) -> None:
    model = tiny_model("bart")
    form, batch = describe_head(model), batch_for(model, marked_tokenizer("bart"), CHOICE_ROWS)
    assert form == HeadForm(shift="final_logits_bias")
    model.final_logits_bias += torch.randn(model.final_logits_bias.shape)
    torch.testing.assert_close(scores(model, batch, form), scores(model, batch, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["frozen", "trained"])
def test_a_student_with_an_adapter(options: dict[str, Any], tiny_causal_lm: Callable[..., Any]) -> None:
    model = with_adapter(tiny_causal_lm(), **options)
    check_same(model, collate_ids(ID_ROWS))
    named = dict(model.named_parameters())
    assert any("lm_head" in name and p.requires_grad for name, p in named.items()) == bool(options)


def test_checkpointed_blocks(tiny_causal_lm: Callable[..., Any]) -> None:
    model = tiny_causal_lm().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    check_same(model, collate_ids(ID_ROWS))


def test_half_precision(tiny_causal_lm: Callable[..., Any]) -> None:
    check_same(tiny_causal_lm().to(torch.bfloat16), collate_ids(ID_ROWS), rtol=2e-2, atol=2e-2)


def test_autocast(tiny_causal_lm: Callable[..., Any]) -> None:
    model, batch = tiny_causal_lm(), collate_ids(ID_ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        rows = signal_of(kind_of(model).supervised_rows(model, batch, describe_head(model)))
    assert not isinstance(rows, Tensor)
    assert rows.hidden_NH.dtype == rows.weight_VH.dtype == torch.bfloat16  # the type that the head would compute in
    with torch.autocast("cpu", torch.bfloat16):
        dense_NV = kind_of(model).supervised_rows(model, batch).logits_NV.float()
    torch.testing.assert_close(rows.logits(), dense_NV, rtol=2e-2, atol=2e-3)


def test_no_supervised_token_gives_no_row_and_zero_gradients(tiny_causal_lm: Callable[..., Any]) -> None:
    model, batch = tiny_causal_lm(), collate_ids(ID_ROWS)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    logits_NV = scores(model, batch, describe_head(model))
    assert logits_NV.shape == (0, model.config.vocab_size)
    logits_NV.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


def test_the_head_runs_on_nothing(tiny_causal_lm: Callable[..., Any]) -> None:
    model, shapes = tiny_causal_lm(), []
    form = describe_head(model)
    model.lm_head.register_forward_hook(lambda _, args, output: shapes.append((args[0].shape[1], output.numel())))
    kind_of(model).supervised_rows(model, collate_ids(ID_ROWS), form)
    assert shapes == [(0, 0)]
    assert not model.lm_head._forward_pre_hooks


def test_describing_leaves_the_model_as_it_was(tiny_causal_lm: Callable[..., Any]) -> None:
    model = tiny_causal_lm().train()
    before = torch.get_rng_state()
    describe_head(model)
    assert model.training
    assert not model.lm_head._forward_hooks
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def changed(model: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The model with code of its own after its head."""
    its_own = type(model).forward

    class Own(type(model)):  # type: ignore[misc]
        @functools.wraps(its_own)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = its_own(self, *args, **kwargs)
            out.logits = function(out.logits)
            return out

    Own.__name__ = type(model).__name__
    model.__class__ = Own
    return model


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda logits: logits.log_softmax(dim=-1), "does not name"),
        (lambda logits: 1000 * torch.tanh(logits / 1000), "does not name"),  # which hardly bends them
        (lambda logits: logits[..., :100], r"\[2, 8, 100\] where its head gives"),
        (lambda logits: logits * torch.nn.Parameter(torch.ones(())), "followed by something that is trained"),
    ],
    ids=["softmax", "cap", "narrow", "trained"],
)
def test_a_model_that_does_something_else_after_its_head_makes_its_own_logits(
    function: Callable[[Tensor], Tensor], reason: str, tiny_causal_lm: Callable[..., Any]
) -> None:
    with pytest.raises(NoHeadFormError, match=reason):
        describe_head(changed(tiny_causal_lm(), function))


def test_a_cap_of_the_configuration_is_not_believed_alone(tiny_causal_lm: Callable[..., Any]) -> None:
    assert describe_head(tiny_causal_lm(final_logit_softcapping=30.0)) == HeadForm()  # Llama does not know it


def test_an_adapter_on_the_head_makes_its_own_logits_although_it_changes_nothing_yet(
    tiny_causal_lm: Callable[..., Any],
) -> None:
    config = LoraConfig(target_modules=["q_proj", "lm_head"], r=4, task_type="CAUSAL_LM")
    with pytest.raises(NoHeadFormError, match="adapter of its own"):
        describe_head(get_peft_model(tiny_causal_lm(), config))


def test_classes_and_small_vocabularies_stay_dense(
    tiny_model: Callable[..., Any], tiny_causal_lm: Callable[..., Any]
) -> None:
    with pytest.raises(NoHeadFormError, match="classes are fewer"):
        describe_head(tiny_model("bert"))
    with pytest.raises(NoHeadFormError, match="no larger than the hidden states"):
        describe_head(tiny_causal_lm(hidden=64, vocab=48))


def test_the_reason_is_logged_or_refused(tiny_model: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("bert")
    assert head_to_fuse(model, "teacher", "never") is None
    with caplog.at_level("INFO"):
        assert head_to_fuse(model, "teacher", "auto") is None
    assert "the teacher's classes are fewer than the features" in caplog.text
    with pytest.raises(InputError, match=r"fused is 'always', but the teacher .* the teacher's classes are fewer"):
        head_to_fuse(model, "teacher", "always")


def test_a_compiled_student_makes_its_own_logits(tiny_causal_lm: Callable[..., Any]) -> None:
    model = tiny_causal_lm()
    assert why_dense(model) is None
    assert "compiled" in str(why_dense(torch.compile(model)))


def test_on_the_meta_device_the_configuration_is_taken_at_its_word(tiny_causal_lm: Callable[..., Any]) -> None:
    options, form = FORMS["gemma2"]
    assert describe_head(tiny_causal_lm("gemma2", **options).to("meta")) == form
