"""The solver alone: 20 iterations on a given cost, beside the published loop, POT and GeomLoss.

All get the same cost matrices: L1 distances of softmaxes. The result of each is `<P, C>`, the loss of the method.

- *unrolled*, *implicit* and *envelope* are ours, with `sinkhorn_gradient` of that name;
- *published* is the loop that the method's authors give, under autograd, written from its formula;
- *POT knopp* and *POT log* are `ot.sinkhorn` with `method="sinkhorn"` and `"sinkhorn_log"`, under autograd;
- *GeomLoss* is `geomloss.ot.solve`, its solver of a given cost.
"""

import warnings
from collections.abc import Callable

import torch
from charts import bars
from common import Results, interleaved_medians, options, timed, write
from torch import Tensor

from sinkd_llm.optimal_transport import GRADIENTS, pairwise_cost, sinkhorn

ROWS = (32, 128, 512, 1024)
PASSES = ("forward", "forward + backward")
OTHERS = ("published", "POT knopp", "POT log", "GeomLoss")
CONTENDERS = (*GRADIENTS, *OTHERS)
EPSILON, ITERATIONS = 0.1, 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def cost(N: int) -> Tensor:
    """L1 distances `[N, N]` between distributions over 64 ids; some rows are near to each other, most are not."""
    torch.manual_seed(0)
    teacher_NV = 3 * torch.randn(N, 64, device=DEVICE)
    student_NV = teacher_NV + torch.randn(N, 64, device=DEVICE)
    return pairwise_cost(student_NV.softmax(dim=-1), teacher_NV.softmax(dim=-1))


def published(cost_NN: Tensor) -> Tensor:
    """`<P, C>` of the published loop, arXiv:2402.17110, equations 5 to 9, for a plan of mass 1."""
    plan_NN = torch.exp(-cost_NN / EPSILON)
    for _ in range(ITERATIONS):
        plan_NN = plan_NN / plan_NN.sum(dim=1, keepdim=True)
        plan_NN = plan_NN / plan_NN.sum(dim=0, keepdim=True)
    return (plan_NN * cost_NN).sum() / len(cost_NN)


def value(contender: str, cost_NN: Tensor) -> Tensor:
    """`<P, C>` after 20 iterations."""
    if contender in GRADIENTS:
        return sinkhorn(cost_NN, EPSILON, ITERATIONS, gradient=contender).value
    if contender == "published":
        return published(cost_NN)
    if contender == "GeomLoss":
        import geomloss.ot

        return (geomloss.ot.solve(cost_NN, reg=EPSILON, max_iter=ITERATIONS).plan * cost_NN).sum()
    import ot

    weights_N = torch.full_like(cost_NN[0], 1 / len(cost_NN), requires_grad=False)
    method = {"POT knopp": "sinkhorn", "POT log": "sinkhorn_log"}[contender]
    plan_NN = ot.sinkhorn(
        weights_N, weights_N, cost_NN, EPSILON, method=method, numItermax=ITERATIONS, stopThr=0, warn=False
    )
    return (plan_NN * cost_NN).sum()


def gradient(contender: str, cost_NN: Tensor) -> Tensor:
    """Of [`value`] to the cost."""
    leaf = cost_NN.detach().requires_grad_()
    (grad,) = torch.autograd.grad(value(contender, leaf), leaf)
    return grad


def differences(cost_NN: Tensor) -> dict[str, float]:
    """Each contender's largest difference from the gradient of the published loop in fp64, over the largest entry.

    Ours (unrolled) and POT have to be that gradient. POT normalises the columns first, which is the published loop on
    the transposed cost.
    """
    rows_first = gradient("published", cost_NN.double())
    columns_first = gradient("published", cost_NN.double().T.contiguous()).T
    found = {}
    for contender in CONTENDERS:
        exact = columns_first if contender.startswith("POT") else rows_first
        found[contender] = float((gradient(contender, cost_NN) - exact).abs().max() / exact.abs().max())
    for contender in ("unrolled", "published", "POT knopp", "POT log"):
        assert found[contender] < 1e-4, f"{contender} is off by {found[contender]:.2g} of the largest entry"
    return found


def case_of(N: int, which: str) -> str:
    return f"N={N} {which}"


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")  # within GeomLoss
    results = Results("solver", ("difference",), quick=args.quick, again=args.again)
    for N in ROWS[:1] if args.quick else ROWS:
        wanted = {which: case_of(N, which) for which in PASSES}
        wanted = {w: case for w, case in wanted.items() if args.wants(case) and results.missing(case, CONTENDERS)}
        if not wanted:
            continue
        cost_NN = cost(N)
        off = differences(cost_NN)
        for which, case in wanted.items():

            def run(contender: str, which: str = which, cost_NN: Tensor = cost_NN) -> Callable[[], float]:
                call = value if which == "forward" else gradient
                calls = 20 if len(cost_NN) <= 128 else 1  # a call alone is as short as the clock's steps
                taken = timed(lambda: [call(contender, cost_NN) for _ in range(calls)])
                return lambda: taken() / calls

            found = interleaved_medians({c: run(c) for c in CONTENDERS}, 1 if args.quick else 51, budget=20)
            for contender, timing in found.items():
                extra = {} if which == "forward" else {"difference": off[contender]}
                results.add(case, contender, timing, **extra)
    if results.rows and not args.quick:
        report(results)


def report(results: Results) -> None:
    """Table and chart of the file."""
    rows, panels = [], {}
    for which in PASSES:
        panels[which] = {}
        for N in ROWS:
            case = case_of(N, which)
            found = {c: results.number(case, c) for c in CONTENDERS}
            if None in found.values():
                continue
            seconds = {c: number or 0.0 for c, number in found.items()}
            panels[which][str(N)] = dict(seconds)
            ratio = min(seconds[c] for c in OTHERS) / seconds["unrolled"]
            off = [results.number(case, c, "difference") for c in CONTENDERS]
            rows.append([case, *(f"{1000 * s:,.2f}" for s in seconds.values()), f"{ratio:.2f}", "at least 1"])
            if None not in off:
                rows.append(["difference of the gradient", *(f"{number:.1g}" for number in off), "", ""])
    header = ["case", *(f"{c}, ms" for c in CONTENDERS), "fastest other / unrolled", "target"]
    write(results.name, "The solver: 20 iterations on a given cost", header, rows, NOTES, results.machines())
    bars(results.name, panels, y=results.unit, x="rows N of the problem", log=True)


NOTES = """
Medians of calls in turns (of 20 calls one after another up to N = 128); L1 costs of softmaxes, epsilon = 0.1, fp32,
from the cost to `<P, C>`, and to its gradient. *Difference of the gradient*: the largest difference from the gradient
of the published loop in fp64, over that gradient's largest entry. *implicit* is the gradient of the converged plan and
*envelope* takes the plan for a constant: these are other gradients by definition. GeomLoss lowers epsilon step by
step, updates both sides at once and lets the gradient through its last step only, so that its plan and gradient are
not those of the published loop. POT computes the published loop, columns first, on vectors (knopp) or logarithms.

Below the target: small problems without a gradient, which no training step solves. There 20 iterations are 80
operations in either form, and ours also looks at the largest cost and chooses a form before it begins.
"""

if __name__ == "__main__":
    main()
