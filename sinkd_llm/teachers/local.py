"""A teacher that is a model in this process: frozen, in eval mode, without gradient.

Shapes: B rows of a batch for ranking, N supervised tokens, V vocabulary or classes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import InputError
from sinkd_llm.models.head_forms import head_to_fuse
from sinkd_llm.models.heads import HeadForm
from sinkd_llm.models.kinds import TEACHER, Kind, SupervisedRows, context_length, kind_of, output_size
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.models.kinds.class_heads import class_words
from sinkd_llm.models.kinds.over_choices import OverChoices
from sinkd_llm.models.partitioning import is_partitioned
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.teachers.choices import TeacherChoices, choice_counts, row_keys
from sinkd_llm.teachers.contract import TeacherRows, signal_of
from sinkd_llm.teachers.fit import check_pair
from sinkd_llm.teachers.placement import place_teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


class LocalTeacher:
    """
    A [`~sinkd_llm.teachers.contract.Teacher`] whose model is here.

    Args:
        model (`nn.Module`): the teacher, possibly quantised. Its parameters are frozen in place and it
            is put into eval mode; nothing here switches it back.
        name (`str`, *optional*): what it was loaded by; its tokenizer is looked for there. Default: what the model
            says of itself.
        trust_remote_code (`bool`, *optional*, defaults to `False`): whether code that comes with its tokenizer may
            run.
        choices (`str`, *optional*): its signal is over the answer choices of a row, with this normalisation, see
            [`~sinkd_llm.models.kinds.over_choices.OverChoices`]. Default: over its vocabulary or classes.
    """

    knows_training_rows_only = False
    recorded_score: dict[str, Any] | None = None

    def __init__(
        self,
        model: nn.Module,
        name: str | None = None,
        trust_remote_code: bool = False,
        choices: str | None = None,
    ) -> None:
        self.kind = kind_of(model)
        self._signal_kind: Kind = self.kind if choices is None else OverChoices(self.kind, choices)
        self.model = model.requires_grad_(False).eval()
        self.name, self.trust_remote_code = name, trust_remote_code
        self.context_length = context_length(model)
        self.scores_classes = self.kind.scores_classes
        self.outputs = output_size(model)
        self.classes = class_words(unwrap(model).config) if self.scores_classes else None
        self.over_choices = choices is not None
        self.needs_all_ranks = False
        self._choices = TeacherChoices()
        self._head: HeadForm | None = None
        self._gives_states = False

    def signal(self, batch: Mapping[str, Any]) -> TeacherRows:
        """See [`~sinkd_llm.teachers.contract.Teacher`]; the signal is the logits `[N, V]`, or hidden states and the
        head once [`check_objective`] has found that the loss can take the head over. With them come hidden states of
        the prompts, if the loss asks for these."""
        theirs = batch.get(TEACHER, batch)
        with torch.no_grad():
            rows = self._signal_kind.supervised_rows(self.model, theirs, self._head, self._gives_states)
        if not self.over_choices:
            return TeacherRows(signal_of(rows), rows.position_N, states_SH=rows.states_SH)
        # A batch that fills an epoch up holds a row that is not to count, and names none.
        count = _named_rows(batch)
        return TeacherRows(rows.logits_NV[:count], rows.position_N[:count], rows.example_N[:count])

    def count(self, batch: Mapping[str, Any]) -> int:
        """See [`~sinkd_llm.teachers.contract.Teacher`]: a model speaks of every row."""
        return _named_rows(batch)

    def groups_of(self, features: Any) -> None:
        """A model has a row for each row."""

    def check_finite(self, batch: Mapping[str, Any]) -> None:
        """See [`~sinkd_llm.teachers.contract.Teacher`]. A teacher that is spread over processes is not asked: the
        processes do not all come here."""
        if not self.needs_all_ranks:
            self.supervised_rows(batch.get(TEACHER, batch))

    @torch.no_grad()
    def supervised_rows(self, batch: Mapping[str, Any]) -> SupervisedRows:
        """
        The teacher's logits in the same rows, in the same order, as the student's of this batch.

        Args:
            batch (`Mapping`): of the collator of the teacher's kind.

        Raises:
            InputError: if a logit is NaN or infinite. The message names the examples
                (`batch["example_id"]`), for the reason is usually a broken checkpoint or a row that
                overflows in half precision.
        """
        supervised = self._signal_kind.supervised_rows(self.model, batch)
        finite_NV = torch.isfinite(supervised.logits_NV)
        if self.over_choices:  # where a row has fewer choices
            finite_NV |= supervised.logits_NV.isneginf()
        broken_N = ~finite_NV.all(dim=-1)
        self._refuse_broken(supervised.example_N[broken_N].unique().tolist(), batch)
        return supervised

    @staticmethod
    def _refuse_broken(broken: Sequence[int], batch: Mapping[str, Any]) -> None:
        """Refuses rows of the batch, by their numbers, for which the teacher gives no numbers."""
        if broken:
            names = batch.get("example_id")
            shown = ", ".join(str(names[i]) if names else f"row {i} of the batch" for i in broken[:5])
            more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
            raise InputError(
                f"The teacher's logits are NaN or infinite for {shown}{more}. Check the teacher's "
                "weights with `sinkd evaluate`, or load it in float32 or bfloat16 if it runs in float16."
            )

    def choices(self, batch: Mapping[str, Any]) -> Tensor:
        """Index of the choice that the teacher ranks first, `[B]`; it ranks each row once."""
        theirs = batch.get(TEACHER, batch)
        keys = row_keys(theirs)
        unknown = self._choices.missing(keys)
        ranks = Ranks.of() if self.needs_all_ranks else None
        if ranks is not None:
            unknown = bool(ranks.sum(torch.tensor(float(unknown), device=batch["label"].device)) > 0)
        if unknown:
            with torch.no_grad():
                scores = score_choices(self.kind, self.model, theirs, ranks=ranks)
            broken_BC = (scores.length_BC > 0) & ~torch.isfinite(scores.log_likelihood_BC)
            self._refuse_broken(broken_BC.any(dim=1).nonzero().flatten().tolist(), theirs)
            self._choices.add(keys, scores.log_likelihood_BC.argmax(dim=-1).tolist())
        return torch.tensor(self._choices.of(keys, choice_counts(theirs)), device=batch["label"].device)

    def check_fits(
        self, student: Any, tokenizer: Any, reading: Mapping[str, Any], classes: Sequence[str] | None = None
    ) -> None:
        """See [`~sinkd_llm.teachers.fit.check_pair`]; a model reads rows as the run does. Over answer choices any two
        models fit."""
        if self.over_choices:
            if self.scores_classes and self.outputs == 1 and output_size(student) != 1:
                raise InputError(
                    "The teacher predicts a number, and the student ranks choices, which a number alone does not "
                    "weigh; give a student with one output, or a teacher that ranks."
                )
            return
        check_pair(self.model, self.name, student, tokenizer, self.trust_remote_code, classes)

    def check_objective(self, objective: Any, verbalizer_ids: Tensor | None, tolerance: float) -> None:
        """Whole rows are all that any objective asks for; it is found how the head makes them."""
        if objective.uses_teacher and not self.over_choices:
            self._gives_states = objective.states.in_use
            self._head = head_to_fuse(self.model, "teacher", objective.fused)

    def check_rows(self, features: Any) -> None:
        """A model reads any row."""

    def place(self, accelerator: "Accelerator", placement: str) -> None:
        """See [`~sinkd_llm.teachers.placement.place_teacher`]."""
        self.model = place_teacher(self.model, accelerator, placement)
        self.needs_all_ranks = is_partitioned(self.model)


def _named_rows(batch: Mapping[str, Any]) -> int:
    names = batch.get("example_id")
    return len(batch["labels"]) if names is None else len(names)
