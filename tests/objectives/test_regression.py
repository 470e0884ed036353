"""One output: squared errors and a cost between predictions, where a softmax would make every term 0."""

import pytest
import torch

from sinkd_llm.objectives import DistillationObjective, sinkd_term
from sinkd_llm.optimal_transport import sinkhorn

N = 6
ROWS = torch.arange(N)
PLACES = {"example_N": ROWS, "position_N": torch.zeros(N, dtype=torch.long)}


@pytest.fixture
def values() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher, labels = torch.rand(3, N, generator=generator, dtype=torch.float64)
    return student[:, None].requires_grad_(), teacher[:, None], labels


def test_the_terms_are_those_of_the_definition(values: tuple) -> None:
    student, teacher, labels = values
    objective = DistillationObjective(alpha=0.7, sinkhorn_weight=0.5, temperature=4.0, sinkhorn_temperature=3.0)
    output = objective(student, teacher, labels, **PLACES, with_diagnostics=True)
    s, t = student[:, 0], teacher[:, 0]
    cost = 2 * (s[:, None] - t[None, :]).abs()
    transported = N * sinkhorn(cost[None], 0.1, 20).value[0]
    mse, teacher_mse = ((s - labels) ** 2).mean(), ((s - t) ** 2).mean()
    assert output.loss.item() == pytest.approx((0.3 * mse + 0.7 * teacher_mse + 0.5 * transported / N).item())
    assert output.terms["mse"].item() == pytest.approx(mse.item())
    assert output.terms["teacher_mse"].item() == pytest.approx(teacher_mse.item())
    assert output.terms["sinkhorn"].item() == pytest.approx(transported.item() / N)
    assert set(output.diagnostics) == {"sinkhorn/row_error", "sinkhorn/diagonal_mass", "sinkhorn/plan_entropy"}


def test_the_loss_is_not_zero_and_its_gradient_is_that_of_finite_differences(values: tuple) -> None:
    student, teacher, labels = values

    def loss(predictions: torch.Tensor) -> torch.Tensor:
        return DistillationObjective(alpha=0.5)(predictions, teacher, labels, **PLACES).loss

    assert loss(student) > 0.01
    assert torch.autograd.gradcheck(loss, student)


def test_the_transport_does_not_know_which_rows_correspond(values: tuple) -> None:
    student, teacher, _ = values
    straight = sinkd_term(student, teacher, **PLACES, regression=True).value
    permuted = sinkd_term(student, teacher.flip(0), **PLACES, regression=True).value
    assert straight.item() == pytest.approx(permuted.item())


def test_the_cost_of_predictions_in_their_range_is_at_most_that_of_distributions() -> None:
    zeros, ones = torch.zeros(2, 1), torch.ones(2, 1)
    places = {"example_N": ROWS[:2], "position_N": ROWS[:2]}
    assert sinkd_term(zeros, ones, **places, regression=True).transport_cost.item() == pytest.approx(2.0)
    assert sinkd_term(ones, ones, **places, regression=True).transport_cost.item() == 0.0


def test_verbalizers_mean_nothing_here(values: tuple) -> None:
    student, teacher, labels = values
    losses = [
        DistillationObjective(vocabulary=vocabulary)(student, teacher, labels, **PLACES, verbalizer_ids=[0, 1, 2]).loss
        for vocabulary in ("full", "verbalizers")
    ]
    assert losses[0] == losses[1]


def test_one_output_without_values_and_values_for_several_outputs_are_refused(values: tuple) -> None:
    student, teacher, labels = values
    with pytest.raises(ValueError, match="one output goes with true values"):
        DistillationObjective()(student, teacher, labels.long(), **PLACES)
    with pytest.raises(ValueError, match="one output goes with true values"):
        DistillationObjective()(torch.rand(N, 3), torch.rand(N, 3), labels, **PLACES)
    with pytest.raises(ValueError, match="one output, got 3"):
        sinkd_term(torch.rand(N, 3), torch.rand(N, 3), **PLACES, regression=True)
