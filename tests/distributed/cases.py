"""The runs that are made alike in one process and in several."""

import shutil
import time
from pathlib import Path
from typing import Any

WORDS = ["good", "great", "bad", "awful", "film", "food", "plot"]


def rows(count: int, start: int = 0) -> Any:
    """Opinions of varying length; the first word decides. Answers have one to three tokens."""
    from datasets import Dataset

    out = []
    for i in range(start, start + count):
        quality, thing = WORDS[i % 4], WORDS[4 + i % 3]
        label = int(i % 4 < 2)
        choices = [" negative", " very positive" if i % 3 else " positive"]
        out.append(
            {
                "id": f"opinion-{i}",
                "prompt": f"Review: {quality} {thing}{' is a film' * (i % 3)}\nSentiment:",
                "choices": choices,
                "label": label,
                "completion": choices[label],
            }
        )
    return Dataset.from_list(out)


def make_models(folder: Path, build: Any, tokenizer: Any) -> None:
    """Saves what the cases name: `teacher` of four layers, `student` of two, both of another width."""
    for name, options in (("teacher", {"seed": 2, "layers": 4, "hidden": 48}), ("student", {"seed": 1})):
        model = build(**options)
        if name == "teacher":  # a random one is as good as uniform, and would teach nothing
            model.lm_head.weight.data *= 20
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def train_case(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """Trains one case and says what the run was: losses, scores, final weights' checks."""
    import torch
    from peft import LoraConfig
    from transformers import set_seed

    from sinkd_llm import SinKDConfig, SinKDTrainer
    from sinkd_llm.models import count_parameters

    started = time.perf_counter()
    models = Path(case["models"])
    set_seed(0)
    settings = {
        "output_dir": str(out),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "alpha": 0.5,
        "sinkhorn_weight": 0.0,
        "teacher_model_name_or_path": str(models / "teacher"),
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **case.get("settings", {}),
    }
    student = None if "student_layers" in settings else str(models / "student")
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0) if case.get("lora") else None
    trainer = SinKDTrainer(
        model=student,
        args=SinKDConfig(**settings),
        train_dataset=rows(40),
        eval_dataset=rows(12, 100),
        peft_config=adapter,
    )
    before = trainer.evaluate()
    teacher = trainer.teacher.model
    held = sum(p.numel() for p in teacher.parameters())
    trainer.train(resume_from_checkpoint=case.get("resume"))
    after = trainer.evaluate()
    trainer.save_model(str(out / "final"))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return {
        "losses": [r["loss"] for r in trainer.state.log_history if "loss" in r],
        "norms": [float(r["grad_norm"]) for r in trainer.state.log_history if "grad_norm" in r],
        "before": {k: before[k] for k in ("eval_loss", "eval_acc", "eval_teacher_agreement")},
        "after": {k: after[k] for k in ("eval_loss", "eval_acc", "eval_teacher_agreement")},
        "teacher_held": held,
        "teacher_parameters": count_parameters(teacher)[0],
        "teacher_type": type(teacher).__name__,
        "world": trainer.accelerator.num_processes,
        "distributed": str(trainer.accelerator.distributed_type),
        "seconds": time.perf_counter() - started,
    }
