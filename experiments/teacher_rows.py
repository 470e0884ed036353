"""
Rows of a task with a teacher's answers, as they come where something is lost: only per group, swapped, or as counts.

    python experiments/teacher_rows.py --task banking77 --data_dir data --teacher runs/teacher-banking77 \
        --output runs/banking77-rows clean groups-8 groups-32 swapped-30-64 swapped-30-all counts-32

Each name becomes a folder with `train.csv` and `validation.csv` (text, prompt, answer, and the group of a training
row), a task file over them and `teacher.jsonl`, which the other commands read:

    sinkd distill --task OUTPUT/groups-32/task.yaml --teacher_file OUTPUT/groups-32/teacher.jsonl …

| name | the teacher's rows |
|---|---|
| `clean` | each text has its own |
| `groups-K` | shuffled in groups of K |
| `swapped-P-K` | P per cent of them exchanged among each other within groups of K |
| `swapped-P-all` | P per cent of them exchanged among each other over the whole set |
| `counts-K` | its most probable answers alone, shuffled in groups of K, which is what their counts say |

Rows that `heldout_share` holds out are in no group.
"""

import argparse
import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sinkd_llm.runs.held_out import hold_out
from sinkd_llm.tasks import load_task

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.tasks import Task

FORMS = re.compile(r"clean|(?:groups|counts)-\d+|swapped-\d+-(?:\d+|all)")
ROWS_AT_ONCE = 128


@torch.no_grad()
def answers_of(teacher: str, texts: list[str], max_length: int) -> np.ndarray:
    """Probabilities of a fine-tuned encoder, `[rows, classes]`."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    order = np.argsort([len(text) for text in texts], kind="stable")  # rows of like length, for little padding
    answers = np.zeros((len(texts), model.config.num_labels))
    for start in range(0, len(texts), ROWS_AT_ONCE):
        rows = order[start : start + ROWS_AT_ONCE]
        part = [texts[row] for row in rows]
        batch = tokenizer(
            part, padding=True, padding_side="right", truncation=True, max_length=max_length, return_tensors="pt"
        )
        answers[rows] = model(**batch).logits.double().softmax(dim=-1).numpy()
    return answers


def groups_of(rows: np.ndarray, size: int, draw: np.random.Generator) -> list[np.ndarray]:
    """The rows in random groups of a size; what is left over makes a smaller one."""
    order = draw.permutation(rows)
    return [order[start : start + size] for start in range(0, len(order), size)]


def moved(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The rows in an order that leaves none in its place, all such orders of one cycle being equally likely."""
    order = rows.copy()
    for last in range(len(order) - 1, 0, -1):  # Sattolo's algorithm
        other = draw.integers(last)
        order[last], order[other] = order[other], order[last]
    return order


def corrupted(name: str, rows: np.ndarray, count: int, draw: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """
    Which teacher row each text is given, and the name of its group ("": none).

    Args:
        name (`str`): one of `FORMS`.
        rows (`np.ndarray`): those that are trained on.
        count (`int`): of all rows.
        draw (`np.random.Generator`): where chance comes from.
    """
    whose, group = np.arange(count), [""] * count
    form, *numbers = name.split("-")
    if form == "clean":
        return whose, group
    size = len(rows) if numbers[-1] == "all" else int(numbers[-1])
    for number, members in enumerate(groups_of(rows, size, draw)):
        if numbers[-1] != "all":
            for row in members:
                group[row] = f"g{number}"
        if form == "swapped":
            chosen = draw.permutation(members)[: round(int(numbers[0]) / 100 * len(members))]
            whose[chosen] = moved(chosen, draw)
        else:
            whose[members] = draw.permutation(members)
    return whose, group


def write_form(
    folder: Path, name: str, task: "Task", splits: dict[str, "Dataset"], answers: dict, share: float
) -> None:
    """One folder, see the head of this file."""
    folder.mkdir(parents=True, exist_ok=True)
    train = splits["train"]
    ids = {id_: i for i, id_ in enumerate(train["id"])}
    kept = np.array([ids[id_] for id_ in hold_out(train, share)[0]["id"]])
    whose, group = corrupted(name, kept, len(train), np.random.default_rng(0))
    if name.startswith("counts"):
        answers = {split: np.eye(rows.shape[1])[rows.argmax(axis=1)] for split, rows in answers.items()}
    for split, rows in splits.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "prompt", "answer", "group"])
            groups = group if split == "train" else [""] * len(rows)
            for row, its_group in zip(rows, groups, strict=True):
                writer.writerow([row["text"], row["prompt"], row["choices"][row["label"]].strip(), its_group])
    with (folder / "teacher.jsonl").open("w", encoding="utf-8") as file:
        for split, rows in answers.items():
            for row in range(len(rows)):
                told = rows[whose[row]] if split == "train" else rows[row]
                said = {"split": split, "row": row, "probabilities": [float(f"{p:.7g}") for p in told]}
                file.write(json.dumps(said) + "\n")
    content = {
        "task": f"{task.name}_{name.replace('-', '_')}",
        "dataset_path": "csv",
        "dataset_kwargs": {"data_files": {"train": "train.csv", "validation": "validation.csv"}},
        "training_split": "train",
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": [choice.strip() for choice in task.choices or ()],
        "doc_to_target": "{{answer}}",
        "metric_list": task.config["metric_list"],
        "metadata": {"version": 1.0, "texts": ["text"]},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--teacher", required=True, help="the folder of `sinkd finetune`")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--heldout_share", type=float, default=0.1)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("names", nargs="+")
    arguments = parser.parse_args()
    for name in arguments.names:
        if not FORMS.fullmatch(name):
            parser.error(f"{name!r} is no form of rows; see the table above")
    task = load_task(arguments.task)
    splits = {split: task.load(split, arguments.data_dir) for split in ("train", "validation")}
    answers = {
        split: answers_of(arguments.teacher, list(rows["text"]), arguments.max_length)
        for split, rows in splits.items()
    }
    for split, rows in splits.items():
        right = float((answers[split].argmax(axis=1) == np.array(rows["label"])).mean())
        print(f"{split}: {len(rows)} rows, the teacher is right on {right:.3f}")
    for name in arguments.names:
        write_form(arguments.output / name, name, task, splits, answers, arguments.heldout_share)
        print(arguments.output / name)


if __name__ == "__main__":
    main()
