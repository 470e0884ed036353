"""How fast a device does what an update is made of, measured on small pieces of the same work."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sinkd_llm.objectives import TransportedSettings, TransportSettings
from sinkd_llm.optimal_transport import pairwise_cost

# A probe is repeated until it has taken so long.
_PROBE_SECONDS = 0.01
# Rows and columns of the probe of the cost: on a CPU a few ms, on a GPU enough to keep it busy.
_CPU_PROBE, _GPU_PROBE = (64, 4096), (256, 8192)


@dataclass(frozen=True)
class Speeds:
    """
    What was measured on a device.

    Attributes:
        cost (`float`): seconds of one entry of SinKD's cost and one id, forward and backward.
        solver (`float`): seconds of one entry of the cost in the solver, forward and backward.
        product (`float`): seconds of one floating-point operation in a matrix product.
        coupling (`float`, *optional*, defaults to `0.0`): seconds of one entry in the plan of the transported
            cross-entropy, which has no backward pass.
    """

    cost: float
    solver: float
    product: float
    coupling: float = 0.0


@cache
def measured_speeds(
    device: torch.device,
    dtype: torch.dtype,
    settings: TransportSettings,
    largest: int,
    V: int,
    width: int,
    transported: TransportedSettings | None = None,
) -> Speeds:
    """
    Measures the speeds in some tens of milliseconds; each combination of arguments once a process.

    No random number is drawn, so that a run draws the same ones with and without a transport term.

    Args:
        device (`torch.device`): where the run computes.
        dtype (`torch.dtype`): of its matrix products.
        settings ([`TransportSettings`]): of the solver and the cost.
        largest (`int`): rows of the largest problem.
        V (`int`): ids of a distribution.
        width (`int`): features of a hidden state.
        transported ([`TransportedSettings`], *optional*): of the transported cross-entropy, where there is one.
    """
    most_rows, most_ids = _CPU_PROBE if device.type == "cpu" else _GPU_PROBE
    R, ids, width = max(2, min(largest, most_rows)), max(2, min(V, most_ids)), max(width, 1)
    # Several problems where they are small: what an operator call takes by itself is not what is asked for.
    P = max(1, 2**18 // (R**2 * ids))
    rows_PRV = torch.softmax(torch.arange(P * R * ids, device=device).view(P, R, ids).sin(), dim=-1)
    student_PRV = rows_PRV.clone().requires_grad_()

    def cost() -> Any:
        return pairwise_cost(student_PRV, rows_PRV, settings.cost_norm).sum().backward()

    n = max(2, min(largest, 256))
    cost_Pnn = torch.arange(max(1, 2**16 // n**2) * n**2, device=device).view(-1, n, n).sin().abs().requires_grad_()

    def solver() -> Any:
        return settings.solve([cost_Pnn]).cost(cost_Pnn.new_zeros(())).backward()

    left, right = (torch.ones(shape, device=device, dtype=dtype) for shape in ((256, width), (width, 4 * width)))
    return Speeds(
        cost=_seconds(cost, device) / (P * R * R * ids),
        solver=_seconds(solver, device) / cost_Pnn.numel(),
        product=_seconds(lambda: left @ right, device) / (2 * 256 * width * 4 * width),
        coupling=0.0
        if transported is None
        else _seconds(lambda: transported.couple(cost_Pnn), device) / cost_Pnn.numel(),
    )


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, after one that does not count."""
    _finished(work, device)
    started, calls, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < _PROBE_SECONDS:
        _finished(work, device)
        calls += 1
        elapsed = time.perf_counter() - started
    return elapsed / calls


def _finished(work: Callable[[], Any], device: torch.device) -> None:
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
