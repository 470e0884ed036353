"""How many rows a second are ranked, and what the data side costs in a training step.

SmolLM2-135M on the rows of `$SINKD_DATA_DIR`, in fp32, on one thread of a CPU. SST-2 has two choices of one token,
COPA two of several tokens after short prompts, ReCoRD some ten names of several tokens after long ones.
"""

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from common import interleaved_medians, write
from peft import LoraConfig

from sinkd_llm import SinKDConfig, SinKDTrainer, load_model, load_task, load_tokenizer
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, DecoderOnlyTokenizer
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.kinds.choices import score_choices

BATCH = 32
REPEATS = 2
ROWS = {"sst2": 8, "copa": 8, "record": 2}
MAX_LENGTH = 256  # of ReCoRD's passages the end
# Processor time of the one thread: other jobs on the machine slow the wall clock, hardly this.
clock = time.process_time


class OneForwardPerChoice:
    """The naive way: every choice is a sequence of its own, and log-probabilities are read off one by one."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad = tokenizer.pad_token_id

    def score(self, model: Any, features: list[dict[str, Any]]) -> list[list[float]]:
        scores = []
        for row in range(max(len(feature["answers_ids"]) for feature in features)):
            present = [f for f in features if row < len(f["answers_ids"])]
            whole = [f["prompt_ids"] + f["answers_ids"][row] for f in present]
            length = max(map(len, whole))
            ids = torch.tensor([[self.pad] * (length - len(w)) + w for w in whole])
            mask = torch.tensor([[0] * (length - len(w)) + [1] * len(w) for w in whole])
            log_probs = model(ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
            values = []
            for b, feature in enumerate(present):
                answer = feature["answers_ids"][row]
                places = range(length - len(answer) - 1, length - 1)
                values.append(sum(float(log_probs[b, p, token]) for p, token in zip(places, answer, strict=True)))
            scores.append(values)
        return scores


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_model("smollm2-135m").eval(), load_tokenizer("smollm2-135m")
    kind, collator, naive = kind_of(model), DecoderOnlyCollator(0), OneForwardPerChoice(tokenizer)
    rows: list[list[str]] = []
    share, step, side = data_side()
    for name, count in ROWS.items():
        data = load_task(name).load("validation", os.environ["SINKD_DATA_DIR"], limit=count)
        features = list(tokenize_dataset(data, DecoderOnlyTokenizer(tokenizer, Reading(MAX_LENGTH)), ranking=True))

        def timed(function: Callable[[], Any]) -> Callable[[], float]:
            def run() -> float:
                started = clock()
                with torch.no_grad():
                    function()
                return clock() - started

            return run

        def ranked(share: bool, features: list = features) -> Callable[[], Any]:
            return lambda: score_choices(kind, model, collator(features), share_prompts=share)

        cases = {}
        if name != "record":  # there it takes minutes
            cases["one forward per choice"] = timed(lambda features=features: naive.score(model, features))
        cases["one sequence per beginning of an answer"] = timed(ranked(False))
        if len(collator(features)["labels"]) > count:
            cases["prompt run once, answers from its cache"] = timed(ranked(True))
        results = interleaved_medians(cases, REPEATS)
        base = next(iter(results.values()))[0]
        tokens = sorted(len(f["prompt_ids"]) for f in features)[count // 2]
        choices = sum(len(f["answers_ids"]) for f in features) / count
        for case, (seconds, spread) in results.items():
            rate, error = count / seconds, 100 * spread / seconds
            shape = f"{choices:.1f} choices, {tokens} prompt tokens"
            rows.append([name, shape, case, f"{rate:.2f}", f"±{error:.0f} %", f"{base / seconds:.2f}×"])
        write_all(rows, share, step, side)  # after each task, for the last takes longest


def write_all(rows: list[list[str]], share: float, step: float, side: float) -> None:
    write(
        "evaluation",
        "Rows ranked a second, and the data side of a training step",
        ["task", "a row", "how", "rows/s", "deviation", "against the first"],
        rows,
        f"{REPEATS} interleaved repeats, medians of processor time; rows, in one batch a task: "
        f"{', '.join(f'{k} {v}' for k, v in ROWS.items())}. "
        f"Prompts are cut to {MAX_LENGTH} tokens. Single-token choices share one forward in any case.\n\n"
        f"Data side: fetching {BATCH} tokenised rows of SST-2 and collating them takes {1000 * side:.1f} ms, "
        f"{100 * share:.2f} % of a cross-entropy training step of SmolLM2-135M with LoRA on them ({step:.2f} s). The "
        "target is at most 5 %.",
    )


def data_side() -> tuple[float, float, float]:
    """Share of the data side in a training step, seconds of the step, seconds of the data side."""
    train = load_task("sst2").load("train", os.environ["SINKD_DATA_DIR"], limit=512)
    trainer = SinKDTrainer(
        model=load_model("smollm2-135m"),
        args=SinKDConfig(tempfile.mkdtemp(), per_device_train_batch_size=BATCH, bf16=False),
        train_dataset=train,
        processing_class=load_tokenizer("smollm2-135m"),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    batches = iter(range(10**6))

    def side() -> float:
        start = next(batches) * BATCH % 480
        started = clock()
        trainer.data_collator(trainer.train_dataset.__getitems__(list(range(start, start + BATCH))))
        return clock() - started

    def step() -> float:
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(BATCH)])
        trainer.model.zero_grad()
        started = clock()
        trainer.training_step(trainer.model, batch, torch.tensor(BATCH))
        return clock() - started

    results = interleaved_medians({"step": step, "side": side}, REPEATS)
    return results["side"][0] / results["step"][0], results["step"][0], results["side"][0]


if __name__ == "__main__":
    main()
