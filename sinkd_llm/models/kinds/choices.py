"""What a model thinks of the answer choices of a ranking batch, whatever its kind.

Shapes: B examples, C choices, P tokens of the longest prompt, E trees of a part, N rows of logits of a part, F tokens
of its choices, K its choices, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.distributed import Ranks
from sinkd_llm.models.heads import logits_at
from sinkd_llm.models.kinds.choice_tree import ChoiceTree
from sinkd_llm.models.kinds.choose import output_size
from sinkd_llm.models.kinds.contract import IGNORE_INDEX, LOGITS_AT_A_TIME, Kind
from sinkd_llm.models.kinds.encoder_decoder import decoder_input_ids
from sinkd_llm.models.kinds.prefix import Prefix
from sinkd_llm.models.kinds.prefix_sharing import KeptPrefix, shared_prefix
from sinkd_llm.models.kinds.shared_prompt import can_share_prompts, path_logits, shared_prompt_logits
from sinkd_llm.models.kinds.tree_attention import takes_trees, tree_logits
from sinkd_llm.models.wrappers import accepted, unwrap

# A larger tree is cut: attention over it grows with the square of its nodes.
NODES_AT_A_TIME = 512
# A processor gains nothing from more logits at once, 64 MiB in fp32.
LOGITS_ON_A_PROCESSOR = 2**24


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


@dataclass(frozen=True, eq=False)
class _Entry:
    """A tree after the prompt of a row, and which of the row's choices it has."""

    row: int
    tree: ChoiceTree
    choices: Sequence[int]


def score_choices(
    kind: Kind,
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    ranks: Ranks | None = None,
    kept: KeptPrefix | None = None,
) -> ChoiceScores:
    """
    Runs a model on a ranking batch, in parts with at most [`LOGITS_AT_A_TIME`] logits, or those of one tree.

    Each beginning of a choice is read once: by a decoder that takes the mask of a tree in one forward with the prompt,
    by others text by text, without a gradient from the cache of the prompt where there is one. Without a gradient a
    decoder also reads once what all prompts of the batch begin with, such as the examples before each question.
    Differentiable.

    Args:
        kind ([`Kind`]): of the model.
        model (`nn.Module`): possibly wrapped.
        batch (`Mapping`): of the kind's collator, on the model's device: `trees`, and what the kind reads of B rows.
        ranks ([`Ranks`], *optional*): those that call the model's parts together, each with a batch of its own: all
            make the same number of forwards.
    """
    trees: Sequence[ChoiceTree] = batch["trees"]
    device = batch["label"].device
    most = max(len(tree.choices) for tree in trees)
    lengths = [[*map(len, tree.choices), *[0] * (most - len(tree.choices))] for tree in trees]
    length_BC = torch.tensor(lengths, device=device)
    nothing_BC = torch.full(length_BC.shape, -torch.inf, device=device)
    if "choice_values" in batch:
        number_B = _full_precision(kind.supervised_rows(model, batch).logits_NV)[:, 0]
        distance_BC = (number_B[:, None] - batch["choice_values"]).square()
        return ChoiceScores(nothing_BC.where(length_BC == 0, -distance_BC), length_BC, number_B)

    parts = _parts(kind, model, trees, device)
    forwards = len(parts) if ranks is None else max(n for (n,) in ranks.numbers(len(parts), device=device))
    prefix = None
    if kind.writes_text and kind.continues_prompt:
        ids_BP, mask_BP = batch["input_ids"], batch["attention_mask"]
        longest = ids_BP.shape[1] + max(len(tree.tokens) for tree in trees)
        prefix = shared_prefix(model, ids_BP, mask_BP, longest, ranks, kept)
    sums, rows, columns = [], [], []
    for index in range(forwards):
        part = parts[min(index, len(parts) - 1)]
        sum_K = _log_likelihoods(_logits(kind, model, batch, part, prefix, alone=ranks is None), part)
        if index < len(parts):
            sums.append(sum_K)
            rows += [entry.row for entry in part for _ in entry.choices]
            columns += [c for entry in part for c in entry.choices]
    places = torch.tensor(rows, device=device), torch.tensor(columns, device=device)
    found = torch.cat(sums)
    return ChoiceScores(nothing_BC.to(found.dtype).index_put(places, found), length_BC)


def _parts(kind: Kind, model: nn.Module, trees: Sequence[ChoiceTree], device: torch.device) -> list[list[_Entry]]:
    if not kind.writes_text:  # one row of logits for each row of the batch
        return [[_Entry(b, tree, range(len(tree.choices))) for b, tree in enumerate(trees)]]
    entries = [_Entry(b, *piece) for b, tree in enumerate(trees) for piece in tree.pieces(NODES_AT_A_TIME)]
    room = LOGITS_ON_A_PROCESSOR if device.type == "cpu" else LOGITS_AT_A_TIME
    room //= output_size(model)
    parts: list[list[_Entry]] = [[]]
    taken = 0
    for entry in entries:
        if parts[-1] and taken + entry.tree.rows > room:
            parts.append([])
            taken = 0
        parts[-1].append(entry)
        taken += entry.tree.rows
    return parts


def _logits(
    kind: Kind, model: nn.Module, batch: Mapping[str, Any], part: Sequence[_Entry], prefix: Prefix | None, alone: bool
) -> Tensor:
    """The rows of the part's trees, `[N, V]`, tree by tree; `alone`: the number of forwards is free."""
    trees = [entry.tree for entry in part]
    if not kind.writes_text:
        return kind.supervised_rows(model, batch).logits_NV
    row_E = torch.tensor([entry.row for entry in part], device=batch["label"].device)
    ids_EP, mask_EP = batch["input_ids"][row_E], batch["attention_mask"][row_E]
    longest = int(mask_EP.sum(dim=1).max())
    if not kind.continues_prompt:
        return _decoder_logits(model, ids_EP[:, :longest], mask_EP[:, :longest], trees, *batch["around_answers"])
    ids_EP, mask_EP = ids_EP[:, -longest:], mask_EP[:, -longest:]
    branches, length = max(len(tree.paths) for tree in trees) > 1, longest + max(len(tree.tokens) for tree in trees)
    # Where ranks count forwards, the check is made by all of them at once, in their first batch.
    if (branches or not alone) and takes_trees(model, length) and branches:
        return tree_logits(model, ids_EP, mask_EP, trees, prefix)
    if branches and alone and not torch.is_grad_enabled() and can_share_prompts(model, length):
        return shared_prompt_logits(model, ids_EP, mask_EP, trees, prefix)
    return path_logits(model, ids_EP, mask_EP, trees, prefix)


def _decoder_logits(
    model: nn.Module,
    ids_EP: Tensor,
    mask_EP: Tensor,
    trees: Sequence[ChoiceTree],
    before: Sequence[int],
    after: Sequence[int],
) -> Tensor:
    """
    The rows of trees that an encoder-decoder writes, `[N, V]`: prompts are encoded once (with gradients once a path),
    and the decoder reads the paths. `before` and `after`: the special tokens around an answer.
    """
    from transformers.modeling_outputs import BaseModelOutput

    targets, asked, tree_of_path = [], [], []
    for e, tree in enumerate(trees):
        for q, (choice, new_T) in enumerate(zip(tree.ending(), tree.new_QT.tolist(), strict=True)):
            closed = not after or choice[-len(after) :] == tuple(after)
            targets.append([*before, *choice, *(() if closed else after)])
            # The token at a place of the answer is predicted by the node before it.
            asked.append([False] * len(before) + [q == 0, *new_T[: len(choice) - 1]])
            tree_of_path.append(e)
    length, device = max(map(len, targets)), ids_EP.device
    target_CT = torch.tensor([[*row, *[IGNORE_INDEX] * (length - len(row))] for row in targets], device=device)
    asked_CT = torch.tensor([[*row, *[False] * (length - len(row))] for row in asked], device=device)
    tree_C = torch.tensor(tree_of_path, device=device)
    encoded: dict[str, Any] = {"input_ids": ids_EP.index_select(0, tree_C)}
    if not torch.is_grad_enabled():
        # Inside wrappers, which have to see the whole forward only where gradients are gathered.
        hidden = unwrap(model).get_encoder()(input_ids=ids_EP, attention_mask=mask_EP).last_hidden_state
        encoded = {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden.index_select(0, tree_C))}
    return logits_at(
        model,
        asked_CT,
        decoder_input_ids=decoder_input_ids(model, target_CT),
        attention_mask=mask_EP.index_select(0, tree_C),
        **encoded,
        **accepted(model, {"use_cache": False}),
    )


def _log_likelihoods(logits_NV: Tensor, part: Sequence[_Entry]) -> Tensor:
    """The log-likelihood of each choice of the part, `[K]`, tree by tree."""
    device = logits_NV.device
    sources, tokens, numbers, row, choice = [], [], [], 0, 0
    for entry in part:
        source_F, token_F, number_F = entry.tree.predicted_F
        sources.append(source_F + row)
        tokens.append(token_F)
        numbers.append(number_F + choice)
        row += entry.tree.rows
        choice += len(entry.tree.choices)
    source_F, token_F, number_F = (torch.cat(part).to(device) for part in (sources, tokens, numbers))
    # Less than the largest of its row, for close numbers are told apart better near 0.
    top_N = _full_precision(logits_NV.detach().amax(dim=-1))
    few = max(1, 2**22 // logits_NV.shape[-1])  # so that the exponentials take little memory
    pairs = zip(logits_NV.split(few), top_N.split(few), strict=True)
    log_sum_N = torch.cat([(_full_precision(some) - top[:, None]).exp_().sum(dim=-1).log() for some, top in pairs])
    log_prob_F = _full_precision(logits_NV[source_F, token_F]) - top_N[source_F] - log_sum_N[source_F]
    return log_prob_F.new_zeros(choice).index_add(0, number_F, log_prob_F)


def _full_precision(numbers: Tensor) -> Tensor:
    return numbers if numbers.dtype == torch.float64 else numbers.float()
