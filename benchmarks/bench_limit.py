"""How far the loss is from its matrix products: those of hidden states and gradients with the heads.

The same call as in `bench_loss.py`. Its products are recorded as they are made (function and tensors) and then made
again alone, so shapes, strides and library calls are the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from bench_loss import ALPHA, TEMPERATURE, VOCABULARIES, WEIGHT, H, inputs, name_of
from charts import bars
from common import Results, interleaved_medians, options, timed, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinkd_llm.objectives import DistillationObjective
from sinkd_llm.objectives.head_of import HeadOf

ROWS = (32, 128, 512)
SIZES = ("49k", "152k")
WHOLE, WITHOUT = "CE + KL + SinKD", "CE + KL"
CONTENDERS = (WHOLE, f"products of {WHOLE}", WITHOUT, f"products of {WITHOUT}")
TARGET = 1.3


class HeadProducts(TorchDispatchMode):
    """Keeps every matrix product in which one side has H features."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if name in ("mm", "addmm", "addmm_", "bmm", "baddbmm") and any(H in tensor.shape for tensor in tensors):
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))

    @torch.no_grad()
    def again(self) -> None:
        """The products alone."""
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)


def gradient(x: dict[str, Tensor], weight: float) -> Tensor:
    """The gradient of the student's hidden states."""
    hidden_NH = x["student_NH"].detach().requires_grad_()
    example_N = torch.arange(len(hidden_NH), device=hidden_NH.device)
    loss = DistillationObjective(ALPHA, "kl", TEMPERATURE, weight, transport_group_size=None)(
        HeadOf(hidden_NH, x["student_VH"]),
        HeadOf(x["teacher_NH"], x["teacher_VH"]),
        x["labels_N"],
        example_N=example_N,
        position_N=0 * example_N,
    ).loss
    (grad,) = torch.autograd.grad(loss, hidden_NH)
    return grad


def measure(case: str, results: Results, N: int, V: int, quick: bool) -> None:
    x = inputs(N, V)
    calls: dict[str, Callable[[], Any]] = {}
    for name, weight in ((WHOLE, WEIGHT), (WITHOUT, 0.0)):
        with HeadProducts() as products:
            gradient(x, weight)
        assert products.calls, "the loss made no product with a head"
        calls[name] = lambda weight=weight: gradient(x, weight)
        calls[f"products of {name}"] = products.again
    found = interleaved_medians({c: timed(call) for c, call in calls.items()}, 1 if quick else 15, budget=30)
    for contender, timing in found.items():
        results.add(case, contender, timing)


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    results = Results("limit", quick=args.quick, again=args.again)
    cases = [(32, "32k")] if args.quick else [(N, size) for N in ROWS for size in SIZES]
    for N, size in cases:
        case = name_of(N, size)
        if args.wants(case) and results.missing(case, CONTENDERS):
            measure(case, results, N, VOCABULARIES[size], args.quick)
    if results.rows and not args.quick:
        report(results)


def report(results: Results) -> None:
    """Table and chart of the file."""
    rows, panels = [], {}
    for N in ROWS:
        panels[f"N = {N} supervised tokens"] = {}
        for size in SIZES:
            case = name_of(N, size)
            found = [results.number(case, contender) for contender in CONTENDERS]
            if None in found:
                continue
            whole, its, without, fewer = (seconds or 0.0 for seconds in found)
            ratios = {WHOLE: whole / its, WITHOUT: without / fewer}
            panels[f"N = {N} supervised tokens"][size] = ratios
            milliseconds = [f"{1000 * seconds:,.0f}" for seconds in (whole, its, without, fewer)]
            rows.append([case, *milliseconds, *(f"{r:.2f}" for r in ratios.values()), f"at most {TARGET}"])
    header = ["case", *(f"{c}, ms" for c in CONTENDERS), f"ratio, {WHOLE}", f"ratio, {WITHOUT}", "target"]
    write(results.name, "The loss and its matrix products", header, rows, NOTES, results.machines())
    bars(results.name, panels, y="seconds over those of its products", x="vocabulary V", limit=TARGET)


NOTES = """
Hidden states `[N, 576]`, both heads frozen, all rows one transport problem; medians of processor time in turns. The
products are every matrix product with a head that the call makes, also those that it makes twice so as not to keep
logits. The L1 cost is no matrix product: its `N² V` differences are what stands between the two ratios.

Above the target: every case with the cost, whose `2 N² V` differences (forward and backward) take the difference of
the first and the third column, more of it the more rows meet. Without it the two exponentials a logit of either side,
and memory that is touched for the first time, are what is left beside the products.
"""

if __name__ == "__main__":
    main()
