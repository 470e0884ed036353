"""What the SinKD term adds to a training step.

SmolLM2-135M teaches a LoRA student of 10 of its layers; batch 32, one-word answers, prompts of the quickstart
task. The teacher's forward is part of the step, as it is in training, wherever the objective uses it.
"""

import time
from collections.abc import Callable

import torch
from common import interleaved_medians, write
from peft import LoraConfig

from sinkd_llm import DistillationObjective, SinKDConfig, SinKDTrainer, load_model, load_task, load_tokenizer

BATCH = 32
REPEATS = 9
CASES = {
    "CE": {"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 0.0},
    "KL": {"sinkhorn_weight": 0.0},
    "KL + SinKD, unrolled": {},
    "KL + SinKD, implicit": {"sinkhorn_gradient": "implicit"},
    "KL + SinKD, envelope": {"sinkhorn_gradient": "envelope"},
    "KL + SinKD, verbalizers": {"vocabulary": "verbalizers"},
}


def main() -> None:
    torch.manual_seed(0)
    train = load_task("quickstart").load("train")
    trainer = SinKDTrainer(
        teacher_model=load_model("smollm2-135m"),
        args=SinKDConfig("unused", student_layers=10, per_device_train_batch_size=BATCH, vocabulary="verbalizers"),
        train_dataset=train,
        processing_class=load_tokenizer("smollm2-135m"),
        peft_config=LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(BATCH)])
    count = torch.tensor(BATCH)

    def step(settings: dict) -> Callable[[], float]:
        objective = DistillationObjective(**settings)

        def run() -> float:
            trainer.forward.objective = objective
            trainer.model.zero_grad()
            started = time.perf_counter()
            trainer.training_step(trainer.model, batch, count)
            return time.perf_counter() - started

        return run

    results = interleaved_medians({name: step(settings) for name, settings in CASES.items()}, REPEATS)
    base = results["KL"][0]
    rows = [
        [name, f"{seconds:.3f}", f"±{spread:.3f}", f"{100 * (seconds / base - 1):+.1f} %"]
        for name, (seconds, spread) in results.items()
    ]
    tokens = batch["attention_mask"].sum().item()
    write(
        "step",
        "Seconds of a training step, by objective",
        ["objective", "median s", "deviation", "against KL"],
        rows,
        f"Batch {BATCH}, {tokens} tokens without padding ({batch['input_ids'].shape[1]} at most), vocabulary "
        f"{trainer.model.config.vocab_size}, {REPEATS} interleaved repeats, medians. The target is at most +5 % for "
        "KL + SinKD. CE alone spares the teacher's forward.",
    )


if __name__ == "__main__":
    main()
