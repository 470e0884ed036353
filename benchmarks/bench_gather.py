"""What it costs that a transport problem spans two ranks.

Two processes over gloo, one thread each. SmolLM2-135M teaches a LoRA student of 10 of its layers; batch 8 a rank,
one-word answers, prompts of the quickstart task. A step is the forward of both, the loss, the backward and the
averaging of gradients (DDP).
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from common import interleaved_medians, write
from peft import LoraConfig
from torch import Tensor

from sinkd_llm import SinKDConfig, SinKDTrainer, load_model, load_task, load_tokenizer
from sinkd_llm.distributed import Ranks

BATCH = 8
REPEATS = int(os.environ.get("REPEATS", "25"))
# Name -> whether ranks share a problem, and what the objective and the teacher are like.
CASES: dict[str, dict[str, Any]] = {
    "each rank its own": {"spans": False},
    "both ranks, hidden states travel": {},
    "both ranks, logits travel": {"hidden": False},
    "both ranks, verbalizers": {"vocabulary": "verbalizers"},
}


def main() -> None:
    torch.set_num_threads(1)
    train = load_task("quickstart").load("train")
    trainer = SinKDTrainer(
        teacher_model=load_model("smollm2-135m"),
        args=SinKDConfig(
            "unused",
            student_layers=10,
            per_device_train_batch_size=BATCH,
            vocabulary="verbalizers",
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=train,
        processing_class=load_tokenizer("smollm2-135m"),
        peft_config=LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    ranks, model = trainer.forward.ranks, trainer.accelerator.prepare(trainer.model)
    assert ranks is not None
    start = ranks.index * BATCH
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(start, start + BATCH)])
    count, objective, supervised_rows = (
        torch.tensor(2 * BATCH),
        trainer.forward.objective,
        trainer.teacher.supervised_rows,
    )
    sent, gather = [0], Ranks.gather

    def counted(self: Ranks, rows_N: Tensor, counts: Any) -> Tensor:
        sent[0] += rows_N.nbytes
        return gather(self, rows_N, counts)

    Ranks.gather = counted  # type: ignore[method-assign]
    bytes_of: dict[str, int] = {}
    cpu_of: dict[str, list[float]] = {name: [] for name in CASES}

    def step(name: str, spans: bool = True, hidden: bool = True, vocabulary: str = "full") -> Callable[[], float]:
        def run() -> float:
            trainer.forward.objective = replace(objective, vocabulary=vocabulary)
            trainer.forward.ranks = ranks if spans else None
            trainer.teacher.supervised_rows = lambda batch, with_hidden: supervised_rows(batch, with_hidden and hidden)
            model.zero_grad()
            sent[0] = 0
            dist.barrier()
            started = torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)
            trainer.training_step(model, batch, count)
            seconds = torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64) - started
            dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
            bytes_of[name] = sent[0]
            cpu_of[name].append(float(seconds[1]))
            return float(seconds[0])

        return run

    results = interleaved_medians({name: step(name, **settings) for name, settings in CASES.items()}, REPEATS)
    if ranks.index:
        return
    cpu = {name: statistics.median(seconds[1:]) for name, seconds in cpu_of.items()}  # the first is the warm-up

    def more(seconds: dict[str, float], name: str) -> str:
        return f"{100 * (seconds[name] / seconds['each rank its own'] - 1):+.1f} %"

    wall = {name: seconds for name, (seconds, *_) in results.items()}
    rows = [
        [
            name,
            f"{wall[name]:.3f}",
            f"±{results[name].deviation:.3f}",
            more(wall, name),
            f"{cpu[name]:.3f}",
            more(cpu, name),
            f"{bytes_of[name]:,}",
        ]
        for name in CASES
    ]
    V = trainer.accelerator.unwrap_model(model).config.vocab_size
    write(
        "gather",
        "Seconds of a training step, by what one transport problem spans",
        ["problem", "median s", "deviation", "against its own", "CPU s", "against its own", "bytes sent for rows"],
        rows,
        f"Two ranks over gloo on one machine, batch {BATCH} a rank, {batch['labels'].ne(-100).sum().item()} "
        f"supervised tokens a rank, vocabulary {V}, {REPEATS} interleaved repeats, medians of the slower rank. The "
        "target is at most +5 %. CPU seconds are those of the process: they do not count what a rank waits for the "
        "other, and hardly change where other programs run beside it. Bytes are those of the teacher's rows and the "
        "costs that a rank sends a step; gradients (DDP) come on top, alike in all cases.",
    )


if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        main()
        dist.barrier()
        dist.destroy_process_group()
    else:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        subprocess.run([sys.executable, *launch, __file__], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
