"""
A teacher that has seen no label: how alike a text and each answer's name are to a sentence encoder.

    python experiments/name_similarity.py --task clinc150 --data_dir data --output runs/names-clinc150

writes `OUTPUT/teacher.jsonl`, a teacher file with the softmax of `SCALE` times the cosines of a text with the names of
all answers, and prints how often the most alike name is right. The encoder is all-MiniLM-L6-v2 with the mean of its
last states over the tokens, as it was trained; 20 is the scale that it was trained with.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from sinkd_llm.models.bundled import bundled_file
from sinkd_llm.tasks import load_task

SCALE = 20.0
ROWS_AT_ONCE = 128


@torch.no_grad()
def embedded(folder: Path, texts: list[str], max_length: int) -> np.ndarray:
    """The texts' embeddings, of length 1, `[texts, width]`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    def of(part: list[str]) -> np.ndarray:
        batch = tokenizer(part, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        states_BLD = model(**batch).last_hidden_state.double()
        mask_BL1 = batch["attention_mask"].unsqueeze(-1)
        mean_BD = (states_BLD * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)
        return np.asarray(torch.nn.functional.normalize(mean_BD, dim=-1))

    return np.concatenate([of(texts[start : start + ROWS_AT_ONCE]) for start in range(0, len(texts), ROWS_AT_ONCE)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="of one set of answers for all rows")
    parser.add_argument("--data_dir")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--max_length", type=int, default=128)
    arguments = parser.parse_args()
    task = load_task(arguments.task)
    if not task.choices:
        parser.error(f"{arguments.task} has no answers that are the same for all rows, so no names to compare with")
    folder = bundled_file("minilm-l6")
    names = embedded(folder, [choice.strip() for choice in task.choices], arguments.max_length)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "teacher.jsonl").open("w", encoding="utf-8") as file:
        for split in ("train", "validation"):
            rows = task.load(split, arguments.data_dir)
            logits = torch.from_numpy(SCALE * embedded(folder, list(rows["text"]), arguments.max_length) @ names.T)
            answers = logits.softmax(dim=-1).numpy()
            for row, probabilities in enumerate(answers):
                said = {"split": split, "row": row, "probabilities": [float(f"{p:.7g}") for p in probabilities]}
                file.write(json.dumps(said) + "\n")
            right = float((answers.argmax(axis=1) == np.array(rows["label"])).mean())
            print(f"{split}: {len(rows)} rows, the most alike name is right on {right:.3f}")


if __name__ == "__main__":
    main()
