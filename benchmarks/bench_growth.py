"""How the seconds grow with what a user can make larger: the slope on two logarithmic scales.

One quantity grows at a time: the supervised tokens of the loss (its transport cut into groups of a fixed size), the
vocabulary, the classes; in a whole step of SmolLM2's layers the prompt, the answer and the layers; in an evaluation
the choices of a row.
"""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from charts import lines
from common import Results, interleaved_medians, options, timed, write
from torch import Tensor

from sinkd_llm import (
    DistillationObjective,
    SinKDConfig,
    SinKDTrainer,
    evaluate_task,
    load_model,
    load_task,
    load_tokenizer,
    select_layers,
)
from sinkd_llm.objectives.head_of import HeadOf

NAME = "smollm2-135m"
GROUP = 64  # rows of a transport problem at most
LIMIT = 1.1
# Quantity to its values, all at once slow enough to be measured and small enough for minutes.
VALUES = {
    "supervised tokens": (256, 512, 1024, 2048),
    "vocabulary": (32_768, 65_536, 131_072, 262_144),
    "classes": (512, 1024, 2048, 4096),
    "prompt tokens": (64, 128, 256, 512),
    "answer tokens": (16, 32, 64, 128),
    "layers": (3, 6, 12, 24),
    "choices": (16, 32, 64, 128),
}
Case = Callable[[], Any]


def loss(student: Tensor | HeadOf, teacher: Tensor | HeadOf, leaf: Tensor) -> Case:
    N = len(leaf)
    objective = DistillationObjective(transport_group_size=GROUP)
    labels_N, example_N = torch.zeros(N, dtype=torch.long), torch.arange(N)

    def run() -> None:
        found = objective(student, teacher, labels_N, example_N=example_N, position_N=0 * example_N)
        torch.autograd.grad(found.loss, leaf)

    return run


def loss_of_heads(N: int, V: int) -> Case:
    torch.manual_seed(0)
    head_VH, teacher_NH = 0.08 * torch.randn(V, 64), torch.randn(N, 64)
    leaf = (teacher_NH + 0.3 * torch.randn(N, 64)).requires_grad_()
    return loss(HeadOf(leaf, head_VH), HeadOf(teacher_NH, head_VH), leaf)


def loss_of_classes(V: int) -> Case:
    torch.manual_seed(0)
    leaf = torch.randn(256, V, requires_grad=True)
    return loss(leaf, torch.randn(256, V), leaf)


def step(teacher: Any, tokenizer: Any, *, prompt: int, answer: int, layers: int = 6, batch: int = 4) -> Case:
    """A training step on rows of given lengths: random ids, for only the lengths matter."""
    trainer = SinKDTrainer(
        model=select_layers(teacher, layers),
        teacher_model=select_layers(teacher, layers),
        args=SinKDConfig(
            tempfile.mkdtemp(), per_device_train_batch_size=batch, transport_group_size=GROUP, report_to="none"
        ),
        train_dataset=load_task("quickstart").load("train", limit=8),
        processing_class=tokenizer,
    )
    torch.manual_seed(0)
    features = []
    for _ in range(batch):
        ids = torch.randint(1000, 40_000, (prompt + answer,)).tolist()
        features.append({**trainer.train_dataset[0], "prompt_ids": ids[:prompt], "answer_ids": ids[prompt:]})
    inputs, count = trainer.data_collator(features), torch.tensor(batch * answer)

    def run() -> None:
        trainer.training_step(trainer.model, dict(inputs), count)
        trainer.model.zero_grad()

    return run


def ranking(model: Any, tokenizer: Any, choices: int) -> Case:
    """Two rows with so many choices of some tokens each; half of the choices begin like another."""
    words = ("card", "payment", "top up", "transfer", "exchange", "refund", "cash", "account", "limit", "fee", "pin")
    texts = [f"{words[i % 11]} {words[(i // 11 + i) % 11]} {words[(i // 22) % 11]}, case {i}" for i in range(choices)]
    folder = Path(tempfile.mkdtemp())
    rows = [{"text": f"Why was my {word} declined in the shop yesterday?", "label": 0} for word in words[:2]]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": f"choices_{choices}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(file), "validation": str(file)}},
        "training_split": "train",
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "Customer: {{text}}\nTopic:",
        "doc_to_choice": texts,
        "doc_to_target": "label",
    }
    path = folder / f"choices_{choices}.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    task = load_task(str(path))
    data = task.load("validation")
    return lambda: evaluate_task(model, tokenizer, task, data)


def cases(quantity: str, values: tuple[int, ...], teacher: Any, tokenizer: Any) -> dict[str, Case]:
    make: dict[str, Callable[[int], Case]] = {
        "supervised tokens": lambda n: loss_of_heads(n, 4096),
        "vocabulary": lambda n: loss_of_heads(64, n),
        "classes": loss_of_classes,
        "prompt tokens": lambda n: step(teacher, tokenizer, prompt=n, answer=1),
        "answer tokens": lambda n: step(teacher, tokenizer, prompt=16, answer=n),
        "layers": lambda n: step(teacher, tokenizer, prompt=64, answer=1, layers=n),
        "choices": lambda n: ranking(teacher, tokenizer, n),
    }
    return {str(value): make[quantity](value) for value in values}


def slope(points: list[tuple[float, float]]) -> float:
    """Least squares of the logarithms."""
    x, y = ([math.log(point[side]) for point in points] for side in (0, 1))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def points(results: Results, quantity: str) -> list[tuple[float, float]]:
    found = [(value, results.number(quantity, str(value))) for value in VALUES[quantity]]
    return [(float(value), seconds) for value, seconds in found if seconds]


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    results = Results("growth", quick=args.quick, again=args.again)
    teacher, tokenizer = load_model(NAME).eval(), load_tokenizer(NAME)
    for quantity, values in VALUES.items():
        if not args.wants(quantity) or not results.missing(quantity, [str(v) for v in values]):
            continue
        made = cases(quantity, values[:2] if args.quick else values, teacher, tokenizer)
        repeats = 1 if args.quick else 9
        found = interleaved_medians({name: timed(case) for name, case in made.items()}, repeats, budget=30)
        for name, timing in found.items():
            results.add(quantity, name, timing)
    if results.rows and not args.quick:
        report(results)


def report(results: Results) -> None:
    """Table and chart of the file."""
    rows, panels = [], {}
    for quantity in VALUES:
        found = points(results, quantity)
        if len(found) < 2:
            continue
        values, seconds = zip(*found, strict=True)
        row = [quantity, f"{values[0]:,.0f} to {values[-1]:,.0f}", " ".join(f"{1000 * s:,.0f}" for s in seconds)]
        rows.append([*row, f"{slope(found):.2f}", f"{slope(found[-2:]):.2f}", f"at most {LIMIT}"])
        panels[quantity] = {"seconds": found}
    header = ["what grows", "from … to", "ms at each doubling", "exponent", "exponent of the last doubling", "target"]
    write(results.name, "How the seconds grow", header, rows, NOTES, results.machines())
    lines(results.name, panels, y="CPU seconds", x={quantity: quantity for quantity in panels})


NOTES = f"""
Medians of processor time in turns. The exponent is the slope of a line through the logarithms. Transport problems have
at most {GROUP} rows (`transport_group_size`; its default is larger), so that the growth shows within minutes. Prompts,
answers and layers: a whole step, teacher and student with equally many layers of SmolLM2-135M (6 unless layers grow),
4 rows. Choices: two rows ranked by SmolLM2-135M. Attention is quadratic in the prompt: that is in its exponent.
"""

if __name__ == "__main__":
    main()
