"""What a teacher here gives: hidden states and its head where the loss takes that over, and logits elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.objectives import DistillationObjective, HeadOf
from sinkd_llm.teachers import LocalTeacher
from tests.support.rows import CHOICE_ROWS, ID_ROWS, batch_for, collate_ids


def asked(model: Any, **settings: Any) -> LocalTeacher:
    teacher = LocalTeacher(model)
    teacher.check_objective(DistillationObjective(**settings), None, 0.1)
    return teacher


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_hidden_states_and_head_say_the_same_as_logits(family: str, tiny_causal_lm: Callable[..., Any]) -> None:
    model, batch = tiny_causal_lm(family), collate_ids(ID_ROWS)
    signal = asked(model).signal(batch).signal
    logits_NV = asked(model, fused="never").signal(batch).signal
    assert isinstance(signal, HeadOf)
    assert isinstance(logits_NV, torch.Tensor)
    torch.testing.assert_close(signal.logits(), logits_NV, rtol=1e-5, atol=1e-6)
    assert not signal.hidden_NH.requires_grad
    assert not signal.weight_VH.requires_grad


def test_classes_are_given_as_logits(tiny_model: Callable[..., Any], marked_tokenizer: Callable[..., Any]) -> None:
    model = tiny_model("bert")
    signal = asked(model).signal(batch_for(model, marked_tokenizer("bert"), CHOICE_ROWS[:1])).signal
    assert isinstance(signal, torch.Tensor)
    assert signal.shape == (1, 2)
    with pytest.raises(InputError, match="fused is 'always', but the teacher"):
        asked(model, fused="always")


def test_a_loss_without_a_teacher_asks_for_no_head(tiny_causal_lm: Callable[..., Any]) -> None:
    model, runs = tiny_causal_lm(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    asked(model, alpha=0.0, sinkhorn_weight=0.0)
    assert not runs


def test_a_teacher_that_is_at_fault_is_found_when_it_is_asked(tiny_causal_lm: Callable[..., Any]) -> None:
    model, batch = tiny_causal_lm(), {**collate_ids(ID_ROWS), "example_id": ["a", "b", "c"]}
    teacher = asked(model)
    teacher.check_finite(batch)
    model.get_input_embeddings().weight.data[ID_ROWS[1]["prompt_ids"][0]] = float("nan")
    teacher.signal(batch)  # which does not look
    with pytest.raises(InputError, match=r"logits are NaN or infinite for (a, )?b"):
        teacher.check_finite(batch)


def test_a_batch_without_supervised_tokens_has_empty_hidden_states(tiny_causal_lm: Callable[..., Any]) -> None:
    batch = collate_ids(ID_ROWS)
    batch["labels"][:] = -100
    signal = asked(tiny_causal_lm()).signal(batch).signal
    assert isinstance(signal, HeadOf)
    assert signal.hidden_NH.shape == (0, 32)
