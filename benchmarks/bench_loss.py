"""The loss alone, from hidden states to the gradient of the student's hidden states.

Both heads are frozen, as with LoRA. Ours is `DistillationObjective` on [`HeadOf`]; *published* is the form that the
method's authors give (dense logits, `torch.cdist`, 20 normalisations of rows and columns under autograd), written from
its formula; *KL* is dense cross-entropy and KL without transport.

With V = 2 the objective gets logits, as it does with two answer tokens.
"""

from collections.abc import Callable

import torch
from charts import bars
from common import Results, fresh_peak, interleaved_medians, markdown, options, peak_of, timed, write
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, linear, log_softmax, softmax

from sinkd_llm.objectives import DistillationObjective
from sinkd_llm.objectives.head_of import HeadOf

H = 576  # of SmolLM2-135M
ROWS = (32, 128, 512)
VOCABULARIES = {"2": 2, "32k": 32_000, "49k": 49_152, "152k": 151_936, "262k": 262_144}
CONTENDERS = ("ours", "published", "KL")
GROUPED = "ours, groups of 256"  # the default; where there are more rows it is another loss than the published one
MEMORY = ((512, "152k"), (2048, "152k"))
ALPHA, WEIGHT, TEMPERATURE, EPSILON, ITERATIONS = 0.9, 0.8, 2.0, 0.1, 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(N: int, V: int) -> dict[str, Tensor]:
    """Hidden states and heads whose logits are as peaked as those of a language model.

    Each row has one token 9 to 37 above logits of spread 2, and student and teacher differ by about 0.7.
    """
    torch.manual_seed(0)
    head_VH = torch.randn(V, H, device=DEVICE) * 0.08
    likely_N = torch.randint(V, (N,), device=DEVICE)
    certainty_N1 = 2.5 + 7.5 * torch.rand(N, 1, device=DEVICE)
    base_NH = torch.randn(N, H, device=DEVICE) + certainty_N1 * head_VH[likely_N]
    student_NH = base_NH + 0.3 * torch.randn(N, H, device=DEVICE)
    student_VH = head_VH + 0.01 * torch.randn(V, H, device=DEVICE)
    found = {"student_NH": student_NH, "teacher_NH": base_NH, "student_VH": student_VH, "teacher_VH": head_VH}
    if V == 2:
        found["student_NV"], found["teacher_NV"] = student_NH @ student_VH.T, base_NH @ head_VH.T
    return {**found, "labels_N": likely_N}


def dense(x: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What asks for a gradient, and the logits of both."""
    if "student_NV" in x:
        leaf = x["student_NV"].detach().requires_grad_()
        return leaf, leaf, x["teacher_NV"]
    leaf = x["student_NH"].detach().requires_grad_()
    with torch.no_grad():
        teacher_NV = linear(x["teacher_NH"], x["teacher_VH"])
    return leaf, linear(leaf, x["student_VH"]), teacher_NV


def kl_loss(student_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor) -> Tensor:
    """`(1 - alpha) CE + alpha T^2 KL`, means over the rows."""
    ce = cross_entropy(student_NV, labels_N)
    log_student_NV = log_softmax(student_NV / TEMPERATURE, dim=-1)
    divergence = kl_div(log_student_NV, softmax(teacher_NV / TEMPERATURE, dim=-1), reduction="batchmean")
    return (1 - ALPHA) * ce + ALPHA * TEMPERATURE**2 * divergence


def published_term(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """The mean transport cost of a row, arXiv:2402.17110, equations 5 to 9."""
    student_NV, teacher_NV = softmax(student_NV / TEMPERATURE, dim=-1), softmax(teacher_NV / TEMPERATURE, dim=-1)
    cost_NN = torch.cdist(student_NV, teacher_NV, p=1)
    plan_NN = torch.exp(-cost_NN / EPSILON)
    for _ in range(ITERATIONS):
        plan_NN = plan_NN / plan_NN.sum(dim=1, keepdim=True)
        plan_NN = plan_NN / plan_NN.sum(dim=0, keepdim=True)
    return (plan_NN * cost_NN).sum() / len(cost_NN)


def gradient(contender: str, x: dict[str, Tensor]) -> Tensor:
    """The gradient of the loss to the student's hidden states, or to its logits with V = 2."""
    if contender in ("ours", GROUPED):
        N = len(x["labels_N"])
        example_N = torch.arange(N, device=DEVICE)
        student: Tensor | HeadOf
        teacher: Tensor | HeadOf
        if "student_NV" in x:
            leaf = student = x["student_NV"].detach().requires_grad_()
            teacher = x["teacher_NV"]
        else:
            leaf = x["student_NH"].detach().requires_grad_()
            student, teacher = HeadOf(leaf, x["student_VH"]), HeadOf(x["teacher_NH"], x["teacher_VH"])
        size = 256 if contender == GROUPED else None
        objective = DistillationObjective(ALPHA, "kl", TEMPERATURE, WEIGHT, transport_group_size=size)
        loss = objective(student, teacher, x["labels_N"], example_N=example_N, position_N=0 * example_N).loss
    else:
        leaf, student_NV, teacher_NV = dense(x)
        loss = kl_loss(student_NV, teacher_NV, x["labels_N"])
        if contender == "published":
            loss = loss + WEIGHT * published_term(student_NV, teacher_NV)
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad


def agree(x: dict[str, Tensor]) -> float:
    """
    Ours and the published form are one loss: their gradients in fp64 agree, over a part of the rows and ids.

    Returns the largest difference of the gradients in fp32, over the largest entry. It grows with the rows: at N = 128
    and V = 32k the published form in fp32 is 1.4e-4 off its own gradient in fp64, and ours 1.8e-5.
    """
    rows, ids = min(len(x["labels_N"]), 64), min(len(x["student_VH"]), 4096)
    part = {name: (rows if name.split("_")[1][0] == "N" else ids) for name in x}
    exact = {name: value[: part[name]].double() for name, value in x.items() if value.is_floating_point()}
    exact["labels_N"] = x["labels_N"][:rows] % ids
    first, second = gradient("ours", exact), gradient("published", exact)
    difference = float((first - second).abs().max() / second.abs().max())
    assert difference < 1e-9, f"ours and the published form differ by {difference:.2g} of the largest entry in fp64"
    ours, published = gradient("ours", x), gradient("published", x)
    return float((ours - published).abs().max() / published.abs().max())


def contenders(N: int) -> tuple[str, ...]:
    return (*CONTENDERS, GROUPED) if N > 256 else CONTENDERS


def name_of(N: int, vocabulary: str) -> str:
    return f"N={N} V={vocabulary}"


def memory(case: str, contender: str) -> None:
    """Prints the bytes that a call takes beyond its inputs; a tiny call first, which loads what is loaded once."""
    torch.set_num_threads(1)
    N, vocabulary = (word.split("=")[1] for word in case.split())
    gradient(contender, inputs(4, 1000))
    x = inputs(int(N), VOCABULARIES[vocabulary])
    print(peak_of(lambda: gradient(contender, x)))


def main() -> None:
    args = options(__doc__, memory)
    torch.set_num_threads(1)
    results = Results("loss", ("difference",), quick=args.quick, again=args.again)
    cases = [(32, "2"), (32, "32k")] if args.quick else [(N, V) for N in ROWS for V in VOCABULARIES]
    for N, vocabulary in cases:
        case = name_of(N, vocabulary)
        if not args.wants(case) or not results.missing(case, contenders(N)):
            continue
        x = inputs(N, VOCABULARIES[vocabulary])
        difference = agree(x)  # which warms up two of them
        for contender in contenders(N)[2:]:
            gradient(contender, x)

        def run(contender: str, x: dict[str, Tensor] = x) -> Callable[[], float]:
            return timed(lambda: gradient(contender, x))

        repeats = 1 if args.quick else 25
        found = interleaved_medians({c: run(c) for c in contenders(N)}, repeats, budget=25, warm_up=False)
        for contender, timing in found.items():
            extra = {"difference": difference} if contender == "ours" else {}
            results.add(case, contender, timing, **extra)
    for N, vocabulary in [(32, "32k")] if args.quick else MEMORY:
        case = name_of(N, vocabulary)
        if args.wants(case):
            for contender in results.missing(case, contenders(N), "memory_mb"):
                results.add(case, contender, memory_mb=fresh_peak(__file__, case, contender))
    if results.rows and not args.quick:
        report(results)


def target(N: int, vocabulary: str) -> str:
    return "at least 2" if vocabulary == "2" else "at least 1"


def report(results: Results) -> None:
    """Tables and chart of the file."""
    write(results.name, "The loss alone", *seconds_table(results), NOTES + memory_table(results), results.machines())
    panels = {
        f"N = {N} supervised tokens": {
            vocabulary: {c: results.number(name_of(N, vocabulary), c) for c in contenders(N)}
            for vocabulary in VOCABULARIES
        }
        for N in ROWS
    }
    bars(results.name, panels, y=results.unit, x="vocabulary V", log=True)


def seconds_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    rows, every = [], (*CONTENDERS, GROUPED)
    for N, vocabulary in [(N, V) for N in ROWS for V in VOCABULARIES]:
        seconds = {c: results.number(name_of(N, vocabulary), c) for c in every}
        ours, published = seconds["ours"], seconds["published"]
        if ours and published:
            row = [name_of(N, vocabulary), *(f"{1000 * s:,.1f}" if s else "" for s in seconds.values())]
            rows.append([*row, f"{published / ours:.2f} ×", "2 ×" if vocabulary == "2" else "1 ×"])
    return ["case", *(f"{c}, ms" for c in every), "published / ours", "target, at least"], rows


def memory_table(results: Results) -> str:
    """The table in Markdown."""
    rows, every = [], (*CONTENDERS, GROUPED)
    for N, vocabulary in MEMORY:
        megabytes = {c: results.number(name_of(N, vocabulary), c, "memory_mb") for c in every}
        ours, published = megabytes["ours"], megabytes["published"]
        if ours is not None and published:
            row = [name_of(N, vocabulary), *(f"{m:,.0f}" if m is not None else "" for m in megabytes.values())]
            rows.append([*row, f"{100 * ours / published:.1f} %", {512: "10 %", 2048: "5 %"}[N]])
    header = ["case", *(f"{c}, MB" for c in every), "ours / published", "target, at most"]
    return "\n" + markdown(header, rows) if rows else ""


NOTES = """
Medians of calls in turns, from hidden states `[N, 576]` and frozen heads to the gradient of the student's hidden
states (with V = 2 from logits to theirs). *Ours* and the published form are one loss, and their gradients are compared
in every case (column `difference` of the CSV: the largest difference over the largest entry). With groups of 256, the
default, rows beyond 256 form a second transport problem. Memory is the peak of one call beyond its inputs, in a fresh
process with `MALLOC_MMAP_THRESHOLD_=65536`.

Below the target: two ids (V = 2) up to 128 rows. There the time is that of some 370 small operations, most of them the
20 iterations of the solver and the checks around it, which the published form does in 460 operations of which
autograd's own half is C++. In a training step of seconds these are one to two milliseconds.
"""

if __name__ == "__main__":
    main()
