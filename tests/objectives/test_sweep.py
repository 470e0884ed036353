"""The sweep over the vocabulary against the formulas in fp64, however the vocabulary is cut into tiles."""

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sinkd_llm.objectives import DIVERGENCES, DistillationObjective, HeadOf, TopKSignal, TransportedSettings
from sinkd_llm.objectives.problems import Problems
from sinkd_llm.objectives.sweep import sweep
from sinkd_llm.objectives.tile_pair import Wanted
from tests.support import naive

normalisers, sweeps = (import_module(f"sinkd_llm.objectives.{name}") for name in ("normalisers", "sweep"))
N, H, V = 7, 5, 23
LABELS = torch.tensor([0, 22, 5, 11, 5, 3, 17])
WHERE = {"example_N": torch.arange(N), "position_N": torch.zeros(N).long()}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias_V": True},
    "scale": {"scale": 0.25},
    "cap": {"cap": 4.0},
    "all": {"bias_V": True, "scale": 1.7, "cap": 6.0},
}


def head(seed: int, form: str = "plain", rows: int = N, ids: int = V) -> HeadOf:
    random = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(shape, generator=random).double() for shape in ((rows, H), (ids, H)))
    parts = dict(FORMS[form])
    if parts.pop("bias_V", False):
        parts["bias_V"] = torch.randn(ids, generator=random).double()
    return HeadOf(hidden, weight * 2, **parts)


def trained(side: HeadOf, weights: bool) -> tuple[HeadOf, list[Tensor]]:
    """The same with gradients, and the tensors that have them."""
    hidden = side.hidden_NH.clone().requires_grad_()
    side = replace(side, hidden_NH=hidden)
    if not weights:
        return side, [hidden]
    weight = side.weight_VH.clone().requires_grad_()
    bias = None if side.bias_V is None else side.bias_V.clone().requires_grad_()
    side = replace(side, weight_VH=weight, bias_V=bias)
    return side, [hidden, weight, *([] if bias is None else [bias])]


def cut_into_tiles(monkeypatch: pytest.MonkeyPatch, width: int, kept_tiles: float) -> None:
    monkeypatch.setattr(normalisers, "_CPU_TILE", (1, width, width))
    monkeypatch.setattr(normalisers, "KEPT_BYTES", kept_tiles * 4 * width * 2 * N)
    monkeypatch.setattr(sweeps, "_FEW", 0)  # the way of small batches is another


def naive_logits(side: HeadOf) -> Tensor:
    product = side.hidden_NH @ side.weight_VH.T + (0 if side.bias_V is None else side.bias_V)
    scaled = side.scale * product
    return scaled if side.cap is None else side.cap * torch.tanh(scaled / side.cap)


def formulas(student: Tensor, teacher: Tensor, wanted: Wanted, weights: list[Tensor]) -> Tensor:
    """A weighted sum of everything that a sweep gives, from the formulas alone, differentiable."""
    total = weights[0] @ -naive.softmax(student)[torch.arange(len(student)), LABELS].log()
    shared = min(student.shape[1], teacher.shape[1])
    student, teacher = student[:, :shared], teacher[:, :shared]
    name = next(name for name, known in DIVERGENCES.items() if known is wanted.divergence)
    total = total + weights[1] @ naive.divergence(
        name, student, teacher[wanted.own or slice(None)], wanted.temperature
    )
    s, t = (naive.softmax(x, wanted.sinkhorn_temperature) for x in (student, teacher))
    return total + (weights[2] * naive.cost(s, t, wanted.cost_norm)).sum()


def check(student: HeadOf, teacher: HeadOf | Tensor, wanted: Wanted, weights: bool = False) -> None:
    M = len(teacher)
    random = torch.Generator().manual_seed(9)
    factors = [torch.randn(shape, generator=random).double() for shape in ((N,), (N,), (N, M))]
    ours, our_tensors = trained(student, weights)
    swept = sweep(ours, teacher, wanted)
    assert swept.ce_N is not None
    assert swept.divergence_N is not None
    value = factors[0] @ swept.ce_N + factors[1] @ swept.divergence_N + (factors[2] * swept.costs[0][0]).sum()
    gradients = torch.autograd.grad(value, our_tensors)
    twin, twin_tensors = trained(student, weights)
    theirs = naive_logits(teacher) if isinstance(teacher, HeadOf) else teacher
    expected = formulas(naive_logits(twin), theirs, wanted, factors)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    for gradient, twin_gradient in zip(gradients, torch.autograd.grad(expected, twin_tensors), strict=True):
        torch.testing.assert_close(gradient, twin_gradient, rtol=1e-9, atol=1e-9)


def everything(divergence: str = "kl", temperature: float = 2.0, tau: float = 2.0, norm: str = "l1") -> Wanted:
    pairing = Problems.of(None, N).pairing
    return Wanted(LABELS, DIVERGENCES[divergence], temperature, pairing, tau, norm)


@pytest.mark.parametrize("weights", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(("width", "kept"), [(64, 9), (6, 0), (6, 1.5), (6, 9)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_formulas(
    monkeypatch: pytest.MonkeyPatch, form: str, width: int, kept: float, weights: bool
) -> None:
    cut_into_tiles(monkeypatch, width, kept)
    check(head(1, form), head(2, form), everything(), weights)


@pytest.mark.parametrize("width", [64, 6])
def test_few_logits_keep_their_distributions(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    cut_into_tiles(monkeypatch, width, 9)
    monkeypatch.setattr(sweeps, "_FEW", N * V)
    for divergence in DIVERGENCES:
        check(head(1, "all"), head(2), everything(divergence), weights=True)


@pytest.mark.parametrize("kept", [0, 1.5, 9])
@pytest.mark.parametrize("wanted", ["ce", "divergence", "cost", "divergence and cost", "all"])
@pytest.mark.parametrize("temperature", [2.0, 1.0, 0.5])
def test_a_part_that_is_asked_alone_is_the_part_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, kept: float, wanted: str, temperature: float
) -> None:
    cut_into_tiles(monkeypatch, 6, kept)
    whole = everything("kl", temperature, temperature)
    some = Wanted(
        LABELS if wanted in ("ce", "all") else None,
        whole.divergence if "divergence" in wanted or wanted == "all" else None,
        temperature,
        whole.pairing if "cost" in wanted or wanted == "all" else None,
        temperature,
    )
    gradients = []
    for asked in (some, whole):
        ours, (hidden,) = trained(head(1), weights=False)
        swept = (
            sweep(ours, None if wanted == "ce" else head(2), asked) if asked is some else sweep(ours, head(2), whole)
        )
        value = torch.zeros((), dtype=torch.float64)
        if some.labels_N is not None and swept.ce_N is not None:
            value = value + (swept.ce_N * torch.arange(1, N + 1)).sum()
        if some.divergence is not None and swept.divergence_N is not None:
            value = value + (swept.divergence_N * torch.arange(N)).sum()
        if some.pairing is not None:
            value = value + (swept.costs[0][0] * torch.arange(N * N).view(N, N)).sum()
        gradients.append(torch.autograd.grad(value, hidden)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("temperature", "tau", "norm"), [(2.0, 2.0, "sql2"), (1.0, 2.0, "l1"), (3.0, 0.7, "sql2")])
def test_every_divergence_temperature_and_norm(
    monkeypatch: pytest.MonkeyPatch, divergence: str, temperature: float, tau: float, norm: str
) -> None:
    for kept in (0, 1.5, 9):
        cut_into_tiles(monkeypatch, 6, kept)
        check(head(1), head(2), everything(divergence, temperature, tau, norm))


@pytest.mark.parametrize("ids", [17, 23, 30])
def test_the_two_are_compared_over_the_ids_that_both_have(monkeypatch: pytest.MonkeyPatch, ids: int) -> None:
    cut_into_tiles(monkeypatch, 6, 0)
    check(head(1), head(2, ids=ids), everything())
    check(head(1), naive_logits(head(2, ids=ids)), everything(), weights=True)


def test_the_teacher_may_have_rows_of_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_into_tiles(monkeypatch, 6, 1)
    own = slice(3, 3 + N)
    pairing = Problems.of(None, N + 5).pairing_of(own)
    check(head(1), head(2, rows=N + 5), replace(everything(), own=own, pairing=pairing))


@pytest.mark.parametrize("scope", ["batch", "position", "sequence"])
@pytest.mark.parametrize("vocabulary", ["full", "verbalizers"])
@pytest.mark.parametrize("kept", [0, 9])
def test_the_objective_is_the_same_from_hidden_states_as_from_logits(
    monkeypatch: pytest.MonkeyPatch, scope: str, vocabulary: str, kept: float
) -> None:
    cut_into_tiles(monkeypatch, 6, kept)
    where = {"example_N": torch.tensor([0, 0, 1, 1, 1, 2, 3]), "position_N": torch.tensor([0, 1, 0, 1, 2, 0, 0])}
    settings = {"transport_scope": scope, "vocabulary": vocabulary, "alpha": 0.6}
    results = {}
    for fused in ("auto", "always", "never"):
        student, tensors = trained(head(1, "all"), weights=True)
        output = DistillationObjective(**settings, fused=fused)(
            student, head(2), LABELS, **where, verbalizer_ids=[2, 3, 11], with_diagnostics=True
        )
        gradients = torch.autograd.grad(output.loss, tensors)
        results[fused] = [output.loss, *output.terms.values(), *output.diagnostics.values(), *gradients]
    for fused in ("auto", "always"):
        for got, expected in zip(results[fused], results["never"], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scope", ["batch", "sequence"])
@pytest.mark.parametrize(("kept_ids", "form"), [(3, "all"), (2, "plain"), (V, "plain")])
@pytest.mark.parametrize("teacher_ids", [V, V - 2])
def test_a_teacher_that_names_some_ids_sees_the_same_student(
    monkeypatch: pytest.MonkeyPatch, scope: str, kept_ids: int, form: str, teacher_ids: int
) -> None:
    cut_into_tiles(monkeypatch, 6, 1.5)
    ids = 61
    teacher = naive_logits(head(2, ids=ids - V + teacher_ids))
    # A few ids that all rows name, so that those named stay less than half of the vocabulary.
    first = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i))[:kept_ids] for i in range(N)])
    signal = TopKSignal.from_logits(teacher, first if kept_ids < V else teacher.topk(kept_ids).indices, (2.0, 0.7))
    where = {"example_N": torch.tensor([0, 0, 1, 1, 1, 2, 3]), "position_N": torch.zeros(N).long()}
    objective = {"transport_scope": scope, "alpha": 0.6, "sinkhorn_temperature": 0.7}
    results = {}
    for fused in ("always", "never"):
        student, tensors = trained(head(1, form, ids=ids), weights=True)
        output = DistillationObjective(**objective, fused=fused)(
            student, signal, LABELS, **where, with_diagnostics=True
        )
        gradients = torch.autograd.grad(output.loss, tensors)
        results[fused] = [output.loss, *output.terms.values(), *output.diagnostics.values(), *gradients]
    for got, expected in zip(*results.values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_always_refuses_what_comes_as_logits() -> None:
    objective = DistillationObjective(fused="always")
    with pytest.raises(ValueError, match="it came as logits; use fused='auto'"):
        objective(naive_logits(head(1)), head(2), LABELS, **WHERE)
    # Stored logits have no head.
    stored = objective(head(1), naive_logits(head(2)), LABELS, **WHERE).loss
    torch.testing.assert_close(stored, DistillationObjective()(head(1), head(2), LABELS, **WHERE).loss)
    with pytest.raises(ValueError, match="fused must be one of auto, always, never, got 'yes'"):
        DistillationObjective(fused="yes")


class _LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operation gives, other than a view."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor) and x._base is None]
        self.numel = max(self.numel, *sizes) if sizes else self.numel
        return out


@pytest.mark.parametrize("kept", [0, 9])
def test_no_tensor_has_a_row_for_every_token_and_a_column_for_every_id(
    monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    cut_into_tiles(monkeypatch, 6, kept)
    ids = 150
    student, tensors = trained(head(1, ids=ids), weights=False)
    with _LargestTensor() as largest:
        objective = DistillationObjective(transported=TransportedSettings(transported_weight=1.0))
        output = objective(student, head(2, ids=ids), LABELS, **WHERE)
        torch.autograd.grad(output.loss, tensors)
    assert {"ce", "kl", "sinkhorn", "transported"} == set(output.terms)
    assert largest.numel <= ids * H < N * ids  # the head itself is the largest


@pytest.mark.parametrize("weights", [False, True])
def test_sums_are_in_fp32_for_inputs_in_bf16(monkeypatch: pytest.MonkeyPatch, weights: bool) -> None:
    """At the scale of real models: hidden states of norm 100, logits up to 30."""
    cut_into_tiles(monkeypatch, 6, 0)
    rough, teacher = (
        replace(side, hidden_NH=(side.hidden_NH * 4).bfloat16(), weight_VH=side.weight_VH.bfloat16())
        for side in (head(1), head(2))
    )
    exact, exact_teacher = (
        replace(side, hidden_NH=side.hidden_NH.double(), weight_VH=side.weight_VH.double())
        for side in (rough, teacher)
    )
    results = []
    for side, theirs in ((rough, teacher), (exact, exact_teacher)):
        student, tensors = trained(side, weights)
        output = DistillationObjective()(student, theirs, LABELS, **WHERE)
        results.append((output.loss, torch.autograd.grad(output.loss, tensors)))
    (loss, gradients), (exact_loss, exact_gradients) = results
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-5, atol=1e-6)
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        # One rounding to bf16, at the end.
        error = (gradient.double() - expected).norm() / expected.norm()
        assert error < 2**-8


def test_a_row_that_is_not_a_number_is_nan_and_the_others_are_as_before() -> None:
    student, teacher = head(1), head(2)
    clean = sweep(student, teacher, everything())
    broken = replace(teacher, hidden_NH=teacher.hidden_NH.clone().index_fill_(0, torch.tensor(3), torch.nan))
    swept = sweep(student, broken, everything())
    others = torch.arange(N) != 3
    assert swept.divergence_N is not None
    assert clean.divergence_N is not None
    assert swept.divergence_N[3].isnan()
    torch.testing.assert_close(swept.divergence_N[others], clean.divergence_N[others])
    assert swept.costs[0][0][:, 3].isnan().all()


def test_the_two_sides_must_be_a_head_and_what_it_reads() -> None:
    with pytest.raises(ValueError, match=r"must be \[N, H\] and \[V, H\], got \(7, 5\) and \(9, 4\)"):
        HeadOf(torch.rand(7, 5), torch.rand(9, 4))
    with pytest.raises(ValueError, match=r"bias_V must be \[9\], got \(8,\)"):
        HeadOf(torch.rand(7, 5), torch.rand(9, 5), torch.rand(8))
    with pytest.raises(ValueError, match=r"must be on one device, got \['cpu', 'meta'\]"):
        HeadOf(torch.rand(7, 5), torch.rand(9, 5, device="meta"))
    with pytest.raises(ValueError, match=r"must be floating-point, got torch.int64 hidden states"):
        HeadOf(torch.ones(7, 5).long(), torch.rand(9, 5))
    for scale, cap in ((0.0, None), (float("nan"), None), (1.0, 0.0), (1.0, -3.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="scale must be a number other than 0 and cap positive or None"):
            HeadOf(torch.rand(7, 5), torch.rand(9, 5), None, scale, cap)


def test_one_shared_id_is_refused() -> None:
    with pytest.raises(ValueError, match="The student has 23 outputs and the teacher 1: there is nothing to compare"):
        DistillationObjective()(head(1), torch.rand(N, 1), LABELS, **WHERE)
    with pytest.raises(ValueError, match="The student has 0 outputs"):
        DistillationObjective()(torch.rand(N, 0), torch.rand(N, 0), LABELS, **WHERE)


def test_a_head_in_another_precision_gives_the_same_with_and_without_logits() -> None:
    student = replace(head(1), hidden_NH=head(1).hidden_NH.bfloat16(), weight_VH=head(1).weight_VH.float())
    losses = [
        DistillationObjective(fused=fused)(student, head(2), LABELS, **WHERE).loss for fused in ("auto", "never")
    ]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("label", [-1, V])
def test_a_label_beyond_the_vocabulary_is_an_error(monkeypatch: pytest.MonkeyPatch, label: int) -> None:
    labels = LABELS.clone()
    labels[2] = label
    for width in (64, 6):
        cut_into_tiles(monkeypatch, width, 0)
        with pytest.raises(RuntimeError, match="out of bounds"):
            sweep(head(1), None, Wanted(labels))
