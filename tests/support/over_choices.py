"""What models of any kind think of the choices of a row, by one forward a choice, and the loss over that."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.support import naive

BOTH = {"alpha": 0.6, "temperature": 2.0, "sinkhorn_weight": 0.5, "sinkhorn_temperature": 1.5}


def naive_scores(model: Any, tokenizer: Any, kind: str, row: Mapping[str, Any]) -> Tensor:
    """The log-likelihood of each choice, one forward a choice without padding: `[C]`."""
    if kind == "encoder":
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        logits: Tensor = model(input_ids=ids).logits[0]
        return logits.log_softmax(-1)
    scores = []
    for choice in row["choices"]:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        if kind == "decoder":
            whole = tokenizer(row["prompt"] + choice, add_special_tokens=False)["input_ids"]
            start = tokenizer("")["input_ids"]  # what the tokenizer puts before every text
            logits = model(input_ids=torch.tensor([start + whole])).logits[0, len(start + prompt) - 1 : -1]
            target = whole[len(prompt) :]
        else:
            ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
            target = tokenizer(choice.strip(), add_special_tokens=False)["input_ids"]
            labels = torch.tensor([[*target, tokenizer.eos_token_id]])
            logits = model(input_ids=ids, labels=labels).logits[0, : len(target)]
        log_probabilities = logits.log_softmax(-1)
        scores.append(log_probabilities[torch.arange(len(target)), target].sum())
    return torch.stack(scores)


def naive_loss(student: Tensor, teacher: Tensor, labels: list[int], taught: list[int]) -> Tensor:
    """CE over the rows with a label, divergence and SinKD over the rows with a teacher, each a mean."""
    known = [i for i, label in enumerate(labels) if label >= 0]
    loss = (1 - BOTH["alpha"]) * naive.cross_entropy(student[known], torch.tensor([labels[i] for i in known])).mean()
    s, t, T = student[taught], teacher[taught], BOTH["temperature"]
    loss = loss + BOTH["alpha"] * T**2 * naive.divergence("kl", s, t, T).mean()
    cost = naive.cost(*(naive.softmax(x, BOTH["sinkhorn_temperature"]) for x in (s, t)))
    return loss + BOTH["sinkhorn_weight"] * naive.transport_value(cost, 0.1, 20)
