"""How many rows a second are ranked, beside lm-evaluation-harness with the same model object on the same rows.

SmolLM2-135M in fp32 on one thread of a CPU; rows of `$SINKD_DATA_DIR`. Both read one task file, and both get text: the
seconds hold tokenising, forwards and scores. Their log-likelihoods have to agree in every case.
"""

import csv
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from charts import bars
from common import Results, Timing, interleaved_medians, options, timed, write

from sinkd_llm import evaluate_task, load_model, load_task, load_tokenizer
from sinkd_llm.tasks.loading import load_rows

NAME = "smollm2-135m"
BATCH = 16
OURS, HARNESS = "ours", "lm-evaluation-harness"
TOLERANCE, TOLERANCE_FP64 = 1e-4, 1e-6  # of the latter, for Llama normalises and turns positions in fp32
# Task to rows, repeats, and how many times as fast ours is to be.
CASES = {"SST-2": ("sst2", 64, 3, 1.5), "Banking77": ("banking77", 4, 2, 10.0), "ReCoRD": ("record", 4, 2, 5.0)}


def banking77(count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A task of 77 choices of several tokens, and rows that are spread over its file."""
    folder = Path(os.environ["SINKD_DATA_DIR"]) / "Banking77"
    names = json.loads((folder / "categories.json").read_text())
    with (folder / "test.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    rows = [{"text": row["text"], "label": names.index(row["category"])} for row in found[:: len(found) // count]]
    config = {
        "doc_to_text": "Customer: {{text | trim}}\nTopic:",
        "doc_to_choice": [name.replace("_", " ") for name in names],
        "doc_to_target": "label",
        "output_type": "multiple_choice",
    }
    return config, rows[:count]


def built_in(name: str, count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A task of the package, and its first rows."""
    task = load_task(name)
    found = load_rows(task.config, task.path, "validation", Path(os.environ["SINKD_DATA_DIR"]))
    return {"include": str(task.path)}, list(found.rows[:count])


def task_file(name: str, count: int, folder: Path) -> Path:
    """A task over local rows, in the schema that both read."""
    config, rows = banking77(count) if name == "banking77" else built_in(name, count)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config |= {
        "task": f"{name}_local",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"train": str(file), "validation": str(file)}},
        "training_split": "train",
        "validation_split": "validation",
        "metric_list": [{"metric": "acc"}],
    }
    path = folder / f"{name}_local.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path


def contenders(
    name: str, count: int, folder: Path, model: Any, tokenizer: Any
) -> dict[str, Callable[[], list[list[float]]]]:
    """Each gives the log-likelihoods of all choices of all rows."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    path = task_file(name, count, folder)
    task = load_task(str(path))
    rows = task.load("validation")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device="cpu")

    def theirs() -> list[list[float]]:
        found = evaluate(harness, manager.load([task.name])["tasks"], bootstrap_iters=0, log_samples=True)
        samples = sorted(found["samples"][task.name], key=lambda sample: sample["doc_id"])
        return [[float(score) for score, _ in sample["filtered_resps"]] for sample in samples]

    def ours() -> list[list[float]]:
        return evaluate_task(model, tokenizer, task, rows, batch_size=BATCH, max_length=None).log_likelihoods

    return {OURS: ours, HARNESS: theirs}


def largest_difference(first: list[list[float]], second: list[list[float]]) -> float:
    assert list(map(len, first)) == list(map(len, second))
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(first, second, strict=True))


def measure(case: str, results: Results, model: Any, tokenizer: Any, quick: bool) -> None:
    name, count, repeats, _ = CASES[case]
    count, repeats = (2, 1) if quick else (count, repeats)
    last: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        functions = contenders(name, count, Path(folder), model, tokenizer)

        def keep(contender: str) -> Callable[[], None]:
            return lambda: last.update({contender: functions[contender]()})

        found: dict[str, Timing] = interleaved_medians({c: timed(keep(c)) for c in functions}, repeats)
        fp32 = dict(last)
        model.double()
        functions[HARNESS] = contenders(name, count, Path(folder), model, tokenizer)[HARNESS]
        for contender in functions:
            keep(contender)()
        model.float()  # every fp32 number is one in fp64, so this gives back what there was
    # What the harness gives in fp64 is taken for exact.
    differences = {contender: largest_difference(fp32[contender], last[HARNESS]) for contender in functions}
    in_fp64 = largest_difference(last[OURS], last[HARNESS])
    assert in_fp64 < TOLERANCE_FP64, f"{case}: log-likelihoods in fp64 differ by {in_fp64:.2g}"
    assert differences[OURS] < TOLERANCE, f"{case}: ours is {differences[OURS]:.2g} from the harness in fp64"
    choices = sum(map(len, last[OURS])) / count
    for contender, timing in found.items():
        results.add(case, contender, timing, rows=count, choices=choices, difference=differences[contender])


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    results = Results("evaluation", ("rows", "choices", "difference"), quick=args.quick, again=args.again)
    cases = [c for c in CASES if args.wants(c) and results.missing(c, (OURS, HARNESS))]
    if cases:
        model, tokenizer = load_model(NAME).eval(), load_tokenizer(NAME)
        for case in cases[:1] if args.quick and not args.only else cases:
            measure(case, results, model, tokenizer, args.quick)
    if results.rows and not args.quick:
        report(results)


def report(results: Results) -> None:
    """Table and chart of the file."""
    rows, panels = [], {}
    for case, (_, _, _, target) in CASES.items():
        seconds = {c: results.number(case, c) for c in (OURS, HARNESS)}
        if None in seconds.values():
            continue
        count = results.number(case, OURS, "rows")
        rates = {c: count / s for c, s in seconds.items()}  # type: ignore[operator]
        row = [case, f"{count:.0f}", f"{results.number(case, OURS, 'choices'):.1f}"]
        row += [f"{rate:.2f}" for rate in rates.values()]
        row += [f"{rates[OURS] / rates[HARNESS]:.2f} ×", f"{target:g} ×"]
        rows.append([*row, *(f"{results.number(case, c, 'difference'):.1e}" for c in (OURS, HARNESS))])
        panels[case] = {f"{results.number(case, OURS, 'choices'):.0f} choices a row": rates}
    header = ["task", "rows", "choices a row", f"{OURS}, rows/s", f"{HARNESS}, rows/s", "ratio", "target"]
    write(
        results.name,
        "Rows ranked a second",
        [*header, f"{OURS}, from exact", "theirs, from exact"],
        rows,
        NOTES,
        results.machines(),
    )
    bars(results.name, panels, y="rows a CPU second, one thread", log=True)


NOTES = f"""
Batches of {BATCH} (rows of ours, sequences of lm-evaluation-harness), medians of processor time in turns. The last
columns are the largest differences of a log-likelihood (in nats; of Banking77 the smallest is -69) from the one that
lm-evaluation-harness gives in fp64. Above {TOLERANCE:g} for ours, or above {TOLERANCE_FP64:g} between the two in fp64,
the script fails.

Below the target: SST-2, whose two answers are one token each. There lm-evaluation-harness reads a prompt once for
both, too, and sorts rows by length, so that what ours saves is the head at all other positions.
"""

if __name__ == "__main__":
    main()
