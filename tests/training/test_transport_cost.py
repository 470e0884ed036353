"""What the transport term is predicted to take: the counts exactly, the speeds only as numbers that can be."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sinkd_llm import SinKDTrainer
from sinkd_llm.models import count_parameters
from sinkd_llm.objectives import TransportedSettings, TransportSettings
from sinkd_llm.training import transport_cost
from sinkd_llm.training.speeds import Speeds, measured_speeds
from sinkd_llm.training.transport_cost import count_transport, predict, product_flops
from tests.support.rows import opinions

ANSWERS = [torch.tensor([3, 1, 2])]


@pytest.mark.parametrize(
    ("scope", "size", "sizes"),
    [
        ("batch", None, [6]),
        ("batch", 6, [6]),
        ("batch", 4, [3, 3]),
        ("batch", 2, [2, 2, 2]),
        ("sequence", None, [3, 1, 2]),
        ("sequence", 2, [2, 1, 1, 2]),
        ("position", None, [3, 2, 1]),
        ("position", 2, [2, 1, 2, 1]),
        ("group", 2, [5, 1]),
    ],
)
def test_problems_of_a_batch(scope: str, size: int | None, sizes: list[int]) -> None:
    settings = TransportSettings(transport_scope=scope, transport_group_size=size)
    counts = count_transport(ANSWERS, settings, groups=[torch.tensor([7, 2, 7])] if scope == "group" else None)
    squares = sum(n**2 for n in sizes)
    assert (counts.rows, counts.entries, counts.largest) == (6, squares, max(sizes))
    assert counts.matrices == 4 * 4 * squares


def test_devices_and_micro_batches() -> None:
    settings = TransportSettings(transport_group_size=None)
    assert count_transport(ANSWERS, settings, devices=2, joined=3).entries == (6 * 2 * 3) ** 2
    assert count_transport(ANSWERS, settings, devices=2, alone=3).entries == 3 * (6 * 2) ** 2
    assert count_transport(ANSWERS, settings, devices=2, alone=3).rows == 6 * 2 * 3
    by_position = TransportSettings(transport_scope="position")
    assert count_transport(ANSWERS, by_position, devices=2).entries == 6**2 + 4**2 + 2**2


def test_counts_are_means_over_batches_and_empty_ones_count() -> None:
    counts = count_transport([torch.tensor([2, 2]), torch.tensor([0, 0])], TransportSettings())
    assert (counts.rows, counts.entries, counts.largest) == (2, 8, 4)


def test_a_fixed_group_makes_the_entries_grow_as_the_rows() -> None:
    settings = TransportSettings(transport_group_size=64)
    entries = [count_transport([torch.full((8,), n)], settings).entries for n in (64, 128, 512)]
    assert entries == [512 * 64, 1024 * 64, 4096 * 64]


@pytest.mark.parametrize("tied", [True, False])
def test_products_of_a_model(tied: bool, tiny_causal_lm: Callable[..., Any]) -> None:
    model = tiny_causal_lm(seed=1, tie_word_embeddings=tied)
    table = model.get_input_embeddings().weight.numel()
    body = count_parameters(model)[0] - table * (1 if tied else 2)
    assert product_flops(model, 10, 3, trains=False) == 2 * body * 10 + 2 * table * 3
    assert product_flops(model, 10, 3, trains=True) == 3 * product_flops(model, 10, 3, trains=False)
    assert product_flops(model, 10, 3, trains=True, recomputes=True) == 8 * body * 10 + 6 * table * 3
    model.requires_grad_(False)
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    first.weight.requires_grad_()
    assert product_flops(model, 10, 0, trains=True) == 4 * body * 10 + 2 * first.weight.numel() * 10


def test_speeds_are_measured_without_drawing_a_number() -> None:
    state = torch.get_rng_state()
    speeds = measured_speeds(
        torch.device("cpu"), torch.float32, TransportSettings(), 5, 100, 16, TransportedSettings(1.0)
    )
    assert all(0 < speed < 1 for speed in (speeds.cost, speeds.solver, speeds.product, speeds.coupling))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_prediction_is_counts_times_speeds(
    strategy: str, train: Callable[..., SinKDTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        transport_cost, "measured_speeds", lambda *_: Speeds(cost=2.0, solver=5.0, product=7.0, coupling=3.0)
    )
    trainer = train(gradient_accumulation_steps=3, train_dataset=opinions(8), train_sampling_strategy=strategy)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    N, V = int((batch["labels"] != -100).sum()), trainer.teacher.outputs
    prediction = predict(trainer)
    assert prediction.transport == 3 * N**2 * (2 * V + 5)
    # Rows of like length have next to no padding.
    read = 3 * (batch["input_ids"].numel() if strategy == "random" else int(batch["attention_mask"].sum()))
    flops = product_flops(trainer.model, read, 3 * N, trains=True)
    flops += product_flops(trainer.teacher.model, read, 3 * N, trains=False)
    assert prediction.others == pytest.approx(7 * flops)
    assert prediction.share == pytest.approx(prediction.transport / (prediction.transport + prediction.others))
    changed = replace(trainer.forward.objective, transported=TransportedSettings(1.0))
    trainer.forward.objective = changed
    both = predict(trainer)
    assert both.transport == prediction.transport + 3 * N**2 * (4 * V * 7 + 3)
    assert both.memory == 2 * prediction.memory
    trainer.forward.objective = replace(changed, sinkhorn_weight=0.0)
    assert predict(trainer).transport == 3 * N**2 * (4 * V * 7 + 3)


@pytest.mark.parametrize(("cost", "warned"), [(1e-12, False), (1.0, True)])
def test_what_is_said_before_the_first_update(
    cost: float,
    warned: bool,
    train: Callable[..., SinKDTrainer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(transport_cost, "measured_speeds", lambda *_: Speeds(cost, 1e-12, 1e-9))
    with caplog.at_level(logging.WARNING, "sinkd_llm.training.transport_cost"):
        train(max_steps=1).train()
    assert capsys.readouterr().err.count("Transport takes ") == 1
    assert ("transport_scope position" in caplog.text) == warned
    assert ("transport_group_size (now 256)" in caplog.text) == warned


@pytest.mark.parametrize("settings", [{"teacher": False}, {"sinkhorn_weight": 0.0}], ids=["no-teacher", "weight-0"])
def test_nothing_is_said_without_transport(
    settings: dict[str, Any], train: Callable[..., SinKDTrainer], capsys: pytest.CaptureFixture[str]
) -> None:
    train(max_steps=1, **settings).train()
    assert "Transport" not in capsys.readouterr().err
