"""The terms of hidden states against their formulas: values, gradients, an empty queue, what is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sinkd_llm.objectives import (
    DistillationObjective,
    ObjectiveOutput,
    StateSettings,
    Term,
    cosine_distances,
    queue_cross_entropies,
    with_terms,
)
from tests.support import naive

E, H, Q = 4, 5, 6


def states(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, H, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(one: Tensor, other: Tensor) -> float:
    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    return sum(a * b for a, b in pairs) / math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))


def naive_distances(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.tensor([1 - cosine(s, t) for s, t in zip(student, teacher, strict=True)], dtype=torch.float64)


def naive_queue(student: Tensor, teacher: Tensor, queue: Tensor, at: float, teacher_at: float) -> Tensor:
    values = []
    for s, t in zip(student, teacher, strict=True):
        among = [*queue, t]
        q = naive.softmax(torch.tensor([[cosine(s, d) for d in among]], dtype=torch.float64), at)[0]
        p = naive.softmax(torch.tensor([[cosine(t, d) for d in among]], dtype=torch.float64), teacher_at)[0]
        values.append(-sum(float(a) * math.log(float(b)) for a, b in zip(p, q, strict=True)))
    return torch.tensor(values, dtype=torch.float64)


def each(values: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The sums of the values of several states, one after the other."""
    return lambda several: torch.stack([values(one).sum() for one in several])


def test_cosine_distance_is_its_formula_with_its_gradient() -> None:
    s, t = states(E, 0).requires_grad_(), states(E, 1).requires_grad_()
    found = cosine_distances(s, t)
    torch.testing.assert_close(found, naive_distances(s.detach(), t.detach()))
    found.sum().backward()
    expected = naive.central_differences(each(lambda x: naive_distances(x, t.detach())), s.detach())
    torch.testing.assert_close(s.grad, expected, rtol=1e-6, atol=1e-8)
    assert t.grad is None
    # Lengths say nothing, and equal directions have no distance.
    torch.testing.assert_close(cosine_distances(3 * t, t).detach(), torch.zeros(E, dtype=torch.float64))


@pytest.mark.parametrize("temperatures", [(0.2, 0.01), (1.0, 0.3)])
@pytest.mark.parametrize("held", [0, Q])
def test_queue_cross_entropy_is_its_formula_with_its_gradient(held: int, temperatures: tuple[float, float]) -> None:
    s, t, queue = states(E, 0).requires_grad_(), states(E, 1).requires_grad_(), states(held, 2).requires_grad_()
    found = queue_cross_entropies(s, t, queue, *temperatures)
    fixed = t.detach(), queue.detach(), *temperatures
    torch.testing.assert_close(found, naive_queue(s.detach(), *fixed))
    found.sum().backward()
    expected = naive.central_differences(each(lambda x: naive_queue(x, *fixed)), s.detach())
    torch.testing.assert_close(s.grad, expected, rtol=1e-5, atol=1e-7)
    assert t.grad is None
    assert queue.grad is None
    assert held or float(found.abs().sum()) == 0


def test_terms_are_added_with_their_weights_and_divisors() -> None:
    before = ObjectiveOutput(torch.tensor(1.0), {"ce": torch.tensor(1.0)}, {}, {"ce": 0.5, "": 0.25})
    after = with_terms(before, [Term("hidden", 3.0, torch.tensor(2.0), 2, 4)])
    assert float(after.loss) == 1 + 3 * 2 / 4
    assert {name: float(value) for name, value in after.terms.items()} == {"ce": 1.0, "hidden": 1.0}
    assert after.shares == {"ce": 0.5, "": 0.25, "hidden": 0.5}


@pytest.mark.parametrize(
    "setting",
    [
        *({"hidden_weight": -1.0}, {"queue_weight": math.inf}, {"queue_size": 0}),
        *({"queue_temperature": 0.0}, {"queue_teacher_temperature": math.nan}),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be"):
        StateSettings(**setting)


def test_the_teacher_is_needed_and_states_alone_train_no_head() -> None:
    only = {"alpha": 0.0, "sinkhorn_weight": 0.0}
    assert not DistillationObjective(**only).uses_teacher
    objective = DistillationObjective(**only, states=StateSettings(queue_weight=1.0))
    assert objective.uses_teacher
    assert objective.by_name()["queue_weight"] == 1.0
    assert not {"states", "transported"} & objective.by_name().keys()
    with pytest.raises(ValueError, match="from which the student's head learns nothing"):
        DistillationObjective(1.0, "none", sinkhorn_weight=0.0, states=StateSettings(hidden_weight=1.0))
