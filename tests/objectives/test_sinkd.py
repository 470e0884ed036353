"""sinkd_term against its twin, in every scope, and what it is known to do and not to do."""

import math
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinkd_llm.objectives import GROUP, TRANSPORT_SCOPES, TransportSettings, sinkd_term
from sinkd_llm.optimal_transport import GRADIENTS
from tests.support import naive

# The scopes that need nothing of the data but where a row stands.
SCOPES = [scope for scope in TRANSPORT_SCOPES if scope != GROUP]


def logits(N: int, V: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(seed)).double()


def places(lengths: list[int]) -> dict[str, Tensor]:
    """example_N and position_N of examples with answers of these lengths."""
    return {
        "example_N": torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)]).long(),
        "position_N": torch.tensor([p for n in lengths for p in range(n)]).long(),
    }


def keys(where: dict[str, Tensor], scope: str) -> list[int]:
    if scope == "batch":
        return [0] * len(where["example_N"])
    return where["position_N" if scope == "position" else "example_N"].tolist()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    shuffle=st.integers(0, 99),
    scope=st.sampled_from(SCOPES),
    norm=st.sampled_from(["l1", "sql2"]),
    ids=st.sampled_from([None, [3, 0, 7], [1, 2]]),
)
def test_value_and_gradient_equal_the_twin_whatever_the_order_of_the_rows(
    lengths: list[int], shuffle: int, scope: str, norm: str, ids: list[int] | None
) -> None:
    where = places(lengths)
    N = len(where["example_N"])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(shuffle))
    where = {name: tensor[order] for name, tensor in where.items()}
    s, t = logits(N, 9), logits(N, 9, seed=1)
    student, teacher = s.clone().requires_grad_(), t.clone().requires_grad_()
    chosen = TransportSettings(
        transport_scope=scope,
        cost_norm=norm,
        sinkhorn_iterations=8,
        vocabulary="full" if ids is None else "verbalizers",
    )
    term = sinkd_term(student, teacher, chosen, **where, verbalizer_ids=ids)
    assert term.num_problems == len(set(keys(where, scope)))
    assert term.num_tokens == N

    def twin(x: Tensor) -> Tensor:
        return naive.sinkd(x, t, keys(where, scope), iterations=8, norm=norm, ids=ids)

    torch.testing.assert_close(term.value, twin(s))
    term.value.backward()
    torch.testing.assert_close(student.grad, naive.gradient(twin, s), rtol=1e-7, atol=1e-10)
    assert teacher.grad is None


def test_the_published_loss_is_one_conversion_away() -> None:
    """beta * 0.001 * sum(P * D) = beta * 0.001 * value; per token, a weight of beta * 0.001 * N."""
    N = 16
    s, t = logits(N, 5), logits(N, 5, seed=1)
    student = s.clone().requires_grad_()
    value = sinkd_term(student, t, **places([1] * N)).value
    mean = value / N
    published = naive.published_loss(s, t, beta=0.8)
    torch.testing.assert_close(0.8 * 0.001 * value, published)
    torch.testing.assert_close(0.0128 * mean, published)
    (0.0128 * mean).backward()
    torch.testing.assert_close(student.grad, naive.gradient(lambda x: naive.published_loss(x, t, beta=0.8), s))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_one_row_is_the_plain_distance(gradient: str) -> None:
    s, t = logits(4, 6), logits(4, 6, seed=1)
    student, twin = s.clone().requires_grad_(), s.clone().requires_grad_()
    term = sinkd_term(
        student, t, TransportSettings(transport_scope="sequence", sinkhorn_gradient=gradient), **places([1] * 4)
    )
    plain = (torch.softmax(twin / 2, -1) - torch.softmax(t / 2, -1)).abs().sum()
    torch.testing.assert_close(term.value, plain)
    term.value.backward()
    plain.backward()
    torch.testing.assert_close(student.grad, twin.grad)
    assert term.diagonal_mass == 1
    assert term.plan_entropy == 0


def test_the_loss_does_not_know_which_row_is_which() -> None:
    s, t = logits(6, 8), logits(6, 8, seed=1)
    where, order = places([6]), torch.tensor([3, 1, 0, 5, 4, 2])
    value = sinkd_term(s, t, **where).value
    torch.testing.assert_close(sinkd_term(s, t[order], **where).value, value)
    position = TransportSettings(transport_scope="position")
    by_position = sinkd_term(s, t, position, **where).value
    assert abs(sinkd_term(s, t[order], position, **where).value - by_position) > 0.1


def test_scopes_only_pay_for_the_pairs_inside_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    sweep = import_module("sinkd_llm.objectives.sweep")
    original = sweep.add_cost

    def spy(cost: Tensor, student: Tensor, teacher: Tensor, norm: str) -> None:
        shapes.append((student.shape[0], student.shape[1], teacher.shape[1]))
        original(cost, student, teacher, norm)

    monkeypatch.setattr(sweep, "add_cost", spy)
    where = places([1, 3, 1, 8, 7, 3, 1])
    s, t = logits(24, 5), logits(24, 5, seed=1)
    term = sinkd_term(s, t, TransportSettings(transport_scope="sequence"), **where)
    assert shapes == [(3, 1, 1), (2, 3, 3), (1, 7, 7), (1, 8, 8)]
    assert [plan.plan.shape for plan in term.plans] == [(3, 1, 1), (2, 3, 3), (2, 8, 8)]


def test_padding_inside_a_solver_call_changes_nothing() -> None:
    s, t = logits(12, 5), logits(12, 5, seed=1)
    together = sinkd_term(s, t, TransportSettings(transport_scope="sequence"), **places([5, 7]))
    assert together.plans[0].plan.shape == (2, 7, 7)
    first = sinkd_term(s[:5], t[:5], **places([5]))
    second = sinkd_term(s[5:], t[5:], **places([7]))
    torch.testing.assert_close(together.value, first.value + second.value)
    for name in ("row_error", "diagonal_mass", "transport_cost"):
        expected = (5 * getattr(first, name) + 7 * getattr(second, name)) / 12
        torch.testing.assert_close(getattr(together, name), expected)


def test_diagnostics_at_both_ends() -> None:
    far = 50 * torch.eye(8)
    close = sinkd_term(far, far, TransportSettings(sinkhorn_epsilon=0.05), **places([8]))
    assert close.diagonal_mass.item() == pytest.approx(1, abs=1e-5)
    assert close.plan_entropy.item() == pytest.approx(0, abs=1e-4)
    assert close.transport_cost.item() == pytest.approx(0, abs=1e-5)
    uniform = sinkd_term(far, far, TransportSettings(sinkhorn_epsilon=100.0), **places([8]))
    assert uniform.diagonal_mass.item() == pytest.approx(1 / 8, abs=3e-3)
    assert uniform.plan_entropy.item() == pytest.approx(1, abs=1e-4)
    half = sinkd_term(far, far, TransportSettings(sinkhorn_epsilon=1.0), **places([8]))
    P = naive.plan(naive.cost(naive.softmax(far, 2.0), naive.softmax(far, 2.0)), 1.0, 20)
    entropy = -(P * P.log()).sum().item()
    expected = (entropy - math.log(8)) / math.log(8)
    assert half.plan_entropy.item() == pytest.approx(expected, abs=1e-4)
    assert not half.transport_cost.requires_grad


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_large_bf16_logits_over_a_real_vocabulary(gradient: str, scope: str) -> None:
    s = logits(5, 151_936, scale=30.0).bfloat16()
    t = logits(5, 151_936, seed=1, scale=30.0).bfloat16()
    student = s.clone().requires_grad_()
    term = sinkd_term(
        student, t, TransportSettings(transport_scope=scope, sinkhorn_gradient=gradient), **places([2, 3])
    )
    term.value.backward()
    where = places([2, 3])
    twin = naive.sinkd(s, t, keys(where, scope))
    assert term.value.item() == pytest.approx(twin.item(), rel=1e-4)
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_no_rows(gradient: str, scope: str) -> None:
    student = torch.rand(0, 6).requires_grad_()
    term = sinkd_term(
        student,
        torch.rand(0, 6),
        TransportSettings(transport_scope=scope, sinkhorn_gradient=gradient),
        **places([]),
    )
    term.value.backward()
    assert term.value == 0
    assert student.grad.shape == (0, 6)
    assert term.num_problems == 0
    assert [term.row_error, term.diagonal_mass, term.plan_entropy, term.transport_cost] == [0] * 4


def test_threshold_is_passed_on() -> None:
    s = logits(6, 8)
    settings = TransportSettings(sinkhorn_iterations=5000, sinkhorn_threshold=1e-4)
    term = sinkd_term(s, logits(6, 8, 1), settings, **places([6]))
    assert term.plans[0].iterations < 5000
    assert term.row_error.item() <= 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verbalizer_ids": [3]}, "at least two vocabulary ids"),
        ({"verbalizer_ids": [3, 3]}, "at least two vocabulary ids"),
        ({"verbalizer_ids": [3, 4, 3]}, "distinct"),
        ({"verbalizer_ids": [3, 6]}, "must lie in"),
        ({}, "needs verbalizer_ids"),
        ({"teacher": torch.rand(4, 7)}, "same shape"),
        ({"example_N": torch.zeros(3).long()}, "one entry for each of the 4 rows"),
        ({"student": torch.rand(4, 1), "teacher": torch.rand(4, 1)}, "one id"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    arguments = {
        "student": torch.rand(4, 6),
        "teacher": torch.rand(4, 6),
        "settings": TransportSettings(vocabulary="verbalizers"),
        **places([4]),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        sinkd_term(**arguments)
