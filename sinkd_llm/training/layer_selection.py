"""Chooses the layers of a student by what the model that they are of does with training rows.

Shapes: B rows, C choices, N answers (rows, or supervised tokens), V outputs.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import InputError
from sinkd_llm.evaluation.batches import batches_by_length
from sinkd_llm.evaluation.batches import on_device as batch_on_device
from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.kinds import Kind, context_length, kind_of, output_size
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.models.kinds.over_choices import normalised
from sinkd_llm.models.kinds.trial import in_eval_mode
from sinkd_llm.models.layer_choice import (
    EVEN,
    INFLUENCE,
    LIST,
    LayerChoice,
    by_answers,
    by_influence,
    choice_of,
)
from sinkd_llm.models.layer_stacks import layer_stacks, layers_of
from sinkd_llm.models.layers import by_part, kept_layers, select_layers
from sinkd_llm.models.origin import new_modules_of, note_layers
from sinkd_llm.models.partitioning import on_device
from sinkd_llm.models.quantisation import is_quantised
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.objectives.divergences import DIVERGENCES
from sinkd_llm.terminal import say
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.settings.layers import listed_layers

logger = logging.getLogger(__name__)


def cut_student(model: Any, args: SinKDConfig, tokenizer: Any, rows: Any) -> Any:
    """
    The student of some layers of `model`, which are said, and noted on it (`noted_layers`).

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model to take layers from; it is not changed. Of one without
            weights, which is there to be measured, evenly spaced layers stand for those that will be chosen.
        args ([`SinKDConfig`]): how many layers, and how they are chosen.
        tokenizer (`PreTrainedTokenizerBase`): the model's; not needed for layers that are listed or evenly spaced.
        rows ([`~datasets.Dataset`]): training rows, of which `layer_selection_rows` are looked at.

    Raises:
        InputError: see [`select_layers`]; where rows are to be looked at, also for a model that is quantised and for
            rows that are missing or tokenised already.
    """
    if any(weight.is_meta for weight in model.parameters()) and listed_layers(args.layer_selection) is None:
        assert args.student_layers is not None
        return select_layers(model, args.student_layers, args.student_decoder_layers)
    choice = choose_layers(model, args, tokenizer, rows)
    student = select_layers(model, *choice.kept.values())
    note_layers(student, choice)
    say(choice.in_words())
    return student


def choose_layers(model: Any, args: SinKDConfig, tokenizer: Any, rows: Any) -> LayerChoice:
    """
    The layers that a student will have; arguments and errors are those of [`cut_student`].

    All processes of a launch look at the same rows, and what the first one chose holds for all.
    """
    assert args.student_layers is not None
    inner = unwrap(model)
    stacks = layer_stacks(inner)
    totals = {part: len(layers) for part, layers in layers_of(inner, stacks).items()}
    wanted = by_part(inner, stacks, args.student_layers, args.student_decoder_layers)
    lists = listed_layers(args.layer_selection)
    if lists is not None:
        return choice_of(LIST, model, by_part(inner, stacks, lists[0], lists[-1] if len(stacks) > 1 else None))
    if args.layer_selection == EVEN:
        return choice_of(EVEN, model, {part: kept_layers(n, totals[part], part) for part, n in wanted.items()})
    if is_quantised(inner):
        raise InputError(
            f"layer_selection is {args.layer_selection}, which runs the model to choose its layers, and a quantised "
            "model may repack its weights for good when it runs; let it choose once without quantisation, and list "
            "the layers that it names: layer_selection 0,2,5."
        )
    sample = _sample(rows, args)
    if args.layer_selection != INFLUENCE and new_modules_of(inner):
        logger.warning(
            "layer_selection is %s, but %s of the model starts with random weights, so that its answers say little of "
            "its layers; influence does not look at them.",
            args.layer_selection,
            ", ".join(new_modules_of(inner)),
        )
    say(f"Choosing layers by {args.layer_selection} over {len(sample)} training rows …")
    if args.layer_selection != INFLUENCE and inner is not model:
        model = select_layers(model, *totals.values())  # the adapter is folded into a copy, as in the student
    spread = len({*(getattr(inner, "hf_device_map", None) or {}).values()}) > 1  # over devices, when it was loaded
    with nullcontext() if spread else on_device(model, args.device), in_eval_mode(unwrap(model)):
        if args.layer_selection == INFLUENCE:
            found = by_influence(model, wanted, _Prompts(model, args, tokenizer, sample).read, len(sample))
        else:
            found = by_answers(model, wanted, _Answers(model, args, tokenizer, sample).change, len(sample))
    ranks = Ranks.of()
    return found if ranks is None else ranks.merged({ranks.index: found})[0]


def _sample(rows: Any, args: SinKDConfig) -> list[dict[str, Any]]:
    """Some training rows, spread over all of them, for they may be sorted; a row without a label gets the first."""
    columns = getattr(rows, "column_names", None)
    if not columns or not {"prompt", "completion"} <= {*columns}:
        raise InputError(
            f"layer_selection is {args.layer_selection}, which reads training rows, and "
            + ("none are given" if not columns else f"these have the columns {sorted(columns)}")
            + "; give rows with `prompt` and `completion`, or list the layers: layer_selection 0,2,5."
        )
    count = min(args.layer_selection_rows, len(rows))
    return [_with_label(rows[i * len(rows) // count]) for i in range(count)]


def _with_label(row: dict[str, Any]) -> dict[str, Any]:
    if row.get("choices") and row.get("label") in (None, NO_LABEL):
        return {**row, "label": 0, "completion": row["choices"][0]}
    return row


class _Rows:
    """Some rows as a model reads them: `features`, and `batch` of some of them on the model's device."""

    def __init__(self, model: Any, args: SinKDConfig, tokenizer: Any, rows: Sequence[Any], ranking: bool) -> None:
        from datasets import Dataset

        reading = Reading.of(args).within(context_length(model))
        self.kind: Kind = kind_of(model)
        self.model, self.device = model, unwrap(model).get_input_embeddings().weight.device
        tokenize = row_tokenizer(model, tokenizer, reading)
        self.features = tokenize_dataset(Dataset.from_list(list(rows)), tokenize, ranking=ranking)
        self._collate = row_collator(model, tokenizer)

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        return batch_on_device(self._collate([self.features[i] for i in indices]), self.device)


class _Prompts(_Rows):
    """Prompts with their answers, one a batch."""

    def __init__(self, model: Any, args: SinKDConfig, tokenizer: Any, rows: Sequence[Any]) -> None:
        # A head reads the same of a row whatever its label; only a row to rank needs none.
        super().__init__(model, args, tokenizer, rows, ranking=kind_of(model).scores_classes)

    def read(self) -> None:
        """Runs the model on each row by itself."""
        for index in range(len(self.features)):
            self.kind.supervised_rows(self.model, self.batch([index]))


class _Answers(_Rows):
    """What a model answers: its scores of the choices or classes of a row, or of the tokens of an answer."""

    def __init__(self, model: Any, args: SinKDConfig, tokenizer: Any, rows: Sequence[Any]) -> None:
        super().__init__(model, args, tokenizer, rows, ranking="choices" in rows[0])
        self._over_choices = "choices" in rows[0] and not self.kind.scores_classes
        self._normalisation, self._regression = args.choice_normalisation, output_size(model) == 1
        lengths = [len(ids) for ids in self.features["prompt_ids"]]
        self._batches = [self.batch(chosen) for chosen in batches_by_length(lengths, args.per_device_eval_batch_size)]
        # Over a whole vocabulary the model's own answers would fill the memory; there they are asked for again.
        few = self._over_choices or self.kind.scores_classes
        self._own = [self._scores(model, batch) for batch in self._batches] if few else None

    def change(self, view: Any) -> float:
        """
        How far the answers of a model with fewer layers are from those of the whole one: the mean KL divergence from
        the whole one's, in nats; of predicted numbers the mean squared difference.
        """
        total, count = 0.0, 0
        for index, batch in enumerate(self._batches):
            own_NV = self._own[index] if self._own is not None else self._scores(self.model, batch)
            its_NV = self._scores(view, batch)
            value_N = (its_NV - own_NV).square()[:, 0] if self._regression else DIVERGENCES["kl"](its_NV, own_NV)
            total, count = total + float(value_N.sum()), count + len(value_N)
        return total / count

    def _scores(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """In fp64, for a divergence of nearly equal answers is lost in the rounding of fp32."""
        with torch.no_grad():
            if self._over_choices:
                return normalised(score_choices(self.kind, model, batch), self._normalisation).double()
            return self.kind.supervised_rows(model, batch).logits_NV.double()
