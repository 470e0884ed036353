"""sinkhorn against closed forms, its twin, and finite differences of what each gradient claims."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sinkd_llm.optimal_transport import GRADIENTS, TransportPlan, pairwise_cost, sinkhorn
from sinkd_llm.optimal_transport.half_steps import Logarithms, Scalings, summed_product
from tests.support import naive


def costs(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double()


# ---- closed forms


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_one_row_on_one_row_is_the_cost_itself(gradient: str) -> None:
    cost = torch.tensor([[1.25]], requires_grad=True)
    plan = sinkhorn(cost, gradient=gradient)
    plan.value.backward()
    assert plan.value.item() == pytest.approx(1.25)
    assert cost.grad.item() == pytest.approx(1)
    assert plan.regularised_value.item() == pytest.approx(1.25)


def test_identical_far_apart_rows_stay_where_they_are() -> None:
    rows = torch.eye(8)
    plan = sinkhorn(pairwise_cost(rows, rows), epsilon=0.05)
    torch.testing.assert_close(plan.plan, torch.eye(8) / 8)
    assert plan.value.item() == pytest.approx(0, abs=1e-6)


def test_a_permutation_is_found() -> None:
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    plan = sinkhorn(pairwise_cost(torch.eye(8), torch.eye(8)[order]), epsilon=0.05)
    assert torch.equal(plan.plan.argmax(dim=0), order)
    assert plan.value.item() == pytest.approx(0, abs=1e-6)


def test_large_epsilon_gives_the_mean_cost() -> None:
    cost = costs(5, 7).float()
    plan = sinkhorn(cost, epsilon=1e6)
    assert plan.value.item() == pytest.approx(cost.mean().item(), rel=1e-5)
    assert plan.regularised_value.item() == pytest.approx(cost.mean().item(), rel=1e-5)
    torch.testing.assert_close(plan.plan, torch.full((5, 7), 1 / 35))


@pytest.mark.parametrize("seed", range(5))
def test_small_epsilon_gives_the_optimal_assignment(seed: int) -> None:
    cost = costs(7, 7, seed=seed)
    rows, columns = linear_sum_assignment(cost.numpy())
    best = cost[rows, columns].mean().item()
    plan = sinkhorn(cost, epsilon=2e-3, iterations=5000)
    assert plan.value.item() == pytest.approx(best, abs=1e-4)
    assert plan.regularised_value.item() == pytest.approx(best, abs=0.01)


def test_symmetry_up_to_the_last_half_step() -> None:
    cost = costs(6, 6)
    for iterations in (3, 20, 2000):
        there = sinkhorn(cost, 0.1, iterations)
        back = sinkhorn(cost.T, 0.1, iterations)
        gap = abs(there.value.item() - back.value.item())
        # Costs lie in [0, 2]; either plan misplaces row_error of its mass.
        assert gap <= 2 * (there.row_error + back.row_error).item() + 1e-12
    assert gap < 1e-10


def test_permuting_rows_and_columns_permutes_the_plan() -> None:
    cost = costs(6, 9)
    rows, columns = torch.randperm(6), torch.randperm(9)
    plan, permuted = sinkhorn(cost), sinkhorn(cost[rows][:, columns])
    torch.testing.assert_close(permuted.value, plan.value)
    torch.testing.assert_close(permuted.plan, plan.plan[rows][:, columns])


# ---- the published iteration


@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize(("N", "M"), [(6, 6), (3, 8), (8, 3)])
def test_values_equal_the_twin(N: int, M: int, iterations: int) -> None:
    cost = costs(N, M)
    plan = sinkhorn(cost, 0.1, iterations)
    torch.testing.assert_close(plan.plan, naive.plan(cost, 0.1, iterations))
    torch.testing.assert_close(plan.value, naive.transport_value(cost, 0.1, iterations))
    single = sinkhorn(cost.float(), 0.1, iterations)
    assert single.value.dtype == torch.float32
    assert single.value.item() == pytest.approx(plan.value.item(), abs=1e-6)


def test_regularised_value_and_potentials() -> None:
    cost = costs(6, 4)
    plan = sinkhorn(cost, 0.2, 3000)
    torch.testing.assert_close(plan.regularised_value, naive.regularised_value(cost, 0.2, 3000))
    f, g = plan.potentials
    torch.testing.assert_close(f.mean() + g.mean(), plan.regularised_value)  # strong duality
    torch.testing.assert_close(plan.plan, ((f[:, None] + g[None] - cost) / 0.2).exp() / 24, rtol=1e-9, atol=0)


def test_marginals() -> None:
    plan = sinkhorn(costs(9, 5).float(), 0.05, 4)
    assert plan.column_error.item() < 1e-6
    expected = (plan.plan.sum(dim=1) - 1 / 9).abs().sum()
    assert plan.row_error.item() == pytest.approx(expected.item(), abs=1e-6)
    assert plan.row_error.item() > 1e-3


def test_threshold_stops_early_and_only_when_reached() -> None:
    cost = costs(10, 10)
    plan = sinkhorn(cost, 0.1, 10_000, threshold=1e-6)
    assert plan.iterations % 5 == 0
    assert plan.iterations < 10_000
    assert plan.row_error.item() <= 1e-6
    assert sinkhorn(cost, 0.1, plan.iterations - 5).row_error.item() > 1e-6
    assert torch.equal(plan.plan, sinkhorn(cost, 0.1, plan.iterations).plan)
    assert sinkhorn(cost, 0.1, 20, threshold=0.0).iterations == 20
    both = sinkhorn(torch.stack([cost * 0, cost]), 0.1, 10_000, threshold=1e-6)
    assert both.iterations == plan.iterations  # the slowest problem decides


# ---- gradients


def test_unrolled_is_the_derivative_of_the_iterations() -> None:
    cost = costs(5, 6).requires_grad_()
    for iterations in (1, 2, 7, 20):
        (ours,) = torch.autograd.grad(sinkhorn(cost, 0.2, iterations).value, cost)
        exact = naive.gradient(lambda c, t=iterations: naive.transport_value(c, 0.2, t), cost)
        numeric = naive.central_differences(lambda c, t=iterations: sinkhorn(c, 0.2, t).value, cost)
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours, numeric, rtol=0, atol=1e-8)


def test_unrolled_gradient_ends_where_the_threshold_stopped() -> None:
    cost = costs(5, 5).requires_grad_()
    plan = sinkhorn(cost, 0.2, 1000, threshold=1e-3)
    (ours,) = torch.autograd.grad(plan.value, cost)
    (same,) = torch.autograd.grad(sinkhorn(cost, 0.2, plan.iterations).value, cost)
    assert torch.equal(ours, same)


@pytest.mark.parametrize(("N", "M"), [(5, 6), (6, 4), (7, 7)])
def test_implicit_is_the_derivative_of_the_converged_value(N: int, M: int) -> None:
    cost = costs(N, M).requires_grad_()
    plan = sinkhorn(cost, 0.15, 5000, gradient="implicit")
    (ours,) = torch.autograd.grad(plan.value, cost)
    numeric = naive.central_differences(lambda c: sinkhorn(c, 0.15, 5000).value, cost)
    torch.testing.assert_close(ours, naive.implicit_gradient(cost.detach(), 0.15), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours, numeric, rtol=0, atol=1e-8)


def test_envelope_is_the_derivative_of_the_regularised_value_and_of_nothing_else() -> None:
    cost = costs(5, 6).requires_grad_()
    plan = sinkhorn(cost, 0.2, 3000, gradient="envelope")
    (ours,) = torch.autograd.grad(plan.value, cost, retain_graph=True)
    (regularised,) = torch.autograd.grad(plan.regularised_value, cost)
    numeric = naive.central_differences(lambda c: sinkhorn(c, 0.2, 3000).regularised_value, cost)
    assert torch.equal(ours, plan.plan)
    assert torch.equal(regularised, plan.plan)
    torch.testing.assert_close(ours, numeric, rtol=0, atol=1e-8)
    sharp = naive.central_differences(lambda c: sinkhorn(c, 0.2, 3000).value, cost)
    assert (ours - sharp).abs().max() > 0.01


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("masked", [False, True])
def test_everything_that_a_plan_offers_is_differentiable(gradient: str, masked: bool) -> None:
    cost = costs(3, 4, 5).requires_grad_()
    rows = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool() if masked else None
    columns = torch.tensor([[1, 0, 0, 1, 1], [1] * 5, [0, 1, 0, 0, 0]]).bool() if masked else None

    def everything(c: Tensor) -> tuple[Tensor, ...]:
        iterations = 6 if gradient == "unrolled" else 200
        plan = sinkhorn(c, 0.5, iterations, None, gradient, rows, columns)
        f, g = plan.potentials
        gauge_free = f[..., :, None] + g[..., None, :]
        if rows is not None:
            gauge_free = gauge_free * rows[..., :, None] * columns[..., None, :]
        return plan.value, plan.regularised_value, plan.plan, gauge_free

    assert torch.autograd.gradcheck(everything, (cost,))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 0.1, 1.0, 1e3, 1e6])
def test_fp32_follows_fp64_from_a_permutation_to_the_uniform_plan(gradient: str, epsilon: float) -> None:
    cost = torch.stack([costs(8, 8), 2 - 2 * torch.eye(8).double(), costs(8, 8) * 1e-3])
    results = []
    for dtype in (torch.float32, torch.float64):
        c = cost.to(dtype).requires_grad_()
        plan = sinkhorn(c, epsilon, 20, gradient=gradient)
        plan.value.sum().backward()
        results.append([plan.value.detach(), plan.regularised_value.detach(), c.grad])
    for single, double in zip(*results, strict=True):
        assert single.isfinite().all()
        # At 1e-3 the exponents reach 2000, where fp32 resolves 1e-4.
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3 if epsilon < 0.01 else 3e-5)


def test_implicit_gradient_of_the_potentials_holds_the_mean_of_g() -> None:
    cost = costs(5, 6).requires_grad_()

    def gauged(c: Tensor) -> Tensor:
        f, g = sinkhorn(c, 0.3, 3000).potentials
        return (f + g.mean(dim=-1, keepdim=True)).square().sum(dim=-1)

    f, g = sinkhorn(cost, 0.3, 3000, gradient="implicit").potentials
    # The same function of f, without letting the gradient see the choice of the constant.
    (ours,) = torch.autograd.grad((f + g.mean().detach()).square().sum(), cost)
    torch.testing.assert_close(ours, naive.central_differences(gauged, cost), rtol=0, atol=1e-8)


def test_implicit_gradient_of_a_plan_that_falls_apart_is_bounded() -> None:
    """Blocks that exchange no mass at all, even in fp64: the system is singular once per block."""
    cost = torch.full((6, 6), 100.0)
    cost[:3, :3], cost[3:, 3:] = costs(3, 3).float(), costs(3, 3, seed=1).float()
    cost.requires_grad_()
    (ours,) = torch.autograd.grad(sinkhorn(cost, 0.1, 3000, gradient="implicit").value, cost)
    for block in (slice(0, 3), slice(3, 6)):
        alone = naive.implicit_gradient(cost[block, block].detach(), 0.1) / 2
        torch.testing.assert_close(ours[block, block].double(), alone, rtol=0, atol=1e-5)
    assert ours[:3, 3:].abs().max() == 0


def test_the_memory_of_a_gradient_does_not_grow_with_the_iterations() -> None:
    def kept(gradient: str, iterations: int) -> int:
        elements: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            elements[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 4
            return x

        cost = torch.rand(60, 60).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            plan = sinkhorn(cost, 0.1, iterations, gradient=gradient)
            plan.value  # noqa: B018
        return sum(elements.values())

    assert kept("implicit", 40) == kept("implicit", 2)
    assert kept("envelope", 40) == kept("envelope", 2)
    # Unrolled: 60 + 60 numbers an iteration, not 60 × 60 once or several times.
    assert kept("unrolled", 40) - kept("unrolled", 2) == 38 * 120


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_nan_stays_a_nan(gradient: str) -> None:
    cost = torch.rand(4, 4)
    cost[1, 2] = float("nan")
    cost.requires_grad_()
    value = sinkhorn(cost, gradient=gradient, threshold=1e-3).value
    value.backward()
    assert value.isnan()


# ---- three ways to compute a half-step


def reach(dtype: torch.dtype) -> float:
    """The largest `cost / epsilon` for which the kernel itself is scaled."""
    return Scalings.reach(dtype)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.25, 0.99, 1.01, 4.0])
@pytest.mark.parametrize("shape", [(6, 9), (3, 5, 4)])
def test_values_and_gradients_on_both_sides_of_the_border(
    gradient: str, dtype: torch.dtype, share: float, shape: tuple[int, ...]
) -> None:
    """As the log-sum-exps everywhere, in fp64."""
    cost = costs(*shape)
    cost[..., :2, :] *= 0.1  # rows that are near to everything, beside rows that are not
    epsilon = 2 / (share * reach(dtype))
    results = []
    for c, bound in ((cost.to(dtype), 2.0), (cost.to(dtype), None), (cost.double(), float("inf"))):
        c = c.clone().requires_grad_()
        plan = sinkhorn(c, epsilon, 20, gradient=gradient, cost_bound=bound)
        plan.value.sum().backward()
        f, g = plan.potentials
        potentials = f - f.mean(), g - g.mean()
        results.append((plan.value, plan.plan, plan.row_error, plan.regularised_value, *potentials, c.grad))
    ours, looked, exact = ([x.detach().double() for x in result] for result in results)
    # An exponent of 87 is resolved to 4e-6 in fp32, one of 708 to 6e-14 in fp64.
    tolerance = 3e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(ours, exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(looked, exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("share", [0.9, 1.1, 20.0])
@pytest.mark.parametrize("masked", [False, True])
def test_unrolled_gradients_equal_finite_differences_on_both_sides_of_the_border(share: float, masked: bool) -> None:
    cost, epsilon = costs(2, 4, 5) / 2 + 0.5, 1.5 / (share * reach(torch.float64))
    cost[1, 0] *= 0.2
    rows = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]).bool() if masked else None
    weights = costs(2, 4, 5, seed=3)

    def of(c: Tensor) -> Tensor:
        mask = None if rows is None else rows.expand(len(c), 2, 4)
        plan = sinkhorn(c, epsilon, 7, row_mask=mask)
        return plan.value.sum(dim=-1) + (plan.plan * weights).sum(dim=(-3, -2, -1))

    c = cost.clone().requires_grad_()
    (ours,) = torch.autograd.grad(of(c[None])[0], c)
    # Plans change over a cost of epsilon: the differences have to be smaller than it.
    numeric = naive.central_differences(of, cost, step=1e-5 * epsilon)
    torch.testing.assert_close(ours, numeric, rtol=2e-5, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(1, 12),
    M=st.integers(1, 12),
    share=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 99),
    iterations=st.integers(1, 60),
    low=st.booleans(),
)
def test_scalings_stay_in_range_up_to_the_border(
    N: int, M: int, share: float, seed: int, iterations: int, low: bool
) -> None:
    """Costs of 0 or 2 and nothing in between move the potentials as far as they can go."""
    cost = (torch.rand(N, M, generator=torch.Generator().manual_seed(seed)) < (0.15 if low else 0.85)).double() * 2
    epsilon = 2 / (share * reach(torch.float32)) * (1 + 1e-6)
    single, double = (cost.to(dtype).requires_grad_() for dtype in (torch.float32, torch.float64))
    plan, exact = sinkhorn(single, epsilon, iterations), sinkhorn(double, epsilon, iterations, cost_bound=float("inf"))
    plan.value.backward()
    exact.value.backward()
    torch.testing.assert_close(plan.plan.double(), exact.plan, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=3e-5)
    torch.testing.assert_close(exact.plan, naive.plan(cost, epsilon, iterations), rtol=1e-9, atol=0)


def test_which_way_is_taken_follows_from_the_bound_or_from_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for kind in (Scalings, Logarithms):
        monkeypatch.setattr(kind, "start", lambda self, start=kind.start: (taken.append(type(self)), start(self))[1])
    cases = [(2.0, 0.1, None), (2.0, 0.1, 2.0), (2.0, 0.05, 2.0), (2.0, 0.05, None), (-2.0, 0.05, None)]
    for cost, epsilon, bound in cases:
        sinkhorn(torch.full((2, 3), cost), epsilon, cost_bound=bound)
    assert taken == [Scalings, Scalings, Logarithms, Logarithms, Logarithms]


def test_log_sum_exps_alone_equal_absorbed_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU computes where a look at the numbers would make it wait."""

    def result(c: Tensor) -> tuple[Tensor, Tensor]:
        c = c.clone().requires_grad_()
        plan = sinkhorn(c, 1e-2, 20)
        plan.value.sum().backward()
        return plan.plan.detach(), c.grad

    cost = costs(3, 8, 6).float()
    counted = []
    exponential = torch.logsumexp
    monkeypatch.setattr(torch, "logsumexp", lambda *a, **k: (counted.append(1), exponential(*a, **k))[1])
    absorbed = result(cost)
    assert 0 < len(counted) < 10
    counted.clear()
    monkeypatch.setattr(Logarithms, "_is_near", lambda *_: False)
    alone = result(cost)
    assert len(counted) == 40
    for a, b in zip(absorbed, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-5)


def test_products_without_matrix_products_are_the_same() -> None:
    """On CUDA a matrix product may drop bits (TF32), so that a row times a matrix is a sum there."""
    row, matrix = costs(3, 1, 5), costs(3, 5, 4)
    torch.testing.assert_close(summed_product(row, matrix), row @ matrix)


# ---- many problems at once


@settings(max_examples=60, deadline=None)
@given(data=st.data(), gradient=st.sampled_from(GRADIENTS), epsilon=st.sampled_from([1e-3, 0.1, 2.0]))
def test_masked_problems_equal_the_same_problems_alone(data: st.DataObject, gradient: str, epsilon: float) -> None:
    B, N, M = (data.draw(st.integers(1, 5)) for _ in range(3))
    flags = st.lists(st.booleans(), min_size=1, max_size=25)

    def mask(*shape: int) -> Tensor:
        pattern = data.draw(flags)
        count = shape[0] * shape[1]
        return torch.tensor([pattern[i % len(pattern)] for i in range(count)]).view(shape)

    rows, columns = mask(B, N), mask(B, M)
    inside = rows[..., :, None] & columns[..., None, :]
    garbage = data.draw(st.sampled_from([float("nan"), float("inf"), -1e30, 7.0]))
    cost = costs(B, N, M, seed=data.draw(st.integers(0, 99))).masked_fill(~inside, garbage)
    cost.requires_grad_()
    together = sinkhorn(cost, epsilon, 12, None, gradient, rows, columns)
    weights = 1 + torch.arange(B).double()
    (grad,) = torch.autograd.grad((together.value * weights).sum(), cost)
    assert (grad[~inside] == 0).all()
    assert (together.plan[~inside] == 0).all()
    for b in range(B):
        if not (rows[b].any() and columns[b].any()):
            assert together.value[b] == 0
            assert together.regularised_value[b] == 0
            assert together.row_error[b] == 0
            continue
        block = cost[b].detach()[rows[b]][:, columns[b]].requires_grad_()
        alone = sinkhorn(block, epsilon, 12, gradient=gradient)
        torch.testing.assert_close(together.value[b], alone.value)
        if epsilon > 0.01:  # the twin works in the linear domain
            torch.testing.assert_close(alone.value, naive.transport_value(block, epsilon, 12))
        torch.testing.assert_close(together.regularised_value[b], alone.regularised_value)
        torch.testing.assert_close(together.row_error[b], alone.row_error)
        (expected,) = torch.autograd.grad(alone.value * weights[b], block)
        torch.testing.assert_close(grad[b][rows[b]][:, columns[b]], expected)


def test_what_a_masked_entry_would_overflow_to_is_not_seen() -> None:
    """A live row that is far from every live column has a large potential; its masked column has none."""
    cost = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]])
    plan = sinkhorn(cost, 1e-3, column_mask=torch.tensor([[True, False]]))
    assert plan.regularised_value.item() == pytest.approx(2)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3), (0, 3, 3)])
def test_empty_problems(gradient: str, shape: tuple[int, ...]) -> None:
    cost = torch.rand(shape).requires_grad_()
    plan = sinkhorn(cost, threshold=0.1, gradient=gradient)
    assert plan.value.shape == shape[:-2]
    assert (plan.value == 0).all()
    assert (plan.regularised_value == 0).all()
    plan.value.sum().backward()
    assert cost.grad.shape == shape


# ---- edges


def test_half_precision_costs_are_solved_in_fp32_even_under_autocast() -> None:
    cost = costs(6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        c = cost.clone().requires_grad_()
        plan = sinkhorn(c)
        plan.value.backward()  # within autocast, as DeepSpeed does
    assert plan.plan.dtype == torch.float32
    assert plan.value.item() == pytest.approx(sinkhorn(cost.double()).value.item(), abs=1e-6)
    assert c.grad.dtype == torch.bfloat16
    exact = cost.double().requires_grad_()
    sinkhorn(exact).value.backward()
    torch.testing.assert_close(c.grad, exact.grad.bfloat16(), rtol=2**-7, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be a number above 0, got 0.0"),
        ({"epsilon": "0.1"}, "epsilon must be a number above 0, got '0.1'"),
        ({"iterations": 2.5}, "iterations must be a whole number of at least 1, got 2.5"),
        ({"iterations": True}, "iterations must be a whole number of at least 1, got True"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1"),
        ({"threshold": -1.0}, "threshold"),
        ({"gradient": "auto"}, "gradient must be one of unrolled, implicit, envelope"),
        ({"cost_NM": torch.rand(3)}, "cost_NM must be"),
        ({"row_mask": torch.ones(3)}, "row_mask must be a boolean"),
        ({"cost_bound": -1.0}, "cost_bound must be None or at least 0, got -1.0"),
        ({"column_mask": torch.ones(2).bool()}, "column_mask must be a boolean tensor of shape"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(**{"cost_NM": torch.rand(3, 3), **arguments})


def test_the_plan_is_not_computed_before_it_is_wanted() -> None:
    plan = sinkhorn(torch.rand(3, 3))
    assert isinstance(plan, TransportPlan)
    assert plan.value is plan.value
    assert "plan" not in vars(plan)
    assert plan.plan is plan.plan


@pytest.mark.parametrize("scale", [0.1, 40.0])  # by scalings, and by logarithms
def test_columns_of_given_weights_are_columns_that_come_so_often(scale: float) -> None:
    cost, counts = scale * costs(2, 5, 3), torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 2.0]])
    weighted = sinkhorn(cost, 0.5, 300, column_weights=7 * counts)
    torch.testing.assert_close(weighted.plan.sum(dim=1), (counts / counts.sum(dim=1, keepdim=True)).to(cost.dtype))
    for problem, times in enumerate(counts.long()):
        repeated = sinkhorn(cost[problem].repeat_interleave(times, dim=1), 0.5, 300)
        torch.testing.assert_close(weighted.value[problem], repeated.value)
    assert weighted.column_error.max() < 1e-6
    with pytest.raises(ValueError, match="column_weights must be of shape"):
        sinkhorn(cost, column_weights=counts[0])


def test_a_problem_without_any_weight_is_empty() -> None:
    solved = sinkhorn(costs(2, 3, 3), column_weights=torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert solved.value[0] == 0
    torch.testing.assert_close(solved.value[1], sinkhorn(costs(2, 3, 3)[1]).value)
