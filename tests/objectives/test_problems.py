"""The settings of the transport problems, and which rows form one."""

import inspect
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives import (
    DistillationObjective,
    SpanningProblem,
    StateSettings,
    TransportedSettings,
    TransportSettings,
    problems,
)
from sinkd_llm.objectives.objective_settings import ObjectiveSettings
from sinkd_llm.objectives.problems import Problems
from sinkd_llm.optimal_transport import pairwise_cost, sinkhorn
from sinkd_llm.ranges import OF_THE_LOSS
from sinkd_llm.training.settings.rules import RANGES


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
    names = {one.name for one in fields(settings) if one.init}
    assert names <= {one.name for one in fields(DistillationObjective)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sinkhorn_temperature": 1e-40}, "sinkhorn_temperature must be a number from 0.01 to 100, got 1e-40"),
        ({"sinkhorn_temperature": math.nan}, "sinkhorn_temperature must be a number from 0.01 to 100, got nan"),
        ({"sinkhorn_epsilon": 1e-30}, "sinkhorn_epsilon must be a number from 0.0001 to 100, got 1e-30"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations must be a whole number from 1 to 100,000, got 0"),
        ({"sinkhorn_iterations": 2.5}, "sinkhorn_iterations must be a whole number"),
        ({"sinkhorn_threshold": 0}, "sinkhorn_threshold must be None or a number above 0 and below 1, got 0"),
        ({"transport_scope": "token"}, "transport_scope must be one of batch, position, sequence, group, got 'token'"),
        ({"cost_norm": "l2"}, "cost_norm must be one of l1, sql2"),
        ({"sinkhorn_gradient": "exact"}, "sinkhorn_gradient must be one of unrolled, implicit, envelope"),
        ({"vocabulary": "some"}, "vocabulary must be one of full, verbalizers"),
        ({"transport_group_size": 1}, "transport_group_size must be None or a whole number from 2 to .*, got 1: a gr"),
        ({"transport_group_size": 2.5}, "transport_group_size must be None or a whole number"),
    ],
)
def test_settings_are_refused_by_the_name_that_the_user_gave_them(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransportSettings(**settings)


def test_every_number_of_the_loss_has_a_range() -> None:
    kinds = (ObjectiveSettings, TransportedSettings, StateSettings)
    known = {one.name for kind in kinds for one in fields(kind) if one.name in RANGES}
    assert known == OF_THE_LOSS.keys()


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_ids_that_are_changed_in_place_are_read_again(kind: Any) -> None:
    settings, device = TransportSettings(vocabulary="verbalizers"), torch.device("cpu")
    ids = kind([1, 2])
    first = settings.kept_ids(ids, False, 12, device)
    ids[1] = 9
    second = settings.kept_ids(ids, False, 12, device)
    assert first is not None
    assert second is not None
    assert (first.tolist(), second.tolist()) == ([1, 2], [1, 9])
    ids[1] = 12
    with pytest.raises(ValueError, match=r"must lie in \[0, 12\), got \[1, 12\]"):
        settings.kept_ids(ids, False, 12, device)


def test_ids_on_a_device_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(problems, "_check_ids", lambda ids_K, V: looks.append(V))
    settings, meta = TransportSettings(vocabulary="verbalizers"), torch.device("meta")
    ids = torch.zeros(2, dtype=torch.long, device=meta)
    for V in (12, 13, 12, 13):
        kept = settings.kept_ids(ids, False, V, meta)
        assert kept is not None
        assert kept.shape == (2,)
    assert looks == [12, 13]


def test_ids_of_one_content_are_copied_to_a_device_once() -> None:
    settings, device = TransportSettings(vocabulary="verbalizers"), torch.device("cpu")
    assert settings.kept_ids([3, 1], False, 12, device) is settings.kept_ids(torch.tensor([3, 1]), False, 12, device)


@pytest.mark.parametrize("ids", [["a", "b"], [1.0, 2.0], [True, False], [1, 2.5], [2**70, 1], None])
def test_ids_that_are_no_whole_numbers_are_refused(ids: Any) -> None:
    with pytest.raises(ValueError, match="verbalizer_ids"):
        TransportSettings(vocabulary="verbalizers").kept_ids(ids, False, 12, torch.device("cpu"))


def test_a_problem_of_one_example_does_not_span() -> None:
    layout = RowLayout.of([2], None, torch.device("cpu"))
    settings = TransportSettings(transport_scope="sequence")
    with pytest.raises(ValueError, match="transport_scope must be one of batch, position, got 'sequence'"):
        SpanningProblem(layout, [torch.rand(2, 3)], [torch.zeros(2).long()], settings)


@given(keys=st.lists(st.integers(-3, 5), max_size=12))
def test_rows_of_equal_keys_are_one_problem_in_their_order(keys: list[int]) -> None:
    problems = Problems.of(torch.tensor(keys, dtype=torch.long), len(keys))
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
    whole, by_key = Problems.of(None, N), Problems.of(torch.zeros(N, dtype=torch.long), N)
    assert whole.blocks == by_key.blocks == ([(1, N)] if N else [])
    rows = torch.arange(N)
    assert torch.equal(whole.sorted(rows), by_key.sorted(rows))
    assert torch.equal(whole.unsorted(rows), rows)


@given(keys=st.lists(st.integers(0, 2), min_size=1, max_size=40), size=st.integers(2, 9), seed=st.integers(0, 5))
def test_large_problems_are_cut_into_groups_of_nearly_equal_size(keys: list[int], size: int, seed: int) -> None:
    key_N = torch.tensor(keys)
    problems = Problems.of(key_N, len(keys), size, seed)
    rows = torch.arange(len(keys))
    groups = [group.tolist() for block in problems.split(problems.sorted(rows)) for group in block]
    assert sorted(row for group in groups for row in group) == rows.tolist()
    for key in set(keys):
        sizes = [len(group) for group in groups if keys[group[0]] == key]
        assert all(keys[row] == key for group in groups if keys[group[0]] == key for row in group)
        assert len(sizes) == -(-keys.count(key) // size)
        assert max(sizes) - min(sizes) <= 1
    again = Problems.of(key_N, len(keys), size, seed)
    assert problems.order_N is not None
    assert again.order_N is not None
    assert torch.equal(problems.order_N, again.order_N)
    whole = Problems.of(key_N, len(keys), len(keys), seed)
    assert whole.blocks == Problems.of(key_N, len(keys)).blocks


def test_a_cut_differs_from_seed_to_seed_and_not_at_all_where_one_group_holds_all() -> None:
    def groups(size: int | None, seed: int) -> list[list[int]]:
        problems = Problems.of(None, 40, size, seed)
        return sorted(g.tolist() for block in problems.split(problems.sorted(torch.arange(40))) for g in block)

    assert groups(10, 0) != groups(10, 1)
    assert groups(40, 0) == groups(None, 0) == [list(range(40))]


@given(keys=st.lists(st.integers(0, 3), min_size=1, max_size=20), start=st.integers(0, 19), length=st.integers(0, 20))
def test_some_rows_meet_all_rows_of_their_problems(keys: list[int], start: int, length: int) -> None:
    problems = Problems.of(torch.tensor(keys), len(keys))
    rows = slice(min(start, len(keys)), min(start + length, len(keys)))
    mine = torch.arange(len(keys))[rows]
    pairing = problems.pairing_of(rows)
    students, teachers = pairing.students(mine), pairing.teachers(torch.arange(len(keys)))
    met = {}
    for student_Pn, teacher_Pm in zip(students, teachers, strict=True):
        for student_n, teacher_m in zip(student_Pn.tolist(), teacher_Pm.tolist(), strict=True):
            met |= dict.fromkeys(student_n, teacher_m)
    assert met == {i: [j for j, key in enumerate(keys) if key == keys[i]] for i in mine.tolist()}
    if students:
        assert torch.equal(pairing.joined_student(students), mine)
