"""Rows to train and to score on: as prompts with answers, and as token ids."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator
from sinkd_llm.inputs.reading import Reading

OPINIONS = ["good", "great", "bad", "awful", "film", "food", "plot"]
# Token ids, without any tokenizer.
ID_ROWS = [
    {"example_id": "a", "prompt_ids": [5, 6, 7, 8, 9, 10], "answer_ids": [11]},
    {"example_id": "b", "prompt_ids": [12, 13], "answer_ids": [14, 15, 16]},
    {"example_id": "c", "prompt_ids": [17, 18, 19], "answer_ids": [20, 21]},
]
CHOICE_ROWS = [
    {"id": "a", "prompt": "Review: good film\nSentiment:", "choices": [" negative", " positive"], "label": 1},
    {"id": "b", "prompt": "the plot was not good but the food is great .", "choices": [" bad", " good"], "label": 0},
    {"id": "c", "prompt": "question:", "choices": [" no", " yes"], "label": 1},
]
LONG_ROWS = [{**row, "choices": [" not a great film", row["choices"][1]]} for row in CHOICE_ROWS]


def example(prompt: str = "Review: good film\nSentiment:", label: int = 1, **more: Any) -> dict:
    """One row of a task; `more` are other columns, or other values of these."""
    choices = more.pop("choices", [" negative", " positive"])
    return {
        "id": more.pop("id", "x-0"),
        "prompt": prompt,
        "choices": choices,
        "label": label,
        "completion": choices[label],
        **more,
    }


def opinions(count: int = 16, start: int = 0, positive: Sequence[str] = (" positive",)) -> Dataset:
    """Two-word opinions of varying length; the first word decides. `positive` are words for it, taken in turn."""
    out = []
    for i in range(start, start + count):
        quality, thing = OPINIONS[i % 4], OPINIONS[4 + i % 3]
        label, choices = int(i % 4 < 2), [" negative", positive[i % len(positive)]]
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


def several_tokens(count: int = 8) -> Dataset:
    """Answers of one to four tokens, so that micro-batches differ in how many they have."""
    answers = [" negative", " not a good film", " the food is bad", " positive"]
    return Dataset.from_list(
        [{"prompt": f"question: {'film ' * (i % 3)}answer:", "completion": answers[i % 4]} for i in range(count)]
    )


def regression_rows(count: int = 12) -> Dataset:
    """Rows whose answer is a number, as STS-B's."""
    out = [
        {**row, "choices": ["0", "5"], "completion": ["0", "5"][row["label"]], "target": float(i % 6)}
        for i, row in enumerate(opinions(count))
    ]
    return Dataset.from_list(out)


def sentences(count: int = 48) -> Dataset:
    """Rows whose answers have one to four words."""
    words = ["good", "bad", "great", "awful", "film", "food", "plot"]
    rows = [
        {
            "prompt": f"Review: {words[i % 4]} {words[4 + i % 3]}\nSentiment:",
            "completion": " " + " ".join(words[(i + k) % 7] for k in range(1 + i % 4)),
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def collate_ids(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return DecoderOnlyCollator(pad_token_id=0)(rows)


def batch_for(model: Any, tokenizer: Any, rows: list[dict], ranking: bool = False, **settings: Any) -> dict[str, Any]:
    dataset = Dataset.from_list([{**row, "completion": row["choices"][row["label"]]} for row in rows])
    features = tokenize_dataset(dataset, row_tokenizer(model, tokenizer, Reading(**settings)), ranking=ranking)
    return row_collator(model, tokenizer)(list(features))
