"""How close the estimate of `sinkd env --estimate` comes to the memory that training takes.

Each run is a process of its own, on the CPU: the peak of its resident memory during two training steps, minus what
it held before any model was loaded. One row is repeated, so that every batch is the one that is estimated.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import EXACT_ALLOCATOR, forget_peak, resident, write

TEACHER = {"teacher_model_name_or_path": "smollm2-135m", "student_layers": 10}
LORA = {"use_peft": True, "lora_r": 32}
BATCH = {"per_device_train_batch_size": 16}
CASES: dict[str, dict[str, Any]] = {
    "LoRA student of 10 layers": {**TEACHER, **LORA, **BATCH},
    "… with gradient checkpointing": {**TEACHER, **LORA, **BATCH, "gradient_checkpointing": True},
    "… with batch 32": {**TEACHER, **LORA, "per_device_train_batch_size": 32},
    "… with the teacher in bf16": {**TEACHER, **LORA, **BATCH, "teacher_model_init_kwargs": {"dtype": "bfloat16"}},
    "whole student of 10 layers": {**TEACHER, "per_device_train_batch_size": 4},
    "… with accumulation over 2": {**TEACHER, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "fine-tuning all of SmolLM2": {"model_name_or_path": "smollm2-135m", "per_device_train_batch_size": 4},
    "fine-tuning all of MiniLM": {
        "model_name_or_path": "minilm-l6",
        "model_kind": "sequence-classification",
        "per_device_train_batch_size": 64,
    },
}


def arguments(case: str, folder: Path) -> Any:
    from sinkd_llm.cli.parsing import parse_training

    text = "The film was long, loud and full of explosions, but the people in it were worth caring about."
    row = {"prompt": f"Review: {text}\nSentiment:", "completion": " good", "choices": ["good", "bad"], "label": 0}
    if "minilm" not in str(CASES[case]):
        row = {key: row[key] for key in ("prompt", "completion")}
    else:
        row["prompt"] = row["prompt"].replace("Sentiment:", "It is")
    rows = folder / "rows.jsonl"
    rows.write_text((json.dumps(row) + "\n") * 400)
    settings = {"dataset_name": str(rows), "output_dir": str(folder / "run"), "max_steps": 2, "save_strategy": "no"}
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({**settings, "report_to": "none", "use_cpu": True, **CASES[case]}))
    return parse_training("distill" if "teacher" in str(CASES[case]) else "finetune", ["--config", str(recipe)])


def measure(case: str, folder: Path, *callbacks: Any) -> int:
    """The peak of resident memory beyond the start's, in bytes; the second step has the optimizer's states."""
    from sinkd_llm.models import load_tokenizer
    from sinkd_llm.runs.data import load_run_data
    from sinkd_llm.runs.training import adapter_config, apply_model_arguments
    from sinkd_llm.training.trainer import SinKDTrainer

    task_args, training_args, model_args = arguments(case, folder)
    train = load_run_data(task_args, training_args.sample_seed).train
    apply_model_arguments(training_args, model_args)
    load_tokenizer(model_args.model_name_or_path or training_args.teacher_model_name_or_path)
    before = resident("VmRSS")
    trainer = SinKDTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=train,
        peft_config=adapter_config(model_args),
        callbacks=[*callbacks],
    )
    forget_peak()  # loading is not training
    trainer.train()
    return resident("VmHWM") - before


def estimate(case: str, folder: Path) -> tuple[int, str]:
    """The estimated bytes of one device, and the micro-batch in words."""
    from sinkd_llm.runs.memory import estimate_memory

    estimate = estimate_memory(*arguments(case, folder))
    return estimate.device("none", 1, checkpointing=estimate.checkpointing).total, estimate.batch.split(", ", 1)[1]


def in_fork(function: Any, case: str) -> Any:
    """The result of `function` in a fork of this process: importing everything once is enough."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, (case, Path(folder)))


def measure_all() -> dict[str, int]:
    """The measured bytes of every case."""
    measured = {}
    for case in CASES:
        measured[case] = in_fork(measure, case)
        print(case, measured[case], file=sys.stderr, flush=True)
    return measured


def main() -> None:
    import trl  # noqa: F401 - imported before the forks

    import sinkd_llm.runs.memory
    import sinkd_llm.training.trainer  # noqa: F401

    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measure_all()))
        return
    measured = []
    for settings in ({}, EXACT_ALLOCATOR):
        command = [sys.executable, __file__, "measure"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **settings})
        measured.append(json.loads(output.stdout.splitlines()[-1]))
    write_table(measured)


def write_table(measured: list[dict[str, int]]) -> None:
    """The estimates beside what was measured with the default allocator and with the exact one."""
    rows = []
    for case in CASES:
        estimated, batch = in_fork(estimate, case)
        usual, exact = (results[case] for results in measured)
        numbers = [f"{size / 1e6:,.0f}" for size in (estimated, exact, usual)]
        rows.append([case, batch, *numbers, f"{estimated / exact:.2f}", f"{estimated / usual:.2f}"])
    header = ["run", "micro-batch", "estimated", "measured", "default allocator"]
    header += ["estimated / measured", "estimated / default"]
    write("memory", "Planned and measured memory of training, MB", header, rows, NOTES)


NOTES = """
Measured: peak resident memory of two training steps on the CPU in fp32, minus what the process held before it loaded a
model. `measured` is with `MALLOC_MMAP_THRESHOLD_=65536`, with which the C library gives freed memory back at once:
what training needs. The default allocator keeps some of what was freed.

The target is 15 to 20 %. With the default allocator three runs miss it: what it keeps is no part of the estimate.
Beside tensors a process takes 30 to 110 MB more while it trains, which is most of the gap on MiniLM, the smallest run.
"""

if __name__ == "__main__":
    main()
