"""Any kind of model as one that scores the answer choices of a row: a decoder, an encoder, a masked model.

Shape suffixes: B examples, C choices of the example with the most.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.heads import HeadForm
from sinkd_llm.models.kinds.choices import ChoiceScores, score_choices
from sinkd_llm.models.kinds.contract import Kind, SupervisedRows

# How the log-likelihood of a choice of several tokens becomes its score: their sum, or their mean.
CHOICE_NORMALISATIONS = ("sum", "token")
# What the kind of a model calls the labels of a batch, where these are the gold choices.
PLACES = "label_places"


class OverChoices:
    """
    A [`Kind`] whose classes are the choices of a row: one supervised row an example, C scores in it.

    The scores are log-likelihoods, so that their softmax is what the model thinks of the choices against each other;
    of a head with classes they are its log-probabilities, and of a head with one output its prediction alone.

    Args:
        kind ([`Kind`]): of the model.
        normalisation (`str`, *optional*, defaults to `"sum"`): `"sum"`: the log-likelihood of a choice; `"token"`: its
            mean over the tokens of the choice.
    """

    auto_class = class_table = ""
    class_endings: tuple[str, ...] = ()
    lora_task_type: str | None = None
    scores_classes = True
    writes_text = False

    def __init__(self, kind: Kind, normalisation: str = "sum") -> None:
        if normalisation not in CHOICE_NORMALISATIONS:
            raise InputError(
                f"choice_normalisation is {normalisation!r}; give one of {', '.join(CHOICE_NORMALISATIONS)}."
            )
        self.kind, self.normalisation = kind, normalisation
        self.title, self.name, self.body = kind.title, kind.name, kind.body
        self.continues_prompt = kind.continues_prompt

    def supervised_rows(
        self, model: nn.Module, batch: Mapping[str, Any], head: HeadForm | None = None, states: bool = False
    ) -> SupervisedRows:
        """`batch` is a ranking batch of the kind's collator, with `labels` `[B]`, -100 where there is none. No head
        has a form here: `head` is always `None`, and `states` always false."""
        read = {**batch, "labels": batch[PLACES]} if PLACES in batch else batch
        found = score_choices(self.kind, model, read)
        labels_B: Tensor = batch["labels"]
        scores = found.number_B[:, None] if found.number_B is not None else normalised(found, self.normalisation)
        return SupervisedRows(
            scores, labels_B, torch.arange(len(labels_B), device=labels_B.device), torch.zeros_like(labels_B).long()
        )


def normalised(found: ChoiceScores, normalisation: str) -> Tensor:
    """Scores of choices as a distribution is made of them, `[B, C]`, -inf where a row has fewer choices."""
    if normalisation == "sum":
        return found.log_likelihood_BC
    return found.log_likelihood_BC / found.length_BC.clamp(min=1)
