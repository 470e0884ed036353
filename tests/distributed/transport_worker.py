"""One of the ranks that tests/distributed/test_transport.py starts: runs every case and writes what it got."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sinkd_llm.distributed import Ranks, RowLayout
from sinkd_llm.objectives import DistillationObjective, TopKSignal
from sinkd_llm.optimal_transport import GRADIENTS
from tests.support.rows import sentences
from tests.support.trainers import ONLY_SINKD, short_config

V = 11
IDS = [7, 1, 4]
# Rows of each rank's micro-batches: unequal, a rank without any, and none at all.
LAYOUTS = {
    "equal": ((4,), (4,)),
    "unequal": ((5,), (2,)),
    "empty-rank": ((0,), (6,)),
    "empty": ((0,), (0,)),
    "micro-batches": ((2, 0, 3), (1, 4)),
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    **{
        f"{gradient}-{scope}": {"sinkhorn_gradient": gradient, "transport_scope": scope}
        for gradient, scope in itertools.product(GRADIENTS, ("batch", "position"))
    },
    "verbalizers": {"vocabulary": "verbalizers"},
    "sql2": {"cost_norm": "sql2"},
    "groups-batch": {"transport_group_size": 2},
    "groups-position": {"transport_group_size": 2, "transport_scope": "position"},
    "regression": {"alpha": 0.5},
    "top-k-batch": {},
    "top-k-position": {"transport_scope": "position"},
}


def case_rows(name: str, layout: str) -> tuple[Tensor, ...]:
    """Student logits, teacher logits, labels, example and position of the rows of all ranks, `[M, ...]`, fp64."""
    M = sum(map(sum, LAYOUTS[layout]))
    generator = torch.Generator().manual_seed(M)
    if name == "regression":
        student, teacher = (torch.rand(M, 1, generator=generator, dtype=torch.float64) for _ in range(2))
        labels = torch.rand(M, generator=generator, dtype=torch.float64)
    else:
        student, teacher = (3 * torch.randn(M, V, generator=generator, dtype=torch.float64) for _ in range(2))
        labels = torch.randint(V, (M,), generator=generator)
    return student, teacher, labels, torch.arange(M), torch.randint(3, (M,), generator=generator)


def case_signal(name: str, teacher: Tensor) -> Tensor | TopKSignal:
    """What the objective takes of the teacher's rows."""
    if not name.startswith("top-k"):
        return teacher
    return TopKSignal.from_logits(teacher, teacher.topk(4, dim=-1).indices, (0.7, 2.0))


def case_objective(name: str) -> DistillationObjective:
    return DistillationObjective(sinkhorn_temperature=0.7, **OBJECTIVES[name])


def terms(folder: Path) -> None:
    """The loss, the term and the gradient of this rank's rows, by the objective alone, in fp64 and in fp32."""
    ranks = Ranks.of()
    assert ranks is not None
    results = {}
    for name, layout, dtype in itertools.product(OBJECTIVES, LAYOUTS, (torch.float64, torch.float32)):
        objective, lengths = case_objective(name), LAYOUTS[layout]
        start = sum(map(sum, lengths[: ranks.index]))
        own = slice(start, start + sum(lengths[ranks.index]))
        rows = [tensor[own].split(list(lengths[ranks.index])) for tensor in case_rows(name, layout)]
        student, teacher = ([part.to(dtype) for part in rows[i]] for i in (0, 1))
        student = [part.clone().requires_grad_() for part in student]
        labels = [part if part.dtype == torch.long else part.to(dtype) for part in rows[2]]
        M = sum(map(sum, lengths))
        spread = RowLayout.of(lengths[ranks.index], ranks, torch.device("cpu"))
        settings = {"verbalizer_ids": IDS, "regression": name == "regression"}
        signals = [case_signal(name, part) for part in teacher]
        problem = objective.spanning_problem(spread, signals, rows[4], **settings)
        if len(student) > 1:
            with torch.no_grad():
                problem.solve([problem.cost(part, i) for i, part in enumerate(student)])
        outputs = [
            objective(
                student[i],
                signals[i],
                labels[i],
                example_N=rows[3][i],
                position_N=rows[4][i],
                verbalizer_ids=IDS,
                num_items=M,
                transport=(problem, i),
                with_diagnostics=True,
            )
            for i in range(len(student))
        ]
        loss = torch.stack([output.loss for output in outputs]).sum()
        loss.backward()
        results[name, layout, dtype] = {
            "loss": loss.detach(),
            "sinkhorn": sum(
                output.terms["sinkhorn"] * len(part) for output, part in zip(outputs, student, strict=True)
            ),
            "diagnostics": outputs[0].diagnostics,
            "gradient": torch.cat([part.grad for part in student]),
        }
    torch.save(results, folder / f"terms-{ranks.index}.pt")


def gathers(folder: Path) -> None:
    """Rows of all ranks as they are, and as they arrive."""
    ranks = Ranks.of()
    assert ranks is not None
    results = []
    for counts in ((3, 1), (0, 2), (0, 0)):
        rows = torch.randn(sum(counts), 5, generator=torch.Generator().manual_seed(0))
        for every in (rows, rows.double(), rows.bfloat16(), rows > 0, (9 * rows).long(), rows[:, 0], rows[:, :0]):
            results.append((every, ranks.gather(every[ranks.own_rows(counts)], counts)))
    torch.save(results, folder / f"gathers-{ranks.index}.pt")


RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "position": {"transport_scope": "position"},
    "sinkd": ONLY_SINKD,
    "sinkd-implicit": {**ONLY_SINKD, "sinkhorn_gradient": "implicit"},
    "sinkd-groups": {**ONLY_SINKD, "transport_group_size": 5},
    "sinkd-of-each-device": {**ONLY_SINKD, "transport_across_devices": False},
    "sinkd-tokens-of-each-device": {**ONLY_SINKD, "average_tokens_across_devices": False},
    "accumulation": {"gradient_accumulation_steps": 4, "transport_accumulation": True},
    "sinkd-accumulation": {**ONLY_SINKD, "gradient_accumulation_steps": 2, "transport_accumulation": True},
    "sinkd-accumulation-tokens-of-each-device": {
        **ONLY_SINKD,
        "gradient_accumulation_steps": 2,
        "transport_accumulation": True,
        "average_tokens_across_devices": False,
    },
}


def run(folder: Path, models: str, name: str, world_size: int) -> dict[str, Any]:
    """Weights and records of a training run of three updates, and what this rank sent in it."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from sinkd_llm import SinKDTrainer

    settings = {"gradient_accumulation_steps": 1, "seed": 3, **RUNS[name]}
    args = short_config(
        folder,
        per_device_train_batch_size=16 // world_size // settings["gradient_accumulation_steps"],
        max_steps=3,
        learning_rate=0.3,
        optim="sgd",
        **settings,
    )
    trainer = SinKDTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / models / "student"),
        teacher_model=AutoModelForCausalLM.from_pretrained(folder / models / "teacher"),
        args=args,
        train_dataset=sentences(),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
    )
    with sent_rows() as sent:
        trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    weights = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    return {"weights": weights, "records": records, "sent": sent}


@contextmanager
def sent_rows() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of this rank's rows in every gather inside the context."""
    sent: list[tuple[int, ...]] = []
    gather: Callable[..., Tensor] = Ranks.gather

    def counted(self: Ranks, rows_N: Tensor, counts: Any) -> Tensor:
        sent.append(tuple(rows_N.shape))
        return gather(self, rows_N, counts)

    Ranks.gather = counted  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        Ranks.gather = gather  # type: ignore[method-assign]


def main(where: str) -> int:
    folder = Path(where)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    gathers(folder)
    terms(folder)
    results = {("plain", name): run(folder, "plain", name, 2) for name in RUNS}
    results["capped", "default"] = run(folder, "capped", "default", 2)
    torch.save(results, folder / f"runs-{rank}.pt")
    dist.destroy_process_group()
    return 0
