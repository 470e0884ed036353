"""What a teacher cache costs: to write, beside the bare teacher; to train from, beside plain cross-entropy.

SmolLM2-135M is the teacher, ten of its layers with LoRA the student; batches of 32 rows of SST-2, whose files lie in
`$SINKD_DATA_DIR`.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import Timing, interleaved_medians, write
from peft import LoraConfig

from sinkd_llm import DistillationObjective, SinKDConfig, SinKDTrainer, load_model, load_task, load_tokenizer
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.pair import rows_for
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.runs.arguments import CacheArguments
from sinkd_llm.runs.cache import write_cache
from sinkd_llm.runs.data import RunData
from sinkd_llm.teachers import LocalTeacher
from sinkd_llm.teachers.cache.layout import CacheLayout
from sinkd_llm.teachers.cache.manifest import Manifest
from sinkd_llm.teachers.cache.writer import CacheWriter, RowOrder

NAME = "smollm2-135m"
BATCH = 32
REPEATS = 7
CE = {"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 0.0}


def main() -> None:
    torch.manual_seed(0)
    train = load_task("sst2").load("train", os.environ["SINKD_DATA_DIR"], limit=BATCH, seed=0)
    teacher, tokenizer = load_model(NAME), load_tokenizer(NAME)
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for content in ("topk", "full"):
            args = settings(teacher_model_name_or_path=NAME)
            data = RunData("sst2", None, train, None)
            write_cache(Path(folder) / content, teacher, tokenizer, data, args, CacheArguments(content=content))
        cached = {c: trainer(train, tokenizer, str(Path(folder) / c)) for c in ("topk", "full")}
        cases = {
            "plain CE": step(cached["topk"], CE),
            "CE + KL + SinKD, top 32 of a cache": step(cached["topk"], {}),
            "CE + KL + SinKD, full rows of a cache": step(cached["full"], {}),
            "CE + KL + SinKD, the teacher itself": step(trainer(train, tokenizer, None, teacher), {}),
        }
        results = interleaved_medians(cases, REPEATS)
        rows = table(results, "plain CE", "at most 1.10")
        forward, caching, tokens = writing(teacher, train, tokenizer, Path(folder) / "written")
        results = interleaved_medians(
            {"the bare teacher": forward, "the teacher, and top 32 written to a cache": caching}, REPEATS
        )
        rows += table(results, "the bare teacher", "at most 1.15")
    write(
        "cache",
        "Seconds of a batch with a teacher cache",
        ["batch of 32", "median s", "deviation", "ratio", "target"],
        rows,
        f"{tokens} tokens of prompt and answer without padding, one supervised token a row, vocabulary "
        f"{teacher.config.vocab_size}; {REPEATS} interleaved repeats, medians. A batch is written as a shard of its "
        "own with its manifest, synchronised to the disk, which a real shard does once in 8,192 examples.",
    )


def settings(**changes: object) -> SinKDConfig:
    return SinKDConfig("unused", per_device_train_batch_size=BATCH, report_to="none", **changes)  # type: ignore[arg-type]


def trainer(train: object, tokenizer: object, cache: str | None, teacher: object = None) -> SinKDTrainer:
    name = NAME if teacher is None else None
    return SinKDTrainer(
        teacher_model=teacher,  # type: ignore[arg-type]
        args=settings(student_layers=10, teacher_model_name_or_path=name, teacher_cache=cache, cache_tolerance=2.0),
        train_dataset=train,  # type: ignore[arg-type]
        processing_class=tokenizer,  # type: ignore[arg-type]
        peft_config=LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def step(trainer: SinKDTrainer, objective: dict) -> Callable[[], float]:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(BATCH)])
    count = torch.tensor(BATCH)

    def run() -> float:
        trainer.forward.objective = DistillationObjective(**objective)
        trainer.model.zero_grad()
        started = time.perf_counter()
        trainer.training_step(trainer.model, batch, count)
        return time.perf_counter() - started

    return run


def writing(
    model: object, train: object, tokenizer: object, folder: Path
) -> tuple[Callable[[], float], Callable[[], float], int]:
    """The bare teacher on a batch, the same and its rows written, and the tokens of the batch."""
    answers, collator = rows_for(model, None, tokenizer, Reading(1024))  # type: ignore[arg-type]
    features = tokenize_dataset(train, answers)  # type: ignore[arg-type]
    ordered, teacher = RowOrder(features), LocalTeacher(model)  # type: ignore[arg-type]
    batch = collator([features[i] for i in ordered.order.tolist()])
    layout = CacheLayout("topk", model.config.vocab_size, 32, (1.0, 2.0), "fixed16")  # type: ignore[attr-defined]

    def forward() -> float:
        started = time.perf_counter()
        teacher.supervised_rows(batch)
        return time.perf_counter() - started

    def caching() -> float:
        manifest = Manifest(None, None, layout, tail_at=[2**i for i in range(16)])  # type: ignore[arg-type]
        writer = CacheWriter(folder, manifest, ordered, shard_bytes=1)
        folder.mkdir(exist_ok=True)
        started = time.perf_counter()
        supervised = teacher.supervised_rows(batch)
        writer.add(ordered.order.tolist(), supervised.logits_NV, supervised.example_N)
        return time.perf_counter() - started

    return forward, caching, int(batch["attention_mask"].sum())


def table(results: dict[str, Timing], base: str, target: str) -> list[list[str]]:
    reference = results[base][0]
    return [
        [name, f"{seconds:.3f}", f"±{spread:.3f}", f"{seconds / reference:.3f}", target if "cache" in name else ""]
        for name, (seconds, spread, _) in results.items()
    ]


if __name__ == "__main__":
    main()
