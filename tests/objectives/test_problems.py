"""The settings of the transport problems, and which rows form one."""

import inspect
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives import DistillationObjective, SpanningProblem, TransportSettings
from sinkd_llm.objectives.problems import Problems
from sinkd_llm.optimal_transport import pairwise_cost, sinkhorn


def test_the_defaults_are_the_published_ones_wherever_there_are_any() -> None:
    settings = TransportSettings()
    published = (settings.sinkhorn_temperature, settings.sinkhorn_epsilon, settings.sinkhorn_iterations)
    assert published == (2.0, 0.1, 20)
    assert (settings.sinkhorn_gradient, settings.cost_norm) == ("unrolled", "l1")
    solver, cost = inspect.signature(sinkhorn).parameters, inspect.signature(pairwise_cost).parameters
    for name in ("epsilon", "iterations", "threshold", "gradient"):
        assert solver[name].default == getattr(settings, f"sinkhorn_{name}")
    assert cost["norm"].default == settings.cost_norm
    assert DistillationObjective().transport_settings == settings
    assert {one.name for one in fields(settings)} <= {one.name for one in fields(DistillationObjective)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sinkhorn_temperature": 0.0}, "sinkhorn_temperature must be a positive number, got 0.0"),
        ({"sinkhorn_temperature": math.nan}, "sinkhorn_temperature must be a positive number"),
        ({"sinkhorn_epsilon": -0.1}, "sinkhorn_epsilon must be a positive number, got -0.1"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations must be at least 1, got 0"),
        ({"sinkhorn_threshold": -1e-3}, "sinkhorn_threshold must be None or at least 0"),
        ({"transport_scope": "token"}, "transport_scope must be one of batch, position, sequence, got 'token'"),
        ({"cost_norm": "l2"}, "cost_norm must be one of l1, sql2"),
        ({"sinkhorn_gradient": "exact"}, "sinkhorn_gradient must be one of unrolled, implicit, envelope"),
        ({"vocabulary": "some"}, "vocabulary must be one of full, verbalizers"),
    ],
)
def test_settings_are_refused_by_the_name_that_the_user_gave_them(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransportSettings(**settings)


def test_a_problem_of_one_example_does_not_span() -> None:
    layout = RowLayout.of([2], None, torch.device("cpu"))
    settings = TransportSettings(transport_scope="sequence")
    with pytest.raises(ValueError, match="transport_scope must be one of batch, position, got 'sequence'"):
        SpanningProblem(layout, [torch.rand(2, 3)], [torch.zeros(2).long()], settings)


@given(keys=st.lists(st.integers(-3, 5), max_size=12))
def test_rows_of_equal_keys_are_one_problem_in_their_order(keys: list[int]) -> None:
    problems = Problems.of(torch.tensor(keys, dtype=torch.long))
    rows = torch.arange(len(keys))
    blocks = problems.split(problems.sorted(rows))
    expected = {key: [i for i, other in enumerate(keys) if other == key] for key in keys}
    assert sorted(row for block in blocks for row in block.tolist()) == sorted(expected.values())
    assert [block.shape for block in blocks] == problems.blocks
    sizes = [R for _, R in problems.blocks]
    assert sizes == sorted(set(sizes))
    assert problems.count == len(expected)
    assert problems.largest == max(map(len, expected.values()), default=0)
    assert torch.equal(problems.unsorted(problems.sorted(rows)), rows)


@pytest.mark.parametrize("N", [0, 1, 5])
def test_all_rows_are_one_problem_as_they_stand(N: int) -> None:
    whole, by_key = Problems.whole(N), Problems.of(torch.zeros(N, dtype=torch.long))
    assert whole.blocks == by_key.blocks == ([(1, N)] if N else [])
    rows = torch.arange(N)
    assert torch.equal(whole.sorted(rows), by_key.sorted(rows))
    assert torch.equal(whole.unsorted(rows), rows)
