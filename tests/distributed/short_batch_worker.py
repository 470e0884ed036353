"""One of the ranks that tests/distributed/test_short_batches.py starts: trains and scores on few rows."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset

from tests.support.trainers import short_config

WORDS = ["good", "bad", "great", "awful", "film", "food", "plot"]
# What a rank gets when two share a batch of 16: how many rows a micro-batch, and how many micro-batches an update.
WINDOWS = {"batch": (8, 1), "accumulation": (4, 2), "window": (4, 2)}
ROWS = (45, 49, 3, 1)
# name -> (family, rows, window, settings)
RUNS: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    **{f"{count}-{window}": ("causal", count, window, {}) for count in ROWS for window in WINDOWS},
    "49-classifier": ("classifier", 49, "batch", {}),
    "49-regression": ("regression", 49, "batch", {"sinkhorn_weight": 0.1, "learning_rate": 0.01}),
    "49-t5": ("t5", 49, "batch", {}),
    "49-position": ("causal", 49, "batch", {"transport_scope": "position"}),
    "49-each-device": ("causal", 49, "batch", {"sinkhorn_weight": 0.0, "transport_across_devices": False}),
    "49-dropped": ("causal", 49, "batch", {"dataloader_drop_last": True}),
    "49-cached": ("causal", 49, "accumulation", {}),
    "49-packed": ("causal", 49, "accumulation", {"packing": True}),
    "49-transported": ("causal", 49, "window", {"transported_weight": 0.5, "transported_epsilon": 0.2}),
    "49-states": ("causal", 49, "batch", {"hidden_weight": 2.0, "queue_weight": 0.5, "queue_size": 20}),
    "49-classifier-states": ("classifier", 49, "batch", {"hidden_weight": 2.0, "queue_weight": 0.5}),
    # Batches of eight hold whole groups of three rows, and a row without a group.
    "49-groups": (
        "causal",
        49,
        "batch",
        {"transported_weight": 0.5, "transport_scope": "group", "group_column": "of"},
    ),
    # The same groups as a teacher knows them: with its pairs, as a set of two answers, or as counts; one not at all.
    "49-sets": (
        "sets",
        49,
        "batch",
        {
            **{"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 0.0, "transported_weight": 2.0},
            **{"transport_scope": "group", "transported_anchor": 0.3},
        },
    ),
    # A decoder teaches a classifier over the answer choices; every fifth row has no label.
    "49-choices": ("choices", 49, "accumulation", {"signal": "choices"}),
    "3-choices": ("choices", 3, "window", {"signal": "choices"}),
}


def rows_of(family: str, count: int, start: int = 0) -> Dataset:
    """Rows whose prompts and answers differ in length, with choices."""
    out, target = [], family == "regression"
    for i in range(start, start + count):
        choices = ["0", "0.5", "1"] if target else [" bad", " very good film"[: 5 + 5 * (i % 3)]]
        gold = i % len(choices)
        row = {
            "id": f"opinion-{i}",
            "prompt": f"Review: {WORDS[i % 4]} {WORDS[4 + i % 3]}{' is a film' * (i % 3)}\nSentiment:",
            "choices": choices,
            "label": gold,
            "completion": choices[gold],
        }
        out.append({**row, "target": float(choices[gold])} if target else row)
    return Dataset.from_list(out)


def with_two_choices(row: dict[str, Any]) -> dict[str, Any]:
    choices = [" bad", " good"]
    return {"choices": choices, "completion": choices[row["label"]]}


def without_some_labels(row: dict[str, Any], i: int) -> dict[str, Any]:
    return {"label": -1 if i % 5 == 2 else row["label"]}


def cache_sets(folder: Path) -> None:
    """What a teacher knows of the groups of three of 49 rows."""
    from sinkd_llm.runs.asking import prints_of
    from sinkd_llm.teachers.cache.answers import write_answers
    from sinkd_llm.teachers.questions import AnswerSet, questions_of

    rows = rows_of("causal", 49).map(with_two_choices).map(without_some_labels, with_indices=True)
    asked, sets = questions_of(rows), []
    for group in range(15):
        scores = np.random.default_rng(group).normal(size=(3, 2)).astype(np.float32) * 3
        names = tuple(asked[i].name for i in (group, group + 16, group + 32))
        if group % 3 == 0:
            sets.append(AnswerSet(names, scores, np.ones(3), True))
        else:
            sets.append(AnswerSet(names, scores[:2], np.ones(2) if group % 3 == 1 else np.array([3.0, 1.0])))
    write_answers(folder, prints_of(rows, asked), asked, sets, task="opinions", teacher="groups")


def run(folder: Path, name: str, world_size: int) -> dict[str, Any]:
    """Weights and records of two epochs, and scores before and after, by `world_size` processes."""
    import transformers

    from sinkd_llm import SinKDTrainer

    family, count, window, settings = RUNS[name]
    per_device, accumulation = WINDOWS[window]
    cache = {"49-cached": "cache", "49-sets": "sets"}.get(name)
    share, in_groups = 2 // world_size, settings.get("transport_scope") == "group"
    if in_groups:  # a group lies in one micro-batch, so that one process has more of these, and not larger ones
        accumulation *= share
    else:
        per_device *= share
    args = short_config(
        folder,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        transport_accumulation=window == "window",
        per_device_eval_batch_size=3,
        max_steps=-1,
        num_train_epochs=2,
        max_grad_norm=0.0,
        optim="sgd",
        lr_scheduler_type="constant",
        seed=3,
        teacher_cache=str(folder / cache) if cache else None,
        **{"sinkhorn_temperature": 0.3, "learning_rate": 0.3, **settings},
    )
    rows = rows_of(family, count)
    if "group_column" in settings:
        rows = rows.add_column("of", [str(i % 16) if i < 48 else None for i in range(count)])
    eval_rows = rows_of(family, 7, 100) if family == "causal" else rows.select(range(min(7, count)))
    teaching, more = family, {}
    if family in ("choices", "sets"):
        family, teaching = "classifier", "causal"
        rows = rows.map(without_some_labels, with_indices=True)
    if name.endswith("choices"):
        tokenizers = transformers.PreTrainedTokenizerFast
        more = {"teacher_processing_class": tokenizers.from_pretrained(folder / teaching / "tokenizer")}
    if family == "classifier":
        rows, eval_rows = rows.map(with_two_choices), eval_rows.map(with_two_choices)
    heads = {"causal": "CausalLM", "t5": "Seq2SeqLM"}
    cls, teacher_cls = (
        getattr(transformers, f"AutoModelFor{heads.get(name, 'SequenceClassification')}")
        for name in (family, teaching)
    )
    trainer = SinKDTrainer(
        # In fp64: rows of one length are often the same row, whose plan multiplies the rounding of fp32 by thousands.
        model=cls.from_pretrained(folder / family / "student", dtype=torch.float64),
        teacher_model=None
        if cache
        else teacher_cls.from_pretrained(folder / teaching / "teacher", dtype=torch.float64),
        args=args,
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=transformers.PreTrainedTokenizerFast.from_pretrained(folder / family / "tokenizer"),
        **more,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    predicted = trainer.predict(trainer.eval_dataset)
    records = [record for record in trainer.state.log_history if "loss" in record]
    weights = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    kept = ("eval_loss", "eval_acc", "eval_agreement")
    return {
        "weights": weights,
        "records": records,
        "before": {key: before[key] for key in kept if key in before},
        "after": {key: after[key] for key in kept if key in after},
        "predicted": len(predicted.label_ids),
    }


def broken(folder: Path, rank: int) -> str:
    """What a rank says when the logits of rank 1 become NaN in the second update."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from sinkd_llm import SinKDTrainer

    args = short_config(
        folder,
        output_dir=str(folder / "broken"),
        per_device_train_batch_size=2,
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
    )
    trainer = SinKDTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "causal" / "student"),
        args=args,
        train_dataset=rows_of("causal", 12),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "causal" / "tokenizer"),
    )

    def spoil(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        return (
            logits * float("nan")
            if rank == 1 and trainer.state.global_step == 1 and trainer.model.training
            else logits
        )

    trainer.model.get_output_embeddings().register_forward_hook(spoil)
    try:
        trainer.train()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def main(where: str) -> int:
    folder = Path(where)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    results = {name: run(folder, name, 2) for name in RUNS}
    torch.save(results, folder / f"short-{rank}.pt")
    (folder / f"broken-{rank}.txt").write_text(broken(folder, rank), encoding="utf-8")
    dist.destroy_process_group()
    return 0
