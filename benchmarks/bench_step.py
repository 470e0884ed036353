"""A whole training step, beside TRL's: fetch and collate rows, teacher, student, loss, backward, optimizer.

The teacher is SmolLM2-135M or Gemma-3-270M, the student ten of its layers with LoRA; SST-2's rows of
`$SINKD_DATA_DIR`, batches of 16, the same tokens for all. Ours minimises CE, KL and SinKD; TRL's trainers minimise
their KL (`beta=0`), on the given answers (GKD with `lmbda=0`; in place of what `DistillationTrainer` would generate it
gets the row's answer, whose tokens cost it nothing). Nobody checkpoints activations.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from charts import bars
from common import Results, forget_peak, fresh_peak, interleaved_medians, options, resident, timed, write

from sinkd_llm import SinKDConfig, SinKDTrainer, load_model, load_task, load_tokenizer, select_layers

PAIRS = {"SmolLM2-135M": "smollm2-135m", "Gemma-3-270M": "gemma3-270m"}
BATCHING = ("random", "grouped")
OURS, CACHED, DISTILLATION, GKD = "ours", "ours, teacher cache", "TRL Distillation", "TRL GKD"
CONTENDERS = (OURS, CACHED, DISTILLATION, GKD)
# Case and contender to what ours is to be faster than, by which factor.
TARGETS = {
    ("SmolLM2-135M", OURS): {GKD: 3, DISTILLATION: 2},
    ("SmolLM2-135M", CACHED): {GKD: 4},
    ("Gemma-3-270M", OURS): {GKD: 4},
}
BATCH, POOL, LAYERS = 16, 512, 10
BATCHES = 3  # of a measurement
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "learning_rate": 2e-4,
    "report_to": "none",
    "use_cpu": not torch.cuda.is_available(),
    "bf16": False,
    "gradient_checkpointing": False,
}


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")


def batches(lengths: list[int], batching: str, count: int) -> list[list[int]]:
    """Rows of some batches: as they come, or of equal length, spread evenly over all lengths."""
    order = list(range(len(lengths)))
    if batching == "grouped":
        order.sort(key=lambda i: lengths[i])
    cut = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)]
    return [cut[(2 * i + 1) * len(cut) // (2 * count)] for i in range(count)]


class Setting:
    """What the contenders of a case share: rows, tokenizer, teacher, and the rows of each batch."""

    def __init__(self, case: str, count: int) -> None:
        from sinkd_llm.inputs.dataset import tokenize_dataset
        from sinkd_llm.inputs.decoder_only import DecoderOnlyTokenizer
        from sinkd_llm.inputs.reading import Reading

        pair, batching = case.split(", ")
        self.name = PAIRS[pair]
        self.tokenizer = load_tokenizer(self.name)
        pool = load_task("sst2").load("train", os.environ["SINKD_DATA_DIR"], limit=POOL, seed=0)
        reader = DecoderOnlyTokenizer(self.tokenizer, Reading(1024))
        lengths = [len(row["prompt_ids"]) for row in tokenize_dataset(pool, reader)]
        chosen = batches(lengths, batching, count)
        self.rows = pool.select([i for batch in chosen for i in batch])
        self.features = list(tokenize_dataset(self.rows, reader))
        self.batches = [list(range(i * BATCH, (i + 1) * BATCH)) for i in range(count)]
        self.teacher: Any = None

    def tokens(self) -> tuple[int, int]:
        """Tokens of all batches, without and with padding."""
        lengths = [len(f["prompt_ids"]) + len(f["answer_ids"]) for f in self.features]
        padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in self.batches)
        return sum(lengths), padded

    def loaded_teacher(self) -> Any:
        if self.teacher is None:
            self.teacher = load_model(self.name)
        return self.teacher

    def build(self, contender: str, folder: Path) -> Callable[[list[int]], None]:
        """A training step of the contender, given the rows of a batch."""
        make = {OURS: self.ours, CACHED: self.ours, DISTILLATION: self.distillation, GKD: self.gkd}[contender]
        trainer, fetch = make(contender == CACHED, folder)
        trainer.current_gradient_accumulation_steps = 1
        optimizer = trainer.create_optimizer()
        count = torch.tensor(BATCH)

        def step(rows: list[int]) -> None:
            trainer.training_step(trainer.model, fetch(rows), count)
            optimizer.step()
            trainer.model.zero_grad()

        return step

    def ours(self, cached: bool, folder: Path) -> tuple[Any, Callable[[list[int]], Any]]:
        if cached and not (folder / "cache").exists():
            self.write_cache(folder / "cache")
        teacher = {"teacher_model_name_or_path": self.name, "teacher_cache": str(folder / "cache")} if cached else {}
        trainer = SinKDTrainer(
            teacher_model=None if cached else self.loaded_teacher(),
            args=SinKDConfig(str(folder / "ours"), student_layers=LAYERS, cache_tolerance=2.0, **COMMON, **teacher),
            train_dataset=self.rows,
            processing_class=self.tokenizer,
            peft_config=lora(),
        )
        return trainer, lambda rows: trainer.data_collator([trainer.train_dataset[i] for i in rows])

    def write_cache(self, folder: Path) -> None:
        from sinkd_llm.runs.arguments import CacheArguments
        from sinkd_llm.runs.cache import write_cache
        from sinkd_llm.runs.data import RunData

        args = SinKDConfig(str(folder), teacher_model_name_or_path=self.name, **COMMON)
        data = RunData("sst2", None, self.rows, None)
        write_cache(folder, self.loaded_teacher(), self.tokenizer, data, args, CacheArguments(content="topk"))

    def gkd(self, _: bool, folder: Path) -> tuple[Any, Callable[[list[int]], Any]]:
        from datasets import Dataset
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator

        collator = DecoderOnlyCollator(self.tokenizer.pad_token_id)
        trainer = GKDTrainer(
            model=select_layers(self.loaded_teacher(), LAYERS),
            teacher_model=self.loaded_teacher(),
            args=GKDConfig(str(folder / "gkd"), lmbda=0.0, beta=0.0, temperature=2.0, **COMMON),
            data_collator=collator,
            train_dataset=Dataset.from_list(self.features),
            processing_class=self.tokenizer,
            peft_config=lora(),
        )
        return trainer, lambda rows: collator([trainer.train_dataset[i] for i in rows])

    def distillation(self, _: bool, folder: Path) -> tuple[Any, Callable[[list[int]], Any]]:
        from datasets import Dataset
        from trl import DistillationConfig, DistillationTrainer

        answers = {tuple(f["prompt_ids"]): f["answer_ids"] for f in self.features}

        class OnGivenAnswers(DistillationTrainer):  # type: ignore[misc]
            def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
                return [answers[tuple(ids)] for ids in prompt_ids]

        trainer = OnGivenAnswers(
            model=select_layers(self.loaded_teacher(), LAYERS),
            teacher_model=self.loaded_teacher(),
            args=DistillationConfig(str(folder / "distillation"), beta=0.0, temperature=2.0, **COMMON),
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in self.rows]),
            processing_class=self.tokenizer,
            peft_config=lora(),
        )
        return trainer, lambda rows: [trainer.train_dataset[i] for i in rows]


def memory(case: str, contender: str) -> None:
    """Prints the bytes of the peak of a second step beyond what the process held before it loaded a model."""
    torch.set_num_threads(1)
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(case, 1)
        if contender == CACHED:
            setting.write_cache(Path(folder) / "cache")
            setting.teacher = None
        step = setting.build(contender, Path(folder))
        step(setting.batches[0])
        forget_peak()
        step(setting.batches[0])
    print(resident("VmHWM") - before)


def measure(case: str, results: Results, quick: bool) -> None:
    setting = Setting(case, 1 if quick else BATCHES)
    real, padded = setting.tokens()
    with tempfile.TemporaryDirectory() as folder:
        steps = {contender: setting.build(contender, Path(folder)) for contender in CONTENDERS}

        def run(contender: str) -> Callable[[], float]:
            return timed(lambda: [steps[contender](batch) for batch in setting.batches])

        found = interleaved_medians({c: run(c) for c in CONTENDERS}, 1 if quick else 5, budget=60)
    for contender, timing in found.items():
        results.add(case, contender, timing, examples=len(setting.rows), padding=padded / real)


def main() -> None:
    args = options(__doc__, memory)
    torch.set_num_threads(1)
    results = Results("step", ("examples", "padding"), quick=args.quick, again=args.again)
    cases = [f"{pair}, {batching}" for pair in PAIRS for batching in BATCHING]
    cases = [case for case in cases if args.wants(case)]
    for case in cases[:1] if args.quick else cases:
        if results.missing(case, CONTENDERS):
            measure(case, results, args.quick)
    for case in [] if args.quick else [case for case in cases if case.endswith(BATCHING[0])]:
        for contender in results.missing(case, CONTENDERS, "memory_mb"):
            results.add(case, contender, memory_mb=fresh_peak(__file__, case, contender))
    if results.rows and not args.quick:
        report(results)


def rates(results: Results, case: str) -> dict[str, float | None]:
    """Examples a second of each contender."""
    found = {c: (results.number(case, c, "examples"), results.number(case, c)) for c in CONTENDERS}
    return {c: count / seconds if count and seconds else None for c, (count, seconds) in found.items()}


def table(results: Results, targets: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for each case and contender that was measured; perhaps with what is to be reached."""
    rows = []
    for case in [f"{pair}, {batching}" for pair in PAIRS for batching in BATCHING]:
        pair, found = case.split(", ")[0], rates(results, case)
        for contender, rate in found.items():
            if rate is None:
                continue
            memory_mb = results.number(case, contender, "memory_mb")
            row = [case, contender, f"{rate:.1f}", f"{memory_mb:,.0f}" if memory_mb else ""]
            for other in (GKD, DISTILLATION):
                against, target = found[other], TARGETS.get((pair, contender), {}).get(other)
                ratio = f"{rate / against:.2f} ×" if against else ""
                row.append(f"{ratio} (target {target} ×)" if targets and target and ratio else ratio)
            rows.append(row)
    return ["teacher, batches", "trainer", "examples/s", "peak MB", "against GKD", "against Distillation"], rows


def _by_default(results: Results, pair: str) -> str | None:
    """Ours in its default batches over the others in theirs."""
    ours = rates(results, f"{pair}, grouped")[OURS]
    theirs = rates(results, f"{pair}, random")
    named = [f"{ours / rate:.1f} × {name}" for name in (DISTILLATION, GKD) if ours and (rate := theirs[name])]
    return f"{' and '.join(named)} ({pair})" if named else None


def report(results: Results) -> None:
    """Table and chart of the file."""
    header, rows = table(results)
    padding = ", ".join(
        f"{case} {value:.2f}"
        for case in dict.fromkeys(row["case"] for row in results.rows)
        if (value := results.number(case, OURS, "padding"))
    )
    defaults = "; ".join(filter(None, (_by_default(results, pair) for pair in PAIRS)))
    notes = NOTES.format(padding=padding, defaults=defaults)
    write(results.name, "A whole training step", header, rows, notes, results.machines())
    panels = {
        pair: {f"{batching} batches": rates(results, f"{pair}, {batching}") for batching in BATCHING} for pair in PAIRS
    }
    bars(results.name, panels, y="examples a CPU second, one thread", log=True)


NOTES = f"""
Batches of {BATCH} rows of SST-2, one answer token a row, {BATCHES} batches a measurement; medians of measurements in
turns. *Random* batches are rows as they come; *grouped* ones hold rows of equal length, from all lengths. Tokens
with padding over tokens without: {{padding}}. Peak memory is the resident memory of a second step in a fresh process
beyond what it held before it loaded a model, so that weights count, with `MALLOC_MMAP_THRESHOLD_=65536`.

Below the targets with SmolLM2-135M: where the batches are the same, all trainers run the same forwards of teacher and
student and the same backward pass, which are nearly all of a step with one answer token a row, so that no trainer can
be twice as fast as `DistillationTrainer` on them; `GKDTrainer` computes logits at every token. By default our batches
are the grouped ones, and TRL's the random ones; so compared ours is as fast as
{{defaults}}.
"""

if __name__ == "__main__":
    main()
