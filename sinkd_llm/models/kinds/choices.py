"""What a model thinks of the answer choices of a ranking batch, whatever its kind.

Shapes: B examples, S sequences, C choices, T tokens of the longest choice, K choices that are there, N scored rows,
V vocabulary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.models.kinds.contract import IGNORE_INDEX, Kind, SupervisedRows
from sinkd_llm.models.kinds.shared_prompt import can_share_prompts, shared_prompt_logits


@dataclass(frozen=True)
class ChoiceScores:
    """
    What a model thinks of the choices of a batch.

    Attributes:
        log_likelihood_BC (`Tensor` `[B, C]`): summed over the tokens of the choice, in nats, -inf where a row has
            fewer choices. For a regression, minus the squared distance between prediction and choice.
        length_BC (`Tensor` `[B, C]`): numbers of tokens, 0 where a row has fewer choices.
        number_B (`Tensor` `[B]`, *optional*): what a regression head predicts, its choices spanning [0, 1].
    """

    log_likelihood_BC: Tensor
    length_BC: Tensor
    number_B: Tensor | None = None


def choice_log_likelihoods(supervised: SupervisedRows, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """
    Log-likelihood of every choice of a ranking batch.

    Args:
        supervised ([`SupervisedRows`]): rows of the batch's S sequences.
        batch (`Mapping`): `choice_ids` `[B, C, T]` and `choice_sequence` `[B, C]` of [`AnswerCollator`].

    Returns:
        `tuple[Tensor, Tensor]`: the first two attributes of [`ChoiceScores`].
    """
    scores = _scores([supervised], batch)
    return scores.log_likelihood_BC, scores.length_BC


def score_choices(
    kind: Kind, model: torch.nn.Module, batch: Mapping[str, Any], *, share_prompts: bool = True
) -> ChoiceScores:
    """
    Runs a model on a ranking batch.

    Where the rows of a decoder-only model have several sequences each, their prompts are run once and the choices
    continue from the cache: see [`shared_prompt_logits`]. Choices of one token cost one forward in any case.

    Args:
        kind ([`Kind`]): of the model.
        model (`nn.Module`): possibly wrapped.
        batch (`Mapping`): of the kind's collator, on the model's device.
        share_prompts (`bool`, *optional*, defaults to `True`): `False` runs every batch in one forward, so that the
            ranks of a sharded model stay in step.
    """
    several = len(batch["labels"]) > len(batch["choice_ids"])
    if several and share_prompts and kind.continues_prompt and can_share_prompts(model):
        return _scores(shared_prompt_logits(model, batch, _prompt_of_sequence(batch)), batch)
    return _scores([kind.supervised_rows(model, batch)], batch)


def _scores(parts: Iterable[SupervisedRows], batch: Mapping[str, Any]) -> ChoiceScores:
    """The scores from the supervised logits of the batch, in parts of whole sequences."""
    choice_ids_BCT, sequence_BC = batch["choice_ids"], batch["choice_sequence"]
    present_BC = sequence_BC >= 0
    longest = choice_ids_BCT.shape[-1]
    num_sequences = batch["labels"].shape[0]
    log_likelihood_BC = torch.full(sequence_BC.shape, -torch.inf, device=sequence_BC.device)
    for part in parts:
        if "choice_values" in batch:
            number_B = part.logits_NV.float()[sequence_BC[:, 0], 0]
            distance_BC = (number_B[:, None] - batch["choice_values"]).square()
            return ChoiceScores((-distance_BC).masked_fill(~present_BC, -torch.inf), present_BC.long(), number_B)
        device = part.logits_NV.device
        # row_ST[s, t] is the row that predicts the t-th answer token of sequence s.
        row_ST = torch.full((num_sequences, longest), -1, dtype=torch.long, device=device)
        row_ST[part.example_N, part.position_N] = torch.arange(len(part.labels_N), device=device)
        b_K, c_K = torch.nonzero(present_BC & (row_ST[sequence_BC.clamp_min(0), 0] >= 0), as_tuple=True)
        choice_ids_KT = choice_ids_BCT[b_K, c_K]
        row_KT = row_ST[sequence_BC[b_K, c_K]]
        log_probs_NV = part.logits_NV.float().log_softmax(dim=-1)
        log_probs_KT = log_probs_NV[row_KT.clamp_min(0), choice_ids_KT.clamp_min(0)]
        log_likelihood_BC[b_K, c_K] = torch.where(choice_ids_KT != IGNORE_INDEX, log_probs_KT, 0.0).sum(dim=-1)
    return ChoiceScores(log_likelihood_BC, (choice_ids_BCT != IGNORE_INDEX).sum(dim=-1))


def _prompt_of_sequence(batch: Mapping[str, Any]) -> Tensor:
    """Index in the batch of the row that each sequence belongs to: `[S]`."""
    sequence_BC = batch["choice_sequence"]
    b_K, c_K = torch.nonzero(sequence_BC >= 0, as_tuple=True)
    prompt_S = sequence_BC.new_zeros(len(batch["labels"]))
    prompt_S[sequence_BC[b_K, c_K]] = b_K
    return prompt_S
