"""Rows to arrays and back: what is exact, what is rounded and by how much, and how many bytes it takes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.objectives import TopKSignal, TransportSettings, sinkd_term
from sinkd_llm.optimal_transport import pairwise_top_k_cost
from sinkd_llm.teachers.cache.layout import CacheLayout, choose_temperatures
from tests.support import naive

TEMPERATURES = (1.0, 2.0)


def logits(rows: int, width: int, seed: int = 0, scale: float = 4.0) -> Tensor:
    return 7.0 + scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def round_trip(layout: CacheLayout, rows: Tensor) -> TopKSignal:
    signal = layout.decode(layout.encode(rows), "cpu")
    assert isinstance(signal, TopKSignal)
    return signal


@pytest.mark.parametrize("width", [300, 70_000], ids=["two-byte-ids", "three-byte-ids"])
def test_top_k_in_float32_is_the_signal_of_the_dense_rows(width: int) -> None:
    rows = logits(9, width)
    layout = CacheLayout("topk", width, 16, TEMPERATURES, "float32")
    signal, expected = round_trip(layout, rows), TopKSignal.from_logits(rows, rows.topk(16).indices, TEMPERATURES)
    assert torch.equal(signal.ids_NK, expected.ids_NK)
    assert torch.equal(signal.logits_NK, expected.logits_NK)
    for temperature in TEMPERATURES:
        assert torch.equal(signal.tail_log_sum_exp[temperature], expected.tail_log_sum_exp[temperature])


def test_the_largest_id_of_three_bytes_survives() -> None:
    layout = CacheLayout("topk", 2**24, 1, (1.0,), "fixed16")
    ids = torch.tensor([[2**24 - 1], [0], [65_536]])
    assert torch.equal(torch.from_numpy(layout._unpack_ids(layout._pack_ids(ids))), ids)
    wider = CacheLayout("topk", 2**24 + 1, 1, (1.0,), "fixed16")
    ids = torch.tensor([[2**24]])
    assert torch.equal(torch.from_numpy(wider._unpack_ids(wider._pack_ids(ids))), ids)


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_fixed16_probabilities_are_off_by_a_thousandth_at_most(scale: float, temperature: float) -> None:
    """Kept logits here span up to 60 nats; half a step is then 60 / 131,070."""
    rows = logits(200, 500, scale=scale)
    signal = round_trip(CacheLayout("topk", 500, 400, TEMPERATURES, "fixed16"), rows)
    kept, tail = signal.probabilities(temperature)
    exact = naive.softmax(rows, temperature)
    expected = exact.gather(1, signal.ids_NK)
    assert ((kept - expected).abs() / expected).max() < 1e-3
    # Its tail is not a difference: as exact, however small.
    rest = exact.scatter(1, signal.ids_NK, 0.0).sum(dim=-1)
    assert ((tail - rest).abs() / rest).max() < 1e-3
    torch.testing.assert_close(kept.sum(dim=-1) + tail, torch.ones(200))


def test_logits_far_below_are_stored_at_the_end_of_the_range_and_do_not_coarsen_the_rest() -> None:
    rows = logits(5, 40)
    rows[:, 3] = -1e30
    signal = CacheLayout("full", 40, 40, (), "fixed16").decode(
        CacheLayout("full", 40, 40, (), "fixed16").encode(rows), "cpu"
    )
    assert isinstance(signal, Tensor)
    exact = naive.softmax(rows)
    assert (torch.softmax(signal, -1) - exact).abs().max() < 1e-3
    assert torch.softmax(signal.double(), -1)[:, 3].max() < 1e-50


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 8.0, 40.0]),
    temperature=st.sampled_from(TEMPERATURES),
    k=st.integers(1, 60),
    far=st.booleans(),
)
def test_the_dense_cost_lies_in_the_interval_of_stored_rows(
    seed: int, scale: float, temperature: float, k: int, far: bool
) -> None:
    rows, student = logits(5, 60, seed, scale), logits(4, 60, seed + 1, scale).double()
    if far:  # stored at the end of the range
        rows[:, ::2] -= 200.0
    layout = CacheLayout("topk", 60, k, TEMPERATURES, "fixed16")
    signal = round_trip(layout, rows)
    q = naive.softmax(student, temperature)
    dense = naive.cost(q, naive.softmax(rows, temperature))
    ids, p, tail = (x[None] for x in (signal.ids_NK, *signal.probabilities(temperature)))
    low, width = (x[0] for x in pairwise_top_k_cost(q[None], ids, p.double(), tail.double()))
    error = signal.cost_error(temperature).double()
    rounding = 2e-6  # of the probabilities, in fp32
    assert (low - error - rounding <= dense).all()
    assert (dense <= low + width + error + rounding).all()
    assert error.max() <= layout.cost_error(temperature) / 2 * (1 + 1e-6)
    # The diagnostic is the whole width, and the bound of the manifest is one.
    term = sinkd_term(
        student.float(),
        signal.map(lambda x: x[:4]),
        TransportSettings(sinkhorn_temperature=temperature),
        example_N=torch.arange(4),
        position_N=torch.zeros(4, dtype=torch.long),
    )
    expected = width[:, :4].mean() + 2 * error[:4].mean()
    torch.testing.assert_close(term.cost_width.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_error_of_stored_rows_is_not_an_idle_bound() -> None:
    """Without it, the interval is exceeded: by a student that is the teacher, where every step counts."""
    rows = logits(40, 60, scale=8.0)
    signal = round_trip(CacheLayout("topk", 60, 60, TEMPERATURES, "fixed16"), rows)
    exact, stored = naive.softmax(rows, 1.0), signal.probabilities(1.0)[0].double()
    apart = (exact.gather(1, signal.ids_NK) - stored).abs().sum(dim=-1)
    assert (apart > 1e-5).any()
    assert (apart <= signal.cost_error(1.0)).all()
    assert round_trip(CacheLayout("topk", 60, 60, TEMPERATURES, "float32"), rows).cost_error(1.0).max() == 0


def test_full_in_float32_is_what_the_teacher_said() -> None:
    rows = logits(4, 30)
    layout = CacheLayout("full", 30, 30, (), "float32")
    assert torch.equal(layout.decode(layout.encode(rows), "cpu"), rows)
    half = layout.decode(layout.encode(rows.bfloat16()), "cpu")
    assert torch.equal(half, rows.bfloat16().float())


def test_answer_tokens_are_kept_in_every_row() -> None:
    rows = logits(6, 50)
    ids = (4, 44, 17)
    alone = round_trip(CacheLayout("verbalizers", 50, 3, TEMPERATURES, "float32", ids), rows)
    assert torch.equal(alone.at_ids(torch.tensor(ids)), rows[:, list(ids)])
    among = round_trip(CacheLayout("topk", 50, 8, TEMPERATURES, "float32", ids), rows)
    assert torch.equal(among.at_ids(torch.tensor(ids)), rows[:, list(ids)])
    others = rows.clone()
    others[:, list(ids)] = -torch.inf
    largest = others.topk(5).indices
    assert all(set(row.tolist()) >= set(top.tolist()) for row, top in zip(among.ids_NK, largest, strict=True))
    for temperature in TEMPERATURES:
        torch.testing.assert_close(among.log_sum_exp(temperature), torch.logsumexp(rows / temperature, dim=-1))


def test_a_narrower_vocabulary_forgets_the_ids_behind_it() -> None:
    rows = logits(6, 50)
    signal = round_trip(CacheLayout("topk", 40, 8, TEMPERATURES, "float32"), rows)
    assert signal.ids_NK.max() < 40
    torch.testing.assert_close(signal.log_sum_exp(2.0), torch.logsumexp(rows[:, :40] / 2, dim=-1))


@pytest.mark.parametrize(
    "layout",
    [
        CacheLayout("topk", 60_000, 32, TEMPERATURES, "fixed16"),
        CacheLayout("topk", 70_000, 32, TEMPERATURES, "fixed16"),
        CacheLayout("topk", 70_000, 32, (1.0,), "float32"),
        CacheLayout("verbalizers", 70_000, 2, TEMPERATURES, "fixed16", (1, 2)),
        CacheLayout("full", 300, 300, (), "fixed16"),
    ],
    ids=str,
)
def test_the_bytes_of_a_row_are_those_that_are_said(layout: CacheLayout) -> None:
    arrays = layout.encode(logits(3, layout.vocabulary_size))
    assert sum(array.nbytes for array in arrays.values()) == 3 * layout.bytes_per_token
    assert all(isinstance(array, np.ndarray) and len(array) == 3 for array in arrays.values())


def test_no_row_is_no_row() -> None:
    layout = CacheLayout("topk", 50, 8, TEMPERATURES, "fixed16")
    assert len(round_trip(layout, torch.zeros(0, 50))) == 0


@pytest.mark.parametrize(("k", "always"), [(0, ()), (51, ()), (1, (3, 4))])
def test_a_k_that_does_not_fit_is_refused(k: int, always: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"top_k is {k}"):
        CacheLayout("topk", 50, k, (1.0,), "fixed16", always)


def test_temperatures_are_distinct_and_positive() -> None:
    assert choose_temperatures(2.0, 2.0, more=[4, 1.0]) == (1.0, 2.0, 4.0)
    with pytest.raises(InputError, match="positive"):
        choose_temperatures(2.0, more=[0.0])
