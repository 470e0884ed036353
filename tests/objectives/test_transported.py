"""The transported cross-entropy against its formula: values, gradients, groups, counts, controls, what it refuses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives import (
    COUPLINGS,
    DIVERGENCES,
    DistillationObjective,
    HeadOf,
    TeacherSets,
    TopKSignal,
    TransportedSettings,
    cross_costs,
    normalisers,
    transported_term,
)
from tests.support import naive

N, V = 7, 9
GROUPS = [0, 2, 0, 1, 2, 0, 2]
WHERE = {"example_N": torch.arange(N), "position_N": torch.tensor([0, 1, 0, 1, 0, 1, 0])}
LABELS = torch.arange(N)


def logits(seed: int, rows: int = N) -> Tensor:
    return 2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(
    coupling=st.sampled_from(COUPLINGS),
    anchor=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.sampled_from([1.0, 2.5]),
    epsilon=st.sampled_from([0.1, 0.5, 3.0]),
    groups=st.lists(st.integers(-1, 2), min_size=N, max_size=N),
    seed=st.integers(0, 5),
)
def test_value_and_gradient_are_the_formulas(
    coupling: str, anchor: float, temperature: float, epsilon: float, groups: list[int], seed: int
) -> None:
    of = TransportedSettings(1.0, temperature, epsilon, 20, anchor, coupling)
    s, t = logits(seed).requires_grad_(), logits(seed + 10)
    term = transported_term(s, t, of, group_N=torch.tensor(groups))
    term.value.backward()
    at = s.detach()
    torch.testing.assert_close(term.value.detach(), naive.transported(at, t, of, groups), rtol=1e-9, atol=1e-10)
    expected = naive.gradient(lambda x: naive.transported(x, t, of, groups, at=at), at)
    torch.testing.assert_close(s.grad, expected, rtol=1e-8, atol=1e-10)
    assert term.value >= -1e-12
    assert (term.num_tokens, term.num_problems) == (N, len(set(groups)))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_gradient_is_the_finite_difference_with_the_plan_held(coupling: str) -> None:
    of, groups = TransportedSettings(transported_coupling=coupling, transported_anchor=0.4), [0, 1, 0, 0]
    s, t = logits(0, 4).requires_grad_(), logits(1, 4)
    transported_term(s, t, of, group_N=torch.tensor(groups)).value.backward()
    at = s.detach()

    def shifted(every: Tensor) -> Tensor:
        return torch.stack([naive.transported(one, t, of, groups, at=at) for one in every])

    torch.testing.assert_close(s.grad, naive.central_differences(shifted, at), rtol=1e-6, atol=1e-8)


def test_the_gradient_is_that_of_cross_entropy_to_the_re_mixed_rows_and_of_the_regularised_minimum() -> None:
    s, t = logits(0, 3).requires_grad_(), logits(1, 3)
    term = transported_term(s, t, TransportedSettings(transported_epsilon=2.0, transported_iterations=60))
    term.value.backward()
    mixed = 3 * term.plans[0].plan[0] @ naive.softmax(t)
    by_hand = naive.gradient(lambda x: -(mixed * naive.softmax(x).log()).sum(), s)
    torch.testing.assert_close(s.grad, by_hand, rtol=1e-9, atol=1e-10)

    def minimum(x: Tensor) -> Tensor:
        return 3 * naive.regularised_value(-(naive.softmax(x).log() @ naive.softmax(t).T), 2.0, 60)

    slopes = naive.central_differences(lambda every: torch.stack([minimum(x) for x in every]), s)
    torch.testing.assert_close(s.grad, slopes, rtol=1e-5, atol=1e-7)


def test_pairs_and_groups_of_one_row_are_kl_and_it_is_zero_at_equality() -> None:
    s, t = logits(0).requires_grad_(), logits(1)
    kl = DIVERGENCES["kl"](s, t, 2.0).sum()
    (expected,) = torch.autograd.grad(kl, s)
    for of, groups in (
        (TransportedSettings(transported_temperature=2.0, transported_anchor=0.0), None),
        (TransportedSettings(transported_temperature=2.0, transported_coupling="identity"), torch.tensor(GROUPS)),
        (TransportedSettings(transported_temperature=2.0), torch.arange(N)),
    ):
        value = transported_term(s, t, of, group_N=groups).value
        torch.testing.assert_close(value, kl)
        torch.testing.assert_close(torch.autograd.grad(value, s)[0], expected)
        equal = t.clone().requires_grad_()
        at_equality = transported_term(equal, t, of, group_N=groups).value
        assert abs(at_equality.item()) < 1e-13
        assert torch.autograd.grad(at_equality, equal)[0].abs().max() < 1e-14
    # A student that says the mean of every row is no minimum of the value.
    mean = naive.softmax(t).mean(dim=0, keepdim=True).log().expand(N, V)
    assert transported_term(mean, t, TransportedSettings()).value > 0.1


def test_the_order_of_the_teachers_rows_in_a_group_does_not_matter_unless_anchored() -> None:
    s, t = logits(0), logits(1)
    swapped = t[[2, 4, 5, 3, 6, 0, 1]]  # within the groups
    for coupling in ("transport", "row_softmax", "proportion"):
        of = TransportedSettings(transported_coupling=coupling)
        values = [transported_term(s, x, of, group_N=torch.tensor(GROUPS)).value for x in (t, swapped)]
        torch.testing.assert_close(*values)
    of = TransportedSettings(transported_anchor=0.3)
    values = [transported_term(s, x, of, group_N=torch.tensor(GROUPS)).value for x in (t, swapped)]
    assert abs(values[0] - values[1]) > 0.1


@settings(max_examples=20, deadline=None)
@given(
    coupling=st.sampled_from(["transport", "row_softmax", "proportion"]),
    theirs=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    counts=st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=9, max_size=9),
)
def test_sets_of_other_sizes_and_counts(coupling: str, theirs: list[int], counts: list[float]) -> None:
    teacher_groups = [0, 1, 2, *theirs]
    weights = [1.0, 2.0, 0.5, *counts[: len(theirs)]]
    of, s, t = (
        TransportedSettings(transported_coupling=coupling),
        logits(0).requires_grad_(),
        logits(1, 3 + len(theirs)),
    )
    sets = TeacherSets(torch.tensor(teacher_groups), torch.tensor(weights))
    term = transported_term(s, t, of, group_N=torch.tensor(GROUPS), sets=sets)
    term.value.backward()
    at = s.detach()
    expected = naive.transported(at, t, of, GROUPS, teacher_groups, weights)
    torch.testing.assert_close(term.value.detach(), expected, rtol=1e-9, atol=1e-10)
    by_hand = naive.gradient(lambda x: naive.transported(x, t, of, GROUPS, teacher_groups, weights, at), at)
    torch.testing.assert_close(s.grad, by_hand, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_groups_with_and_without_pairs_of_one_size(rho: float) -> None:
    groups, paired = torch.tensor([0, 1, 0, 2, 1, 2, 0]), [0, 2]
    of, s, t = TransportedSettings(transported_anchor=rho), logits(0).requires_grad_(), logits(1)
    sets = TeacherSets(groups, torch.ones(N), torch.isin(groups, torch.tensor(paired)))
    term = transported_term(s, t, of, group_N=groups, sets=sets)
    term.value.backward()
    at, listed = s.detach(), groups.tolist()
    torch.testing.assert_close(
        term.value.detach(), naive.transported(at, t, of, listed, paired=paired), rtol=1e-9, atol=1e-10
    )
    by_hand = naive.gradient(lambda x: naive.transported(x, t, of, listed, at=at, paired=paired), at)
    torch.testing.assert_close(s.grad, by_hand, rtol=1e-8, atol=1e-10)
    if rho == 0:  # the pairs are kept to the last bit
        kept = [plan.plan[0] for plan in term.plans if plan.plan.shape[1] == 3]
        assert torch.equal(kept[0], torch.eye(3, dtype=s.dtype) / 3)


def test_counts_are_rows_that_come_so_often() -> None:
    s, t = logits(0), logits(1, 3)
    repeated = t[[0, 0, 0, 1, 1, 2, 2]]
    counted = TeacherSets(torch.zeros(3, dtype=torch.long), torch.tensor([3, 2, 2]))
    for coupling in ("transport", "row_softmax", "proportion"):
        of = TransportedSettings(transported_coupling=coupling, transported_iterations=200)
        one = transported_term(s, t, of, group_N=torch.zeros(N, dtype=torch.long), sets=counted).value
        torch.testing.assert_close(one, transported_term(s, repeated, of).value)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_hidden_states_with_a_head_give_what_their_logits_give(
    coupling: str, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_costs, "tile_width", lambda rows, device: 4)
    generator = torch.Generator().manual_seed(3)

    def head() -> HeadOf:
        parts = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, 5), (V, 5), (V,))]
        return HeadOf(*(part.requires_grad_() for part in parts), scale=0.7, cap=cap)

    student, teacher = head(), head()
    of = TransportedSettings(transported_coupling=coupling, transported_anchor=0.5, transported_temperature=2.0)
    group_N = torch.tensor(GROUPS)
    whole = transported_term(student.logits(), teacher.logits().detach(), of, group_N=group_N).value
    tensors = [student.hidden_NH, student.weight_VH, student.bias_V]
    expected = torch.autograd.grad(whole, tensors)
    for kept in (normalisers.KEPT_BYTES, 0):
        monkeypatch.setattr(normalisers, "KEPT_BYTES", kept)
        streamed = transported_term(student, teacher, of, group_N=group_N).value
        torch.testing.assert_close(streamed, whole)
        torch.testing.assert_close(torch.autograd.grad(streamed, tensors), expected)


def test_top_k_is_the_merged_rows_cost_and_bounds_the_dense_one() -> None:
    s, t = logits(0).requires_grad_(), logits(1)
    of = TransportedSettings(transported_temperature=2.0)
    for k in (1, 3, V):
        signal = TopKSignal.from_logits(t, t.topk(k, dim=-1).indices, [2.0])
        request_pairs = torch.zeros(N, N, dtype=torch.float64)
        for j in range(N):
            ids = signal.ids_NK[j].tolist()
            q = torch.stack([naive.merged(row, ids, 2.0) for row in s.detach()])
            p = naive.merged(t[j], ids, 2.0)
            request_pairs[:, j] = torch.where(p > 0, p * (p / q).log(), 0).sum(dim=-1)
        term = transported_term(s, signal, of)
        P = term.plans[0].plan[0]
        torch.testing.assert_close(term.value.detach(), N * (P * request_pairs).sum())
        dense = transported_term(s, t, of)
        KL = (naive.softmax(t, 2.0) * naive.softmax(t, 2.0).log()).sum(-1) - (
            naive.softmax(s.detach(), 2.0).log() @ naive.softmax(t, 2.0).T
        )
        assert (KL - request_pairs).min() > -1e-12
        if k == V:
            torch.testing.assert_close(term.value, dense.value)
            torch.testing.assert_close(
                torch.autograd.grad(term.value, s)[0], torch.autograd.grad(dense.value, s)[0], rtol=1e-9, atol=1e-10
            )


def test_top_k_of_hidden_states_is_that_of_their_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    wide = 60
    hidden, weight = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, 5), (wide, 5)))
    teacher = torch.randn(N, wide, generator=generator, dtype=torch.float64)
    signal = TopKSignal.from_logits(teacher, teacher.topk(2, dim=-1).indices, [1.0])
    hidden.requires_grad_()
    student = HeadOf(hidden, weight)
    one, other = (transported_term(x, signal, group_N=torch.tensor(GROUPS)).value for x in (student, student.logits()))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.autograd.grad(one, hidden), torch.autograd.grad(other, hidden))


def test_a_tail_that_the_student_gives_nothing_is_dear_and_finite() -> None:
    t = logits(1).float()
    signal = TopKSignal.from_logits(t, torch.tensor([[0, 1]]).expand(N, 2), [1.0])
    s = torch.full((N, V), -math.inf)
    s[:, :2] = 1.0
    s.requires_grad_()
    value = transported_term(s, signal).value
    value.backward()
    assert 10 < value < math.inf
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_masked_ids_take_no_part(coupling: str) -> None:
    of = TransportedSettings(transported_coupling=coupling)
    s, t = logits(0).float(), logits(1).float()
    narrow = s[:, :6].clone().requires_grad_()
    expected = transported_term(narrow, t[:, :6], of).value
    expected.backward()
    s[:, 6:] = t[:, 6:] = -math.inf
    s.requires_grad_()
    value = transported_term(s, t, of).value
    value.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(s.grad[:, :6], narrow.grad)
    assert torch.equal(s.grad[:, 6:], torch.zeros(N, 3))


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("of_student", [True, False])
def test_a_row_that_is_not_finite_breaks_its_group_and_no_other(coupling: str, value: float, of_student: bool) -> None:
    of = TransportedSettings(transported_coupling=coupling)
    s, t = logits(0), logits(1)
    (s if of_student else t)[3, 2] = value  # alone in group 1
    assert not transported_term(s, t, of, group_N=torch.tensor(GROUPS)).value.isfinite()
    kept = torch.tensor([0, 1, 2, 4, 5, 6])
    groups = torch.tensor(GROUPS)
    s.requires_grad_()
    transported_term(s, t, of, group_N=groups).value.backward()
    alone = s.detach()[kept].requires_grad_()
    transported_term(alone, t[kept], of, group_N=groups[kept]).value.backward()
    torch.testing.assert_close(s.grad[kept], alone.grad)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_without_rows_it_is_zero_of_the_graph(coupling: str) -> None:
    top_k = TopKSignal.from_logits(torch.rand(0, V), torch.zeros(0, 2).long(), [1.0])
    for signal in (torch.rand(0, V), *([] if coupling == "proportion" else [top_k])):
        hidden = torch.rand(4, 3, requires_grad=True)
        student = (hidden @ torch.rand(3, V))[:0]
        term = transported_term(student, signal, TransportedSettings(transported_coupling=coupling))
        assert term.value == 0
        term.value.backward()
        assert torch.equal(hidden.grad, torch.zeros(4, 3))
        assert all(value == 0 for value in term.diagnostics().values())


def test_half_precision_is_computed_in_fp32() -> None:
    s, t = logits(0).bfloat16().requires_grad_(), logits(1).bfloat16()
    value = transported_term(s, t).value
    value.backward()
    exact = transported_term(s.detach().double(), t.double()).value
    assert (value.dtype, s.grad.dtype) == (torch.float32, torch.bfloat16)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    top_k = TopKSignal.from_logits(t, t.topk(3, dim=-1).indices, [1.0])
    outside = [transported_term(s, signal).value for signal in (t, top_k)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = [transported_term(s, signal).value for signal in (t, top_k)]
    assert inside == outside


def objective(**more: Any) -> DistillationObjective:
    chosen = {name: more.pop(name) for name in list(more) if name.startswith("transported_")}
    transported = TransportedSettings(**{"transported_weight": 10.0, **chosen})
    return DistillationObjective(
        **{"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 0.0, **more}, transported=transported
    )


def test_the_objective_adds_it_with_its_weight_and_factor() -> None:
    s, t = logits(0).requires_grad_(), logits(1)
    of = TransportedSettings(transported_temperature=2.0)
    loss = objective(transport_scope="group", transported_temperature=2.0)
    output = loss(s, t, LABELS, **WHERE, group_N=torch.tensor(GROUPS), with_diagnostics=True)
    expected = naive.cross_entropy(s, LABELS).mean() + 10 * 4 * naive.transported(s, t, of, GROUPS) / N
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.terms["transported"], 4 * naive.transported(s, t, of, GROUPS).detach() / N)
    assert {"transported/row_error", "transported/diagonal_mass", "transported/plan_entropy"} <= {*output.diagnostics}
    # Beside all others, of rows that the teacher speaks of, over some ids.
    taught = torch.tensor([0, 2, 3, 5])
    ids = [1, 4, 6]
    loss = objective(
        transport_scope="group", vocabulary="verbalizers", sinkhorn_weight=0.5, alpha=0.5, divergence="kl"
    )
    groups = torch.tensor(GROUPS)
    output = loss(s, t[taught], LABELS, **WHERE, group_N=groups, taught_M=taught, verbalizer_ids=ids)
    few = naive.transported(s[taught][:, ids], t[taught][:, ids], TransportedSettings(), groups[taught].tolist())
    torch.testing.assert_close(output.terms["transported"], few.detach() / 4)
    assert set(output.terms) == {"ce", "kl", "sinkhorn", "transported"}
    # A weight of 0 is no term.
    assert objective(transported_weight=0.0).transported_settings is None
    assert not objective(transported_weight=0.0).uses_teacher


def test_the_objective_takes_teacher_rows_that_are_sets() -> None:
    s, t = logits(0), logits(1, 4)
    sets = TeacherSets(torch.tensor([0, 1, 2, 2]), torch.tensor([3, 1, 1, 2]))
    loss = objective(transport_scope="group")
    output = loss(s, t, LABELS, **WHERE, group_N=torch.tensor(GROUPS), sets=sets)
    expected = naive.transported(s, t, TransportedSettings(), GROUPS, [0, 1, 2, 2], [3, 1, 1, 2]) / N
    torch.testing.assert_close(output.terms["transported"], expected)
    taught = torch.tensor([3])
    output = loss(
        s, t[1:2], LABELS, **WHERE, group_N=torch.tensor(GROUPS), taught_M=taught, sets=TeacherSets(taught * 0 + 1)
    )
    torch.testing.assert_close(output.terms["transported"], DIVERGENCES["kl"](s[3:4], t[1:2])[0])
    for wrong, message in (
        (objective(), "need transport_scope='group', got 'batch'"),
        (objective(transport_scope="group", alpha=0.5, divergence="kl"), "only the transported cross-entropy"),
        (objective(transport_scope="group", sinkhorn_weight=0.8), "only the transported cross-entropy"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong(s, t, LABELS, **WHERE, group_N=torch.tensor(GROUPS), sets=sets)


@pytest.mark.parametrize("scope", ["batch", "position"])
@pytest.mark.parametrize("with_sinkd", [False, True])
@pytest.mark.parametrize("signal", ["dense", "top-k", "verbalizers"])
def test_micro_batches_of_one_problem_are_one_batch(scope: str, with_sinkd: bool, signal: str) -> None:
    loss = objective(
        transport_scope=scope,
        sinkhorn_weight=0.5 if with_sinkd else 0.0,
        transported_anchor=0.3,
        vocabulary="verbalizers" if signal == "verbalizers" else "full",
    )
    ids, s, t = [0, 3, 4], logits(0).requires_grad_(), logits(1)

    def told(rows: slice) -> Any:
        if signal != "top-k":
            return t[rows]
        return TopKSignal.from_logits(t[rows], t[rows].topk(3, dim=-1).indices, [1.0, 2.0])

    whole = loss(s, told(slice(None)), LABELS, **WHERE, verbalizer_ids=ids, with_diagnostics=True)
    (expected,) = torch.autograd.grad(whole.loss, s)
    parts = [slice(0, 2), slice(2, 2), slice(2, N)]
    layout = RowLayout.of([2, 0, N - 2], None, s.device)
    positions = [WHERE["position_N"][rows] for rows in parts]
    problem = loss.spanning_problem(layout, [told(rows) for rows in parts], positions, verbalizer_ids=ids)
    with torch.no_grad():
        problem.solve([problem.cost(s[rows], i) for i, rows in enumerate(parts)])
    outputs = [
        loss(
            s[rows],
            told(rows),
            LABELS[rows],
            **{name: where[rows] for name, where in WHERE.items()},
            verbalizer_ids=ids,
            num_items=N,
            transport=(problem, i),
            with_diagnostics=True,
        )
        for i, rows in enumerate(parts)
    ]
    total = torch.stack([output.loss for output in outputs]).sum()
    torch.testing.assert_close(total, whole.loss)
    torch.testing.assert_close(torch.autograd.grad(total, s)[0], expected)
    for name in ("row_error", "diagonal_mass", "plan_entropy"):
        assert outputs[0].diagnostics[f"transported/{name}"] == pytest.approx(
            whole.diagnostics[f"transported/{name}"].item(), abs=1e-12
        )
    # Of one micro-batch, solved as it comes.
    alone = loss.spanning_problem(
        RowLayout.of([N], None, s.device), [told(slice(None))], [WHERE["position_N"]], verbalizer_ids=ids
    )
    output = loss(s, told(slice(None)), LABELS, **WHERE, verbalizer_ids=ids, transport=(alone, 0))
    torch.testing.assert_close(output.loss, whole.loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transported_weight": -1.0}, "transported_weight must be a number from 0 to 1,000,000, got -1.0"),
        ({"transported_temperature": 1e-30}, "transported_temperature must be a number from 0.01 to 100, got 1e-30"),
        ({"transported_temperature": 1e200}, "transported_temperature must be a number from 0.01 to 100"),
        ({"transported_epsilon": "0.5"}, "transported_epsilon must be a number from 0.0001 to 100, got '0.5'"),
        ({"transported_iterations": 2.5}, "transported_iterations must be a whole number from 1 to 100,000, got 2.5"),
        ({"transported_anchor": 1.5}, "transported_anchor must be a number from 0 to 1, got 1.5"),
        ({"transported_anchor": math.nan}, "transported_anchor must be a number from 0 to 1"),
        ({"transported_coupling": "x"}, "transported_coupling must be one of transport, identity, row_softmax, prop"),
    ],
)
def test_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransportedSettings(**settings)


def test_rows_that_do_not_fit_are_refused() -> None:
    s, t, zeros = logits(0), logits(1), torch.zeros(N, dtype=torch.long)
    top_k = TopKSignal.from_logits(t, t.topk(2, dim=-1).indices, [1.0])
    proportion = TransportedSettings(transported_coupling="proportion")
    identity = TransportedSettings(transported_coupling="identity")
    sets = TeacherSets(torch.zeros(4, dtype=torch.long))
    few = {"sets": sets, "group_N": zeros}
    for call, message in (
        (lambda: transported_term(s, t[:4]), "The teacher has 4 rows, and the student 7"),
        (
            lambda: transported_term(s, t, **few),
            "The teacher has 7 rows, and its groups are given for 4",
        ),
        (lambda: transported_term(s, t[:4], sets=sets), "give group_N"),
        (
            lambda: transported_term(s, t[:4], sets=sets, group_N=zeros + 1),
            r"The groups \[0, 1\] have rows of the stu",
        ),
        (
            lambda: transported_term(s, t[:4], identity, **few),
            "teacher row i for the student's row i, and here a group has 4 rows of the teacher for 7 of the student",
        ),
        (
            lambda: transported_term(s, t[:2], identity, group_N=zeros, sets=TeacherSets(zeros[:2], zeros[:2] + 3)),
            "here the teacher's 2 rows of a group come with counts, so that no text has one of its own",
        ),
        (
            lambda: transported_term(s, t, identity, group_N=zeros, sets=TeacherSets(zeros, None, zeros > 0)),
            "here the order of the teacher's rows of a group is not known",
        ),
        (lambda: transported_term(s[None], t), r"student's logits must be \[N, V\]"),
        (lambda: transported_term(s, t, {"transported_weight": 1.0}), "settings must be a TransportedSettings, got d"),
        (lambda: transported_term(s, t, group_N=zeros[:3]), "group_N must have one entry for each of the student's 7"),
        (lambda: transported_term(s[:, :1], t[:, :1]), "a number has no cross-entropy"),
        (lambda: transported_term(s, top_k, proportion), "needs the teacher's whole rows"),
        (lambda: TeacherSets(zeros, zeros[:2]), "count_M must have one entry for each of the teacher's 7 rows"),
        (lambda: TeacherSets(zeros, None, zeros[:2] > 0), "paired_M must have one entry for each of the teacher's 7"),
        (
            lambda: transported_term(s, t[:4], group_N=zeros, sets=TeacherSets(zeros[:4], None, zeros[:4] == 0)),
            "Pairs need as many rows on both sides, got 7 and 4",
        ),
        (lambda: TeacherSets(zeros, zeros - 1), "finite numbers of at least 0"),
        (lambda: TeacherSets(zeros, zeros), r"The counts of the groups \[0\] are all 0"),
        (lambda: objective()(torch.rand(N, 1), torch.rand(N, 1), torch.rand(N), **WHERE), "for a regression"),
        (lambda: objective(transport_scope="group")(s, t, LABELS, **WHERE), "needs a group number for each of the 7"),
        (
            lambda: objective(transported_coupling="proportion").spanning_problem(
                RowLayout.of([N], None, s.device), [t], [zeros]
            ),
            "use transport_scope='group' or 'sequence'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_what_names_the_classes_is_asked_for() -> None:
    with pytest.raises(ValueError, match="Nothing beside transported says which class is which"):
        objective(alpha=1.0)
    with pytest.raises(ValueError, match="Nothing beside sinkhorn and transported"):
        objective(alpha=1.0, sinkhorn_weight=1.0)
    free = objective()
    assert free.lacks(labels=True) is None
    assert "No row has a label: label some" in (free.lacks(labels=False) or "")
    assert free.terms_of_pairs == ()
    for named, pairs in (
        (objective(alpha=1.0, divergence="js"), ("js",)),
        (objective(alpha=1.0, transported_anchor=0.3), ("transported",)),
        (objective(alpha=1.0, transported_coupling="identity"), ("transported",)),
        (objective(alpha=1.0, transported_coupling="proportion"), ()),
    ):
        assert named.lacks(labels=False) is None
        assert named.terms_of_pairs == pairs


def test_what_the_terms_ask_of_rows_and_of_a_signal_is_told() -> None:
    free = objective(sinkhorn_weight=0.5, alpha=0.5, divergence="kl", transported_temperature=3.0)
    assert free.terms_across_rows == ("sinkhorn", "transported")
    assert free.temperatures == {
        "temperature": 2.0,
        "sinkhorn_temperature": free.sinkhorn_temperature,
        "transported_temperature": 3.0,
    }
    assert objective(vocabulary="verbalizers").temperatures == {}
    assert objective(transported_coupling="proportion").terms_across_rows == ("transported",)
    for pairs in ({"transported_coupling": "identity"}, {"transported_anchor": 0.0}, {"transported_weight": 0.0}):
        assert objective(**pairs).terms_across_rows == ()
    assert DistillationObjective(alpha=0.0).temperatures == {"sinkhorn_temperature": 2.0}
