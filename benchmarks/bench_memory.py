"""How close the estimate of `sinkd env --plan` comes to the memory that training takes.

Each run is a process of its own, on the CPU: the peak of its resident memory during three training steps, minus what
it held before any model was loaded. One row is repeated, so that every batch is the one that is planned.
"""

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write

TEACHER = {"teacher_model_name_or_path": "smollm2-135m", "student_layers": 10}
LORA = {"use_peft": True, "lora_r": 32}
CASES: dict[str, dict[str, Any]] = {
    "LoRA student, batch 32": {**TEACHER, **LORA, "per_device_train_batch_size": 32},
    "the same, gradient checkpointing": {
        **TEACHER,
        **LORA,
        "per_device_train_batch_size": 32,
        "gradient_checkpointing": True,
    },
    "the same, batch 64": {**TEACHER, **LORA, "per_device_train_batch_size": 64},
    "the same, teacher in bf16": {
        **TEACHER,
        **LORA,
        "per_device_train_batch_size": 32,
        "teacher_model_init_kwargs": {"dtype": "bfloat16"},
    },
    "whole student, batch 8": {**TEACHER, "per_device_train_batch_size": 8},
    "whole student, batch 8, accumulation 2": {
        **TEACHER,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
    },
    "fine-tuning all of SmolLM2, batch 4": {"model_name_or_path": "smollm2-135m", "per_device_train_batch_size": 4},
    "fine-tuning MiniLM, batch 64": {
        "model_name_or_path": "minilm-l6",
        "model_kind": "masked-lm",
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
    settings = {"dataset_name": str(rows), "output_dir": str(folder / "run"), "max_steps": 3, "save_strategy": "no"}
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({**settings, "report_to": "none", "use_cpu": True, **CASES[case]}))
    return parse_training("distill" if "teacher" in str(CASES[case]) else "finetune", ["--config", str(recipe)])


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def measure(case: str, folder: Path) -> int:
    """Train three steps: the peak of resident memory beyond the start's, in bytes."""
    from sinkd_llm.models import load_tokenizer
    from sinkd_llm.runs.data import load_run_data
    from sinkd_llm.runs.training import adapter_config, apply_model_arguments
    from sinkd_llm.trainer import SinKDTrainer

    task_args, training_args, model_args = arguments(case, folder)
    train = load_run_data(task_args, training_args.seed).train
    apply_model_arguments(training_args, model_args)
    load_tokenizer(model_args.model_name_or_path or training_args.teacher_model_name_or_path)
    before = resident("VmRSS")
    trainer = SinKDTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=train,
        peft_config=adapter_config(model_args),
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading is not training
    trainer.train()
    return resident("VmHWM") - before


def estimate(case: str, folder: Path) -> tuple[int, str]:
    """The planned bytes of one device, and the micro-batch in words."""
    from sinkd_llm.runs.plan import plan_run

    plan = plan_run(*arguments(case, folder))
    return plan.device("none", 1, checkpointing=plan.checkpointing).total, plan.batch.split(", ", 1)[1]


def in_process(function: Any, case: str) -> Any:
    """The result of `function` in a fork of this process: importing everything once is enough."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, (case, Path(folder)))


def main() -> None:
    import trl  # noqa: F401 - imported before the forks

    import sinkd_llm.runs.plan
    import sinkd_llm.trainer  # noqa: F401

    rows = []
    for case in CASES:
        (planned, batch), measured = in_process(estimate, case), in_process(measure, case)
        rows.append([case, batch, f"{planned / 1e6:,.0f}", f"{measured / 1e6:,.0f}", f"{planned / measured:.2f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    write(
        "memory",
        "Planned and measured memory of training, MB",
        ["run", "micro-batch", "planned", "measured", "planned / measured"],
        rows,
        NOTES,
    )


NOTES = """
Measured: peak resident memory of three steps on the CPU in fp32, minus what the process held before it loaded a model.
"""

if __name__ == "__main__":
    main()
