"""The runs that are made alike in one process and in several."""

import time
from pathlib import Path
from typing import Any

from tests.support.rows import opinions

# Answers of one to three tokens.
POSITIVE = (" positive", " very positive", " very positive")


def make_models(folder: Path, build: Any, tokenizer: Any, t5: Any, t5_tokenizer: Any) -> None:
    """Saves what the cases name: `teacher` of four layers, `student` of two, both of another width; a T5 pair."""
    models = {
        "teacher": (build(seed=2, layers=4, hidden=64), tokenizer),
        "student": (build(seed=1), tokenizer),
        "t5-teacher": (t5("t5", seed=2), t5_tokenizer),
        "t5-student": (t5("t5", seed=1), t5_tokenizer),
    }
    for name, (model, its_tokenizer) in models.items():
        if name.endswith("teacher"):  # a random one is as good as uniform, and would teach nothing
            model.lm_head.weight.data *= 20
        model.save_pretrained(folder / name)
        its_tokenizer.save_pretrained(folder / name)


def held(model: Any) -> int:
    """Numbers of a model's weights that lie in this process."""
    count = 0
    for parameter in model.parameters():
        if hasattr(parameter, "ds_tensor"):
            parameter = parameter.ds_tensor
        elif hasattr(parameter, "to_local"):
            parameter = parameter.to_local()
        count += parameter.numel()
    return count


def train_case(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """Trains a case, saves the student to `out/final`, and says how it went."""
    import torch
    from peft import LoraConfig
    from transformers import set_seed

    from sinkd_llm import SinKDConfig, SinKDTrainer, load_task
    from sinkd_llm.evaluation import evaluate_task
    from sinkd_llm.models import count_parameters
    from sinkd_llm.models.partitioning import on_device

    started = time.perf_counter()
    models, family = Path(case["models"]), case.get("family", "")
    set_seed(0)
    settings = {
        "output_dir": str(out),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "learning_rate": 0.1,
        "optim": "sgd",  # Adam would turn rounding into steps of full size where a gradient is nearly 0
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "alpha": 0.5,
        "sinkhorn_weight": 0.0,
        "teacher_model_name_or_path": str(models / f"{family}teacher"),
        "teacher_cache": str(models / "cache") if case.get("cached") else None,
        "dataloader_pin_memory": False,
        **case.get("settings", {}),
    }
    trainer = SinKDTrainer(
        model=None if "student_layers" in settings else str(models / f"{family}student"),
        args=SinKDConfig(**settings),
        train_dataset=opinions(40, positive=POSITIVE),
        eval_dataset=opinions(12, 100, POSITIVE),
        peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0) if case.get("lora") else None,
    )
    teacher = trainer.teacher.model if trainer.teacher is not None else None
    about_teacher = {}
    if teacher is not None:
        about_teacher = {
            "teacher_held": held(teacher),
            "teacher_parameters": count_parameters(teacher)[0],
            "teacher_is_quantised": any(p.dtype in (torch.uint8, torch.int8) for p in teacher.parameters()),
            "teacher_is_frozen": not any(p.requires_grad for p in teacher.parameters()),
        }
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=case.get("resume"))
    after = trainer.evaluate()
    # Seven rows, two a batch: the processes have different numbers of batches to score.
    task = load_task("quickstart")
    with on_device(trainer.model, trainer.args.device):
        scores = [
            evaluate_task(
                model,
                trainer.processing_class,
                task,
                task.load("validation", limit=7),
                batch_size=2,
                device=trainer.args.device,
                share=True,
            )
            for model in (trainer.model, teacher)
            if model is not None
        ]
    trainer.save_model(str(out / "final"))
    kept = ("eval_loss", "eval_acc", "eval_agreement")
    return {
        "losses": [record["loss"] for record in trainer.state.log_history if "loss" in record],
        "norms": [float(record["grad_norm"]) for record in trainer.state.log_history if "grad_norm" in record],
        "before": {name: before[name] for name in kept if name in before},
        "after": {name: after[name] for name in kept if name in after},
        "scores": [score.log_likelihoods for score in scores],
        **about_teacher,
        "student_is_held_in_part": held(trainer.model)
        < sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters()),
        "processes": trainer.accelerator.num_processes,
        "initialized": torch.distributed.is_initialized(),
        "seconds": time.perf_counter() - started,
    }
