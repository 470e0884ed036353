"""The part of a plan that is kept: of the largest problem, of this call's rows, no larger than a drawing shows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives import (
    LARGEST_PART,
    DistillationObjective,
    PlanPart,
    TeacherSets,
    TransportedSettings,
)
from sinkd_llm.optimal_transport import pairwise_cost, sinkhorn

N, V = 7, 5
GROUPS = torch.tensor([0, 1, 1, 0, 1, 2, 1])


def sides(rows: int = N) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, V), torch.randn(rows, V)


def plans(student: Tensor, teacher: Tensor, objective: DistillationObjective, **more: Any) -> dict[str, PlanPart]:
    rows = len(student)
    where = {"example_N": torch.arange(rows) + 10, "position_N": torch.arange(rows) % 2}
    labels = torch.zeros(rows, dtype=torch.long)
    assert objective(student, teacher, labels, **where, **more).plans == {}
    return objective(student, teacher, labels, **where, **more, with_diagnostics=True).plans


def plan_between(student: Tensor, teacher: Tensor) -> Tensor:
    """With the published constants."""
    s, t = (torch.softmax(side / 2, dim=-1) for side in (student, teacher))
    return sinkhorn(pairwise_cost(s[None], t[None]), 0.1, 20).plan[0]


def test_the_part_is_of_the_largest_problem_and_names_its_rows() -> None:
    student, teacher = sides()
    objective = DistillationObjective(transport_scope="group")
    part = plans(student, teacher, objective, group_N=GROUPS)["sinkhorn"]
    rows = [1, 2, 4, 6]
    torch.testing.assert_close(part.plan_nm, plan_between(student[rows], teacher[rows]))
    assert (part.example_n - 10).tolist() == rows
    assert part.position_n.tolist() == [1, 0, 0, 0]
    assert (part.same_rows, part.problem) == (True, (4, 4))


def test_no_more_rows_than_can_be_told_apart() -> None:
    student, teacher = sides(LARGEST_PART + 6)
    part = plans(student, teacher, DistillationObjective())["sinkhorn"]
    torch.testing.assert_close(part.plan_nm, plan_between(student, teacher)[:LARGEST_PART, :LARGEST_PART])
    assert part.problem == (LARGEST_PART + 6,) * 2


def test_teacher_rows_that_are_sets_have_columns_of_their_own() -> None:
    student, teacher = sides()
    objective = DistillationObjective(
        divergence="none",
        sinkhorn_weight=0.0,
        transport_scope="group",
        transported=TransportedSettings(transported_weight=1.0),
    )
    sets = TeacherSets(torch.tensor([0, 1, 1, 2]), torch.tensor([2.0, 1, 3, 1]))
    part = plans(student, teacher[:4], objective, group_N=GROUPS, sets=sets)["transported"]
    assert (tuple(part.plan_nm.shape), part.same_rows, part.problem) == ((4, 2), False, (4, 2))
    torch.testing.assert_close(part.plan_nm.sum(dim=0), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("part", [0, 1])
def test_of_rows_in_several_micro_batches_those_of_the_call(part: int) -> None:
    student, teacher = sides()
    layout = RowLayout.of([3, 4], None, torch.device("cpu"))
    objective = DistillationObjective(transported=TransportedSettings(transported_weight=1.0))
    places = [torch.zeros(3, dtype=torch.long), torch.zeros(4, dtype=torch.long)]
    problem = objective.spanning_problem(layout, list(teacher.split([3, 4])), places)
    problem.solve([problem.cost(side, i) for i, side in enumerate(student.split([3, 4]))])
    rows = slice(0, 3) if part == 0 else slice(3, 7)
    found = plans(student[rows], teacher[rows], objective, transport=(problem, part))
    assert set(found) == {"sinkhorn", "transported"}
    torch.testing.assert_close(found["sinkhorn"].plan_nm, plan_between(student, teacher)[rows, rows])
    assert (found["sinkhorn"].example_n - 10).tolist() == list(range(rows.stop - rows.start))
    assert found["sinkhorn"].problem == (7, 7)


def test_a_mean_has_no_plan() -> None:
    student, teacher = sides()
    objective = DistillationObjective(
        sinkhorn_weight=0.0,
        transported=TransportedSettings(transported_weight=1.0, transported_coupling="proportion"),
    )
    assert plans(student, teacher, objective) == {}
