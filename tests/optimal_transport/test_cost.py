"""pairwise_cost against its twin, its memory, and its edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinkd_llm.kernels import choose
from sinkd_llm.optimal_transport import COST_NORMS, pairwise_cost, tiles
from sinkd_llm.optimal_transport import cost as cost_module
from tests.support import naive


def distributions(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(scale * torch.randn(*shape, generator=generator).double(), dim=-1)


class LargestTensor(TorchDispatchMode):
    """Remembers the operators that ran and the most elements that one of them returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.operators = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        self.operators.add(func.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("norm", COST_NORMS)
@pytest.mark.parametrize(("N", "M", "V"), [(1, 1, 2), (5, 3, 7), (4, 9, 1000)])
def test_value_and_both_gradients_equal_the_twin(norm: str, N: int, M: int, V: int) -> None:
    s, t, G = distributions(N, V), distributions(M, V, seed=1), torch.randn(N, M).double()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        student, teacher = (x.to(dtype).requires_grad_() for x in (s, t))
        cost = pairwise_cost(student, teacher, norm)
        assert cost.dtype == dtype
        torch.testing.assert_close(cost.double(), naive.cost(s, t, norm), rtol=0, atol=tolerance)
        (cost * G.to(dtype)).sum().backward()
        for ours, twin in (
            (student.grad, naive.gradient(lambda x: (naive.cost(x, t, norm) * G).sum(), s)),
            (teacher.grad, naive.gradient(lambda x: (naive.cost(s, x, norm) * G).sum(), t)),
        ):
            torch.testing.assert_close(ours.double(), twin, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("norm", COST_NORMS)
def test_gradcheck_with_leading_dimensions(norm: str) -> None:
    s = distributions(2, 3, 4, 6).requires_grad_()
    t = distributions(2, 3, 5, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: pairwise_cost(a, b, norm), (s, t))


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 4),
    N=st.integers(1, 9),
    M=st.integers(1, 9),
    V=st.integers(1, 70),
    elements=st.sampled_from([1, 16, 100, 1000]),
    widest=st.sampled_from([1, 7, 32, 1000]),
    tile_width=st.sampled_from([1, 9, 1000]),
    norm=st.sampled_from(COST_NORMS),
)
def test_tiles_of_any_size_give_the_same(
    B: int, N: int, M: int, V: int, elements: int, widest: int, tile_width: int, norm: str
) -> None:
    s, t = distributions(B, N, V), distributions(B, M, V, seed=1)
    G = torch.randn(B, N, M, generator=torch.Generator().manual_seed(2)).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_PIECE", (elements, widest))
        patch.setattr(tiles, "_NARROWEST_PIECE", 3)
        patch.setattr(cost_module, "_TILE_WIDTH", tile_width)
        student, teacher = s.clone().requires_grad_(), t.clone().requires_grad_()
        cost = pairwise_cost(student, teacher, norm)
        cost.backward(G)
    for b in range(B):
        torch.testing.assert_close(cost[b], naive.cost(s[b], t[b], norm))
        for grad, twin in (
            (student.grad, lambda x, b=b: (naive.cost(x, t[b], norm) * G[b]).sum()),
            (teacher.grad, lambda x, b=b: (naive.cost(s[b], x, norm) * G[b]).sum()),
        ):
            torch.testing.assert_close(grad[b], naive.gradient(twin, (s if grad is student.grad else t)[b]))


@pytest.mark.parametrize(("norm", "worth"), [("l1", 1), ("l1", 10**12), ("sql2", 1)])
def test_no_pass_allocates_rows_by_rows_by_vocabulary(norm: str, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "WORTH_A_KERNEL", worth)  # with kernels, where there are some, and without
    N, M, V = 48, 64, 20_000
    student = distributions(N, V).float().requires_grad_()
    teacher = distributions(M, V, seed=1).float().requires_grad_()
    with LargestTensor() as forward:
        cost = pairwise_cost(student, teacher, norm)
    with LargestTensor() as backward:
        cost.sum().backward()
    # The watch does see the backward pass; inside a kernel there is nothing to see.
    assert ("sign_" in backward.operators) == (norm == "l1" and worth > 1)
    assert ("baddbmm" in backward.operators) == (norm == "sql2")
    limit = max(M * V, 2**20)
    assert forward.elements <= limit
    assert backward.elements <= limit
    assert 40 * limit < N * M * V


def test_only_the_inputs_are_kept_and_the_teachers_gradient_only_if_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = distributions(4, 30).float().requires_grad_()
    teacher = distributions(5, 30, seed=1).float()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        cost = pairwise_cost(student, teacher)
    assert {x.untyped_storage().data_ptr() for x in kept} == {
        x.untyped_storage().data_ptr() for x in (student, teacher)
    }
    calls: list[int] = []
    original = cost_module.cost_gradient
    monkeypatch.setattr(cost_module, "cost_gradient", lambda *args: calls.append(1) or original(*args))
    cost.sum().backward()
    assert len(calls) == 1
    assert teacher.grad is None


def test_equal_rows_cost_exactly_nothing_and_have_no_gradient() -> None:
    rows = distributions(6, 5000).float()
    student = rows.clone().requires_grad_()
    cost = pairwise_cost(student, rows)
    assert (cost.diagonal() == 0).all()
    cost.diagonal().sum().backward()
    assert (student.grad == 0).all()  # sign(0) = 0


def test_squared_norm_survives_cancellation() -> None:
    """Peaked rows that differ by 1e-3: |s|^2 + |t|^2 - 2 s.t alone loses everything in fp32."""
    base = torch.zeros(1000).double()
    base[3] = 1
    s = (base + 1e-3 * distributions(5, 1000, scale=5.0)).float()
    t = (base + 1e-3 * distributions(6, 1000, seed=1, scale=5.0)).float()
    exact = naive.cost(s, t, "sql2")
    assert ((pairwise_cost(s, t, "sql2") - exact).abs() / exact).max() < 1e-3
    plain = s.square().sum(1)[:, None] + t.square().sum(1)[None] - 2 * s @ t.T
    assert ((plain - exact).abs() / exact).max() > 1e-2
    assert (pairwise_cost(s, s, "sql2") >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", COST_NORMS)
def test_half_precision_input_is_computed_in_fp32(dtype: torch.dtype, norm: str) -> None:
    s, t = distributions(3, 151_936).to(dtype), distributions(2, 151_936, seed=1).to(dtype)
    student = s.clone().requires_grad_()
    cost = pairwise_cost(student, t, norm)
    assert cost.dtype == torch.float32
    torch.testing.assert_close(cost.double(), naive.cost(s, t, norm), rtol=1e-5, atol=1e-6)
    cost.sum().backward()
    assert student.grad.dtype == dtype


@pytest.mark.parametrize("norm", COST_NORMS)
def test_autocast_does_not_lower_the_precision(norm: str) -> None:
    t = distributions(7, 300, seed=1).float()
    gradients = []
    for enabled in (False, True):
        student = distributions(6, 300).float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            cost = pairwise_cost(student, t, norm)
            (cost * torch.arange(42.0).view(6, 7)).sum().backward()
        gradients.append((cost.detach(), student.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("norm", COST_NORMS)
@pytest.mark.parametrize(("N", "M"), [(0, 3), (3, 0), (0, 0)])
def test_no_rows(norm: str, N: int, M: int) -> None:
    student = torch.rand(N, 5).requires_grad_()
    cost = pairwise_cost(student, torch.rand(M, 5), norm)
    assert cost.shape == (N, M)
    cost.sum().backward()
    assert torch.equal(student.grad, torch.zeros(N, 5))


@pytest.mark.parametrize(
    ("shapes", "norm", "message"),
    [
        (((2, 3), (2, 3)), "l2", "norm must be one of l1, sql2, got 'l2'"),
        (((3,), (2, 3)), "l1", "must be"),
        (((2, 3), (2, 4)), "l1", "must agree"),
        (((2, 2, 3), (3, 2, 3)), "sql2", "must agree"),
    ],
)
def test_refusals(shapes: tuple[tuple[int, ...], tuple[int, ...]], norm: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairwise_cost(torch.rand(shapes[0]), torch.rand(shapes[1]), norm)
