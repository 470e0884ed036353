"""The compiled kernels against their twins, when they are chosen, and what happens without a compiler."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sinkd_llm.kernels import choose, compiled, l1_kernels
from sinkd_llm.kernels.compiled import CompiledKernels, compiled_kernels
from sinkd_llm.optimal_transport import add_cost, cost_gradient
from tests.kernels.tiles import LAYOUTS, SHAPES, tile, twins

# More rows and columns than one block of each has, with a rest.
LARGE = [(1, 3, 261, 1100), (9, 2, 130, 515)]


@pytest.fixture
def kernels() -> CompiledKernels:
    found = compiled_kernels()
    if found is None:
        pytest.skip("needs a C compiler (cc, gcc or clang)")
    return found


@pytest.fixture
def fresh() -> Iterator[None]:
    """The question for kernels is asked again, in the test and after it."""
    compiled_kernels.cache_clear()
    yield
    compiled_kernels.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE])
def test_both_directions_equal_their_twins(
    kernels: CompiledKernels, shape: tuple[int, int, int, int], layout: str
) -> None:
    case = tile(*shape, layout=layout)
    cost, x, y, grad = case
    cost_twin, gradient_twin = twins(case)
    gradient = kernels.l1_gradient(x, y, grad)
    kernels.add_l1_cost(cost, x, y)
    torch.testing.assert_close(cost.double(), cost_twin, rtol=0, atol=1e-6)
    assert torch.equal(gradient.double(), gradient_twin)


@pytest.mark.parametrize("shape", [(0, 2, 2, 2), (2, 0, 3, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_of_nothing_nothing_comes(kernels: CompiledKernels, shape: tuple[int, int, int, int]) -> None:
    B, N, M, w = shape
    cost, x, y = torch.ones(B, N, M), torch.rand(B, N, w), torch.rand(B, M, w)
    kernels.add_l1_cost(cost, x, y)
    assert (cost == 1).all()
    assert torch.equal(kernels.l1_gradient(x, y, torch.ones(B, N, M)), torch.zeros(B, N, w))


def test_equal_rows_are_exactly_nothing_apart_and_nan_stays(kernels: CompiledKernels) -> None:
    rows = torch.randn(1, 7, 5000).softmax(-1)
    cost = torch.zeros(1, 7, 7)
    kernels.add_l1_cost(cost, rows, rows)
    assert (cost.diagonal(dim1=1, dim2=2) == 0).all()
    assert not kernels.l1_gradient(rows, rows, torch.eye(7)[None]).any()
    broken = rows.clone()
    broken[0, 2, 4999] = float("nan")
    kernels.add_l1_cost(cost, broken, rows)
    assert torch.equal(cost.isnan()[0].any(dim=1), torch.arange(7) == 2)


@pytest.mark.parametrize("shape", [(1, 7, 30, 70), (5, 3, 30, 70), (2, 1, 3, 70)])
def test_threads_share_the_work_and_change_no_bit(
    kernels: CompiledKernels, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = tile(*shape), tile(*shape)
    kernels.add_l1_cost(*alone[:3])
    gradient = kernels.l1_gradient(*alone[1:])
    pools: list[int] = []
    original = compiled.ThreadPoolExecutor
    monkeypatch.setattr(compiled, "ThreadPoolExecutor", lambda threads: pools.append(threads) or original(threads))
    monkeypatch.setattr(compiled, "_WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    kernels.add_l1_cost(*together[:3])
    assert torch.equal(alone[0], together[0])
    assert torch.equal(gradient, kernels.l1_gradient(*together[1:]))
    assert pools == [min(4, max(shape[:2]))] * 2


def test_they_are_taken_for_large_tiles_in_fp32_that_are_in_memory(kernels: CompiledKernels) -> None:
    x, y, cost = torch.zeros(1, 16, 2**7), torch.zeros(1, 64, 2**7), torch.zeros(1, 16, 64)
    assert l1_kernels(x, y, cost) is kernels
    assert l1_kernels(x, y[:, 1:], cost[..., 1:]) is None  # one row too few
    assert l1_kernels(x.double(), y.double(), cost.double()) is None
    assert l1_kernels(x, y, cost.double()) is None
    assert l1_kernels(*(z.to("meta") for z in (x, y, cost))) is None
    with FakeTensorMode() as mode:
        assert l1_kernels(*(mode.from_tensor(z) for z in (x, y, cost))) is None


def test_a_tile_is_the_same_with_kernels_and_without(
    kernels: CompiledKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, x, y, grad = tile(2, 9, 12, 3000, layout="columns of wider rows")
    results = []
    for worth in (1, 10**12):
        monkeypatch.setattr(choose, "WORTH_A_KERNEL", worth)
        assert (l1_kernels(x, y, cost) is None) == (worth > 1)
        total = cost.clone()
        add_cost(total, x, y)
        results.append((total, cost_gradient(x, y, grad)))
    for with_kernels, without in zip(*results, strict=True):
        torch.testing.assert_close(with_kernels, without, rtol=0, atol=1e-6)


def test_the_variable_switches_them_off_without_a_word(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SINKD_COMPILE", "0")
    monkeypatch.setattr(compiled, "_compile", lambda: pytest.fail("a compiler was called"))
    with caplog.at_level(logging.DEBUG):
        assert compiled_kernels() is None
    assert not caplog.records


def broken_source(folder: Path) -> Path:
    (folder / "broken.c").write_text("void l1_cost(", encoding="utf-8")
    return folder / "broken.c"


def lying_source(folder: Path) -> Path:
    (folder / "lying.c").write_text("void l1_cost(void) {}\nvoid l1_gradient(void) {}\n", encoding="utf-8")
    return folder / "lying.c"


@pytest.mark.parametrize(
    ("source", "why"), [(None, "no C compiler"), (broken_source, "could not compile"), (lying_source, "other results")]
)
def test_whatever_is_wrong_with_the_compiler_is_one_warning(
    fresh: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    source: object,
    why: str,
) -> None:
    if source is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    elif compiled_kernels() is None:
        pytest.skip("needs a C compiler (cc, gcc or clang)")
    else:
        monkeypatch.setattr(compiled, "_SOURCE", source(tmp_path))
        compiled_kernels.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert compiled_kernels() is None
        assert compiled_kernels() is None
    (record,) = caplog.records
    assert why in record.getMessage()
    assert "SINKD_COMPILE=0" in record.getMessage()
