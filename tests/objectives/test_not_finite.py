"""A number that is not finite on either side reaches every term that it is part of, and no other."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives import DIVERGENCES, DistillationObjective, TopKSignal, cross_entropy, squared_error
from sinkd_llm.optimal_transport import COST_NORMS, GRADIENTS, pairwise_cost, pairwise_top_k_cost, sinkhorn
from tests.support import naive

N, V = 6, 9
WHERE = {"example_N": torch.tensor([0, 0, 1, 1, 2, 2]), "position_N": torch.tensor([0, 1, 0, 1, 0, 1])}
LABELS = torch.arange(N)
BROKEN = st.sampled_from([math.nan, math.inf])


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


def with_broken(rows: Tensor, where: tuple[int, int], value: float) -> Tensor:
    rows = rows.clone()
    rows[where] = value
    return rows


@settings(max_examples=150, deadline=None)
@given(
    divergence=st.sampled_from([*DIVERGENCES, "none"]),
    gradient=st.sampled_from(GRADIENTS),
    norm=st.sampled_from(COST_NORMS),
    scope=st.sampled_from(["batch", "position", "sequence"]),
    threshold=st.sampled_from([None, 1e-3]),
    verbalizers=st.booleans(),
    k=st.sampled_from([None, 3, V]),
    spanning=st.booleans(),
    of_student=st.booleans(),
    where=st.tuples(st.integers(0, N - 1), st.integers(0, V - 1)),
    value=BROKEN,
)
def test_every_term_of_the_loss_says_so(
    divergence: str,
    gradient: str,
    norm: str,
    scope: str,
    threshold: float | None,
    verbalizers: bool,
    k: int | None,
    spanning: bool,
    of_student: bool,
    where: tuple[int, int],
    value: float,
) -> None:
    ids = [1, 4, 7]
    top_k = k is not None and not verbalizers
    objective = DistillationObjective(
        alpha=0.5,
        divergence=divergence,
        sinkhorn_gradient=gradient,
        cost_norm="l1" if top_k else norm,
        transport_scope=scope,
        sinkhorn_threshold=threshold,
        vocabulary="verbalizers" if verbalizers else "full",
    )

    def run(student: Tensor, teacher: Tensor) -> tuple[Any, Tensor]:
        student = student.clone().requires_grad_()
        signal: Any = teacher
        if top_k:
            kept = logits(2).argsort(dim=-1)[:, :k]
            signal = TopKSignal.from_logits(teacher, kept, (2.0,))
        transport = None
        if spanning and objective.spans:
            layout = RowLayout.of([N], None, student.device)
            problem = objective.spanning_problem(layout, [signal], [WHERE["position_N"]], verbalizer_ids=ids)
            transport = (problem, 0)
        output = objective(student, signal, LABELS, **WHERE, verbalizer_ids=ids, transport=transport)
        output.loss.backward()
        return output, student.grad

    s, t = logits(0), logits(1)
    whole, whole_gradient = run(s, t)
    assert whole.loss.isfinite()
    assert whole_gradient.isfinite().all()
    broken, _ = run(*((with_broken(s, where, value), t) if of_student else (s, with_broken(t, where, value))))
    seen_by_transport = not verbalizers or where[1] in ids
    expected = {
        "ce": not of_student,
        divergence: False,
        "sinkhorn": not seen_by_transport,
    }
    for name, term in broken.terms.items():
        assert bool(term.isfinite()) == expected[name], name
    assert bool(broken.loss.isfinite()) == all(expected[name] for name in broken.terms)


@settings(max_examples=60, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=N, max_size=N), value=BROKEN, name=st.sampled_from(list(DIVERGENCES)))
def test_rows_are_broken_where_their_twins_are(mask: list[bool], value: float, name: str) -> None:
    s, t = logits(0).double(), logits(1).double()
    s[mask, 3] = value
    ours, twin = DIVERGENCES[name](s, t, 2.0), naive.divergence(name, s, t, 2.0)
    assert ours.isnan().tolist() == twin.isnan().tolist() == mask
    assert (~cross_entropy(s, LABELS).isfinite()).tolist() == mask
    kept = [i for i, broken in enumerate(mask) if not broken]
    torch.testing.assert_close(ours[kept], twin[kept])
    cost = pairwise_cost(torch.softmax(s, -1), torch.softmax(t, -1))
    assert cost.isnan().all(dim=1).tolist() == cost.isnan().any(dim=1).tolist() == mask


@settings(max_examples=60, deadline=None)
@given(where=st.tuples(st.integers(0, 3), st.integers(0, 3)), gradient=st.sampled_from(GRADIENTS), value=BROKEN)
def test_a_cost_that_is_broken_breaks_its_problem_alone(where: tuple[int, int], gradient: str, value: float) -> None:
    cost = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    alone = sinkhorn(cost[:1], 0.1, 20, None, gradient)
    cost[(1, *where)] = math.nan if value != value else value
    solved = sinkhorn(cost, 0.1, 20, None, gradient)
    torch.testing.assert_close(solved.value[0], alone.value[0])
    assert not solved.value[1].isfinite()
    # Behind a mask it takes no part.
    rows = torch.ones(2, 4, dtype=torch.bool)
    rows[1, where[0]] = False
    assert sinkhorn(cost, 0.1, 20, None, gradient, rows, rows).value.isfinite().all()


@pytest.mark.parametrize("side", ["student", "teacher", "tail"])
def test_a_top_k_cost_says_so(side: str) -> None:
    student, teacher = torch.softmax(logits(0), -1), torch.softmax(logits(1), -1)
    ids = torch.arange(3).expand(N, 3)
    kept, tail = teacher[:, :3].clone(), teacher[:, 3:].sum(-1)
    {"student": student[2], "teacher": kept[2], "tail": tail[2:3]}[side].fill_(math.nan)
    cost, width = (x[0] for x in pairwise_top_k_cost(student[None], ids[None], kept[None], tail[None]))
    assert (cost[2] if side == "student" else cost[:, 2]).isnan().all()
    if side != "teacher":
        assert (width[2] if side == "student" else width[:, 2]).isnan().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_regression_says_so(value: float) -> None:
    objective = DistillationObjective(alpha=0.5)
    for broken in ("student", "teacher", "labels"):
        rows = {"student": torch.rand(N, 1), "teacher": torch.rand(N, 1), "labels": torch.rand(N)}
        rows[broken][3] = value
        output = objective(rows["student"], rows["teacher"], rows["labels"], **WHERE)
        assert not output.loss.isfinite()
        assert bool(output.terms["mse"].isfinite()) == (broken == "teacher")
        assert bool(output.terms["sinkhorn"].isfinite()) == (broken == "labels")
    assert not squared_error(torch.tensor([[value]]), torch.tensor([0.0])).isfinite()
