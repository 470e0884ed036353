"""A tile of the cost: what it adds, and its gradient, for any layout; pairwise_cost's own tests walk over tiles."""

import pytest
import torch
from torch import Tensor

from sinkd_llm.optimal_transport import COST_NORMS, add_cost, cost_gradient
from tests.support import naive


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double().softmax(-1)


@pytest.mark.parametrize("norm", COST_NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_wider_rows_add_up_in_place(norm: str, dtype: torch.dtype) -> None:
    B, N, M, V = 3, 4, 6, 50
    s, t, G = (x.to(dtype) for x in (rows(B, N, V, seed=0), rows(B, M, V, seed=1), rows(B, N, M, seed=2)))
    before = rows(B, N, M, seed=3).to(dtype)
    cost, gradient = before.clone(), torch.empty_like(s)
    for v in (slice(0, 13), slice(13, 14), slice(14, 50)):
        add_cost(cost, s[..., v], t[..., v], norm)
        gradient[..., v] = cost_gradient(s[..., v], t[..., v], G, norm)
    atol = 1e-6 if dtype == torch.float32 else 1e-14
    for b in range(B):
        exact = before[b].double() + naive.cost(s[b].double(), t[b].double(), norm)
        torch.testing.assert_close(cost[b].double(), exact, rtol=0, atol=atol)
        twin = naive.gradient(lambda x, b=b: (naive.cost(x, t[b].double(), norm) * G[b]).sum(), s[b].double())
        torch.testing.assert_close(gradient[b].double(), twin, rtol=0, atol=atol)


@pytest.mark.parametrize("norm", COST_NORMS)
def test_the_gradient_is_the_slope_of_the_cost(norm: str) -> None:
    """Central differences in fp64; no entry is within a step of its partner, where the L1 norm has no slope."""
    s, t, G = rows(2, 3, 4, seed=0), rows(2, 5, 4, seed=1), rows(2, 3, 5, seed=2)
    step = 1e-7
    assert (s[:, :, None] - t[:, None]).abs().min() > step

    def weighted(x: Tensor) -> Tensor:
        cost = torch.zeros(2, 3, 5).double()
        add_cost(cost, x, t, norm)
        return (cost * G).sum()

    slopes = [weighted(s + step * e) - weighted(s - step * e) for e in torch.eye(24).double().view(24, 2, 3, 4)]
    slope = torch.stack(slopes).view(2, 3, 4) / (2 * step)
    torch.testing.assert_close(cost_gradient(s, t, G, norm), slope, rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", COST_NORMS)
@pytest.mark.parametrize(("B", "N", "M", "w"), [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (1, 0, 0, 4)])
def test_of_nothing_nothing_comes(norm: str, B: int, N: int, M: int, w: int) -> None:
    cost, s, t = torch.ones(B, N, M), torch.rand(B, N, w), torch.rand(B, M, w)
    add_cost(cost, s, t, norm)
    assert (cost == 1).all()
    assert torch.equal(cost_gradient(s, t, torch.ones(B, N, M), norm), torch.zeros(B, N, w))


@pytest.mark.parametrize("norm", COST_NORMS)
def test_equal_rows_cost_nothing_below_zero(norm: str) -> None:
    s = rows(1, 8, 3000, seed=0).float()
    cost = torch.zeros(1, 8, 8)
    add_cost(cost, s, s, norm)
    diagonal = cost.diagonal(dim1=1, dim2=2)
    assert (diagonal >= 0).all()
    assert diagonal.max() <= (0 if norm == "l1" else 1e-8)


@pytest.mark.parametrize("shapes", [((1, 2, 3), (1, 2, 4), (1, 2, 2)), ((1, 2, 3), (2, 2, 3), (1, 2, 2)),
                                    ((1, 2, 3), (1, 4, 3), (1, 2, 2))])  # fmt: skip
def test_tiles_that_do_not_pair_up_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    s, t, pairs = (torch.rand(shape) for shape in shapes)
    with pytest.raises(ValueError, match="the tiles must be"):
        add_cost(pairs, s, t)
    with pytest.raises(ValueError, match="the tiles must be"):
        cost_gradient(s, t, pairs)
