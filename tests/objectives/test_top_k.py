"""The losses on a signal that names only some ids: exact at k = V, a twin for k < V, and what is certified."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinkd_llm.objectives import DIVERGENCES, DistillationObjective, TopKSignal, TransportSettings, sinkd_term
from sinkd_llm.objectives.signals import student_bucket_logits
from sinkd_llm.optimal_transport import pairwise_cost, pairwise_top_k_cost, top_k_cost
from tests.support import naive

N, V = 7, 12
WHERE = {
    "example_N": torch.tensor([0, 0, 1, 2, 2, 2, 3]),
    "position_N": torch.tensor([0, 1, 0, 0, 1, 2, 0]),
}
LABELS = torch.tensor([0, 11, 3, 4, 4, 7, 1])
TEMPERATURES = (1.0, 2.0, 3.0)


def logits(seed: int, rows: int = N, width: int = V, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def signal(teacher: Tensor, k: int, temperatures: tuple[float, ...] = TEMPERATURES) -> TopKSignal:
    return TopKSignal.from_logits(teacher, teacher.topk(k, dim=-1).indices, temperatures)


def shuffled_signal(teacher: Tensor, k: int, seed: int = 0) -> TopKSignal:
    """Any k ids, in any order."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(teacher.shape[1], generator=generator)[:k] for _ in teacher])
    return TopKSignal.from_logits(teacher, ids, TEMPERATURES)


def bucket_divergence(name: str, student: Tensor, top_k: TopKSignal, temperature: float) -> Tensor:
    student_NB = student_bucket_logits(student, top_k.ids_NK, temperature)
    return DIVERGENCES[name](student_NB, top_k.bucket_logits(temperature), 1.0)


def value_and_gradient(function: Any, at: Tensor) -> tuple[Tensor, Tensor]:
    at = at.detach().clone().requires_grad_()
    value = function(at)
    return value.detach(), torch.autograd.grad(value.sum(), at)[0]


# ---- k = V is the dense loss


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_all_ids_a_divergence_is_the_dense_one(name: str, dtype: torch.dtype, tolerance: float) -> None:
    s, t = logits(0).to(dtype), logits(1).to(dtype)
    everything = shuffled_signal(t, V)
    assert torch.isinf(everything.tail_log_sum_exp[2.0]).all()
    dense = value_and_gradient(lambda x: DIVERGENCES[name](x, t, 2.0), s)
    ours = value_and_gradient(lambda x: bucket_divergence(name, x, everything, 2.0), s)
    for expected, actual in zip(dense, ours, strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_with_all_ids_the_cost_is_the_dense_one(dtype: torch.dtype, tolerance: float) -> None:
    s, t = logits(0).softmax(-1).to(dtype), logits(1).to(dtype)
    everything = shuffled_signal(t, V)
    weights = torch.rand(N, N, dtype=dtype)
    ids, p, tail = (x[None] for x in (everything.ids_NK, *everything.probabilities(1.0)))
    dense = value_and_gradient(lambda x: weights * pairwise_cost(x, t.softmax(-1)), s)
    ours = value_and_gradient(lambda x: weights * pairwise_top_k_cost(x[None], ids, p, tail)[0][0], s)
    for expected, actual in zip(dense, ours, strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert pairwise_top_k_cost(s[None], ids, p, tail)[1].max() == 0


@pytest.mark.parametrize("scope", ["batch", "position", "sequence"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_with_all_ids_the_mixture_is_the_dense_one(divergence: str, scope: str) -> None:
    s, t = logits(0), logits(1)
    objective = DistillationObjective(alpha=0.4, divergence=divergence, transport_scope=scope)

    def loss(teacher: Any) -> tuple[Tensor, Tensor]:
        return value_and_gradient(lambda x: objective(x, teacher, LABELS, **WHERE).loss, s)

    for expected, actual in zip(loss(t), loss(shuffled_signal(t, V)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


# ---- k < V: twins and finite differences


@pytest.mark.parametrize("k", [1, 4, V - 1])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_is_its_twin(name: str, k: int) -> None:
    s, t = logits(0), logits(1)
    top_k = shuffled_signal(t, k)

    def twin(x: Tensor) -> Tensor:
        return naive.merged_divergence(name, x, t, top_k.ids_NK, 3.0)

    value, gradient = value_and_gradient(lambda x: bucket_divergence(name, x, top_k, 3.0), s)
    torch.testing.assert_close(value, twin(s), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, naive.gradient(lambda x: twin(x).sum(), s), rtol=1e-9, atol=1e-11)

    def shifted(x: Tensor) -> Tensor:
        return torch.stack([bucket_divergence(name, part, top_k, 3.0).sum() for part in x])

    torch.testing.assert_close(gradient, naive.central_differences(shifted, s), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("k", [1, 4, V - 1])
@pytest.mark.parametrize("piece", [1, 30, 2**20])
def test_the_cost_is_its_twin_in_pieces_of_any_size(k: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_k_cost, "_CPU_PIECE", piece)
    problems, N = 2, 5
    s, t = logits(0, problems * N), logits(1, problems * (N - 2))
    top_k = shuffled_signal(t, k)
    weights = torch.rand(problems, N, N - 2, generator=torch.Generator().manual_seed(2)).double()
    ids, p, tail = (x.view(problems, N - 2, *x.shape[1:]) for x in (top_k.ids_NK, *top_k.probabilities(2.0)))

    def ours(x: Tensor) -> Tensor:
        rows = torch.softmax(x / 2, dim=-1).view(problems, N, V)
        return weights * pairwise_top_k_cost(rows, ids, p, tail)[0]

    def twin(x: Tensor) -> Tensor:
        blocks = zip(x.view(problems, N, V), t.view(problems, N - 2, V), ids, strict=True)
        return weights * torch.stack([naive.merged_cost(a, b, i, 2.0) for a, b, i in blocks])

    value, gradient = value_and_gradient(ours, s)
    torch.testing.assert_close(value, twin(s), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, naive.gradient(lambda x: twin(x).sum(), s), rtol=1e-9, atol=1e-11)

    def shifted(x: Tensor) -> Tensor:
        return torch.stack([ours(part).sum() for part in x])

    torch.testing.assert_close(gradient, naive.central_differences(shifted, s), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scope", ["batch", "position", "sequence"])
def test_the_term_is_its_twin_in_every_scope(scope: str) -> None:
    s, t = logits(0), logits(1)
    top_k = shuffled_signal(t, 4)
    keys = [0] * N if scope == "batch" else WHERE["position_N" if scope == "position" else "example_N"].tolist()

    def twin(x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for key in set(keys):
            rows = [i for i, other in enumerate(keys) if other == key]
            C = naive.merged_cost(x[rows], t[rows], top_k.ids_NK[rows], 2.0)
            total = total + len(rows) * naive.transport_value(C, 0.1, 20)
        return total

    settings = TransportSettings(transport_scope=scope)
    value, gradient = value_and_gradient(lambda x: sinkd_term(x, top_k, settings, **WHERE).value, s)
    torch.testing.assert_close(value, twin(s), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradient, naive.gradient(twin, s), rtol=1e-7, atol=1e-9)


# ---- what is certified

PROPERTY = {"k": st.integers(1, 12), "seed": st.integers(0, 10_000), "scale": st.sampled_from([0.1, 1.0, 4.0, 15.0])}


@settings(max_examples=80, deadline=None)
@given(**PROPERTY, temperature=st.sampled_from(TEMPERATURES))
def test_the_dense_cost_lies_in_the_interval(k: int, seed: int, scale: float, temperature: float) -> None:
    s, t = logits(seed, scale=scale), logits(seed + 1, N - 2, scale=scale)
    top_k = shuffled_signal(t, k, seed)
    ids, p, tail = (x[None] for x in (top_k.ids_NK, *top_k.probabilities(temperature)))
    q = naive.softmax(s, temperature)
    dense = naive.cost(q, naive.softmax(t, temperature))
    low, width = (x[0] for x in pairwise_top_k_cost(q[None], ids, p, tail))
    assert (low <= dense + 1e-12).all()
    assert (dense <= low + width + 1e-12).all()
    # h + |tau_p - tau_q| and h + tau_p + tau_q, by their definition
    kept = torch.stack([torch.stack([q_i[row] for row in top_k.ids_NK]) for q_i in q])
    h, tau_q = (kept - p[0]).abs().sum(-1), 1 - kept.sum(-1)
    torch.testing.assert_close(low, h + (tail[0] - tau_q).abs())
    torch.testing.assert_close(low + width, h + tail[0] + tau_q)


@settings(max_examples=80, deadline=None)
@given(**PROPERTY, name=st.sampled_from([name for name, row in DIVERGENCES.items() if row.merging_lowers]))
def test_a_divergence_is_a_lower_bound_and_grows_with_k(name: str, k: int, seed: int, scale: float) -> None:
    s, t = logits(seed, scale=scale), logits(seed + 1, scale=scale)
    dense = DIVERGENCES[name](s, t, 2.0)
    few = bucket_divergence(name, s, signal(t, max(1, k // 2)), 2.0)
    more = bucket_divergence(name, s, signal(t, k), 2.0)
    slack = 1e-12 + 1e-9 * dense
    assert (few <= more + slack).all()
    assert (more <= dense + slack).all()


def test_the_width_is_a_diagnostic_and_a_dense_signal_has_none() -> None:
    s, t = logits(0), logits(1)
    objective = DistillationObjective(transport_scope="position")
    dense = objective(s, t, LABELS, **WHERE, with_diagnostics=True)
    assert "sinkhorn/cost_width" not in dense.diagnostics
    top_k = signal(t, 4)
    output = objective(s, top_k, LABELS, **WHERE, with_diagnostics=True)
    assert "teacher_entropy" not in output.diagnostics
    q, p = naive.softmax(s, 2.0), naive.softmax(t, 2.0)
    total = 0.0
    for position in range(3):
        rows = [i for i, x in enumerate(WHERE["position_N"].tolist()) if x == position]
        widths = [
            2 * min(1 - q[i, top_k.ids_NK[j]].sum().item(), 1 - p[j, top_k.ids_NK[j]].sum().item())
            for i in rows
            for j in rows
        ]
        total += len(rows) * sum(widths) / len(widths)
    assert math.isclose(output.diagnostics["sinkhorn/cost_width"].item(), total / N, rel_tol=1e-9)


# ---- numbers that cancel, and dtypes


def test_a_tail_of_1e_12_keeps_its_logarithm_in_fp32() -> None:
    """1 - kept mass is 0 in fp32 there, and the reverse KL of a student with a real tail would be off by a factor."""
    t = torch.tensor([[30.0, 0.0, 0.5, -0.5, 0.2, 0.0]], dtype=torch.float64)
    s = torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    exact = naive.merged_divergence("rkl", s, t, torch.tensor([[0, 1]]), 1.0)
    top_k = TopKSignal.from_logits(t.float(), torch.tensor([[0, 1]]), [1.0])
    torch.testing.assert_close(bucket_divergence("rkl", s.float(), top_k, 1.0).double(), exact, rtol=1e-6, atol=0)
    value, gradient = value_and_gradient(lambda x: bucket_divergence("kl", x, top_k, 1.0), 15 * s.float())
    twin = naive.gradient(lambda x: naive.merged_divergence("kl", x, t, torch.tensor([[0, 1]]), 1.0).sum(), 15 * s)
    assert value.item() > 0
    torch.testing.assert_close(gradient.double(), twin, rtol=1e-4, atol=1e-12)


def test_bf16_logits_are_computed_in_fp32() -> None:
    s, t = logits(0, width=500, scale=8).bfloat16(), logits(1, width=500, scale=8).bfloat16()
    objective = DistillationObjective()
    labels = LABELS
    value, gradient = value_and_gradient(lambda x: objective(x, signal(t, 16), labels, **WHERE).loss, s)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    exact, exact_gradient = value_and_gradient(
        lambda x: objective(x, signal(t.double(), 16), labels, **WHERE).loss, s.double()
    )
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-2, atol=1e-5)


def test_no_row_gives_a_zero_with_a_gradient() -> None:
    student = torch.zeros(0, V, requires_grad=True)
    empty = signal(torch.zeros(0, V), 4)
    where = {name: tensor[:0] for name, tensor in WHERE.items()}
    loss = DistillationObjective()(student, empty, LABELS[:0], **where).loss
    loss.backward()
    assert loss == 0
    assert student.grad.shape == (0, V)


# ---- the signal


def test_the_signal_knows_the_log_sum_exp_of_the_whole_vocabulary() -> None:
    t = logits(3)
    for temperature in TEMPERATURES:
        expected = torch.logsumexp(t / temperature, dim=-1)
        torch.testing.assert_close(signal(t, 5).log_sum_exp(temperature), expected)


def test_rows_are_selected_together() -> None:
    t = logits(3)
    half = signal(t, 5).map(lambda rows: rows[::2])
    assert len(half) == 4
    torch.testing.assert_close(half.bucket_logits(2.0), signal(t[::2], 5).bucket_logits(2.0))


def test_verbalizers_need_no_tail_and_give_the_dense_term() -> None:
    s, t = logits(0), logits(1)
    wanted = [3, 0, 7]
    ids = torch.tensor([3, 7, 1, 0]).expand(N, 4)
    top_k = TopKSignal.from_logits(t, ids, [])
    settings = TransportSettings(vocabulary="verbalizers")
    dense = value_and_gradient(lambda x: sinkd_term(x, t, settings, **WHERE, verbalizer_ids=wanted).value, s)
    ours = value_and_gradient(lambda x: sinkd_term(x, top_k, settings, **WHERE, verbalizer_ids=wanted).value, s)
    for expected, actual in zip(dense, ours, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_a_student_with_a_wider_vocabulary_is_compared_over_the_shared_ids() -> None:
    s, t = logits(0, width=V + 3), logits(1)
    objective = DistillationObjective(alpha=1.0)
    dense = value_and_gradient(lambda x: objective(x, t, LABELS, **WHERE).loss, s)
    ours = value_and_gradient(lambda x: objective(x, shuffled_signal(t, V), LABELS, **WHERE).loss, s)
    for expected, actual in zip(dense, ours, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "width", "message"),
    [
        ({"temperature": 1.5}, V, "tail mass at the temperatures 1, 2, 3, but not at 1.5"),
        ({"alpha": 0.0, "sinkhorn_temperature": 4.0}, V, "but not at 4"),
        ({"cost_norm": "sql2"}, V, "needs the teacher's whole rows"),
        ({"alpha": 0.0, "vocabulary": "verbalizers"}, V, r"no logits of the ids \[\d"),
        ({}, V - 1, "counts the mass of 12 ids and the student has 11"),
    ],
)
def test_refusals(settings: dict[str, Any], width: int, message: str) -> None:
    objective = DistillationObjective(**settings)
    with pytest.raises(ValueError, match=message):
        objective(logits(0, width=width), signal(logits(1), 4), LABELS % width, **WHERE, verbalizer_ids=[0, 3])
